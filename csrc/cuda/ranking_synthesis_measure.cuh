// Lengths of synthesised rows and their similarities to targets. A warp takes four rows at a time
// and reads each shift once for all of them; only the sums over the dimensions leave it.
#pragma once

#include "engine/ptx.cuh"
#include "engine/rows.cuh"
#include "engine/warp.cuh"
#include "ranking_form.h"
#include "ranking_synthesis.h"

namespace dmlfast::cuda {

constexpr int kMeasureThreads = 128;
constexpr int kMeasureWarps = kMeasureThreads / 32;
constexpr int kGroupRows = 4;    // rows of a warp at a time
constexpr int kColumnShare = 4;  // columns of a lane at a time
constexpr int kGroupColumns = 32 * kColumnShare;
constexpr int kGroupSteps = 32;  // shifts whose sums a warp has at a time

// Of rows whose elements lie side by side.
__device__ inline float value_at(const Rows<float>& rows, int64_t row, int64_t column) {
  return rows.data[row * rows.row_stride + column];
}

__device__ inline bool is_ordinary(float square) {
  return square >= kLeastSquare && square <= kGreatestSquare;
}

// Of a pair of a row and a shift. A length of 0 is 1 here, one that is not finite is NaN.
struct SynthesisMeasure {
  double length;      // of v
  double own_length;  // that the target is divided by
  double similarity;
};

// Of a warp: by shift, four squared lengths and four products.
using GroupSums = float[kGroupSteps][2 * kGroupRows];

// The elements of four rows in the columns of a lane; 0 past the last column. Past the last row is
// that row again, whose sums nobody takes.
struct GroupShare {
  float projected[kGroupRows][kColumnShare];
  float target[kGroupRows][kColumnShare];

  __device__ __forceinline__ void read(const SynthesisRows& rows, int64_t row, int64_t column) {
    const int64_t last = rows.projected.rows - 1;
#pragma unroll
    for (int r = 0; r < kGroupRows; ++r) {
      const int64_t i = row + r < last ? row + r : last;
#pragma unroll
      for (int c = 0; c < kColumnShare; ++c) {
        const int64_t k = column + 32 * c;
        const bool exists = k < rows.projected.columns;
        projected[r][c] = exists ? value_at(rows.projected, i, k) : 0.0f;
        target[r][c] = !rows.has_targets() ? fmaxf(projected[r][c], 0.0f)
                       : exists            ? value_at(rows.targets, i, k)
                                           : 0.0f;
      }
    }
  }
};

// Sums over the columns for four rows and `count` shifts. Returns the squared length of projected
// row lane % 4.
__device__ __forceinline__ float sum_group(const SynthesisRows& rows, int64_t row, int64_t first,
                                           int count, GroupSums& sums) {
  const int lane = lane_number();
  const int64_t columns = rows.projected.columns;
  float own[2 * kGroupRows] = {};
  for (int at = lane; at < count * 2 * kGroupRows; at += 32) {
    sums[at / (2 * kGroupRows)][at % (2 * kGroupRows)] = 0.0f;
  }
  __syncwarp();
  for (int64_t begin = 0; begin < columns; begin += kGroupColumns) {
    GroupShare share;
    share.read(rows, row, begin + lane);
#pragma unroll
    for (int r = 0; r < kGroupRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumnShare; ++c) {
        own[r] = multiply_add(share.projected[r][c], share.projected[r][c], own[r]);
      }
    }
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
      float found[2 * kGroupRows] = {};
#pragma unroll
      for (int c = 0; c < kColumnShare; ++c) {
        const int64_t k = begin + lane + 32 * c;
        if (begin + 32 * c < columns) {
          const float shift = k < columns ? value_at(rows.shifts, first + j, k) : 0.0f;
#pragma unroll
          for (int r = 0; r < kGroupRows; ++r) {
            const float value = share.projected[r][c] + shift;
            found[r] = multiply_add(value, value, found[r]);
            found[kGroupRows + r] =
                multiply_add(fmaxf(value, 0.0f), share.target[r][c], found[kGroupRows + r]);
          }
        }
      }
      const float sum = warp_sums(found);
      if (lane % 4 == 0) {
        sums[j][lane / 4] += sum;
      }
    }
  }
  __syncwarp();
  return __shfl_sync(kAllLanes, warp_sums(own), lane % kGroupRows * 4);
}

// 1 for a row of 0, which the length divides.
__device__ inline double careful_length(double square) {
  return square < INFINITY ? square == 0.0 ? 1.0 : sqrt(square) : NAN;
}

// In float64, where neither the square of a float32 nor its inverse leaves the range.
__device__ inline SynthesisMeasure measure_carefully(const SynthesisRows& rows, int64_t i,
                                                     int64_t j) {
  double own_square = 0.0;
  double square = 0.0;
  double product = 0.0;
  for (int64_t k = lane_number(); k < rows.projected.columns; k += 32) {
    const double projected = value_at(rows.projected, i, k);
    const double value = projected + value_at(rows.shifts, j, k);
    const double target = rows.has_targets() ? value_at(rows.targets, i, k) : fmax(projected, 0.0);
    own_square += projected * projected;
    square += value * value;
    product += fmax(value, 0.0) * target;
  }
  const double own_length = rows.has_targets() ? 1.0 : careful_length(warp_sum(own_square));
  const double length = careful_length(warp_sum(square));
  return {length, own_length, warp_sum(product) / length / own_length};
}

// Which of four rows a lane votes for: bit r for the lanes with lane % 4 = r.
__device__ inline unsigned group_vote(bool vote) {
  unsigned votes = __ballot_sync(kAllLanes, vote);
  votes |= votes >> 16;
  votes |= votes >> 8;
  votes |= votes >> 4;
  return votes & 15u;
}

// Hands the measures of four rows and all shifts to the takers of a warp. Row lane % 4 is that of a
// lane: it gets take(row, shift, measure), whose result is whether float32 holds what it makes of
// it. In the end every lane gets finish(row, whether it is the one to write, needs_care), where
// needs_care says that float32 did not hold some of the row.
template <class Taker>
__device__ __forceinline__ void measure_group(const SynthesisRows& rows, int64_t row,
                                              GroupSums& sums, Taker& taker) {
  const int lane = lane_number();
  const int64_t own_row = row + lane % kGroupRows;
  const bool exists = own_row < rows.projected.rows;
  const int64_t steps = rows.shifts.rows;
  unsigned needs_care = 0;
  for (int64_t first = 0; first < steps; first += kGroupSteps) {
    const int count = static_cast<int>(steps - first < kGroupSteps ? steps - first : kGroupSteps);
    const float own_square = sum_group(rows, row, first, count, sums);
    bool is_lost = !rows.has_targets() && !is_ordinary(own_square);
    for (int at = lane; at < count * kGroupRows; at += 32) {
      const float product = sums[at / kGroupRows][kGroupRows + at % kGroupRows];
      is_lost = is_lost || !is_ordinary(sums[at / kGroupRows][at % kGroupRows]) ||
                !(fabsf(product) < INFINITY);
    }
    const unsigned lost = group_vote(is_lost && exists);
    const double own_length = rows.has_targets() ? 1.0 : sqrt(static_cast<double>(own_square));
    for (int at = lane; exists && (lost >> lane % kGroupRows & 1u) == 0 && at < count * kGroupRows;
         at += 32) {
      const double length = sqrt(static_cast<double>(sums[at / kGroupRows][at % kGroupRows]));
      const double product = sums[at / kGroupRows][kGroupRows + at % kGroupRows];
      const SynthesisMeasure measure{length, own_length, product / (length * own_length)};
      is_lost = !taker.take(own_row, first + at / kGroupRows, measure) || is_lost;
    }
    for (int r = 0; r < kGroupRows; ++r) {
      for (int j = 0; (lost >> r & 1u) != 0 && j < count; ++j) {
        const SynthesisMeasure measure = measure_carefully(rows, row + r, first + j);
        if (lane == r) {
          taker.take(row + r, first + j, measure);
        }
      }
    }
    needs_care |= group_vote(is_lost && exists);
    __syncwarp();
  }
  taker.finish(own_row, exists && lane < kGroupRows, (needs_care >> lane % kGroupRows & 1u) != 0);
}

template <class Taker>
__global__ void __launch_bounds__(kMeasureThreads, 5)
    synthesis_measure_kernel(SynthesisRows rows, Taker given) {
  __shared__ GroupSums sums[kMeasureWarps];
  const int64_t step = int64_t{gridDim.x} * kMeasureWarps * kGroupRows;
  for (int64_t row = (int64_t{blockIdx.x} * kMeasureWarps + warp_number()) * kGroupRows;
       row < rows.projected.rows; row += step) {
    Taker taker = given;
    measure_group(rows, row, sums[warp_number()], taker);
  }
}

template <class Taker>
void launch_synthesis_measure(const SynthesisRows& rows, const Taker& taker, cudaStream_t stream) {
  const int64_t groups = (rows.projected.rows + kGroupRows - 1) / kGroupRows;
  if (groups > 0) {
    DMLFAST_LAUNCH((synthesis_measure_kernel<Taker>),
                   dim3{grid_for((groups + kMeasureWarps - 1) / kMeasureWarps)}, kMeasureThreads,
                   stream, rows, taker);
  }
}

}  // namespace dmlfast::cuda
