// Rows without labels made ready for a walk: packed in the order in which they are given.
#pragma once

#include "engine/distances.cuh"
#include "pairwise.h"

namespace dmlfast::cuda {

inline bool is_split(const PairwiseRows& rows) {
  return is_split(rows.x.type, rows.metric, rows.fast);
}

struct PairwiseMemory {
  int64_t* order;
  PackPairMemory packed;

  static PairwiseMemory take(Workspace& workspace, const PairwiseRows& rows) {
    PairwiseMemory memory{};
    const int64_t x = rows.x.rows;
    const int64_t references = rows.references.rows;
    memory.order = workspace.take<int64_t>(x > references ? x : references);
    memory.packed =
        PackPairMemory::take(workspace, x, references, rows.x.columns, rows.within_batch);
    return memory;
  }
};

// All that a walk over the pairs needs, with no pair left out.
struct PairwiseWalk {
  WalkTask walk;
  DistanceTask distances;
};

PairwiseWalk launch_pairwise_pack(const PairwiseRows& rows, const PairwiseMemory& memory,
                                  cudaStream_t stream);

// The same with anchors and references exchanged.
inline PairwiseWalk exchanged(const PairwiseWalk& pairs) {
  const WalkTask& walk = pairs.walk;
  return {walk_of(walk.y, walk.x, walk.queries.wanted_items), exchanged(pairs.distances)};
}

// Calls a function template of the precision, as a value of that type.
template <Precision kPrecision>
struct PrecisionTag {
  static constexpr Precision value = kPrecision;
};

template <class Call>
void with_precision(bool is_split, const Call& call) {
  if (is_split) {
    call(PrecisionTag<Precision::split>{});
  } else {
    call(PrecisionTag<Precision::half>{});
  }
}

}  // namespace dmlfast::cuda
