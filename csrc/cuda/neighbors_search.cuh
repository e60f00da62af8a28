// Selections by search: candidates at half precision, those within the error bound compared by
// their exact values; queries whose candidates did not suffice searched again at split precision,
// and what even that leaves open is listed for the exact walk. All on the device: no launch waits
// for a number.
#pragma once

#include "engine/window.cuh"
#include "neighbors_exact.cuh"

namespace dmlfast::cuda {

// With fewer pairs than these a search costs more launches than it saves arithmetic.
constexpr int64_t kSearchedPairs = int64_t{1} << 20;

constexpr int kSearchThreads = 128;
constexpr int kSearchWarps = kSearchThreads / 32;
constexpr int kLevels = 2;  // half precision, split precision

// Whether the anchors are the references, in one and the same order.
template <class T>
bool is_within_batch(const SelectArguments<T>& a) {
  return are_same_rows(a.x, a.references) && a.order == a.reference_order;
}

// Of all queries, computed once.
struct SearchNumbers {
  float* bounds[kLevels];  // error of a score, by query
  float* lower;            // least score that is admissible, by query
  double* least_value;     // least value that is admissible, by query; NaN for none
};

// How far a score at `level` may be from the true one, in scaled units.
__device__ inline double score_error(int level, const RowNumbers& x, const RowNumbers& y,
                                     bool sums_differences, int padded_columns) {
  const double products = static_cast<double>(x.length) * y.length;
  const int steps = padded_columns / kStepColumns;
  double error;
  if (level == 0) {
    // The halves' distance from the rows; 17 terms a step, each cut off at 2^-23 of the greatest,
    // doubled, as tensor cores do not say how they round.
    error = static_cast<double>(x.length) * y.residual +
            static_cast<double>(x.residual) * y.length + steps * 17 * 0x1p-22 * products;
  } else {
    // What both parts leave over, the product of the low parts that is left out, three products of
    // a step summed from zero (doubled, too), and the sum over the steps in float32.
    error = static_cast<double>(x.length) * y.low_residual +
            static_cast<double>(x.low_residual) * y.length +
            static_cast<double>(x.low_length) * y.low_length +
            36 * 0x1p-22 * static_cast<double>(x.steps) * y.steps +
            (steps + 1) * 0x1p-23 * products;
  }
  const double lengths = static_cast<double>(x.length) + y.length;
  // Norms, thresholds and scores are rounded to float32.
  return ((sums_differences ? 2.0 : 1.0) * error + 0x1p-22 * lengths * lengths) * 1.01;
}

// From a value to the score of the same pair: what scores leave out or scale.
__device__ inline double score_of(Metric metric, double value, int exponent, double norm) {
  if (metric == Metric::cosine) {
    return (value - 1.0) * 0x1p26;
  }
  const double scaled = scalbn(value, 2 * (kScaledExponent - exponent));
  return metric == Metric::dot ? scaled : scaled - norm;
}

template <class T>
Labels labels_of_anchors(const SelectArguments<T>& a) {
  return {a.labels, a.order, a.x.rows};
}

template <class T>
Labels labels_of_references(const SelectArguments<T>& a) {
  return {a.reference_labels, a.reference_order, a.references.rows};
}

// How far scores may be off, and from where on they are admissible; and no query is on any list
// yet. Nothing but the latter where `wanted`, a number on the device, is 0. Where there are
// `groups` of rows, errors are bounded within these.
template <class T>
__global__ void search_numbers_kernel(SelectArguments<T> a, PackedRows x, const PackScale* scale,
                                      PackGroups groups, SearchNumbers numbers, int32_t* counts,
                                      const int32_t* wanted) {
  if (blockIdx.x == 0 && threadIdx.x < kLevels) {
    counts[threadIdx.x] = 0;
  }
  const int64_t queries = wanted == nullptr || *wanted > 0 ? a.slots() : 0;
  for (int64_t q = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; q < queries;
       q += int64_t{gridDim.x} * blockDim.x) {
    const int64_t position = q / a.thresholds;
    const int64_t group = groups.begin == nullptr ? a.references.rows : groups.begin[position];
    const RowNumbers& greatest =
        group < a.references.rows ? groups.greatest[group] : scale->greatest;
    for (int level = 0; level < kLevels; ++level) {
      numbers.bounds[level][q] = rounded_up(score_error(
          level, x.numbers[position], greatest, sums_differences(a.metric), x.padded_columns));
    }
    if (a.beyond == nullptr) {
      continue;
    }
    const int64_t anchor = a.order[position];
    const double least = lower_of(a, static_cast<int>(q), static_cast<int>(anchor));
    numbers.least_value[q] = least;
    const int exponent = scale->exponent == INT_MIN ? kScaledExponent : scale->exponent;
    numbers.lower[q] = static_cast<float>(score_of(a.metric, least, exponent, x.norm[position]));
  }
}

// What a level's walk has found, and where the answers go.
template <class T>
struct ChooseArguments {
  SelectArguments<T> select;
  Queries queries;
  int column_tiles;
  int level;
  const Candidate* windows;
  SearchNumbers numbers;
  const PackScale* scale;
  const float* anchor_norms;
  int32_t* undecided;
  int32_t* undecided_count;
};

// Sums of squares of numbers as great or as small as these leave the range of float64.
__device__ inline bool is_out_of_range(int exponent) {
  return exponent != INT_MIN && (exponent > 480 || exponent < -480);
}

// What decides about a pair, but for the norms.
template <class T>
__device__ inline double pair_sum(const SelectArguments<T>& a, int64_t anchor, int64_t other) {
  const bool differences = sums_differences(a.metric);
  double sum = 0.0;
  for (int64_t k = 0; k < a.x.columns; ++k) {
    const double x = element(a.x, anchor, k);
    const double y = element(a.references, other, k);
    sum += differences ? share_of<true>(x, y) : share_of<false>(x, y);
  }
  return sum;
}

// The candidates of one query, spread over the lanes of a warp.
template <class T>
class Chooser {
 public:
  __device__ Chooser(const ChooseArguments<T>& a, const Split& split, int place, int query)
      : a_(a),
        query_(query),
        bound_(a.numbers.bounds[a.level][query]),
        parts_(split.parts),
        base_(first_part_of(split, place) * kCandidates) {}

  // Whether the answer is among the candidates: all others have scores above the limit.
  __device__ bool find_limit() {
    const bool has_lower = a_.select.beyond != nullptr;
    const float lower = has_lower ? a_.numbers.lower[query_] : -INFINITY;
    float certain = INFINITY;
    float floor = INFINITY;
    for (int i = threadIdx.x % 32; i < parts_ * kCandidates; i += 32) {
      const float score = candidate(i).score;
      if (!has_lower || score >= lower + bound_) {
        certain = fminf(certain, score);
      }
      if (i % kWindow == kWindow - 1) {
        floor = fminf(floor, score);
      }
    }
    certain = warp_least(certain);
    floor = warp_least(floor);
    limit_ = certain + 2.0f * bound_;
    return floor > limit_ || floor == INFINITY;
  }

  // The best of the candidates up to the limit by their exact values.
  __device__ Choice choose(int64_t anchor, const Admission& admission) const {
    Choice choice;
    for (int i = threadIdx.x % 32; i < parts_ * kCandidates; i += 32) {
      const Candidate found = candidate(i);
      if (found.column < 0 || !(found.score <= limit_)) {
        continue;
      }
      const int other = static_cast<int>(a_.select.reference_order[found.column]);
      const double norm =
          a_.select.metric == Metric::cosine ? a_.select.norms_references[other] : 0.0;
      offer_pair(a_.select, admission, pair_sum(a_.select, anchor, other), norm, other, choice);
    }
    for (int bits = 16; bits > 0; bits /= 2) {
      choice.join_lane(bits);
    }
    return choice;
  }

 private:
  // Parts of the columns lie a tile's rows apart.
  __device__ Candidate candidate(int i) const {
    const int64_t part = i / kCandidates;
    return a_.windows[base_ + part * kTileRows * kCandidates + i % kCandidates];
  }

  const ChooseArguments<T>& a_;
  const int query_;
  const float bound_;
  const int parts_;
  const int64_t base_;
  float limit_ = INFINITY;
};

// A warp a query: its answer, or its place in the list of the undecided.
template <class T, class Distance>
__global__ void __launch_bounds__(kSearchThreads) choose_kernel(ChooseArguments<T> a) {
  const SelectArguments<T>& select = a.select;
  const int number = a.queries.number();
  const Split split = split_of(number, kTileRows, a.column_tiles, a.queries.wanted_items);
  // An infinite reference may be the farthest of all, or have the greatest product.
  const bool is_extreme = select.farthest || select.metric == Metric::dot;
  const bool is_lost =
      is_out_of_range(a.scale->exponent) || (is_extreme && a.scale->has_infinite != 0);
  for (int place = blockIdx.x * kSearchWarps + threadIdx.x / 32; place < number;
       place += gridDim.x * kSearchWarps) {
    const int query = a.queries.query(place);
    const int position = query / static_cast<int>(select.thresholds);
    const int anchor = static_cast<int>(select.order[position]);
    Chooser<T> chooser(a, split, place, query);
    // Anchors that are not finite have values of their own.
    bool is_decided = !is_lost && a.anchor_norms[position] != INFINITY && chooser.find_limit();
    Choice choice;
    if (is_decided) {
      const double lower = select.beyond == nullptr ? -INFINITY : a.numbers.least_value[query];
      choice = chooser.choose(anchor, admission_of(select, anchor, lower));
      // The others are infinitely far: an answer still, where nothing else is.
      is_decided = choice.index >= 0 || a.scale->has_infinite == 0 || lower != lower;
    }
    if (threadIdx.x % 32 != 0) {
      continue;
    }
    if (is_decided) {
      report<T, Distance>(select, slot_of(select, query, anchor), choice, true);
    } else {
      // The order of the list varies from run to run; no answer depends on it.
      a.undecided[atomicAdd(a.undecided_count, 1)] = query;
    }
  }
}

// What a search needs to know of its queries, computed before its walks.
struct PreparedMemory {
  SearchNumbers numbers;
  ClassRanges ranges;
  int32_t* self;
  int32_t* counts;  // of the undecided, by level

  template <class T>
  static PreparedMemory take(Workspace& workspace, const SelectArguments<T>& a) {
    const int64_t queries = a.slots();
    PreparedMemory memory{};
    for (int level = 0; level < kLevels; ++level) {
      memory.numbers.bounds[level] = workspace.take<float>(queries);
    }
    memory.numbers.lower = workspace.take<float>(queries);
    memory.numbers.least_value = workspace.take<double>(queries);
    memory.ranges.begin = workspace.take<int32_t>(a.x.rows);
    memory.ranges.end = workspace.take<int32_t>(a.x.rows);
    memory.self = workspace.take<int32_t>(a.x.rows);
    memory.counts = workspace.take<int32_t>(kLevels);
    return memory;
  }
};

// What a search keeps in memory, beside packed rows.
struct SearchMemory : PreparedMemory {
  Candidate* windows;
  int32_t* undecided[kLevels];

  template <class T>
  static SearchMemory take(Workspace& workspace, const SelectArguments<T>& a) {
    const int64_t queries = a.slots();
    const int64_t items = most_items(static_cast<int>(queries), kTileRows, kWantedItems);
    SearchMemory memory{};
    static_cast<PreparedMemory&>(memory) = PreparedMemory::take(workspace, a);
    for (int32_t*& list : memory.undecided) {
      list = workspace.take<int32_t>(queries);
    }
    memory.windows = workspace.take<Candidate>(items * kTileRows * kCandidates);
    return memory;
  }
};

// Where the queries' classes and the anchors themselves lie among the references.
template <class T>
void launch_query_classes(const SelectArguments<T>& a, const PreparedMemory& memory,
                          const int32_t* wanted, cudaStream_t stream) {
  launch_class_places(labels_of_anchors(a), labels_of_references(a), a.self_index, wanted,
                      {memory.ranges, memory.self}, stream);
}

template <class T>
void launch_search_numbers(const SelectArguments<T>& a, const PackedPair& pair,
                           const PackGroups& groups, const PreparedMemory& memory,
                           const int32_t* wanted, cudaStream_t stream) {
  DMLFAST_LAUNCH((search_numbers_kernel<T>), element_blocks(a.slots()), kElementThreads, stream, a,
                 pair.x, pair.scale, groups, memory.numbers, memory.counts, wanted);
}

// Candidates of a level's queries, and the answers that they decide.
template <class T, class Distance>
void launch_search_level(const SelectArguments<T>& a, const PackedPair& pair,
                         const SearchMemory& memory, const Queries& queries, int level,
                         int shared_bytes, cudaStream_t stream) {
  const WindowArguments window{pair.y.norm,
                               memory.numbers.bounds[level],
                               memory.numbers.lower,
                               a.self_index == nullptr ? nullptr : memory.self,
                               memory.ranges,
                               a.same_class ? Partners::same_class : Partners::other_class,
                               sums_differences(a.metric) ? -2.0f : -1.0f,
                               memory.windows};
  WalkTask task{};
  task.x = pair.x;
  task.y = pair.y;
  task.queries = queries;
  task.thresholds = static_cast<int>(a.thresholds);
  const WindowKind kind = a.farthest            ? WindowKind::farthest
                          : a.beyond != nullptr ? WindowKind::beyond
                                                : WindowKind::nearest;
  const Precision precision = level == 0 ? Precision::half : Precision::split;
  launch_window_walk(task, window, kind, precision, shared_bytes, stream);
  const ChooseArguments<T> choose{a,
                                  queries,
                                  pair.y.tiles(),
                                  level,
                                  memory.windows,
                                  memory.numbers,
                                  pair.scale,
                                  pair.x.norm,
                                  memory.undecided[level],
                                  memory.counts + level};
  const unsigned blocks = blocks_for(queries, kSearchWarps);
  DMLFAST_LAUNCH((choose_kernel<T, Distance>), dim3{blocks}, kSearchThreads, stream, choose);
}

// Tries `queries` at both levels; those that stay undecided are on the last list.
template <class T, class Distance>
Queries launch_search_levels(const SelectArguments<T>& a, const PackedPair& pair,
                             const SearchMemory& memory, Queries queries, int shared_bytes,
                             cudaStream_t stream) {
  for (int level = 0; level < kLevels; ++level) {
    launch_search_level<T, Distance>(a, pair, memory, queries, level, shared_bytes, stream);
    queries.list = memory.undecided[level];
    queries.count = memory.counts + level;
  }
  return queries;
}

// What a selection by search among all rows keeps in memory.
struct SearchSelectMemory {
  PackPairMemory packed;
  SearchMemory search;
  unsigned char* exact;

  template <class T>
  static SearchSelectMemory take(Workspace& workspace, const SelectArguments<T>& a,
                                 bool within_batch) {
    SearchSelectMemory memory{};
    memory.packed = PackPairMemory::take(workspace, a.x.rows, a.references.rows,
                                         a.references.columns, within_batch);
    memory.search = SearchMemory::take(workspace, a);
    memory.exact = workspace.take<unsigned char>(exact_workspace_bytes(all_queries(a.slots())));
    return memory;
  }
};

// Selects for all queries. `memory` is what SearchSelectMemory::take asks for, aligned to 16 bytes;
// `shared_bytes` what a block of the device may have. The norms must be there under cosine.
template <class T, class Distance>
void launch_search_select(const SelectArguments<T>& a, bool within_batch, void* memory_address,
                          int shared_bytes, cudaStream_t stream) {
  Workspace workspace(memory_address);
  const SearchSelectMemory memory = SearchSelectMemory::take(workspace, a, within_batch);
  launch_query_classes(a, memory.search, nullptr, stream);
  const PackedPair pair = launch_pack_pair(a.x, a.order, a.references, a.reference_order,
                                           within_batch, a.metric, memory.packed, stream);
  launch_search_numbers(a, pair, PackGroups{}, memory.search, nullptr, stream);
  const Queries rest = launch_search_levels<T, Distance>(
      a, pair, memory.search, all_queries(a.slots()), shared_bytes, stream);
  launch_exact_select<T, Distance>(a, rest, memory.exact, stream);
}

}  // namespace dmlfast::cuda
