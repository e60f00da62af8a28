// Selection by search within classes too large to be read at once: their rows are packed around
// centres of their own, so that classes that have collapsed are searched as any other.
#pragma once

#include "engine/pack_classes.cuh"
#include "neighbors_class.cuh"
#include "neighbors_search.cuh"

namespace dmlfast::cuda {

constexpr int kListThreads = 256;
constexpr int kListWarps = kListThreads / 32;

// Lists the queries of the row blocks that are `open`, in their order, and leaves none of them to
// the walk. One block, so that neighbours on the list are neighbours among the rows.
static __global__ void __launch_bounds__(kListThreads)
    list_open_kernel(const ColumnRange* open, int row_blocks, int queries, ColumnRange* left,
                     int32_t* list, int32_t* count) {
  __shared__ int votes_of_warp[kListWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int listed = 0;
  if (threadIdx.x == 0) {
    *count = 0;
  }
  __syncthreads();
  for (int first = 0; first < row_blocks; first += kListThreads) {
    const int row_block = first + static_cast<int>(threadIdx.x);
    const bool exists = row_block < row_blocks;
    const int first_query = row_block * kExactTile;
    const int number = exists && open[row_block].begin < open[row_block].end
                           ? min(kExactTile, queries - first_query)
                           : 0;
    if (exists) {
      left[row_block] = {0, 0};
    }
    // Only the last row block may have fewer than all queries: it is the last on the list, too.
    const unsigned votes = __ballot_sync(kAllLanes, number > 0);
    if (lane == 0) {
      votes_of_warp[warp] = __popc(votes);
    }
    __syncthreads();
    int before = __popc(votes & ((1u << lane) - 1));
    int all = 0;
    for (int w = 0; w < kListWarps; ++w) {
      before += w < warp ? votes_of_warp[w] : 0;
      all += votes_of_warp[w];
    }
    const int place = (listed + before) * kExactTile;
    for (int i = 0; i < number; ++i) {
      list[place + i] = first_query + i;
    }
    if (number > 0) {
      atomicMax(count, place + number);
    }
    listed += all;
    __syncthreads();
  }
}

// Leaves the row blocks of the queries that are undecided to the walk.
static __global__ void leave_undecided_kernel(const ColumnRange* open, Queries undecided,
                                              ColumnRange* left) {
  for (int place = blockIdx.x * blockDim.x + threadIdx.x; place < undecided.number();
       place += gridDim.x * blockDim.x) {
    const int row_block = undecided.query(place) / kExactTile;
    left[row_block] = open[row_block];
  }
}

// What a selection within classes keeps in memory. With few pairs classes are not searched.
struct ClassSelectMemory {
  ColumnRange* open;
  unsigned char* exact;
  ColumnRange* left;
  PackClassesMemory packed;
  SearchMemory search;
  int32_t* list;
  int32_t* count;

  template <class T>
  static ClassSelectMemory take(Workspace& workspace, const SelectArguments<T>& a,
                                const Queries& queries, bool is_searched) {
    ClassSelectMemory memory{};
    memory.open = workspace.take<ColumnRange>(class_row_blocks(queries));
    memory.exact = workspace.take<unsigned char>(exact_workspace_bytes(queries));
    if (is_searched) {
      memory.left = workspace.take<ColumnRange>(class_row_blocks(queries));
      memory.packed = PackClassesMemory::take(workspace, a.x.rows, a.references.rows,
                                              a.references.columns, is_within_batch(a));
      memory.search = SearchMemory::take(workspace, a);
      memory.list = workspace.take<int32_t>(queries.most);
      memory.count = workspace.take<int32_t>(1);
    }
    return memory;
  }
};

// Searches the classes of the row blocks that are open; what stays undecided is left.
template <class T, class Distance>
void launch_class_search(const SelectArguments<T>& a, const Queries& queries,
                         const ClassSelectMemory& memory, int shared_bytes, cudaStream_t stream) {
  DMLFAST_LAUNCH(list_open_kernel, dim3{1}, kListThreads, stream, memory.open,
                 static_cast<int>(class_row_blocks(queries)), queries.most, memory.left,
                 memory.list, memory.count);
  const Queries open{memory.list, memory.count, queries.most, queries.wanted_items};
  launch_query_classes(a, memory.search, memory.count, stream);
  const PackedPair pair =
      launch_pack_classes(a.x, a.order, a.references, labels_of_references(a), memory.search.ranges,
                          memory.count, is_within_batch(a), a.metric, memory.packed, stream);
  const PackGroups groups{memory.search.ranges.begin, memory.packed.centre, memory.packed.greatest};
  launch_search_numbers(a, pair, groups, memory.search, memory.count, stream);
  const Queries rest =
      launch_search_levels<T, Distance>(a, pair, memory.search, open, shared_bytes, stream);
  DMLFAST_LAUNCH(leave_undecided_kernel, dim3{blocks_for(rest, kListThreads)}, kListThreads, stream,
                 memory.open, rest, memory.left);
}

// Selects within the classes. `memory` is what ClassSelectMemory::take asks for, aligned to 16
// bytes. The norms must be there under cosine.
template <class T, class Distance>
void launch_same_class(const SelectArguments<T>& a, const Queries& queries, bool is_searched,
                       void* memory_address, int shared_bytes, cudaStream_t stream) {
  Workspace workspace(memory_address);
  const ClassSelectMemory memory = ClassSelectMemory::take(workspace, a, queries, is_searched);
  launch_class_select<T, Distance>(a, queries, memory.open, stream);
  if (is_searched) {
    launch_class_search<T, Distance>(a, queries, memory, shared_bytes, stream);
  }
  launch_exact_select<T, Distance>(a, queries, memory.exact, stream,
                                   is_searched ? memory.left : memory.open);
}

}  // namespace dmlfast::cuda
