// The route of a selection: by class, by search, or by comparing every pair.
#pragma once

#include <type_traits>

#include "neighbors_class.cuh"
#include "neighbors_search.cuh"

namespace dmlfast::cuda {

template <class T>
bool is_searched(const SelectArguments<T>& a) {
  return !a.same_class && a.slots() * a.references.rows >= kSearchedPairs;
}

template <class T>
int64_t select_memory_bytes(const SelectArguments<T>& a) {
  if (is_searched(a)) {
    Workspace workspace;
    SearchMemory::take(workspace, a, is_within_batch(a));
    return workspace.bytes();
  }
  const Queries queries = all_queries(a.slots());
  return a.same_class ? class_workspace_bytes(queries) : exact_workspace_bytes(queries);
}

template <class T>
const int32_t* search_counts(const SelectArguments<T>& a, void* memory) {
  Workspace workspace(memory);
  return is_searched(a) ? SearchMemory::take(workspace, a, is_within_batch(a)).counts : nullptr;
}

template <class T>
void launch_select(const SelectArguments<T>& a, void* memory, int shared_bytes,
                   cudaStream_t stream) {
  using Distance = std::conditional_t<std::is_same_v<T, double>, double, float>;
  if (a.metric == Metric::cosine) {
    launch_norms(a.x, a.norms_x, stream);
    launch_norms(a.references, a.norms_references, stream);
  }
  const Queries queries = all_queries(a.slots());
  if (a.same_class) {
    launch_class_select<T, Distance>(a, queries, memory, stream);
  } else if (is_searched(a)) {
    launch_search_select<T, Distance>(a, is_within_batch(a), memory, shared_bytes, stream);
  } else {
    launch_exact_select<T, Distance>(a, queries, memory, stream);
  }
}

}  // namespace dmlfast::cuda
