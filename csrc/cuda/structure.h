// What the operators of the family structure ask of a device. Their kernels are compiled without
// torch, and their operators without kernels.
#pragma once

#include "engine/matrix.h"
#include "engine/queries.cuh"
#include "pairwise.h"

namespace dmlfast::cuda {

// All pairs of anchors e, with weights w of the dimensions, and the references; within a batch
// these are e itself.
struct StructureRows {
  AnyRows e;
  AnyRows w;
  AnyRows references;
  bool within_batch;
  bool squared;
  int shared_bytes;  // that a block may have
  int wanted_items = kWantedItems;
};

// Gradients are contiguous, in the dtype of the rows; that of the references is not wanted within a
// batch, where both roles of a row are in that of e.
struct StructureResults {
  void* e;
  void* w;
  void* references;
};

// Each launch needs a workspace of as many bytes, aligned to 16.
int64_t structure_distance_bytes(const StructureRows& rows);
void launch_structure_distance(const StructureRows& rows, float* distance, void* workspace,
                               cudaStream_t stream);

int64_t structure_distance_gradient_bytes(const StructureRows& rows);
void launch_structure_distance_gradient(const StructureRows& rows, const PairMatrix& grad,
                                        const PairMatrix& distance, const StructureResults& results,
                                        void* workspace, cudaStream_t stream);

}  // namespace dmlfast::cuda
