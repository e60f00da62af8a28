// The route of a selection: within classes, by search, or by comparing every pair.
#pragma once

#include <type_traits>

#include "neighbors_class_search.cuh"

namespace dmlfast::cuda {

// Whether there are enough pairs to search for candidates first.
template <class T>
bool is_searched(const SelectArguments<T>& a) {
  return a.slots() * a.references.rows >= kSearchedPairs;
}

template <class T>
int64_t select_memory_bytes(const SelectArguments<T>& a) {
  const Queries queries = all_queries(a.slots());
  Workspace workspace;
  if (a.same_class) {
    ClassSelectMemory::take(workspace, a, queries, is_searched(a));
  } else if (is_searched(a)) {
    SearchSelectMemory::take(workspace, a, is_within_batch(a));
  } else {
    workspace.take<unsigned char>(exact_workspace_bytes(queries));
  }
  return workspace.bytes();
}

template <class T>
const int32_t* search_counts(const SelectArguments<T>& a, void* memory) {
  Workspace workspace(memory);
  if (!is_searched(a)) {
    return nullptr;
  }
  return a.same_class
             ? ClassSelectMemory::take(workspace, a, all_queries(a.slots()), true).search.counts
             : SearchSelectMemory::take(workspace, a, is_within_batch(a)).search.counts;
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
    launch_same_class<T, Distance>(a, queries, is_searched(a), memory, shared_bytes, stream);
  } else if (is_searched(a)) {
    launch_search_select<T, Distance>(a, is_within_batch(a), memory, shared_bytes, stream);
  } else {
    launch_exact_select<T, Distance>(a, queries, memory, stream);
  }
}

}  // namespace dmlfast::cuda
