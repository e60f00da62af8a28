// The product of a tile's weights with the rows of y, on the tensor cores: weights become operands
// in the registers of the threads that hold them, the rows are read from shared memory transposed.
#pragma once

#include "engine/tile.cuh"

namespace dmlfast::cuda {

// A thread's weights as operands: rows, times 16 columns of the tile for each k.
template <Precision kPrecision>
struct WeightOperands {
  static constexpr int kSteps = kTileColumns / kStepColumns;
  uint32_t high[kSteps][4];
  uint32_t low[kPrecision == Precision::split ? kSteps : 1][4];
  float unit[Fragment::kRows];  // a power of two for each row: the greatest weight to 2^13
};

// The power of two that brings a number to [2^13, 2^14), and its inverse; 1 where there is none.
__device__ inline float weight_scale(float greatest, float* inverse) {
  *inverse = 1.0f;
  if (!(greatest > 0.0f && greatest < INFINITY)) {
    return 1.0f;
  }
  int exponent = ilogbf(greatest) + 1 - kScaledExponent;
  exponent = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  *inverse = scalbnf(1.0f, exponent);
  return scalbnf(1.0f, -exponent);
}

template <Precision kPrecision>
__device__ inline void pack_weights(const Fragment& weights, WeightOperands<kPrecision>& to) {
  float scale[Fragment::kRows];
#pragma unroll
  for (int slot = 0; slot < Fragment::kRows; ++slot) {
    float greatest = 0.0f;
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      greatest = fmaxf(greatest, fabsf(weights.value[slot][j]));
    }
    greatest = join_quad(greatest, [](float a, float b) { return fmaxf(a, b); });
    scale[slot] = weight_scale(greatest, &to.unit[slot]);
  }
#pragma unroll
  for (int k = 0; k < WeightOperands<kPrecision>::kSteps; ++k) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      // Operand registers hold rows g and g + 8 of the first eight columns, then of the others.
      const int slot = part % 2;
      const int j = 4 * k + part / 2 * 2;
      const float first = weights.value[slot][j] * scale[slot];
      const float second = weights.value[slot][j + 1] * scale[slot];
      to.high[k][part] = pack_halves(first, second);
      if constexpr (kPrecision == Precision::split) {
        to.low[k][part] =
            pack_halves(first - to_float(to_half(first)), second - to_float(to_half(second)));
      }
    }
  }
  hold_operands(to.high);
  if constexpr (kPrecision == Precision::split) {
    hold_operands(to.low);
  }
}

// Where this lane reads the operands of 16 columns of y, from `chunk` on, the tile's first 16
// columns deep. Those of the columns after them lie whole lines further on.
__device__ inline unsigned char* depth_at(unsigned char* slab, int chunk) {
  const int lane = static_cast<int>(thread_anew() % 32);
  return chunk_at(slab, lane % 16, chunk + lane / 16);
}

// Adds the products of 16 rows and two times 8 columns.
__device__ inline void add_products(float (&d)[2][4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float (&sum)[4] = d[half];
    multiply_matrices(sum[0], sum[1], sum[2], sum[3], a, b[2 * half], b[2 * half + 1]);
  }
}

// Adds the weighted sum of one slab of y to its columns of the gradient.
template <Precision kPrecision>
__device__ inline void add_weighted_slab(const WeightOperands<kPrecision>& weights,
                                         unsigned char* y,
                                         float (&low_row)[kSlabColumns<kPrecision> / 4],
                                         float (&high_row)[kSlabColumns<kPrecision> / 4]) {
#pragma unroll
  for (int n = 0; n < kSlabColumns<kPrecision> / 16; ++n) {
    float d[2][4] = {};
    const unsigned char* const high_columns = depth_at(y, 2 * n);
    const unsigned char* const low_columns = depth_at(y, 4 + 2 * n);
#pragma unroll
    for (int k = 0; k < WeightOperands<kPrecision>::kSteps; ++k) {
      uint32_t b[4];
      if constexpr (kPrecision == Precision::split) {
        load_matrices_transposed(b, low_columns + 16 * k * kSlabLine);
        add_products(d, weights.high[k], b);
        __syncwarp();
      }
      load_matrices_transposed(b, high_columns + 16 * k * kSlabLine);
      if constexpr (kPrecision == Precision::split) {
        add_products(d, weights.low[k], b);
      }
      add_products(d, weights.high[k], b);
      // Keeps the compiler from having the operands of all steps in registers at once.
      if (kPrecision == Precision::split || k % 2 == 1) {
        __syncwarp();
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        low_row[4 * n + 2 * half + i] += d[half][i] * weights.unit[0];
        high_row[4 * n + 2 * half + i] += d[half][2 + i] * weights.unit[1];
      }
    }
  }
}

// The same, as group products. Split, the columns of a slab are its high and its low halves.
template <Precision kPrecision>
__device__ inline void add_weighted_group(const WeightOperands<kPrecision>& weights,
                                          unsigned char* y,
                                          float (&low_row)[kSlabColumns<kPrecision> / 4],
                                          float (&high_row)[kSlabColumns<kPrecision> / 4]) {
  constexpr int kColumns = kSlabColumns<kPrecision> / 4;
  const uint64_t first = matrix_descriptor(y, 16, 8 * (kSlab * 2));
  float d[Fragment::kRows][kSlab / 4];
  begin_products();
#pragma unroll
  for (int k = 0; k < WeightOperands<kPrecision>::kSteps; ++k) {
    const uint64_t b = advance(first, k * kStepColumns * (kSlab * 2));
    if (k == 0) {
      multiply_group<false>(d, weights.high[k], b);
    } else {
      multiply_group<true>(d, weights.high[k], b);
    }
    if constexpr (kPrecision == Precision::split) {
      multiply_group<true>(d, weights.low[k], b);
    }
  }
  end_products();
  hold_sums(d);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    if constexpr (kPrecision == Precision::split) {
      d[0][j] += d[0][kColumns + j];
      d[1][j] += d[1][kColumns + j];
    }
    low_row[j] += d[0][j] * weights.unit[0];
    high_row[j] += d[1][j] * weights.unit[1];
  }
}

template <Precision kPrecision>
__device__ inline void add_weighted(const WeightOperands<kPrecision>& weights, unsigned char* y,
                                    float (&low_row)[kSlabColumns<kPrecision> / 4],
                                    float (&high_row)[kSlabColumns<kPrecision> / 4]) {
  if constexpr (kHasGroupProducts) {
    add_weighted_group(weights, y, low_row, high_row);
  } else {
    add_weighted_slab(weights, y, low_row, high_row);
  }
}

}  // namespace dmlfast::cuda
