// The k nearest by search: the k-th best score of the windows bounds what can belong to the k
// nearest. Where no window can have lost any of these, they are compared by their exact values;
// else all columns up to the bound are collected by a second walk. What is left is tried again at
// split precision, and then listed for the exact walk.
#pragma once

#include <cfloat>

#include "engine/collect.cuh"
#include "neighbors_search.cuh"
#include "neighbors_top_exact.cuh"

namespace dmlfast::cuda {

constexpr int kSearchedNeighbors = 32;  // a lane of a warp each
constexpr int kLists = 2 * kLevels;     // of what windows, and collected columns, leave open

__host__ __device__ inline int collected_capacity(int k) { return 2 * k + 64; }

// Half as many parts of the columns as neighbors: then few windows are too small.
inline int top_search_items(int queries, int k) {
  const int row_blocks = (queries + kTileRows - 1) / kTileRows;
  const int items = row_blocks * ((k + 1) / 2);
  return items > kWantedItems ? items : kWantedItems;
}

// What a search for the k nearest keeps in memory; of queries, for those that are served at a time.
struct TopSearchMemory {
  PackPairMemory packed;
  PreparedMemory prepared;
  Candidate* windows;
  int32_t* undecided[kLists];
  int32_t* counts;     // of the undecided, by list
  float* limits;       // by place in the list of queries whose columns are collected
  int32_t* collected;  // how many, and which columns
  int32_t* columns;
  TopWorkspace exact;

  static TopSearchMemory take(Workspace& workspace, const TopArguments& top) {
    const Queries exact = top_queries(top, 0);
    const int queries = exact.most;
    const int wanted_items = top_search_items(queries, top.k);
    TopSearchMemory memory{};
    const auto a = selection_of<float>(top);
    memory.packed = PackPairMemory::take(workspace, a.x.rows, a.references.rows, a.x.columns,
                                         is_within_batch(a));
    memory.prepared = PreparedMemory::take(workspace, a);
    memory.windows = workspace.take<Candidate>(
        int64_t{most_items(queries, kTileRows, wanted_items)} * kTileRows * kCandidates);
    for (int32_t*& list : memory.undecided) {
      list = workspace.take<int32_t>(queries);
    }
    memory.counts = workspace.take<int32_t>(kLists);
    memory.limits = workspace.take<float>(queries);
    memory.collected = workspace.take<int32_t>(queries);
    memory.columns = workspace.take<int32_t>(int64_t{queries} * collected_capacity(top.k));
    memory.exact = take_top_workspace(workspace, exact, top.k);
    return memory;
  }
};

// Queries that a step leaves open.
struct UndecidedList {
  int32_t* queries;
  int32_t* count;
};

// What a walk has found, and where the answers go.
struct TopChooseArguments {
  TopArguments top;
  Queries queries;
  int column_tiles;
  const Candidate* windows;
  const float* bounds;  // by query
  const PackScale* scale;
  const float* anchor_norms;
  float* limits;  // by place in the list of queries whose columns are collected
  int32_t* collected;
  const int32_t* columns;
  UndecidedList undecided;
  UndecidedList unsearchable;  // left to the exact walk at once
};

// Compares columns with a query by their exact values, 32 at a time, those that are wanted of
// `count`. A warp calls it; column_of(i) is -1 where it is not wanted.
template <class ColumnOf>
__device__ __forceinline__ WarpEntries compare_columns(const TopArguments& top, int anchor,
                                                       int count, const ColumnOf& column_of,
                                                       int (&queue)[64]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const double norm = anchor_norm(top, anchor);
  WarpEntries best;
  int queued = 0;
  for (int first = 0; first < count || queued > 0; first += 32) {
    const int column = first + lane < count ? column_of(first + lane) : -1;
    const unsigned wanted = __ballot_sync(kAllLanes, column >= 0);
    if (column >= 0) {
      queue[queued + __popc(wanted & ((1u << lane) - 1))] = column;
    }
    queued += __popc(wanted);
    __syncwarp();
    if (queued < 32 && first + 32 < count) {
      continue;
    }
    Entry entry;
    if (lane < queued) {
      const int reference = static_cast<int>(top.reference_order[queue[lane]]);
      const double value = pair_value(top, anchor, norm, reference);
      if (value == value) {
        entry.value = value;
        entry.index = reference;
      }
    }
    best.offer(entry);
    const int rest = queue[32 + lane];
    __syncwarp();
    queue[lane] = rest;
    queued = queued > 32 ? queued - 32 : 0;
    __syncwarp();
  }
  return best;
}

// The windows of one query.
class Windows {
 public:
  __device__ Windows(const Candidate* windows, const Split& split, int place)
      : first_(windows + first_part_of(split, place) * kCandidates),
        count_(split.parts * kCandidates) {}

  __device__ int count() const { return count_; }

  // Parts of the columns lie a tile's rows apart.
  __device__ __forceinline__ const Candidate& at(int i) const {
    return first_[int64_t{i / kCandidates} * kTileRows * kCandidates + i % kCandidates];
  }

  // The k-th score, than which that of the k-th of all columns is not greater; FLT_MAX where there
  // are fewer.
  __device__ __forceinline__ float kth_score(int k) const {
    WarpEntries best;
    for (int first = 0; first < count_; first += 32) {
      const int i = first + static_cast<int>(threadIdx.x) % 32;
      Entry entry;
      if (i < count_ && at(i).column >= 0) {
        entry.value = at(i).score;
        entry.index = i;
      }
      best.offer(entry);
    }
    const Entry found = best.at(k - 1);
    return found.exists() ? static_cast<float>(found.value) : FLT_MAX;
  }

  // Whether a window may have lost a score up to the limit.
  __device__ __forceinline__ bool are_full(float limit) const {
    bool is_full = false;
    for (int i = static_cast<int>(threadIdx.x) % 32; i < count_; i += 32) {
      is_full = is_full || (i % kWindow == kWindow - 1 && at(i).score <= limit);
    }
    return __ballot_sync(kAllLanes, is_full) != 0;
  }

 private:
  const Candidate* first_;
  int count_;
};

// Adds a query to a list and returns its place, which varies from run to run; no answer depends on
// it.
__device__ inline int postpone(const UndecidedList& list, int query) {
  const int place = atomicAdd(list.count, 1);
  list.queries[place] = query;
  return place;
}

// Writes a query's neighbors, or leaves it to the exact walk. A warp calls it.
__device__ __forceinline__ void report_neighbors(const TopChooseArguments& a, int query, int anchor,
                                                 const WarpEntries& best) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // References that are infinitely far are neighbors still, where there are too few others.
  if (!best.at(a.top.k - 1).exists() && a.scale->has_infinite != 0) {
    if (lane == 0) {
      postpone(a.unsearchable, query);
    }
  } else if (lane < a.top.k) {
    report_neighbor(a.top, anchor, lane, best.mine(), true);
  }
}

// Whether scores say something of a query's values.
__device__ __forceinline__ bool is_searchable(const TopChooseArguments& a, int query) {
  // An infinite reference may have the least product of all.
  const bool is_lost = is_out_of_range(a.scale->exponent) ||
                       (a.top.metric == Metric::dot && a.scale->has_infinite != 0);
  return !is_lost && a.anchor_norms[query] != INFINITY;
}

// A warp a query: its neighbors from the windows, or how far to collect columns.
static __global__ void __launch_bounds__(kSearchThreads, 4)
    choose_top_kernel(TopChooseArguments a) {
  __shared__ int queues[kSearchWarps][64];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int number = a.queries.number();
  const Split split = split_of(number, kTileRows, a.column_tiles, a.queries.wanted_items);
  for (int place = blockIdx.x * kSearchWarps + threadIdx.x / 32; place < number;
       place += gridDim.x * kSearchWarps) {
    const int query = a.queries.query(place);
    if (!is_searchable(a, query)) {
      if (lane == 0) {
        postpone(a.unsearchable, query);
      }
      continue;
    }
    const Windows windows(a.windows, split, place);
    const float kth = windows.kth_score(a.top.k);
    const float limit = kth == FLT_MAX ? FLT_MAX : kth + 2.0f * a.bounds[query];
    if (windows.are_full(limit)) {
      if (lane == 0) {
        const int to = postpone(a.undecided, query);
        a.limits[to] = limit;
        a.collected[to] = 0;
      }
      continue;
    }
    const int anchor = static_cast<int>(a.top.order[query]);
    const auto column_of = [&](int i) {
      const Candidate& found = windows.at(i);
      return found.score <= limit ? found.column : -1;
    };
    report_neighbors(
        a, query, anchor,
        compare_columns(a.top, anchor, windows.count(), column_of, queues[threadIdx.x / 32]));
  }
}

// A warp a query: its neighbors from the columns that were collected.
static __global__ void __launch_bounds__(kSearchThreads, 4)
    choose_collected_kernel(TopChooseArguments a) {
  __shared__ int queues[kSearchWarps][64];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int number = a.queries.number();
  const int capacity = collected_capacity(a.top.k);
  for (int place = blockIdx.x * kSearchWarps + threadIdx.x / 32; place < number;
       place += gridDim.x * kSearchWarps) {
    const int query = a.queries.query(place);
    const int count = a.collected[place];
    if (count > capacity) {
      if (lane == 0) {
        postpone(a.undecided, query);
      }
      continue;
    }
    const int anchor = static_cast<int>(a.top.order[query]);
    const auto column_of = [&](int i) { return a.columns[int64_t{place} * capacity + i]; };
    report_neighbors(a, query, anchor,
                     compare_columns(a.top, anchor, count, column_of, queues[threadIdx.x / 32]));
  }
}

// A thread a list.
static __global__ void clear_counts_kernel(int32_t* counts) { counts[threadIdx.x] = 0; }

// What the steps of a search share, for the queries that are served at a time.
struct TopSearch {
  TopArguments top;
  Queries served;
  PackedPair pair;
  TopSearchMemory memory;
  int shared_bytes;
  cudaStream_t stream;

  Partners partners() const {
    return top.rule == LabelRule::all ? Partners::all : Partners::other_class;
  }
  const int32_t* self() const { return top.self_index == nullptr ? nullptr : memory.prepared.self; }
  float factor() const { return sums_differences(top.metric) ? -2.0f : -1.0f; }

  // Those of a list, or all of them.
  Queries queries(int list) const {
    Queries queries = served;
    queries.wanted_items = top_search_items(queries.most, top.k);
    if (list >= 0) {
      queries.list = memory.undecided[list];
      queries.count = memory.counts + list;
    }
    return queries;
  }

  WalkTask walk(const Queries& queries) const {
    WalkTask task{};
    task.x = pair.x;
    task.y = pair.y;
    task.queries = queries;
    task.thresholds = 1;
    return task;
  }

  TopChooseArguments choose(const Queries& queries, int level, int list) const {
    return {top,
            queries,
            pair.y.tiles(),
            memory.windows,
            memory.prepared.numbers.bounds[level],
            pair.scale,
            pair.x.norm,
            memory.limits,
            memory.collected,
            memory.columns,
            undecided(list),
            undecided(kLists - 1)};
  }

  UndecidedList undecided(int list) const { return {memory.undecided[list], memory.counts + list}; }

  // Decides what windows and then collected columns can, of the queries of the list before the
  // first of this level's two.
  void launch_level(int level) const {
    const Precision precision = level == 0 ? Precision::half : Precision::split;
    const int list = 2 * level;

    const Queries wanted = queries(list - 1);
    const WindowArguments window{pair.y.norm,
                                 memory.prepared.numbers.bounds[level],
                                 nullptr,
                                 self(),
                                 memory.prepared.ranges,
                                 partners(),
                                 factor(),
                                 memory.windows};
    launch_window_walk(walk(wanted), window, WindowKind::several, precision, shared_bytes, stream);
    DMLFAST_LAUNCH(choose_top_kernel, dim3{blocks_for(wanted, kSearchWarps)}, kSearchThreads,
                   stream, choose(wanted, level, list));

    const Queries rest = queries(list);
    const CollectArguments collect{
        pair.y.norm, memory.limits,    self(),         memory.prepared.ranges,   partners(),
        factor(),    memory.collected, memory.columns, collected_capacity(top.k)};
    launch_collect_walk(walk(rest), collect, precision, shared_bytes, stream);
    DMLFAST_LAUNCH(choose_collected_kernel, dim3{blocks_for(rest, kSearchWarps)}, kSearchThreads,
                   stream, choose(rest, level, list + 1));
  }

  void launch() const {
    DMLFAST_LAUNCH(clear_counts_kernel, dim3{1}, kLists, stream, memory.counts);
    for (int level = 0; level < kLevels; ++level) {
      launch_level(level);
    }
    Queries rest = served;
    rest.list = memory.undecided[kLists - 1];
    rest.count = memory.counts + kLists - 1;
    launch_exact_top(top, rest, memory.exact, stream);
  }
};

// The k nearest of all queries, of all classes or of others. `memory_address` is aligned to 16
// bytes. The norms must be there under cosine.
inline void launch_search_top(const TopArguments& top, void* memory_address, int shared_bytes,
                              cudaStream_t stream) {
  const auto a = selection_of<float>(top);
  Workspace workspace(memory_address);
  const TopSearchMemory memory = TopSearchMemory::take(workspace, top);
  const PackedPair pair = launch_pack_rows(top.x, top.order, top.references, top.reference_order,
                                           is_within_batch(a), top.metric, memory.packed, stream);
  launch_query_classes(a, memory.prepared, nullptr, stream);
  launch_search_numbers(a, pair, PackGroups{}, memory.prepared, nullptr, stream);
  for (int64_t first = 0; first < top.x.rows;) {
    const Queries served = top_queries(top, first);
    TopSearch{top, served, pair, memory, shared_bytes, stream}.launch();
    first += served.most;
  }
}

}  // namespace dmlfast::cuda
