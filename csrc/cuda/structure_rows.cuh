// From the sums of both roles of a walk to gradients.
#pragma once

#include "structure_pairs.cuh"

namespace dmlfast::cuda {

// What is summed with the rows packed for the other role. With weights P of the differences of
// pairs, in the units of their packed distances,
//   by w: sum P (e - y)^2 / 2 = (e^2 sum P - 2 e sum P y + sum P y^2) / 2,
//   by e: w (e sum P - sum P y),  by y: y sum P w - sum P w e.
// Near pairs have sums of their gradients: of these they would leave next to nothing.
struct StructureSums {
  StructureMemory pairs;
  GradientSums sums;   // of one walk after the other
  float* of_partners;  // (N, d): within a batch, the gradients of the rows as references
  // Upstream gradients are divided by 2 to this, so that weights keep clear of the ends of
  // float32's range; of_partners is, too. Null where they are not.
  const int32_t* upstream_exponent;
  uint8_t* lost_anchors;
  uint8_t* lost_references;

  static StructureSums take(Workspace& workspace, const StructureRows& rows);
};

// How many items the walks for gradients of as many rows are divided into.
StructureRows in_gradient_items(StructureRows rows);

// The gradient of the references, or, within a batch, of their role. `pairs` are exchanged.
void launch_reference_rows(const StructureRows& rows, const PairwiseWalk& pairs,
                           const StructureSums& memory, const StructureResults& results,
                           cudaStream_t stream);

// The gradients of the anchors, after that of their role as references.
void launch_anchor_rows(const StructureRows& rows, const PairwiseWalk& pairs,
                        const StructureSums& memory, const StructureResults& results,
                        cudaStream_t stream);

}  // namespace dmlfast::cuda
