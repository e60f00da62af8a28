// What the sums of soft assignment and their gradients have in common.
#pragma once

#include "clusters_soft.h"
#include "engine/class_columns.cuh"
#include "engine/distances.cuh"

namespace dmlfast::cuda {

// What a difference of distances is multiplied by to be an exponent, of e and of 2.
struct Sharpness {
  float of_e;
  float of_2;

  explicit Sharpness(double temperature) {
    // So that nothing times it is not a number; far beyond, a row has one centre, but for ties.
    constexpr double kGreatest = 1e38;
    const double sharpness = 1.0 / temperature < kGreatest ? 1.0 / temperature : kGreatest;
    of_e = static_cast<float>(sharpness);
    of_2 = static_cast<float>(sharpness * 1.4426950408889634);
  }
};

struct SoftPairMemory {
  PackPairMemory packed;
  ClassRanges ranges;  // by position of x, of its class among the references

  static SoftPairMemory take(Workspace& workspace, const SoftArguments& a) {
    SoftPairMemory memory{};
    memory.packed =
        PackPairMemory::take(workspace, a.x.rows, a.references.rows, a.references.columns, false);
    memory.ranges.begin = workspace.take<int32_t>(a.x.rows);
    memory.ranges.end = workspace.take<int32_t>(a.x.rows);
    return memory;
  }
};

inline Labels labels_of_x(const SoftArguments& a) { return {a.labels, a.order, a.x.rows}; }

inline Labels labels_of_references(const SoftArguments& a) {
  return {a.reference_labels, a.reference_order, a.references.rows};
}

// Gradients have the products of the sums, to the bit: a small temperature magnifies what their
// rounding changes. So the elements' type, which makes no difference for gradients, makes none.
inline bool is_split(const SoftArguments& a) { return !a.is_fast; }

// Packs the rows and finds the ranges of their classes.
DistanceTask launch_soft_preparation(const SoftArguments& a, const SoftPairMemory& memory,
                                     cudaStream_t stream);

}  // namespace dmlfast::cuda
