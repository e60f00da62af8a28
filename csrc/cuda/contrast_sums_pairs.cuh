// What the sums and their gradients have in common: packed rows, the ranges of the classes, and the
// two sides of an anchor.
#pragma once

#include "contrast_sums.h"
#include "engine/any_rows.cuh"
#include "engine/class_ranges.cuh"
#include "engine/distances.cuh"

namespace dmlfast::cuda {

constexpr int kPositive = 0;
constexpr int kNegative = 1;
constexpr int kSides = 2;
constexpr float kLogOfE = 1.44269504f;  // to the base of 2
constexpr float kLogOfTwo = 0.693147181f;

// Sides work on e = sign * distance, so that on either a partner counts where e < bound.
template <int kSide>
constexpr float kSign = kSide == kPositive ? -1.0f : 1.0f;

// One side as the loops see it.
struct SumSide {
  SumForm form;
  float scale;         // of a distance in an exponent of 2
  const float* bound;  // by anchor position; see side_bound
};

// The greatest number below one; for -inf, of which there is none, NaN.
__device__ inline float below(float number) {
  return number == -INFINITY ? NAN : nextafterf(number, -INFINITY);
}

// What a side's form asks of an anchor: a hinge its bound as an e, softplus what is added to an
// exponent of 2, the others up to which e partners count.
__device__ inline float side_bound(SumForm form, float sign, const float* given, int64_t anchor) {
  if (given == nullptr || form == SumForm::sum) {
    return INFINITY;
  }
  if (form == SumForm::softplus) {
    return given[anchor] * kLogOfE;
  }
  const float e = sign * given[anchor];
  return form == SumForm::hinge ? e : below(e);
}

// Whether an anchor's sum is NaN: it is not finite, or its bound is NaN.
__device__ inline bool is_lost(SumForm form, const float* given, float norm, int64_t anchor) {
  return form != SumForm::none &&
         (norm == INFINITY || (given != nullptr && given[anchor] != given[anchor]));
}

// By anchor position, up to whole tiles.
static __global__ void side_bounds_kernel(SumArguments a, float* positive, float* negative,
                                          int64_t padded) {
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < padded;
       p += int64_t{gridDim.x} * blockDim.x) {
    const bool exists = p < a.x.rows;
    const int64_t anchor = exists ? a.order[p] : -1;
    positive[p] =
        exists ? side_bound(a.form[kPositive], kSign<kPositive>, a.bound[kPositive], anchor) : NAN;
    negative[p] =
        exists ? side_bound(a.form[kNegative], kSign<kNegative>, a.bound[kNegative], anchor) : NAN;
  }
}

// Where the rows of a block may meet their own classes.
struct ClassSpans {
  ClassSpan any;  // columns outside are of other classes than all rows
  ClassSpan all;  // columns inside are of the class of all rows

  __device__ bool has_own(const Tile& tile) const {
    return tile.first_column < any.end && any.begin < tile.first_column + kTileColumns;
  }
  __device__ bool has_other(const Tile& tile) const {
    return tile.first_column < all.begin || all.end < tile.first_column + kTileColumns;
  }
  __device__ TileRange tiles() const {
    return {any.begin / kTileColumns, (any.end + kTileColumns - 1) / kTileColumns};
  }
};

// Rows are all anchors in the order of their labels: what belongs to the first and to the last row
// of a block bounds what is between.
__device__ inline ClassSpans class_spans(const ClassRanges& ranges, const BlockRows& rows,
                                         int anchors) {
  const int first = rows.anchors[0];
  const int last = min(first + kTileRows, anchors) - 1;
  ClassSpans spans{{ranges.begin[first], ranges.end[last]}, {0, 0}};
  if (ranges.begin[last] == spans.any.begin && ranges.end[first] == spans.any.end) {
    spans.all = spans.any;
  }
  return spans;
}

// Which of a thread's columns of a tile are of a row's class.
class OwnColumns {
 public:
  __device__ OwnColumns(const ClassRanges& ranges, const BlockRows& rows, const Tile& tile,
                        int slot) {
    const int anchor = rows.anchors[tile_row(slot)];
    if (anchor >= 0) {
      begin_ = ranges.begin[anchor] - tile.column(0);
      length_ = static_cast<unsigned>(ranges.end[anchor] - ranges.begin[anchor]);
    }
  }

  __device__ bool holds(int j) const {
    return static_cast<unsigned>(column_offset(j) - begin_) < length_;
  }

 private:
  int begin_ = 0;  // from the thread's first column
  unsigned length_ = 0;
};

// What all kernels of a problem read.
struct SumPairMemory {
  PackPairMemory packed;
  ClassRanges ranges;  // by anchor position, of its class among the references
  int32_t* self;       // by anchor position, padded to whole tiles
  int32_t* position;   // of each reference in the order of the labels
  float* bound[kSides];

  static SumPairMemory take(Workspace& workspace, const SumArguments& a) {
    SumPairMemory memory{};
    memory.packed = PackPairMemory::take(workspace, a.x.rows, a.references.rows,
                                         a.references.columns, a.within_batch);
    memory.ranges.begin = workspace.take<int32_t>(a.x.rows);
    memory.ranges.end = workspace.take<int32_t>(a.x.rows);
    memory.self = workspace.take<int32_t>(padded_rows(a.x.rows));
    memory.position = workspace.take<int32_t>(a.references.rows);
    memory.bound[kPositive] = workspace.take<float>(padded_rows(a.x.rows));
    memory.bound[kNegative] = workspace.take<float>(padded_rows(a.x.rows));
    return memory;
  }
};

PackedPair launch_pack_sums(const SumArguments& a, const SumPairMemory& memory,
                            cudaStream_t stream);

// A row is its own self within a batch.
static __global__ void own_positions_kernel(int64_t rows, int32_t* self) {
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < rows;
       p += int64_t{gridDim.x} * blockDim.x) {
    self[p] = static_cast<int32_t>(p);
  }
}

constexpr int kSumThreads = 256;

inline unsigned sum_blocks(int64_t rows) {
  return grid_for((rows + kSumThreads - 1) / kSumThreads);
}

// Where each anchor's class and self are, and how distances come from products.
inline DistanceTask launch_sum_preparation(const SumArguments& a, const PackedPair& pair,
                                           const SumPairMemory& memory, cudaStream_t stream) {
  // Only labels and orders are read.
  const LabelledRows<float> x{a.x.as<float>(), a.labels, a.order};
  const LabelledRows<float> y{a.references.as<float>(), a.reference_labels, a.reference_order};
  const dim3 blocks{sum_blocks(a.x.rows)};
  DMLFAST_LAUNCH((class_ranges_kernel<float>), blocks, kSumThreads, stream, x, y, memory.ranges);
  const int64_t padded = padded_rows(a.x.rows);
  DMLFAST_LAUNCH(side_bounds_kernel, dim3{sum_blocks(padded)}, kSumThreads, stream, a,
                 memory.bound[kPositive], memory.bound[kNegative], padded);
  DistanceTask task{a.metric, pair.scale,        pair.x, pair.y, a.x, a.references,
                    a.order,  a.reference_order, nullptr};
  if (a.within_batch) {
    DMLFAST_LAUNCH(own_positions_kernel, blocks, kSumThreads, stream, a.x.rows, memory.self);
    task.self = memory.self;
  } else if (a.self_index != nullptr) {
    DMLFAST_LAUNCH(inverse_kernel, dim3{sum_blocks(a.references.rows)}, kSumThreads, stream,
                   a.reference_order, a.references.rows, memory.position);
    DMLFAST_LAUNCH(self_kernel, blocks, kSumThreads, stream, a.self_index, a.order, a.x.rows,
                   memory.position, a.references.rows, memory.self);
    task.self = memory.self;
  }
  return task;
}

inline WalkTask walk_task(const PackedRows& x, const PackedRows& y, int wanted_items) {
  WalkTask task{};
  task.x = x;
  task.y = y;
  task.queries = {nullptr, nullptr, x.rows, wanted_items > 0 ? wanted_items : kWantedItems};
  task.thresholds = 1;
  return task;
}

inline bool is_split(const SumArguments& a) {
  return a.x.type == ElementType::float32 && !a.is_fast;
}

inline SumSide side_of(const SumArguments& a, const SumPairMemory& memory, int side) {
  const double scale = a.scale[side] * 1.4426950408889634;
  return {a.form[side], static_cast<float>(scale), memory.bound[side]};
}

}  // namespace dmlfast::cuda
