// Selection within the anchor's own class. Small classes cost the reading of their rows: a block
// takes 64 queries, which in the order of the labels lie in few classes, holds all rows of these
// in shared memory, and four threads a query share its candidates. Larger classes are walked over.
#pragma once

#include "neighbors_exact.cuh"

namespace dmlfast::cuda {

constexpr int kClassRows = 128;         // references of a block; with more, it is left over
constexpr int kClassThreadsEach = 4;    // threads of a query
constexpr int kClassCandidates = 4;     // that a thread sums up at once
constexpr int kClassBuffer = 144 * 33;  // staged elements: 32 dimensions of up to 144 rows
constexpr int kClassChunk = kClassThreadsEach * kClassCandidates;

static_assert(kExactTile * kClassThreadsEach == kSlabThreads, "all threads have a query");
static_assert((kExactTile + kClassRows) * 17 <= kClassBuffer, "16 dimensions always fit");

template <class T>
struct ClassSelectArguments {
  SelectArguments<T> select;
  int queries;
  ColumnRange* ranges;  // by row block: what is left over; empty where nothing is
};

struct ClassShared {
  double staged[kClassBuffer];
  Admission admissions[kExactTile];
  ColumnRange classes[kExactTile];  // among the block's references
  ColumnRange range;                // the positions of the block's references
  int anchors[kExactTile];
  int references[kClassRows];

  __device__ int64_t* labels() { return reinterpret_cast<int64_t*>(staged); }
};

// Like class_bound; the lanes of a warp call it together and get the same.
__device__ inline int warp_class_bound(const int64_t* values, const int64_t* order, int rows,
                                       int64_t wanted, bool after) {
  int low = 0;
  int high = rows;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  while (low < high) {
    const int step = (high - low + 31) / 32;
    // Probes ascend with the lanes; places beyond the last count as greater.
    const int64_t place = int64_t{low} + int64_t{lane} * step;
    bool before = false;
    if (place < high) {
      const int64_t found = values[order[place]];
      before = found < wanted || (after && found == wanted);
    }
    const int passed = __popc(__ballot_sync(kAllLanes, before));
    if (passed == 0) {
      return low;
    }
    const int next = low + passed * step;
    low += (passed - 1) * step + 1;
    high = next < high ? next : high;
  }
  return low;
}

// First place of ascending `labels` that is not less than (or, `after`, greater than) `wanted`.
__device__ inline int place_of(const int64_t* labels, int count, int64_t wanted, bool after) {
  int low = 0;
  int high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (labels[middle] < wanted || (after && labels[middle] == wanted)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The block's anchors, their classes and their references; whether these fit. All threads call it.
template <class T>
__device__ inline bool gather_classes(const SelectArguments<T>& a, int first_query, int count,
                                      ClassShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int thresholds = static_cast<int>(a.thresholds);
  if (thread < 64) {
    // The first warp finds the begin of the first class, the second the end of the last.
    const bool is_end = thread >= 32;
    const int query = is_end ? first_query + count - 1 : first_query;
    const int64_t label = a.labels[a.order[query / thresholds]];
    const int bound = warp_class_bound(a.reference_labels, a.reference_order,
                                       static_cast<int>(a.references.rows), label, is_end);
    (is_end ? shared.range.end : shared.range.begin) = bound;
  } else if (thread < 64 + count) {
    const int anchor = static_cast<int>(a.order[(first_query + thread - 64) / thresholds]);
    shared.anchors[thread - 64] = anchor;
    shared.admissions[thread - 64] =
        admission_of(a, anchor, lower_of(a, first_query + thread - 64, anchor));
  }
  __syncthreads();
  const int references = shared.range.end - shared.range.begin;
  if (references > kClassRows) {
    return false;
  }
  if (thread < references) {
    const int64_t reference = a.reference_order[shared.range.begin + thread];
    shared.references[thread] = static_cast<int>(reference);
    shared.labels()[thread] = a.reference_labels[reference];
  }
  __syncthreads();
  if (thread < count) {
    const int64_t label = a.labels[shared.anchors[thread]];
    shared.classes[thread] = {place_of(shared.labels(), references, label, false),
                              place_of(shared.labels(), references, label, true)};
  }
  __syncthreads();
  return true;
}

// The batch compared with itself: anchors are among their class's references.
template <class T>
__device__ inline bool is_batch_itself(const SelectArguments<T>& a) {
  return a.x.data == a.references.data && a.x.rows == a.references.rows &&
         a.x.row_stride == a.references.row_stride &&
         a.x.column_stride == a.references.column_stride && a.labels == a.reference_labels &&
         a.order == a.reference_order;
}

// How the rows of a block are staged: its anchors, unless they are references too, and then its
// references.
struct ClassStage {
  int anchors;     // rows
  int references;  // rows
  int width;       // dimensions at once

  __device__ int reference(int place) const { return (anchors + place) * (width + 1); }
};

template <class T>
__device__ inline ClassStage class_stage(const SelectArguments<T>& a, int count,
                                         const ClassShared& shared) {
  ClassStage stage;
  stage.anchors = is_batch_itself(a) ? 0 : count;
  stage.references = shared.range.end - shared.range.begin;
  stage.width = (stage.anchors + stage.references) * 33 <= kClassBuffer ? 32 : 16;
  return stage;
}

// What a thread compares with its anchor: every fourth reference of the class, from some place on.
struct ClassCandidates {
  int number;
  int anchor;  // where the anchor is staged
  int first;   // where the first candidate is staged
  double sums[kClassCandidates];
};

template <bool kDifferences, int kCount>
__device__ __forceinline__ void add_candidates(const double* staged, const Slab& slab,
                                               ClassCandidates& candidates) {
  const double* anchor = staged + candidates.anchor;
  const double* others[kCount];
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    // A thread without so many adds up something unused.
    const int other = candidates.first + c * kClassThreadsEach * slab.stride();
    others[c] = staged + (c < candidates.number ? other : candidates.anchor);
  }
#pragma unroll 4
  for (int k = 0; k < slab.columns; ++k) {
    const double x = anchor[k];
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      candidates.sums[c] += share_of<kDifferences>(x, others[c][k]);
    }
  }
}

// Adds a slab to the sums of as many candidates as the busiest lane of the warp has.
template <bool kDifferences>
__device__ __forceinline__ void add_class_slab(const double* staged, const Slab& slab,
                                               ClassCandidates& candidates) {
  const int number = candidates.number;
  if (__ballot_sync(kAllLanes, number > 2) != 0) {
    add_candidates<kDifferences, 4>(staged, slab, candidates);
  } else if (__ballot_sync(kAllLanes, number > 1) != 0) {
    add_candidates<kDifferences, 2>(staged, slab, candidates);
  } else if (__ballot_sync(kAllLanes, number > 0) != 0) {
    add_candidates<kDifferences, 1>(staged, slab, candidates);
  }
}

// Sums up the pairs of all threads' candidates.
template <class T>
__device__ __forceinline__ void sum_candidates(const SelectArguments<T>& a, const ClassStage& stage,
                                               ClassShared& shared, ClassCandidates& candidates) {
  for (int first = 0; first < a.x.columns; first += stage.width) {
    const Slab slab = slab_at(first, a.x.columns, stage.width);
    __syncthreads();
    stage_slab(
        a.x, stage.anchors, [&](int row) { return int64_t{shared.anchors[row]}; }, slab,
        shared.staged);
    stage_slab(
        a.references, stage.references, [&](int row) { return int64_t{shared.references[row]}; },
        slab, shared.staged + stage.reference(0));
    __syncthreads();
    if (sums_differences(a.metric)) {
      add_class_slab<true>(shared.staged, slab, candidates);
    } else {
      add_class_slab<false>(shared.staged, slab, candidates);
    }
  }
}

// Offers the candidates, whose places among the block's references begin with `first`.
template <class T>
__device__ __forceinline__ void offer_candidates(const SelectArguments<T>& a, int first,
                                                 const ClassShared& shared,
                                                 ClassCandidates& candidates, Choice& choice) {
  const Admission& admission = shared.admissions[threadIdx.x / kClassThreadsEach];
  // Not unrolled, to save registers: so the sums move up.
#pragma unroll 1
  for (int c = 0; c < kClassCandidates && c < candidates.number; ++c) {
    const int reference = shared.references[first + c * kClassThreadsEach];
    const double norm = a.metric == Metric::cosine ? a.norms_references[reference] : 0.0;
    offer_pair(a, admission, candidates.sums[0], norm, reference, choice);
#pragma unroll
    for (int i = 1; i < kClassCandidates; ++i) {
      candidates.sums[i - 1] = candidates.sums[i];
    }
  }
}

// The choice of a thread's anchor, the same in its four threads.
template <class T>
__device__ __forceinline__ Choice choose_in_class(const SelectArguments<T>& a, int first_query,
                                                  int count, ClassShared& shared) {
  const int row = static_cast<int>(threadIdx.x) / kClassThreadsEach;
  const int turn = static_cast<int>(threadIdx.x) % kClassThreadsEach;
  const ClassStage stage = class_stage(a, count, shared);
  const ColumnRange own = row < count ? shared.classes[row] : ColumnRange{0, 0};
  ClassCandidates candidates;
  candidates.anchor = 0;
  if (row < count) {
    const int position = (first_query + row) / static_cast<int>(a.thresholds);
    candidates.anchor = stage.anchors == 0 ? stage.reference(position - shared.range.begin)
                                           : row * (stage.width + 1);
  }
  Choice choice;
  int begin = own.begin + turn;
  do {
    const int left = (own.end - begin + kClassThreadsEach - 1) / kClassThreadsEach;
    candidates.number = own.end <= begin ? 0 : left;
    candidates.first = stage.reference(begin);
    for (double& sum : candidates.sums) {
      sum = 0.0;
    }
    sum_candidates(a, stage, shared, candidates);
    offer_candidates(a, begin, shared, candidates, choice);
    begin += kClassChunk;
  } while (__syncthreads_or(begin < own.end));
  for (int bits = 1; bits < kClassThreadsEach; bits *= 2) {
    choice.join_lane(bits);
  }
  return choice;
}

// Whether the row of a thread's anchor is finite, where it found nothing. Its four threads share
// the dimensions; whole warps call it.
template <class T>
__device__ inline bool is_finite_or_found(const Rows<T>& x, int anchor, bool found) {
  double zero = 0.0;
  for (int64_t k = threadIdx.x % kClassThreadsEach; !found && k < x.columns;
       k += kClassThreadsEach) {
    const double value = element(x, anchor, k);
    zero += value - value;
  }
  for (int bits = 1; bits < kClassThreadsEach; bits *= 2) {
    zero += __shfl_xor_sync(kAllLanes, zero, bits);
  }
  return zero == 0.0;
}

template <class T, class Distance>
__global__ void __launch_bounds__(kSlabThreads, sizeof(T) == sizeof(double) ? 2 : 4)
    class_select_kernel(ClassSelectArguments<T> arguments) {
  __shared__ ClassShared shared;
  const SelectArguments<T>& a = arguments.select;
  const int row = static_cast<int>(threadIdx.x) / kClassThreadsEach;
  const int row_blocks = (arguments.queries + kExactTile - 1) / kExactTile;
  for (int row_block = blockIdx.x; row_block < row_blocks; row_block += gridDim.x) {
    const int first_query = row_block * kExactTile;
    const int left = arguments.queries - first_query;
    const int count = left < kExactTile ? left : kExactTile;
    const bool fits = gather_classes(a, first_query, count, shared);
    if (threadIdx.x == 0) {
      arguments.ranges[row_block] = fits ? ColumnRange{0, 0} : shared.range;
    }
    if (fits) {
      const Choice choice = choose_in_class(a, first_query, count, shared);
      const int anchor = shared.anchors[row < count ? row : 0];
      const bool is_finite = is_finite_or_found(a.x, anchor, row >= count || choice.index >= 0);
      if (row < count && threadIdx.x % kClassThreadsEach == 0) {
        report<T, Distance>(a, slot_of(a, first_query + row, anchor), choice, is_finite);
      }
    }
    __syncthreads();
  }
}

inline int64_t class_row_blocks(const Queries& queries) {
  return (int64_t{queries.most} + kExactTile - 1) / kExactTile;
}

// Decides all queries whose classes fit; the others' are in `ranges`, by row block. The norms must
// be there under cosine.
template <class T, class Distance>
void launch_class_select(const SelectArguments<T>& a, const Queries& queries, ColumnRange* ranges,
                         cudaStream_t stream) {
  const ClassSelectArguments<T> arguments = {a, queries.most, ranges};
  DMLFAST_LAUNCH((class_select_kernel<T, Distance>), dim3{grid_for(class_row_blocks(queries))},
                 kSlabThreads, stream, arguments);
}

}  // namespace dmlfast::cuda
