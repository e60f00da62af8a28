// Selection by comparing every pair: for queries that no search decided, and for classes too
// large to be read at once.
#pragma once

#include "engine/exact_walk.cuh"
#include "neighbors_choice.cuh"

namespace dmlfast::cuda {

// What the parts of a row block's columns found, by item and row.
struct ExactWorkspace {
  double* keys;
  int* indices;
};

inline int64_t exact_workspace_rows(const Queries& queries) {
  return int64_t{most_items(queries.most, kExactTile, queries.wanted_items)} * kExactTile;
}

// Bytes, a multiple of 16, that a selection with `queries` needs at an address divisible by 16.
inline int64_t exact_workspace_bytes(const Queries& queries) {
  return exact_workspace_rows(queries) * int64_t{sizeof(double) + sizeof(int)};
}

inline ExactWorkspace exact_workspace(const Queries& queries, void* memory) {
  double* keys = static_cast<double*>(memory);
  return {keys, reinterpret_cast<int*>(keys + exact_workspace_rows(queries))};
}

template <class T>
struct ExactSelectArguments {
  SelectArguments<T> select;
  ExactWorkspace found;
  const ColumnRange* ranges;  // by row block; empty: not walked over. Or null: all positions

  __device__ ColumnRange columns(int row_block) const {
    return ranges == nullptr ? ColumnRange{0, static_cast<int>(select.references.rows)}
                             : ranges[row_block];
  }
};

// The best reference of each query.
template <class T>
class ExactSelect {
 public:
  using Arguments = ExactSelectArguments<T>;

  struct Shared {
    Admission admissions[kExactTile];
    ColumnRange classes[kExactTile];  // the positions of each query's class
  };

  __device__ ExactSelect(const Arguments& arguments, Shared& shared)
      : arguments_(arguments), shared_(shared) {}

  __device__ void begin(const ExactItem& item) {
    const SelectArguments<T>& a = arguments_.select;
    const int row = static_cast<int>(threadIdx.x);
    if (row < item.rows) {
      const int anchor = item.anchors[row];
      shared_.admissions[row] = admission_of(a, anchor, lower_of(a, item.queries[row], anchor));
      const int64_t* order = a.reference_order + item.columns.begin;
      const int places = item.columns.end - item.columns.begin;
      const int64_t label = a.labels[anchor];
      shared_.classes[row] = {
          item.columns.begin +
              static_cast<int>(class_bound(a.reference_labels, order, places, label, false)),
          item.columns.begin +
              static_cast<int>(class_bound(a.reference_labels, order, places, label, true))};
    } else if (row < kExactTile) {
      shared_.admissions[row].lower = NAN;
    }
  }

  __device__ __forceinline__ void take(const ExactItem&, const ExactColumns& tile,
                                       const ExactSums& sums) {
    const SelectArguments<T>& a = arguments_.select;
    const bool has_norms = a.metric == Metric::cosine;
#pragma unroll
    for (int j = 0; j < kExactPairs; ++j) {
      const int column = column_of(j);
      if (column >= tile.count) {
        continue;
      }
      const int reference = tile.references[column];
      const double norm = has_norms ? a.norms_references[reference] : 0.0;
#pragma unroll
      for (int i = 0; i < kExactPairs; ++i) {
        const ColumnRange& own = shared_.classes[row_of(i)];
        const int position = tile.first + column;
        const bool is_same = position >= own.begin && position < own.end;
        if (is_same == a.same_class) {
          offer_pair(a, shared_.admissions[row_of(i)], sums[i][j], norm, reference, choices_[i]);
        }
      }
    }
  }

  __device__ void finish(const ExactItem& item) {
#pragma unroll
    for (int i = 0; i < kExactPairs; ++i) {
      for (int bits = kExactEdge / 2; bits > 0; bits /= 2) {
        choices_[i].join_lane(bits);
      }
      if (column_of(0) == 0) {
        const int64_t place = int64_t{item.number} * kExactTile + row_of(i);
        arguments_.found.keys[place] = choices_[i].key;
        arguments_.found.indices[place] = choices_[i].index;
      }
    }
  }

 private:
  const Arguments& arguments_;
  Shared& shared_;
  Choice choices_[kExactPairs];
};

// Joins what the parts found. One thread a query.
template <class T, class Distance>
__global__ void __launch_bounds__(kExactThreads)
    join_parts_kernel(ExactSelectArguments<T> arguments, Queries queries) {
  const SelectArguments<T>& a = arguments.select;
  const int count = queries.number();
  const int column_tiles = static_cast<int>((a.references.rows + kExactTile - 1) / kExactTile);
  const Split split = split_of(count, kExactTile, column_tiles, queries.wanted_items);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t place = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; place < count;
       place += step) {
    const int row_block = static_cast<int>(place) / kExactTile;
    const ColumnRange columns = arguments.columns(row_block);
    const bool was_walked = columns.begin < columns.end;
    if (!was_walked && arguments.ranges != nullptr) {
      continue;
    }
    Choice choice;
    for (int part = 0; was_walked && part < split.parts; ++part) {
      const int64_t found =
          (int64_t{row_block} * split.parts + part) * kExactTile + place % kExactTile;
      choice.offer(arguments.found.keys[found], arguments.found.indices[found]);
    }
    const int query = queries.query(static_cast<int>(place));
    const int anchor = static_cast<int>(a.order[query / static_cast<int>(a.thresholds)]);
    const bool is_finite = choice.index >= 0 || row_is_finite(a.x, anchor);
    report<T, Distance>(a, slot_of(a, query, anchor), choice, is_finite);
  }
}

// Decides `queries` among the positions of `ranges` (see ExactSelectArguments), which must hold
// their classes. The norms must be there under cosine.
template <class T, class Distance>
void launch_exact_select(const SelectArguments<T>& a, const Queries& queries, void* workspace,
                         cudaStream_t stream, const ColumnRange* ranges = nullptr) {
  if (queries.most == 0) {
    return;
  }
  const ExactSelectArguments<T> arguments = {a, exact_workspace(queries, workspace), ranges};
  const ExactOperands<T> operands = {a.x,
                                     a.references,
                                     a.order,
                                     a.reference_order,
                                     static_cast<int>(a.thresholds),
                                     sums_differences(a.metric)};
  launch_exact_walk<T, ExactSelect<T>>(operands, queries, arguments, stream);
  const unsigned blocks = grid_for((int64_t{queries.most} + kExactThreads - 1) / kExactThreads);
  DMLFAST_LAUNCH((join_parts_kernel<T, Distance>), dim3{blocks}, kExactThreads, stream, arguments,
                 queries);
}

}  // namespace dmlfast::cuda
