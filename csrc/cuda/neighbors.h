// What the selections and their gradients take, and how they are launched.
#pragma once

#include "engine/matrix.h"
#include "metric.h"

namespace dmlfast::cuda {

// The reference that an anchor selects for each of its thresholds. Indices fit 32 bits.
template <class T>
struct SelectArguments {
  Rows<T> x;
  Rows<T> references;
  const int64_t* labels;            // (N,)
  const int64_t* order;             // (N,) sorts the labels
  const int64_t* reference_labels;  // (M,)
  const int64_t* reference_order;   // (M,) sorts the reference labels
  const int64_t* self_index;        // (N,) or null
  const double* beyond;             // (N, thresholds) or null
  int64_t thresholds;
  Metric metric;
  bool same_class;
  bool farthest;
  double* norms_x;           // (N,) workspace
  double* norms_references;  // (M,) workspace
  void* distance;            // (N, thresholds) float, or double where x is double
  int64_t* index;            // (N, thresholds)

  DMLFAST_HOST_DEVICE int64_t slots() const { return x.rows * thresholds; }
};

// Bytes, at an address divisible by 16, that launch_select needs.
template <class T>
int64_t select_memory_bytes(const SelectArguments<T>& arguments);

// `shared_bytes` is what a block of the device may have of shared memory.
template <class T>
void launch_select(const SelectArguments<T>& arguments, void* memory, int shared_bytes,
                   cudaStream_t stream);

// Where in its memory a selection counts the queries that each of a search's two levels left
// undecided; null where it was not by search.
template <class T>
const int32_t* search_counts(const SelectArguments<T>& arguments, void* memory);

// Slots are counted in 32 bits.
template <class T>
struct GradientArguments {
  Rows<T> x;
  Rows<T> references;
  Rows<float> grad_float;  // (N, thresholds) upstream gradient; one of the two is used
  Rows<double> grad_double;
  const int64_t* index;       // (N, thresholds)
  const int64_t* slot_order;  // (N * thresholds,) sorts the index
  int thresholds;
  Metric metric;
  double* factors;    // (N * thresholds,) workspace: multiple of the partner, see pair_kernel
  double* own_x;      // (N * thresholds,) workspace: multiple of the anchor itself
  double* own_other;  // (N * thresholds,) workspace: multiple of the reference itself
  int64_t* starts;    // (M + 1,) workspace: where in slot_order a reference's slots begin
  T* grad_x;
  T* grad_references;

  DMLFAST_HOST_DEVICE int64_t slots() const { return x.rows * thresholds; }
};

template <class T>
void launch_select_gradient(const GradientArguments<T>& arguments, cudaStream_t stream);

}  // namespace dmlfast::cuda
