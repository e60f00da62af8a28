// What the sums and their gradients have in common: packed rows, the ranges of the classes, and the
// two sides of an anchor.
#pragma once

#include "contrast_sums.h"
#include "engine/class_columns.cuh"
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

inline Labels labels_of_anchors(const SumArguments& a) { return {a.labels, a.order, a.x.rows}; }

inline Labels labels_of_references(const SumArguments& a) {
  return {a.reference_labels, a.reference_order, a.references.rows};
}

// What all kernels of a problem read.
struct SumPairMemory {
  PackPairMemory packed;
  ClassRanges ranges;  // by anchor position, of its class among the references
  int32_t* self;       // by anchor position, padded to whole tiles
  float* bound[kSides];

  static SumPairMemory take(Workspace& workspace, const SumArguments& a) {
    SumPairMemory memory{};
    memory.packed = PackPairMemory::take(workspace, a.x.rows, a.references.rows,
                                         a.references.columns, a.within_batch);
    memory.ranges.begin = workspace.take<int32_t>(a.x.rows);
    memory.ranges.end = workspace.take<int32_t>(a.x.rows);
    memory.self = workspace.take<int32_t>(padded_rows(a.x.rows));
    memory.bound[kPositive] = workspace.take<float>(padded_rows(a.x.rows));
    memory.bound[kNegative] = workspace.take<float>(padded_rows(a.x.rows));
    return memory;
  }
};

inline bool is_split(const SumArguments& a) { return is_split(a.x.type, a.metric, a.is_fast); }

// Packed rows as they are multiplied.
PackedPair launch_pack_sums(const SumArguments& a, const SumPairMemory& memory,
                            cudaStream_t stream);

// Where each anchor's class and self are, and how distances come from products.
DistanceTask launch_sum_preparation(const SumArguments& a, const PackedPair& pair,
                                    const SumPairMemory& memory, cudaStream_t stream);

inline SumSide side_of(const SumArguments& a, const SumPairMemory& memory, int side) {
  const double scale = a.scale[side] * 1.4426950408889634;
  return {a.form[side], static_cast<float>(scale), memory.bound[side]};
}

}  // namespace dmlfast::cuda
