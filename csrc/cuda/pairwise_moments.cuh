// Per anchor the sums of D - centre and of its square, and which rows get NaN because a pair has a
// row that is not finite.
#pragma once

#include <climits>

#include "pairwise_pairs.cuh"

namespace dmlfast::cuda {

// The power of two in which distances are summed, so that their squares leave no range.
__device__ inline double moment_unit(Metric metric, const PackScale* scale) {
  if (metric == Metric::cosine || scale->exponent == INT_MIN) {
    return 1.0;
  }
  const int exponent = metric == Metric::euclidean ? scale->exponent : 2 * scale->exponent;
  return scalbn(1.0, exponent < -126 ? -126 : exponent > 126 ? 126 : exponent);
}

// The column of each anchor itself: its own within a batch, else the given one; -1 for none, also
// past the last anchor.
static __global__ void own_columns_kernel(const int64_t* self_index, bool within_batch,
                                          int64_t anchors, int64_t padded, int64_t references,
                                          int32_t* self) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < padded;
       i += int64_t{gridDim.x} * blockDim.x) {
    int64_t own = within_batch ? i : -1;
    if (i < anchors && self_index != nullptr) {
      own = self_index[i];
    }
    self[i] = i < anchors && own >= 0 && own < references ? static_cast<int32_t>(own) : -1;
  }
}

// Pairs with a row that is not finite, of anchors that are wanted: the sums of the anchor are NaN,
// and the gradients of both rows.
struct LostPairs {
  const float* x_norms;  // +inf for a row that is not finite
  const float* y_norms;
  const int32_t* self;
  const float* first;  // by anchor: not wanted where both are 0; or null: all are
  const float* second;
  int anchors;
  int references;
  int32_t* lost_references;  // how many are not finite
  int32_t* wanted_anchors;
  int32_t* lost_anchors;  // wanted, and not finite
  int32_t* own;           // by reference: the wanted anchors that it is the self of; or null
  int32_t* own_lost;

  __device__ bool is_wanted(int i) const {
    return first == nullptr || first[i] != 0.0f || second[i] != 0.0f;
  }

  __device__ bool has_anchor(int i) const {
    const bool has_self = self[i] >= 0;
    const int partners = references - (has_self ? 1 : 0);
    const int lost = *lost_references - (has_self && y_norms[self[i]] == INFINITY ? 1 : 0);
    return is_wanted(i) && (x_norms[i] == INFINITY ? partners : lost) > 0;
  }

  __device__ bool has_reference(int j) const {
    return y_norms[j] == INFINITY ? *wanted_anchors > own[j] : *lost_anchors > own_lost[j];
  }
};

static __global__ void clear_lost_kernel(LostPairs lost) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *lost.lost_references = 0;
    *lost.wanted_anchors = 0;
    *lost.lost_anchors = 0;
  }
  for (int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       lost.own != nullptr && j < lost.references; j += int64_t{gridDim.x} * blockDim.x) {
    lost.own[j] = 0;
    lost.own_lost[j] = 0;
  }
}

// Sums of integers: the same in any order.
static __global__ void count_lost_kernel(LostPairs lost) {
  int references = 0;
  int wanted = 0;
  int anchors = 0;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t j = first; j < lost.references; j += step) {
    references += lost.y_norms[j] == INFINITY ? 1 : 0;
  }
  for (int64_t i = first; i < lost.anchors; i += step) {
    if (!lost.is_wanted(static_cast<int>(i))) {
      continue;
    }
    const int is_lost = lost.x_norms[i] == INFINITY ? 1 : 0;
    wanted += 1;
    anchors += is_lost;
    if (lost.own != nullptr && lost.self[i] >= 0) {
      atomicAdd(lost.own + lost.self[i], 1);
      atomicAdd(lost.own_lost + lost.self[i], is_lost);
    }
  }
  references = warp_sum(references);
  wanted = warp_sum(wanted);
  anchors = warp_sum(anchors);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(lost.lost_references, references);
    atomicAdd(lost.wanted_anchors, wanted);
    atomicAdd(lost.lost_anchors, anchors);
  }
}

inline void launch_count_lost(const LostPairs& lost, cudaStream_t stream) {
  const int64_t most = lost.anchors > lost.references ? lost.anchors : lost.references;
  DMLFAST_LAUNCH(clear_lost_kernel, element_blocks(most), kElementThreads, stream, lost);
  DMLFAST_LAUNCH(count_lost_kernel, element_blocks(most), kElementThreads, stream, lost);
}

// Sums of an item, by row of the tile.
struct MomentSums {
  double* first;
  double* second;
};

class MomentPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 1;

  MomentPolicy(const DistanceTask& task, const double* centre, const MomentSums& sums)
      : task_(task), centre_(centre), sums_(sums) {}

  __device__ const float* column_values(int) const { return task_.y.norm; }
  __device__ TileRange tiles(const BlockRows&) const { return {0, INT_MAX}; }

  // What can be read again is: during a product few registers are left.
  struct State {
    const BlockRows* rows;
    double first[Fragment::kRows];
    double second[Fragment::kRows];
  };

  __device__ void start(State& s, const BlockRows& rows) const {
    s.rows = &rows;
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      s.first[slot] = 0.0;
      s.second[slot] = 0.0;
    }
  }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
    Distances(task_, *s.rows).convert(task_, tile, fragment);
    const float centre = static_cast<float>(*centre_);
    const float inverse_unit = static_cast<float>(1.0 / moment_unit(task_.metric, task_.scale));
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      float first = 0.0f;
      float second = 0.0f;
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        const float value = fragment.value[slot][j];
        const float away = value == value ? (value - centre) * inverse_unit : 0.0f;
        first += away;
        second = multiply_add(away, away, second);
      }
      s.first[slot] += first;
      s.second[slot] += second;
    }
  }

  __device__ void finish(const State& s, const BlockRows&, int item) const {
    const auto add = [](double a, double b) { return a + b; };
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const double first = join_quad(s.first[slot], add);
      const double second = join_quad(s.second[slot], add);
      if (threadIdx.x % 4 == 0) {
        const int64_t at = int64_t{item} * kTileRows + tile_row(slot);
        sums_.first[at] = first;
        sums_.second[at] = second;
      }
    }
  }

 private:
  DistanceTask task_;
  const double* centre_;
  MomentSums sums_;
};

// Adds up the parts in their order.
static __global__ void join_moments_kernel(MomentSums sums, int parts, Metric metric,
                                           const PackScale* scale, LostPairs lost,
                                           MomentArguments results) {
  const double unit = moment_unit(metric, scale);
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < lost.anchors;
       i += int64_t{gridDim.x} * blockDim.x) {
    double first = 0.0;
    double second = 0.0;
    for (int part = 0; part < parts; ++part) {
      const int64_t at = (i / kTileRows * parts + part) * kTileRows + i % kTileRows;
      first += sums.first[at];
      second += sums.second[at];
    }
    const bool is_lost = lost.has_anchor(static_cast<int>(i));
    results.first[i] = is_lost ? NAN : unit * first;
    results.second[i] = is_lost ? NAN : unit * unit * second;
  }
}

}  // namespace dmlfast::cuda
