// Rows without labels made ready for a walk: packed in the order in which they are given.
#pragma once

#include "engine/distances.cuh"
#include "pairwise.h"

namespace dmlfast::cuda {

constexpr int kPairwiseThreads = 256;

inline dim3 pairwise_grid(int64_t elements) {
  return dim3{grid_for((elements + kPairwiseThreads - 1) / kPairwiseThreads)};
}

static __global__ void identity_kernel(int64_t* order, int64_t rows) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * blockDim.x) {
    order[i] = i;
  }
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

// Packed rows of a dtype that is known when the kernels are launched.
inline PackedPair pack_pairwise(const PairwiseRows& rows, const PairwiseMemory& memory,
                                cudaStream_t stream) {
  const auto pack = [&](auto type) {
    using T = decltype(type);
    return launch_pack_pair(rows.x.as<T>(), memory.order, rows.references.as<T>(), memory.order,
                            rows.within_batch, rows.metric, memory.packed, stream);
  };
#ifndef DMLFAST_EMULATION
  if (rows.x.type == ElementType::float16) {
    return pack(__half{});
  }
  if (rows.x.type == ElementType::bfloat16) {
    return pack(__nv_bfloat16{});
  }
#endif
  return pack(float{});
}

// All that a walk over the pairs needs, with no pair left out.
struct PairwiseWalk {
  WalkTask walk;
  DistanceTask distances;
};

inline PairwiseWalk launch_pairwise_pack(const PairwiseRows& rows, const PairwiseMemory& memory,
                                         cudaStream_t stream) {
  const int64_t most = rows.x.rows > rows.references.rows ? rows.x.rows : rows.references.rows;
  DMLFAST_LAUNCH(identity_kernel, pairwise_grid(most), kPairwiseThreads, stream, memory.order,
                 most);
  const PackedPair pair = pack_pairwise(rows, memory, stream);
  PairwiseWalk result{};
  result.walk.x = pair.x;
  result.walk.y = pair.y;
  result.walk.queries = {nullptr, nullptr, static_cast<int>(rows.x.rows), rows.wanted_items};
  result.walk.thresholds = 1;
  result.distances = {rows.metric,     pair.scale,   pair.x,       pair.y, rows.x,
                      rows.references, memory.order, memory.order, nullptr};
  return result;
}

// The same with anchors and references exchanged.
inline PairwiseWalk exchanged(const PairwiseWalk& pairs) {
  PairwiseWalk result = pairs;
  result.walk.x = pairs.walk.y;
  result.walk.y = pairs.walk.x;
  result.walk.queries.most = pairs.walk.y.rows;
  result.distances.x = pairs.distances.y;
  result.distances.y = pairs.distances.x;
  result.distances.x_rows = pairs.distances.y_rows;
  result.distances.y_rows = pairs.distances.x_rows;
  result.distances.x_order = pairs.distances.y_order;
  result.distances.y_order = pairs.distances.x_order;
  return result;
}

// Items into which a walk over so many rows and columns is divided.
inline int pairwise_items(int64_t rows, int64_t columns, int wanted_items) {
  const int tiles = static_cast<int>((columns + kTileColumns - 1) / kTileColumns);
  return split_of(static_cast<int>(rows), kTileRows, tiles, wanted_items).items();
}

// Calls a function template of the precision, as a value of that type.
template <Precision kPrecision>
struct PrecisionTag {
  static constexpr Precision value = kPrecision;
};

template <class Call>
void with_precision(const PairwiseRows& rows, const Call& call) {
  const bool is_narrow =
      rows.x.type == ElementType::float16 || rows.x.type == ElementType::bfloat16;
  if (rows.fast || is_narrow) {
    call(PrecisionTag<Precision::half>{});
  } else {
    call(PrecisionTag<Precision::split>{});
  }
}

}  // namespace dmlfast::cuda
