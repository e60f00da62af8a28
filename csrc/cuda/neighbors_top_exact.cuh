// The k nearest by comparing every pair: for queries that no search decided, for more neighbors
// than a search serves, and for classes, which are near each other in the order of the labels.
#pragma once

#include <algorithm>

#include "neighbors_pairs.cuh"
#include "neighbors_top.h"
#include "neighbors_top_entries.cuh"

namespace dmlfast::cuda {

// Entries beside those that are kept: at least a tile's columns more.
constexpr int kTopRoom = 2 * kExactTile;

// What an item's rows keep of their columns.
struct TopWorkspace {
  double* values;  // by item, row, and entry
  int* indices;
  int* counts;          // by item and row
  ColumnRange* ranges;  // by row block; unused unless partners are of the same class
  int capacity;         // entries of a row
};

inline int top_capacity(int k) { return 2 * k + kTopRoom; }

// The queries from `first` on that are served at a time.
inline Queries top_queries(const TopArguments& top, int64_t first) {
  const int64_t entry = sizeof(double) + sizeof(int);
  const int64_t fitting = top.entry_bytes / (kExactTile * top_capacity(top.k) * entry);
  const int64_t items = fitting < 1 ? 1 : fitting;
  const int64_t left = top.x.rows - first;
  const int64_t most = left < items * kExactTile ? left : items * kExactTile;
  const int64_t row_blocks = (most + kExactTile - 1) / kExactTile;
  const int64_t tiles = (top.references.rows + kExactTile - 1) / kExactTile;
  Queries queries{nullptr, nullptr, static_cast<int>(most)};
  queries.wanted_items =
      static_cast<int>(std::min({items, row_blocks * tiles, int64_t{kWantedItems}}));
  queries.first = static_cast<int>(first);
  return queries;
}

inline TopWorkspace take_top_workspace(Workspace& workspace, const Queries& queries, int k) {
  const int64_t rows =
      int64_t{most_items(queries.most, kExactTile, queries.wanted_items)} * kExactTile;
  const int capacity = top_capacity(k);
  TopWorkspace top{};
  top.values = workspace.take<double>(rows * capacity);
  top.indices = workspace.take<int>(rows * capacity);
  top.counts = workspace.take<int>(rows);
  top.ranges = workspace.take<ColumnRange>((int64_t{queries.most} + kExactTile - 1) / kExactTile);
  top.capacity = capacity;
  return top;
}

struct ExactTopArguments {
  TopArguments top;
  TopWorkspace found;

  __device__ ColumnRange columns(int row_block) const {
    return top.rule == LabelRule::same_class
               ? found.ranges[row_block]
               : ColumnRange{0, static_cast<int>(top.references.rows)};
  }
};

// Where the classes of a row block's queries lie. These are successive, in the order of their
// labels. A thread a row block.
static __global__ void top_ranges_kernel(TopArguments a, Queries queries, ColumnRange* ranges) {
  const int row_blocks = (queries.most + kExactTile - 1) / kExactTile;
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  for (int b = blockIdx.x * blockDim.x + threadIdx.x; b < row_blocks; b += step) {
    const int end = (b + 1) * kExactTile < queries.most ? (b + 1) * kExactTile : queries.most;
    const int64_t first = a.labels[a.order[queries.query(b * kExactTile)]];
    const int64_t last = a.labels[a.order[queries.query(end - 1)]];
    const int64_t rows = a.references.rows;
    ranges[b] = {
        static_cast<int>(class_bound(a.reference_labels, a.reference_order, rows, first, false)),
        static_cast<int>(class_bound(a.reference_labels, a.reference_order, rows, last, true))};
  }
}

// Keeps the k first of each query's entries, and room for more: full arrays are cut to k.
class ExactTop {
 public:
  using Arguments = ExactTopArguments;

  struct Shared {
    ColumnRange classes[kExactTile];  // the positions of each query's class
    double norms[kExactTile];         // the anchors', under cosine
    double limits[kExactTile];        // no entry after this one is wanted
    int last_indices[kExactTile];
    int selves[kExactTile];
    int counts[kExactTile];
  };

  __device__ ExactTop(const Arguments& arguments, Shared& shared)
      : arguments_(arguments), shared_(shared) {}

  __device__ void begin(const ExactItem& item) {
    const TopArguments& a = arguments_.top;
    const int row = static_cast<int>(threadIdx.x);
    if (row >= kExactTile) {
      return;
    }
    shared_.counts[row] = 0;
    // Nothing is a number below minus infinity: rows that do not exist keep nothing.
    shared_.limits[row] = row < item.rows ? INFINITY : NAN;
    shared_.last_indices[row] = INT_MAX;
    shared_.norms[row] = 0.0;
    shared_.selves[row] = -1;
    shared_.classes[row] = {0, 0};
    if (row < item.rows) {
      const int anchor = item.anchors[row];
      shared_.norms[row] = anchor_norm(a, anchor);
      shared_.selves[row] = self_of(a, anchor);
      if (a.rule != LabelRule::all) {
        shared_.classes[row] = own_class(a, anchor);
      }
    }
  }

  __device__ __forceinline__ void take(const ExactItem& item, const ExactColumns& tile,
                                       const ExactSums& sums) {
    double left[kSums];
#pragma unroll
    for (int n = 0; n < kSums; ++n) {
      left[n] = sums[n / kExactPairs][n % kExactPairs];
    }
    bool is_full = false;
#pragma unroll 1
    for (int i = 0; i < kExactPairs; ++i) {
      const int count = take_row(item, tile, row_of(i), left);
      is_full = is_full || count + kExactTile > arguments_.found.capacity;
    }
    if (__ballot_sync(kAllLanes, is_full) != 0) {
      make_room(item, arguments_.found.capacity - kExactTile);
    }
  }

  __device__ void finish(const ExactItem& item) {
    __syncthreads();                                 // without a tile nobody has waited for `begin`
    make_room(item, arguments_.top.k + kExactTile);  // who joins the parts reads these few more
    if (column_of(0) == 0) {
#pragma unroll
      for (int i = 0; i < kExactPairs; ++i) {
        arguments_.found.counts[int64_t{item.number} * kExactTile + row_of(i)] =
            shared_.counts[row_of(i)];
      }
    }
  }

 private:
  __device__ int64_t first_entry(const ExactItem& item, int row) const {
    return (int64_t{item.number} * kExactTile + row) * arguments_.found.capacity;
  }

  static constexpr int kSums = kExactPairs * kExactPairs;

  // The pairs of one row, whose sums are the first that are left: 16 lanes have four each, and
  // append what they want in a fixed order. Returns how many entries the row has.
  __device__ __forceinline__ int take_row(const ExactItem& item, const ExactColumns& tile, int row,
                                          double (&left)[kSums]) {
    const TopArguments& a = arguments_.top;
    const ColumnRange own = shared_.classes[row];
    const double limit = shared_.limits[row];
    const int last_index = shared_.last_indices[row];
    const int64_t to = first_entry(item, row);
    const unsigned lane = threadIdx.x % 32;
    const unsigned half = 0xffffu << (lane / 16 * 16);
    int count = shared_.counts[row];
    // Not unrolled, to save registers and instructions: so the sums move up.
#pragma unroll 1
    for (int j = 0; j < kExactPairs; ++j) {
      const int column = column_of(j);
      const int position = tile.first + column;
      const int reference = column < tile.count ? tile.references[column] : -1;
      const bool is_own = position >= own.begin && position < own.end;
      const bool is_partner =
          a.rule == LabelRule::all || is_own == (a.rule == LabelRule::same_class);
      bool is_wanted = reference >= 0 && is_partner && reference != shared_.selves[row];
      double value = 0.0;
      if (is_wanted) {
        value = value_of_sum(a, left[0], shared_.norms[row], reference);
        is_wanted = value < limit || (value == limit && reference < last_index);
      }
      const unsigned wanted = __ballot_sync(kAllLanes, is_wanted) & half;
      if (is_wanted) {
        const int place = count + __popc(wanted & ((1u << lane) - 1));
        arguments_.found.values[to + place] = value;
        arguments_.found.indices[to + place] = reference;
      }
      count += __popc(wanted);
#pragma unroll
      for (int n = 1; n < kSums; ++n) {
        left[n - 1] = left[n];
      }
    }
    __syncwarp();  // all lanes have read the count
    if (column_of(0) == 0) {
      shared_.counts[row] = count;
    }
    __syncwarp();
    return count;
  }

  // Cuts the arrays of this warp's rows that have more entries than `most`, k or more, to k.
  __device__ void make_room(const ExactItem& item, int most) {
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < 2 * kExactPairs; ++i) {
      const int row = static_cast<int>(threadIdx.x) / 32 * 2 + i % 2 + i / 2 * kExactEdge;
      if (shared_.counts[row] <= most) {
        continue;
      }
      const int64_t first = first_entry(item, row);
      const KeptEntries kept{arguments_.found.values + first,
                             arguments_.found.indices + first,
                             shared_.counts + row,
                             1,
                             0,
                             0};
      Entry last;
      const int count = keep_first(kept, arguments_.top.k, last);
      if (threadIdx.x % 32 == 0) {
        shared_.counts[row] = count;
        shared_.limits[row] = last.value;
        shared_.last_indices[row] = last.index;
      }
      __syncwarp();
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
};

constexpr int kTopThreads = 128;

// The entries of a query, in shared memory.
struct TopShared {
  double values[kGreatestK];
  int indices[kGreatestK];
  int count;
  bool is_finite;

  __device__ Entry at(int i) const {
    Entry entry;
    entry.value = values[i];
    entry.index = indices[i];
    return entry;
  }
  __device__ void put(int i, const Entry& entry) {
    values[i] = entry.value;
    indices[i] = entry.index;
  }
};

// Brings the first `size` entries, a power of two, in ascending order.
__device__ inline void sort_entries(TopShared& shared, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
#pragma unroll 1
      for (int i = threadIdx.x; i < size / 2; i += kTopThreads) {
        const int low = i / step * (2 * step) + i % step;
        const Entry first = shared.at(low);
        const Entry second = shared.at(low + step);
        if ((low & run) == 0 ? second.is_before(first) : first.is_before(second)) {
          shared.put(low, second);
          shared.put(low + step, first);
        }
      }
      __syncthreads();
    }
  }
}

// Writes neighbor n of an anchor, or that there is none.
__device__ __forceinline__ void report_neighbor(const TopArguments& top, int anchor, int n,
                                                const Entry& entry, bool anchor_is_finite) {
  const int64_t at = int64_t{anchor} * top.k + n;
  const double missing = anchor_is_finite ? INFINITY : NAN;
  write_distance(top, at, entry.exists() ? distance_of(top.metric, entry.value) : missing);
  top.index[at] = entry.exists() ? entry.index : -1;
}

// What the parts of a query's columns kept.
struct KeptQuery {
  int anchor;
  KeptEntries entries;

  __device__ __forceinline__ KeptQuery(const ExactTopArguments& arguments, const Queries& queries,
                                       int place) {
    const TopArguments& a = arguments.top;
    const TopWorkspace& found = arguments.found;
    const int column_tiles = static_cast<int>((a.references.rows + kExactTile - 1) / kExactTile);
    const Split split = split_of(queries.number(), kExactTile, column_tiles, queries.wanted_items);
    const int row_block = place / kExactTile;
    const ColumnRange columns = arguments.columns(row_block);
    const int64_t row = int64_t{row_block} * split.parts * kExactTile + place % kExactTile;
    anchor = static_cast<int>(a.order[queries.query(place)]);
    entries = {found.values + row * found.capacity,
               found.indices + row * found.capacity,
               found.counts + row,
               columns.begin < columns.end ? split.parts : 0,
               int64_t{kExactTile} * found.capacity,
               kExactTile};
  }
};

// Joins what the parts kept, in ascending order, for as many neighbors as a warp has lanes. A warp
// a query.
static __global__ void __launch_bounds__(kTopThreads)
    join_few_kernel(ExactTopArguments arguments, Queries queries) {
  constexpr int kWarps = kTopThreads / 32;
  const TopArguments& top = arguments.top;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int place = blockIdx.x * kWarps + threadIdx.x / 32; place < queries.number();
       place += gridDim.x * kWarps) {
    const KeptQuery kept(arguments, queries, place);
    WarpEntries best;
    kept.entries.for_each([&](const Entry& entry) { best.offer(entry); });
    const bool is_finite = best.at(top.k - 1).exists() || warp_row_is_finite(top.x, kept.anchor);
    if (lane < top.k) {
      report_neighbor(top, kept.anchor, lane, best.mine(), is_finite);
    }
  }
}

// The same for any number. A block a query.
static __global__ void __launch_bounds__(kTopThreads)
    join_many_kernel(ExactTopArguments arguments, Queries queries) {
  __shared__ TopShared shared;
  const TopArguments& top = arguments.top;
  int size = 1;
  while (size < top.k) {
    size *= 2;
  }
  for (int place = blockIdx.x; place < queries.number(); place += gridDim.x) {
    const KeptQuery kept(arguments, queries, place);
    if (threadIdx.x < 32) {
      Entry last;
      const int count = keep_first(kept.entries, top.k, last);
      const bool is_finite = count == top.k || warp_row_is_finite(top.x, kept.anchor);
      if (threadIdx.x == 0) {
        shared.count = count;
        shared.is_finite = is_finite;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += kTopThreads) {
      Entry entry;
      if (i < shared.count) {
        entry.value = kept.entries.values[i];
        entry.index = kept.entries.indices[i];
      }
      shared.put(i, entry);
    }
    __syncthreads();
    sort_entries(shared, size);
#pragma unroll 1
    for (int n = threadIdx.x; n < top.k; n += kTopThreads) {
      report_neighbor(top, kept.anchor, n, shared.at(n), shared.is_finite);
    }
    __syncthreads();
  }
}

// The k nearest of `queries`; with partners of the same class these must be no list. The norms must
// be there under cosine.
inline void launch_exact_top(const TopArguments& top, const Queries& queries,
                             const TopWorkspace& workspace, cudaStream_t stream) {
  const ExactTopArguments arguments{top, workspace};
  if (top.rule == LabelRule::same_class) {
    const int64_t row_blocks = (int64_t{queries.most} + kExactTile - 1) / kExactTile;
    const unsigned blocks = grid_for((row_blocks + kTopThreads - 1) / kTopThreads);
    DMLFAST_LAUNCH(top_ranges_kernel, dim3{blocks}, kTopThreads, stream, top, queries,
                   workspace.ranges);
  }
  launch_exact_walk<AnyElement, ExactTop>(operands_of(top), queries, arguments, stream);
  if (top.k <= 32) {
    DMLFAST_LAUNCH(join_few_kernel, dim3{blocks_for(queries, kTopThreads / 32)}, kTopThreads,
                   stream, arguments, queries);
  } else {
    DMLFAST_LAUNCH(join_many_kernel, dim3{blocks_for(queries, 1)}, kTopThreads, stream, arguments,
                   queries);
  }
}

}  // namespace dmlfast::cuda
