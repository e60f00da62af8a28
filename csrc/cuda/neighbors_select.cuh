// The route of a selection: by class, or by comparing every pair.
#pragma once

#include "neighbors_class.cuh"

namespace dmlfast::cuda {

// Bytes that launch_select needs at an address divisible by 16.
inline int64_t select_workspace_bytes(int64_t slots, bool same_class) {
  const Queries queries = all_queries(slots);
  return same_class ? class_workspace_bytes(queries) : exact_workspace_bytes(queries);
}

template <class T, class Distance>
void launch_select(const SelectArguments<T>& a, void* workspace, cudaStream_t stream) {
  if (a.metric == Metric::cosine) {
    launch_norms(a.x, a.norms_x, stream);
    launch_norms(a.references, a.norms_references, stream);
  }
  const Queries queries = all_queries(a.slots());
  if (a.same_class) {
    launch_class_select<T, Distance>(a, queries, workspace, stream);
  } else {
    launch_exact_select<T, Distance>(a, queries, workspace, stream);
  }
}

}  // namespace dmlfast::cuda
