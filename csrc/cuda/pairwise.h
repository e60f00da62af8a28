// What the operators of the family pairwise ask of a device. Their kernels are compiled without
// torch, and their operators without kernels.
#pragma once

#include "engine/matrix.h"
#include "engine/queries.cuh"
#include "metric.h"

namespace dmlfast::cuda {

// All pairs of the rows of x with the references; within a batch these are x itself.
struct PairwiseRows {
  AnyRows x;
  AnyRows references;
  bool within_batch;
  Metric metric;
  bool fast;         // products of the rows may be rounded as half-precision rows are
  int shared_bytes;  // that a block may have
  int wanted_items = kWantedItems;
};

// A strided matrix of float32, by anchor and reference.
struct PairMatrix {
  const float* data;
  int64_t row_stride;
  int64_t column_stride;
};

struct MomentArguments {
  const int64_t* self_index;  // (N,), of the references; or null
  const double* centre;       // (1,)
  double* first;              // (N,)
  double* second;             // (N,)
};

// Gradients are contiguous, in the dtype of the rows; that of the references is not wanted within
// a batch, where both roles of a row are in that of x.
struct PairwiseGradients {
  void* x;
  void* references;
};

struct MomentGradientArguments {
  const int64_t* self_index;
  const double* centre;
  const double* grad_first;  // (N,) with the strides of `grad_strides`
  const double* grad_second;
  int64_t first_stride;
  int64_t second_stride;
  PairwiseGradients gradients;
};

// Each launch needs a workspace of as many bytes, aligned to 16.
int64_t pairwise_distance_bytes(const PairwiseRows& rows);
void launch_pairwise_distance(const PairwiseRows& rows, float* distance, void* workspace,
                              cudaStream_t stream);

int64_t pairwise_moments_bytes(const PairwiseRows& rows);
void launch_pairwise_moments(const PairwiseRows& rows, const MomentArguments& moments,
                             void* workspace, cudaStream_t stream);

int64_t pairwise_distance_gradient_bytes(const PairwiseRows& rows);
void launch_pairwise_distance_gradient(const PairwiseRows& rows, const PairMatrix& grad,
                                       const PairMatrix& distance,
                                       const PairwiseGradients& gradients, void* workspace,
                                       cudaStream_t stream);

int64_t pairwise_moments_gradient_bytes(const PairwiseRows& rows);
void launch_pairwise_moments_gradient(const PairwiseRows& rows,
                                      const MomentGradientArguments& moments, void* workspace,
                                      cudaStream_t stream);

}  // namespace dmlfast::cuda
