// A tile: 128 rows times 128 columns in the registers of 256 threads, and the slabs of operands in
// shared memory that it is multiplied from.
#pragma once

#include "engine/pack.cuh"
#include "engine/ptx.cuh"

namespace dmlfast::cuda {

constexpr int kTileColumns = kTileRows;
constexpr int kTileThreads = 256;
constexpr int kSlabBytes = kTileRows * kSlab * 2;

// What a thread holds of a tile. Warp w has the rows 16w to 16w + 15; lane 4g + t of it has rows g
// and g + 8, and of every eight columns 2t and 2t + 1. The same on the tensor cores of all devices.
struct Fragment {
  static constexpr int kRows = 2;
  static constexpr int kColumns = kTileColumns / 4;
  float value[kRows][kColumns];
};

// Of the calling thread: the row within the tile of one of its two rows.
__device__ inline int tile_row(int slot) {
  const unsigned thread = thread_anew();
  return static_cast<int>(thread / 32 * 16 + thread % 32 / 4) + 8 * slot;
}

// A thread has 32 of a tile's columns: from the first of them to another.
__device__ constexpr int column_offset(int j) { return j / 2 * 8 + j % 2; }

// Of the calling thread: the first of its columns within the tile.
__device__ inline int first_own_column() { return static_cast<int>(thread_anew() % 4 * 2); }

// The column within the tile of one of them.
__device__ inline int tile_column(int j) { return first_own_column() + column_offset(j); }

// Lanes whose rows are the same: the four of a quad.
template <class Value, class Join>
__device__ inline Value join_quad(Value value, const Join& join) {
  value = join(value, __shfl_xor_sync(kAllLanes, value, 1));
  return join(value, __shfl_xor_sync(kAllLanes, value, 2));
}

// Where what a walk leaves for each item's rows has the first part of a row's; the others lie a
// tile's rows apart.
__host__ __device__ inline int64_t first_part_of(const Split& split, int place) {
  return int64_t{place / kTileRows} * split.parts * kTileRows + place % kTileRows;
}

// Precision of a product of packed rows: one product of the first halves, or three, of fresh sums
// every 16 columns, which together are as good as float32.
enum class Precision { half, split };

// Whether rows are multiplied at float32's precision. Elements of 16 bits are halves as they are
// given; less a centre, or divided by a length, they have more digits, as the weights of gradients
// always have.
inline bool is_split(ElementType type, Metric metric, bool is_fast) {
  const bool are_halves = type != ElementType::float32 && metric == Metric::dot;
  return !is_fast && !are_halves;
}

// Rows of halves lie side by side, 128 bytes each. The 16-byte chunks of a row are permuted, so
// that eight rows at the same chunk touch all banks; wgmma calls this a swizzle of 128 bytes.
__device__ inline unsigned char* chunk_at(unsigned char* slab, int row, int chunk) {
  return slab + row * (kSlab * 2) +
         ((chunk ^ static_cast<int>(static_cast<unsigned>(row) % 8)) << 4);
}

// Columns of the packed rows that a slab covers.
template <Precision kPrecision>
constexpr int kSlabColumns = kPrecision == Precision::half ? kSlab : kSlab / 2;

template <Precision kPrecision>
__host__ __device__ inline int slabs_of(const PackedRows& rows) {
  return rows.padded_columns / kSlabColumns<kPrecision>;
}

// Starts to copy one slab of 128 rows; position_of gives a row's place, -1 for none. Split, the
// first 32 halves of a slab's row are of the high parts, the others of the low parts.
template <Precision kPrecision, class PositionOf>
__device__ inline void load_slab(unsigned char* slab, const PackedRows& rows, int number,
                                 const PositionOf& position_of) {
  const unsigned thread = thread_anew();
  const int first_row = static_cast<int>(thread / 8);
  const int chunk = static_cast<int>(thread % 8);
#pragma unroll
  for (int row = first_row; row < first_row + kTileRows; row += kTileThreads / 8) {
    const int position = position_of(row);
    const bool is_low = kPrecision == Precision::split && chunk >= 4;
    const int column = number * kSlabColumns<kPrecision> + (is_low ? chunk - 4 : chunk) * 8;
    const Half* from = (is_low ? rows.low : rows.high) +
                       (position < 0 ? 0 : static_cast<int64_t>(position)) * rows.padded_columns +
                       column;
    copy_async(chunk_at(slab, row, chunk), from, position >= 0);
  }
}

// The operand of the 16 rows of a thread's warp, 16 columns from `chunk` on.
__device__ inline void load_rows(uint32_t (&to)[4], unsigned char* slab, int chunk,
                                 unsigned thread) {
  const int lane = static_cast<int>(thread % 32);
  const int row = static_cast<int>(thread / 32) * 16 + lane % 16;
  load_matrices(to, chunk_at(slab, row, chunk + lane / 16));
}

constexpr int kSlabLine = kSlab * 2;  // bytes

// Where a thread reads the operands of the tile's first 16 columns, 16 columns of the packed rows
// from `chunk` on. Those of the columns after them lie whole lines further on.
__device__ inline unsigned char* columns_at(unsigned char* slab, int chunk, unsigned thread) {
  const int lane = static_cast<int>(thread % 32);
  return chunk_at(slab, lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2);
}

// Adds the product of two slabs to the tile.
__device__ inline void multiply_slabs_half(Fragment& tile, unsigned char* x, unsigned char* y) {
  const unsigned thread = thread_anew();
#pragma unroll 1
  for (int k = 0; k < kSlab / kStepColumns; ++k) {
    uint32_t a[4];
    load_rows(a, x, 2 * k, thread);
    const unsigned char* const columns = columns_at(y, 2 * k, thread);
#pragma unroll
    for (int n = 0; n < kTileColumns / 16; ++n) {
      uint32_t b[4];
      load_matrices(b, columns + 16 * n * kSlabLine);
      float* low = &tile.value[0][4 * n];
      float* high = &tile.value[1][4 * n];
      multiply_matrices(low[0], low[1], high[0], high[1], a, b[0], b[1]);
      multiply_matrices(low[2], low[3], high[2], high[3], a, b[2], b[3]);
    }
  }
}

// The same for split rows: what 16 columns add is summed from zero, so that its rounding errors
// are relative to itself. Of the products of a high and a low part those with the low part of the
// rows come first, or, where rows and columns are exchanged, of the columns: then they are the same
// to the bit.
template <bool kIsExchanged>
__device__ inline void multiply_slabs_split(Fragment& tile, unsigned char* x, unsigned char* y) {
  const unsigned thread = thread_anew();
#pragma unroll 1
  for (int k = 0; k < kSlab / 2 / kStepColumns; ++k) {
    uint32_t a_high[4];
    uint32_t a_low[4];
    load_rows(a_high, x, 2 * k, thread);
    load_rows(a_low, x, 4 + 2 * k, thread);
    const uint32_t (&a_first)[4] = kIsExchanged ? a_high : a_low;
    const uint32_t (&a_second)[4] = kIsExchanged ? a_low : a_high;
    const unsigned char* const high_columns = columns_at(y, 2 * k, thread);
    const unsigned char* const low_columns = columns_at(y, 4 + 2 * k, thread);
#pragma unroll
    for (int n = 0; n < kTileColumns / 16; ++n) {
      uint32_t b_high[4];
      uint32_t b_low[4];
      load_matrices(b_high, high_columns + 16 * n * kSlabLine);
      load_matrices(b_low, low_columns + 16 * n * kSlabLine);
      const uint32_t (&b_first)[4] = kIsExchanged ? b_low : b_high;
      const uint32_t (&b_second)[4] = kIsExchanged ? b_high : b_low;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const int b = 2 * half;
        multiply_matrices(d[0], d[1], d[2], d[3], a_first, b_first[b], b_first[b + 1]);
        multiply_matrices(d[0], d[1], d[2], d[3], a_second, b_second[b], b_second[b + 1]);
        multiply_matrices(d[0], d[1], d[2], d[3], a_high, b_high[b], b_high[b + 1]);
        tile.value[0][4 * n + b] += d[0];
        tile.value[0][4 * n + b + 1] += d[1];
        tile.value[1][4 * n + b] += d[2];
        tile.value[1][4 * n + b + 1] += d[3];
      }
      // Keeps the compiler from having the sums of all columns in registers at once.
      __syncwarp();
    }
  }
}

// Rows of a slab from `first` on, as group products take them.
__device__ inline uint64_t slab_rows(unsigned char* slab, int first) {
  return matrix_descriptor(slab + first * (kSlab * 2), 16, 8 * (kSlab * 2));
}

// The rows of the calling thread's four warps.
__device__ inline uint64_t group_rows(unsigned char* slab) {
  return slab_rows(slab, static_cast<int>(threadIdx.x / 128 * 64));
}

// Both multiplications again, as group products.
__device__ inline void multiply_groups_half(Fragment& tile, unsigned char* x, unsigned char* y) {
  const uint64_t a = group_rows(x);
  const uint64_t b = slab_rows(y, 0);
  hold_sums(tile.value);
  begin_products();
#pragma unroll
  for (int k = 0; k < kSlab / kStepColumns; ++k) {
    const int step = 2 * kStepColumns * k;
    multiply_group<true>(tile.value, advance(a, step), advance(b, step));
  }
  end_products();
  hold_sums(tile.value);
}

template <bool kIsExchanged>
__device__ inline void multiply_groups_split(Fragment& tile, unsigned char* x, unsigned char* y) {
  const uint64_t a_high = group_rows(x);
  const uint64_t b_high = slab_rows(y, 0);
  const uint64_t a_low = advance(a_high, kSlab);
  const uint64_t b_low = advance(b_high, kSlab);
  const uint64_t a_first = kIsExchanged ? a_high : a_low;
  const uint64_t a_second = kIsExchanged ? a_low : a_high;
  const uint64_t b_first = kIsExchanged ? b_low : b_high;
  const uint64_t b_second = kIsExchanged ? b_high : b_low;
#pragma unroll 1
  for (int k = 0; k < kSlab / 2 / kStepColumns; ++k) {
    const int step = 2 * kStepColumns * k;
    float sums[Fragment::kRows][Fragment::kColumns];
    begin_products();
    multiply_group<false>(sums, advance(a_first, step), advance(b_first, step));
    multiply_group<true>(sums, advance(a_second, step), advance(b_second, step));
    multiply_group<true>(sums, advance(a_high, step), advance(b_high, step));
    end_products();
    hold_sums(sums);
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        tile.value[slot][j] += sums[slot][j];
      }
    }
  }
}

template <Precision kPrecision, bool kIsExchanged = false>
__device__ inline void multiply_slabs(Fragment& tile, unsigned char* x, unsigned char* y) {
  if constexpr (kPrecision == Precision::half && kHasGroupProducts) {
    multiply_groups_half(tile, x, y);
  } else if constexpr (kPrecision == Precision::half) {
    multiply_slabs_half(tile, x, y);
  } else if constexpr (kHasGroupProducts) {
    multiply_groups_split<kIsExchanged>(tile, x, y);
  } else {
    multiply_slabs_split<kIsExchanged>(tile, x, y);
  }
}

}  // namespace dmlfast::cuda
