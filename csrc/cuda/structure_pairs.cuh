// Anchors with weights of their own and references made ready for the walks of plain distances.
#pragma once

#include "pairwise_walks.cuh"
#include "structure.h"

namespace dmlfast::cuda {

struct StructureMemory {
  int64_t* order;
  double* sums;
  double* centre;
  WeightedScale* scale;
  PackMemory x;
  PackMemory y;

  static StructureMemory take(Workspace& workspace, const StructureRows& rows) {
    const int64_t anchors = rows.e.rows;
    const int64_t references = rows.references.rows;
    const int64_t dimensions = rows.e.columns;
    StructureMemory memory{};
    memory.order = workspace.take<int64_t>(anchors > references ? anchors : references);
    memory.sums = workspace.take<double>(kCentreChunks * dimensions);
    memory.centre = workspace.take<double>(dimensions);
    memory.scale = workspace.take<WeightedScale>(1);
    memory.x = PackMemory::take(workspace, anchors, 2 * dimensions);
    memory.y = PackMemory::take(workspace, references, 2 * dimensions);
    return memory;
  }
};

// Products are of float32's precision, also where less is allowed: what halves leave of squares and
// products says nothing of close rows.
constexpr bool kStructureIsSplit = true;

PairwiseWalk launch_structure_pack(const StructureRows& rows, const StructureMemory& memory,
                                   cudaStream_t stream);

}  // namespace dmlfast::cuda
