// The route of the k nearest: by search, or by comparing every pair.
#include "neighbors_top.h"
#include "neighbors_top_search.cuh"

namespace dmlfast::cuda {

namespace {

// Partners of the same class are near each other in the order of the labels: all are compared.
// A search in very large classes belongs here.
bool is_searched(const TopArguments& top) {
  return top.k <= kSearchedNeighbors && top.rule != LabelRule::same_class &&
         top.x.rows * top.references.rows >= kSearchedPairs;
}

}  // namespace

int64_t top_memory_bytes(const TopArguments& top) {
  Workspace workspace;
  if (is_searched(top)) {
    TopSearchMemory::take(workspace, top);
  } else {
    take_top_workspace(workspace, top_queries(top, 0), top.k);
  }
  return workspace.bytes();
}

void launch_top(const TopArguments& top, void* memory, int shared_bytes, cudaStream_t stream) {
  launch_pair_norms(top, stream);
  if (is_searched(top)) {
    launch_search_top(top, memory, shared_bytes, stream);
    return;
  }
  Workspace workspace(memory);
  const TopWorkspace exact = take_top_workspace(workspace, top_queries(top, 0), top.k);
  for (int64_t first = 0; first < top.x.rows;) {
    const Queries queries = top_queries(top, first);
    launch_exact_top(top, queries, exact, stream);
    first += queries.most;
  }
}

}  // namespace dmlfast::cuda
