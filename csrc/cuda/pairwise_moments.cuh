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
void launch_own_columns(const PairwiseRows& rows, const int64_t* self_index, int64_t padded,
                        int32_t* self, cudaStream_t stream);

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

void launch_count_lost(const LostPairs& lost, cudaStream_t stream);

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

}  // namespace dmlfast::cuda
