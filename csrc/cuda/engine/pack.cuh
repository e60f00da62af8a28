// Rows made ready for the tensor cores: in the order of their labels, around a common centre,
// scaled by a power of two and split into a half-precision part and what it leaves over. Beside
// each row stands, measured, what the halves do not say of it: the error of a search is bounded by
// these numbers and needs no assumption about the values.
#pragma once

#include <cfloat>
#include <climits>

#include "engine/any_rows.cuh"
#include "engine/ptx.cuh"
#include "engine/queries.cuh"
#include "engine/rows.cuh"
#include "engine/warp.cuh"
#include "engine/workspace.cuh"
#include "metric.h"

namespace dmlfast::cuda {

constexpr int kTileRows = 128;  // rows of a tile, of either matrix
constexpr int kSlab = 64;       // halves of a row that shared memory holds side by side: 128 bytes
constexpr int kStepColumns = 16;  // columns that one matrix instruction multiplies

// The greatest element is scaled to [2^13, 2^14): far from overflow, and its rounding errors
// vanish against those of the halves down to 2^-38 of it.
constexpr int kScaledExponent = 14;

// What a search needs to know of a row, in scaled units, each rounded up.
struct RowNumbers {
  float length;        // of the row, or of its halves where that is more
  float residual;      // length of what the first halves leave over
  float low_length;    // length of the second halves
  float low_residual;  // length of what both leave over
  float steps;         // root of the sum over steps of 16 columns of the greatest square
};

// What all rows of a problem share.
struct PackScale {
  int exponent;         // of the greatest element: it is less than 2^exponent
  int has_infinite;     // whether a reference has infinite elements, and none that is NaN
  RowNumbers greatest;  // over all references
};

// Rows around centres of their own, so that each group is as precise as if it were alone. A group
// is a class; its numbers are at the position where it begins among the references.
struct PackGroups {
  const int32_t* begin;  // by position of the rows: where its group begins; past the end: nowhere
  float* centre;         // (references, columns)
  RowNumbers* greatest;  // over the group's references
};

// Around what rows are packed, and whether anybody wants them: null for yes, or a number on the
// device.
struct PackCentre {
  const double* common;  // one for all rows; null where there are groups
  PackGroups groups;
  int64_t references;
  int64_t columns;
  const int32_t* wanted;

  __device__ bool is_wanted() const { return wanted == nullptr || *wanted > 0; }
  __device__ int64_t group(int64_t position) const { return groups.begin[position]; }

  __device__ double at(int64_t position, int64_t k) const {
    if (common != nullptr) {
      return common[k];
    }
    const int64_t begin = group(position);
    return begin < references ? groups.centre[begin * columns + k] : 0.0;
  }
};

struct PackedRows {
  const Half* high;  // (padded rows, padded columns)
  const Half* low;
  // Squared lengths, 0 for products; +inf for a row that is absent or not finite. After those of
  // all padded rows come those of their high parts alone.
  const float* norm;
  const RowNumbers* numbers;
  int rows;
  int padded_columns;

  __host__ __device__ int tiles() const { return (rows + kTileRows - 1) / kTileRows; }
};

inline int64_t padded_rows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

inline int64_t padded_columns(int64_t columns) {
  const int64_t padded = (columns + kSlab - 1) / kSlab * kSlab;
  return padded == 0 ? kSlab : padded;
}

constexpr int kCentreChunks = 128;  // of rows, each summed by a block of its own

// Sums of the columns' finite elements over one chunk of rows; a thread a column.
template <class T>
__global__ void column_sums_kernel(Rows<T> rows, double* sums) {
  const int64_t step = (rows.rows + kCentreChunks - 1) / kCentreChunks;
  for (int64_t chunk = blockIdx.x; chunk < kCentreChunks; chunk += gridDim.x) {
    const int64_t begin = chunk * step;
    const int64_t end = begin + step < rows.rows ? begin + step : rows.rows;
    for (int64_t k = threadIdx.x; k < rows.columns; k += blockDim.x) {
      double sum = 0.0;
      for (int64_t row = begin; row < end; ++row) {
        const double value = element(rows, row, k);
        sum += value - value == 0.0 ? value : 0.0;
      }
      sums[chunk * rows.columns + k] = sum;
    }
  }
}

// The mean of each column, 0 where there is none; and a scale that knows no row yet.
void launch_centre(const double* sums, int64_t rows, int64_t columns, bool has_centre,
                   double* centre, PackScale* scale, cudaStream_t stream);

// The exponent of the greatest centred element of the finite rows; a warp a row.
template <class T>
__global__ void exponent_kernel(Rows<T> rows, const int64_t* order, PackCentre centre,
                                PackScale* scale) {
  const int lane = threadIdx.x % 32;
  const int64_t positions = centre.is_wanted() ? rows.rows : 0;
  int exponent = INT_MIN;
  for (int64_t position = int64_t{blockIdx.x} * kElementWarps + threadIdx.x / 32;
       position < positions; position += int64_t{gridDim.x} * kElementWarps) {
    const int64_t row = order[position];
    double greatest = 0.0;
    bool is_finite = true;
    for (int64_t k = lane; k < rows.columns; k += 32) {
      const double value = fabs(element(rows, row, k) - centre.at(position, k));
      is_finite = is_finite && value - value == 0.0;
      greatest = value > greatest ? value : greatest;
    }
    if (__ballot_sync(kAllLanes, !is_finite) == 0 && greatest > 0.0) {
      exponent = max(exponent, ilogb(greatest) + 1);
    }
  }
  exponent = warp_greatest(exponent);
  if (lane == 0 && exponent != INT_MIN) {
    atomicMax(&scale->exponent, exponent);
  }
}

// Rows, and where their packed form goes.
template <class T>
struct PackArguments {
  Rows<T> rows;
  const int64_t* order;
  PackCentre centre;
  PackScale* scale;
  Metric metric;
  bool are_references;
  Half* high;
  Half* low;
  float* norm;
  RowNumbers* numbers;
};

// Not below the float64 number.
__device__ inline float rounded_up(double value) {
  return static_cast<float>(value * (1.0 + 0x1p-20)) + FLT_MIN;
}

// The greater of each number.
__device__ inline void raise(RowNumbers& greatest, const RowNumbers& numbers) {
  greatest.length = fmaxf(greatest.length, numbers.length);
  greatest.residual = fmaxf(greatest.residual, numbers.residual);
  greatest.low_length = fmaxf(greatest.low_length, numbers.low_length);
  greatest.low_residual = fmaxf(greatest.low_residual, numbers.low_residual);
  greatest.steps = fmaxf(greatest.steps, numbers.steps);
}

// The same among all threads: numbers that are not negative are in the order of their bits.
__device__ inline void raise_together(float& greatest, float number) {
  atomicMax(reinterpret_cast<int*>(&greatest), __float_as_int(number));
}

__device__ inline void raise_together(RowNumbers& greatest, const RowNumbers& numbers) {
  raise_together(greatest.length, numbers.length);
  raise_together(greatest.residual, numbers.residual);
  raise_together(greatest.low_length, numbers.low_length);
  raise_together(greatest.low_residual, numbers.low_residual);
  raise_together(greatest.steps, numbers.steps);
}

// The factor of a row's elements: the power of two, and under cosine the row's own length.
template <class T>
__device__ inline double row_factor(const PackArguments<T>& a, int64_t row, int lane) {
  if (a.metric != Metric::cosine) {
    const int exponent = a.scale->exponent;
    // 2^1023 is as much as a float64 number says; smaller elements stay smaller.
    const int shift = exponent == INT_MIN ? 0 : kScaledExponent - exponent;
    return scalbn(1.0, shift > 1023 ? 1023 : shift);
  }
  // Elements are scaled to the row's greatest first: their squares leave no range.
  double greatest = 0.0;
  for (int64_t k = lane; k < a.rows.columns; k += 32) {
    const double value = fabs(element(a.rows, row, k));
    greatest = value > greatest ? value : greatest;
  }
  greatest = warp_greatest(greatest);
  if (greatest == 0.0 || greatest - greatest != 0.0) {
    return 0.0;
  }
  double squares = 0.0;
  for (int64_t k = lane; k < a.rows.columns; k += 32) {
    const double value = element(a.rows, row, k) / greatest;
    squares += value * value;
  }
  return scalbn(1.0, kScaledExponent - 1) / sqrt(warp_sum(squares)) / greatest;
}

// Sums over a row's elements as they are packed.
struct RowSums {
  double squares = 0.0;
  double high_squares = 0.0;
  double low_squares = 0.0;
  double residuals = 0.0;
  double low_residuals = 0.0;
  double steps = 0.0;
  bool is_finite = true;
  bool has_nan = false;
};

// Packs a row, columns side by side in the lanes; 16 of them are a step.
template <class T>
__device__ inline RowSums pack_row(const PackArguments<T>& a, int64_t position, int64_t row,
                                   int64_t padded, double factor, int lane) {
  RowSums sums;
  for (int64_t first = 0; first < padded; first += 32) {
    const int64_t k = first + lane;
    const bool exists = row >= 0 && k < a.rows.columns;
    const double given = exists ? element(a.rows, row, k) - a.centre.at(position, k) : 0.0;
    sums.is_finite = sums.is_finite && given - given == 0.0;
    sums.has_nan = sums.has_nan || given != given;
    const double value = given * factor;
    const Half high = to_half(static_cast<float>(value));
    const double rest = value - static_cast<double>(to_float(high));
    const Half low = to_half(static_cast<float>(rest));
    const double last = rest - static_cast<double>(to_float(low));
    a.high[position * padded + k] = high;
    a.low[position * padded + k] = low;
    const double h = to_float(high);
    const double l = to_float(low);
    sums.squares += value * value;
    sums.high_squares += h * h;
    sums.low_squares += l * l;
    sums.residuals += rest * rest;
    sums.low_residuals += last * last;
    float step = static_cast<float>(h * h);
    for (int bits = kStepColumns / 2; bits > 0; bits /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, step, bits);
      step = step < other ? other : step;
    }
    sums.steps += lane % kStepColumns == 0 ? step : 0.0f;
  }
  return sums;
}

template <class T>
__device__ inline void clear_row(const PackArguments<T>& a, int64_t position, int64_t columns,
                                 int lane) {
  for (int64_t k = lane; k < columns; k += 32) {
    a.high[position * columns + k] = to_half(0.0f);
    a.low[position * columns + k] = to_half(0.0f);
  }
}

// A warp a row, the padding's included.
template <class T>
__global__ void pack_kernel(PackArguments<T> a, int64_t padded_rows, int64_t padded_columns) {
  const int lane = threadIdx.x % 32;
  if (!a.centre.is_wanted()) {
    return;
  }
  RowNumbers greatest = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  bool has_infinite = false;
  for (int64_t position = int64_t{blockIdx.x} * kElementWarps + threadIdx.x / 32;
       position < padded_rows; position += int64_t{gridDim.x} * kElementWarps) {
    const int64_t row = position < a.rows.rows ? a.order[position] : -1;
    const double factor = row < 0 ? 0.0 : row_factor(a, row, lane);
    const RowSums sums = pack_row(a, position, row, padded_columns, factor, lane);
    const bool is_present = __ballot_sync(kAllLanes, !sums.is_finite) == 0 && row >= 0;
    const double squares = warp_sum(sums.squares);
    const double high_squares = warp_sum(sums.high_squares);
    const RowNumbers measured = {
        rounded_up(sqrt(squares > high_squares ? squares : high_squares)),
        rounded_up(sqrt(warp_sum(sums.residuals))), rounded_up(sqrt(warp_sum(sums.low_squares))),
        rounded_up(sqrt(warp_sum(sums.low_residuals))), rounded_up(sqrt(warp_sum(sums.steps)))};
    const RowNumbers numbers = is_present ? measured : RowNumbers{0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (!is_present) {
      // A product with NaN would reach the other rows' sums.
      clear_row(a, position, padded_columns, lane);
      has_infinite = has_infinite || (__ballot_sync(kAllLanes, sums.has_nan) == 0 && row >= 0);
    }
    if (lane == 0) {
      const auto norm = [&](double of) {
        return !is_present ? INFINITY : sums_differences(a.metric) ? static_cast<float>(of) : 0.0f;
      };
      a.norm[position] = norm(squares);
      a.norm[padded_rows + position] = norm(high_squares);
      a.numbers[position] = numbers;
    }
    raise(greatest, numbers);
    if (lane == 0 && a.are_references && a.centre.common == nullptr && row >= 0) {
      raise_together(a.centre.groups.greatest[a.centre.group(position)], numbers);
    }
  }
  if (lane == 0 && a.are_references) {
    raise_together(a.scale->greatest, greatest);
    if (has_infinite) {
      atomicOr(&a.scale->has_infinite, 1);
    }
  }
}

// Where the packed form of some rows is kept.
struct PackMemory {
  Half* high;
  Half* low;
  float* norm;
  RowNumbers* numbers;

  static PackMemory take(Workspace& workspace, int64_t rows, int64_t columns) {
    const int64_t elements = padded_rows(rows) * padded_columns(columns);
    PackMemory memory{};
    memory.high = workspace.take<Half>(elements);
    memory.low = workspace.take<Half>(elements);
    memory.norm = workspace.take<float>(2 * padded_rows(rows));
    memory.numbers = workspace.take<RowNumbers>(padded_rows(rows));
    return memory;
  }

  PackedRows view(int64_t rows, int64_t columns) const {
    return {high,
            low,
            norm,
            numbers,
            static_cast<int>(rows),
            static_cast<int>(padded_columns(columns))};
  }
};

template <class T>
PackedRows launch_pack(const Rows<T>& rows, const int64_t* order, const PackCentre& centre,
                       PackScale* scale, Metric metric, bool are_references,
                       const PackMemory& memory, cudaStream_t stream) {
  const PackArguments<T> arguments{rows,        order,          centre,      scale,
                                   metric,      are_references, memory.high, memory.low,
                                   memory.norm, memory.numbers};
  const int64_t padded = padded_rows(rows.rows);
  if (padded > 0) {
    DMLFAST_LAUNCH((pack_kernel<T>), element_blocks(padded * 32), kElementThreads, stream,
                   arguments, padded, padded_columns(rows.columns));
  }
  return memory.view(rows.rows, rows.columns);
}

// Both operands of a problem; within a batch they are the same.
struct PackedPair {
  PackedRows x;
  PackedRows y;
  PackScale* scale;
};

// Memory of both operands, and of what they share.
struct PackPairMemory {
  double* sums;
  double* centre;
  PackScale* scale;
  PackMemory y;
  PackMemory x;  // unused within a batch

  static PackPairMemory take(Workspace& workspace, int64_t anchors, int64_t references,
                             int64_t columns, bool within_batch) {
    PackPairMemory memory{};
    memory.sums = workspace.take<double>(kCentreChunks * columns);
    memory.centre = workspace.take<double>(columns);
    memory.scale = workspace.take<PackScale>(1);
    memory.y = PackMemory::take(workspace, references, columns);
    if (!within_batch) {
      memory.x = PackMemory::take(workspace, anchors, columns);
    }
    return memory;
  }
};

// Packs both operands around what is centred already. The centre of y is that of x, but for where
// the groups of its rows begin.
template <class T>
PackedPair launch_pack_centred(const Rows<T>& x, const int64_t* order, const PackCentre& x_centre,
                               const Rows<T>& references, const int64_t* reference_order,
                               const PackCentre& y_centre, bool within_batch, Metric metric,
                               const PackPairMemory& memory, cudaStream_t stream) {
  PackScale* const scale = memory.scale;
  // Few blocks: each raises one number for all of its rows.
  const unsigned blocks = grid_for(kWantedItems);
  DMLFAST_LAUNCH((exponent_kernel<T>), dim3{blocks}, kElementThreads, stream, references,
                 reference_order, y_centre, scale);
  if (!within_batch) {
    DMLFAST_LAUNCH((exponent_kernel<T>), dim3{blocks}, kElementThreads, stream, x, order, x_centre,
                   scale);
  }
  PackedPair pair{};
  pair.scale = scale;
  pair.y =
      launch_pack(references, reference_order, y_centre, scale, metric, true, memory.y, stream);
  pair.x = within_batch ? pair.y
                        : launch_pack(x, order, x_centre, scale, metric, false, memory.x, stream);
  return pair;
}

// The mean of the columns' finite elements, and a scale that knows no row yet.
template <class T>
void launch_column_means(const Rows<T>& rows, bool has_centre, double* sums, double* centre,
                         PackScale* scale, cudaStream_t stream) {
  has_centre = has_centre && rows.rows > 0;
  if (has_centre) {
    DMLFAST_LAUNCH((column_sums_kernel<T>), dim3{grid_for(kCentreChunks)}, 128, stream, rows, sums);
  }
  launch_centre(sums, rows.rows, rows.columns, has_centre, centre, scale, stream);
}

// The same for rows of any dtype that have a centre.
void launch_row_centre(const AnyRows& rows, double* sums, double* centre, PackScale* scale,
                       cudaStream_t stream);

// Packs both operands around the centre of all references.
template <class T>
PackedPair launch_pack_pair(const Rows<T>& x, const int64_t* order, const Rows<T>& references,
                            const int64_t* reference_order, bool within_batch, Metric metric,
                            const PackPairMemory& memory, cudaStream_t stream) {
  launch_column_means(references, sums_differences(metric), memory.sums, memory.centre,
                      memory.scale, stream);
  PackCentre centre{};
  centre.common = memory.centre;
  return launch_pack_centred(x, order, centre, references, reference_order, centre, within_batch,
                             metric, memory, stream);
}

// The same for rows of any dtype.
PackedPair launch_pack_rows(const AnyRows& x, const int64_t* order, const AnyRows& references,
                            const int64_t* reference_order, bool within_batch, Metric metric,
                            const PackPairMemory& memory, cudaStream_t stream);

// Compiled once, in pack.cu.
#ifndef DMLFAST_EMULATION
#define DMLFAST_PACK(T)                                                                          \
  extern template PackedPair launch_pack_centred<T>(                                             \
      const Rows<T>&, const int64_t*, const PackCentre&, const Rows<T>&, const int64_t*,         \
      const PackCentre&, bool, Metric, const PackPairMemory&, cudaStream_t);                     \
  extern template PackedPair launch_pack_pair<T>(const Rows<T>&, const int64_t*, const Rows<T>&, \
                                                 const int64_t*, bool, Metric,                   \
                                                 const PackPairMemory&, cudaStream_t);
DMLFAST_PACK(float)
DMLFAST_PACK(double)
DMLFAST_PACK(__half)
DMLFAST_PACK(__nv_bfloat16)
#undef DMLFAST_PACK
#endif

}  // namespace dmlfast::cuda
