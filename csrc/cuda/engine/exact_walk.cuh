// All pairs of queries and references in float64 on the plain cores: the sum over the dimensions
// in ascending order that every device compares. Blocks take 64 queries and walk over tiles of 64
// reference positions, in the order of the labels; a policy sees the sums of each tile.
//
// A policy is constructed by every thread for an item of work and has
//   Arguments      copied to the device, with
//     ColumnRange columns(int row_block) const   the positions that a row block walks over;
//                                                a row block without any is passed over
//   Shared         kept in shared memory, trivially constructible
//   Policy(const Arguments&, Shared&)
//   begin(item)                  before the first tile; `Shared` may be written
//   take(item, tile, sums)       sums[i][j] belongs to row row_of(i) and column column_of(j)
//   finish(item)                 after the last tile, also where a part of the columns has none
#pragma once

#include "engine/queries.cuh"
#include "engine/slab.cuh"

namespace dmlfast::cuda {

constexpr int kExactTile = 64;   // rows and columns of a block
constexpr int kExactEdge = 16;   // threads along a side of it
constexpr int kExactPairs = 4;   // rows and columns of a thread
constexpr int kExactWidth = 32;  // dimensions in shared memory at once
constexpr int kExactThreads = kSlabThreads;
static_assert(kExactEdge * kExactEdge == kExactThreads && kExactEdge * kExactPairs == kExactTile,
              "the threads cover the tile");

// For operands of a dtype that the kernel learns when it runs.
struct AnyElement {};

template <class T>
struct RowsOf {
  using type = Rows<T>;
};
template <>
struct RowsOf<AnyElement> {
  using type = AnyRows;
};

template <class T>
struct ExactOperands {
  typename RowsOf<T>::type anchors;
  typename RowsOf<T>::type references;
  const int64_t* order;            // (N,) sorts the anchors' labels
  const int64_t* reference_order;  // (M,)
  int thresholds;
  bool differences;  // whether squared differences are summed, not products
};

struct ColumnRange {
  int begin;
  int end;

  __device__ int tiles() const { return (end - begin + kExactTile - 1) / kExactTile; }
};

// 64 queries and a part of their columns.
struct ExactItem {
  int number;          // among all items
  int row_block;       // of queries
  int rows;            // 64, or fewer in the last block
  const int* anchors;  // their rows
  const int* queries;
  ColumnRange columns;  // of the row block, all parts
};

struct ExactColumns {
  int first;  // position
  int count;
  const int* references;  // the rows at these positions
};

// Whose sums a thread has. Neighbouring threads have neighbouring columns.
__device__ inline int row_of(int i) {
  return static_cast<int>(threadIdx.x) / kExactEdge + i * kExactEdge;
}
__device__ inline int column_of(int j) {
  return static_cast<int>(threadIdx.x) % kExactEdge + j * kExactEdge;
}

using ExactSums = double[kExactPairs][kExactPairs];

struct ExactShared {
  double rows[kExactTile * (kExactWidth + 1)];
  double columns[kExactTile * (kExactWidth + 1)];
  int anchors[kExactTile];
  int queries[kExactTile];
  int references[kExactTile];
};

template <bool kDifferences>
__device__ __forceinline__ void add_slab(const ExactShared& shared, const Slab& slab,
                                         ExactSums& sums) {
  const double* rows = shared.rows + row_of(0) * (kExactWidth + 1);
  const double* columns = shared.columns + column_of(0) * (kExactWidth + 1);
#pragma unroll 2
  for (int k = 0; k < slab.columns; ++k) {
    double x[kExactPairs];
    double y[kExactPairs];
#pragma unroll
    for (int i = 0; i < kExactPairs; ++i) {
      x[i] = rows[i * kExactEdge * (kExactWidth + 1) + k];
      y[i] = columns[i * kExactEdge * (kExactWidth + 1) + k];
    }
#pragma unroll
    for (int i = 0; i < kExactPairs; ++i) {
#pragma unroll
      for (int j = 0; j < kExactPairs; ++j) {
        sums[i][j] += share_of<kDifferences>(x[i], y[j]);
      }
    }
  }
}

// The sums of one tile. Rows that were not staged hold what was there before: their sums are
// nobody's.
template <class T>
__device__ __forceinline__ void sum_tile(const ExactOperands<T>& operands, const ExactItem& item,
                                         const ExactColumns& tile, ExactShared& shared,
                                         ExactSums& sums) {
#pragma unroll
  for (int i = 0; i < kExactPairs; ++i) {
#pragma unroll
    for (int j = 0; j < kExactPairs; ++j) {
      sums[i][j] = 0.0;
    }
  }
  const int64_t dimensions = operands.anchors.columns;
  for (int first = 0; first < dimensions; first += kExactWidth) {
    const Slab slab = slab_at(first, dimensions, kExactWidth);
    stage_slab(
        operands.anchors, item.rows, [&](int row) { return int64_t{shared.anchors[row]}; }, slab,
        shared.rows);
    stage_slab(
        operands.references, tile.count, [&](int row) { return int64_t{shared.references[row]}; },
        slab, shared.columns);
    __syncthreads();
    if (operands.differences) {
      add_slab<true>(shared, slab, sums);
    } else {
      add_slab<false>(shared, slab, sums);
    }
    __syncthreads();
  }
}

template <class T, class Policy>
__device__ __forceinline__ void walk_item(const ExactOperands<T>& operands, const ExactItem& item,
                                          int first_tile, int last_tile,
                                          const typename Policy::Arguments& arguments,
                                          ExactShared& shared,
                                          typename Policy::Shared& policy_shared) {
  Policy policy(arguments, policy_shared);
  policy.begin(item);
  for (int t = first_tile; t < last_tile; ++t) {
    const int first = item.columns.begin + t * kExactTile;
    const int left = item.columns.end - first;
    const ExactColumns tile = {first, left < kExactTile ? left : kExactTile, shared.references};
    __syncthreads();  // nobody looks at the last tile, or waits for what `begin` wrote
    if (static_cast<int>(threadIdx.x) < tile.count) {
      shared.references[threadIdx.x] =
          static_cast<int>(operands.reference_order[first + threadIdx.x]);
    }
    __syncthreads();
    ExactSums sums;
    sum_tile(operands, item, tile, shared, sums);
    policy.take(item, tile, sums);
  }
  policy.finish(item);
}

template <class T, class Policy>
__global__ void __launch_bounds__(kExactThreads, 2)
    exact_walk_kernel(ExactOperands<T> operands, Queries queries,
                      typename Policy::Arguments arguments) {
  __shared__ ExactShared shared;
  __shared__ typename Policy::Shared policy_shared;
  const int count = queries.number();
  const int column_tiles =
      static_cast<int>((operands.references.rows + kExactTile - 1) / kExactTile);
  const Split split = split_of(count, kExactTile, column_tiles, queries.wanted_items);
  for (int number = blockIdx.x; number < split.items(); number += gridDim.x) {
    const int row_block = number / split.parts;
    const int part = number % split.parts;
    const ColumnRange columns = arguments.columns(row_block);
    if (columns.begin >= columns.end) {
      continue;
    }
    const int left = count - row_block * kExactTile;
    const ExactItem item = {number,         row_block,      left < kExactTile ? left : kExactTile,
                            shared.anchors, shared.queries, columns};
    if (static_cast<int>(threadIdx.x) < item.rows) {
      const int query = queries.query(row_block * kExactTile + threadIdx.x);
      shared.queries[threadIdx.x] = query;
      shared.anchors[threadIdx.x] = static_cast<int>(operands.order[query / operands.thresholds]);
    }
    __syncthreads();
    const int tiles = columns.tiles();
    const int per_part = (tiles + split.parts - 1) / split.parts;
    const int last = (part + 1) * per_part;
    walk_item<T, Policy>(operands, item, part * per_part, last < tiles ? last : tiles, arguments,
                         shared, policy_shared);
    __syncthreads();
  }
}

template <class T, class Policy>
void launch_exact_walk(const ExactOperands<T>& operands, const Queries& queries,
                       const typename Policy::Arguments& arguments, cudaStream_t stream) {
  if (queries.most > 0 && operands.references.rows > 0) {
    const int items = most_items(queries.most, kExactTile, queries.wanted_items);
    DMLFAST_LAUNCH((exact_walk_kernel<T, Policy>), dim3{blocks_for_items(queries, items)},
                   kExactThreads, stream, operands, queries, arguments);
  }
}

}  // namespace dmlfast::cuda
