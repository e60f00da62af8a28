// From a tile of products to distances in the units of the rows. Where a Euclidean distance is far
// below the lengths of its rows, the difference of squares has lost its digits: it is computed
// again, from the differences of the values as given.
#pragma once

#include "engine/any_rows.cuh"
#include "engine/dimension_weights.cuh"
#include "engine/tile_walk.cuh"

namespace dmlfast::cuda {

// Pairs are near when their squared distance is less than this times the sum of their squares.
constexpr float kNear = 1e-3f;

// Packed rows whose products become distances. Where products are of the high parts, lengths are,
// too: then these are the distances of the rounded rows, and close rows stay close.
inline PackedPair as_multiplied(const PackedPair& pair, bool is_split) {
  PackedPair result = pair;
  result.x.norm += is_split ? 0 : padded_rows(pair.x.rows);
  result.y.norm += is_split ? 0 : padded_rows(pair.y.rows);
  return result;
}

struct DistanceTask {
  Metric metric;
  const PackScale* scale;
  PackedRows x;
  PackedRows y;
  AnyRows x_rows;  // as given
  AnyRows y_rows;
  const int64_t* x_order;
  const int64_t* y_order;
  const int32_t* self;  // by anchor position: the column that is no partner, -1 for none; or null
  DimensionWeights weights = {};

  // Whether a packed square is lost in the rounding of those of the rows, whose sum is given.
  __device__ bool is_near(float square, float norms) const {
    return square < kNear * norms || square < weights.least_square;
  }
};

// That of a problem, whose arguments name both operands and their orders.
template <class Arguments>
DistanceTask distance_task(const Arguments& a, const PackedPair& pair, const int32_t* self) {
  return {a.metric, pair.scale,        pair.x, pair.y, a.x, a.references,
          a.order,  a.reference_order, self};
}

// The same with rows and columns exchanged; no pair is left out.
inline DistanceTask exchanged(const DistanceTask& task) {
  DimensionWeights weights = task.weights;
  weights.are_of_columns = !weights.are_of_columns;
  return {task.metric, task.scale,   task.y,       task.x,  task.y_rows,
          task.x_rows, task.y_order, task.x_order, nullptr, weights};
}

// Of a thread's columns of each of its rows, those whose pairs are near, a bit for each.
struct NearPairs {
  uint32_t columns[Fragment::kRows] = {};
};

// Serves the near pairs of a warp's rows one after the other, in a fixed order, all lanes together:
// `serve` is told the row and the column within the tile and the pair's value, and returns what
// takes its place.
template <class Serve>
__device__ inline void for_each_near(NearPairs near, Fragment& fragment, const Serve& serve) {
  constexpr int kColumns = Fragment::kColumns;
#pragma unroll 1
  for (;;) {
    const int slot = near.columns[0] != 0 ? 0 : 1;
    const uint32_t columns = near.columns[0] != 0 ? near.columns[0] : near.columns[1];
    const unsigned lanes = __ballot_sync(kAllLanes, columns != 0);
    if (lanes == 0) {
      return;
    }
    const int owner = __ffs(static_cast<int>(lanes)) - 1;
    const int place =
        __shfl_sync(kAllLanes, slot * kColumns + __ffs(static_cast<int>(columns)) - 1, owner);
    float value = 0.0f;
#pragma unroll
    for (int k = 0; k < Fragment::kRows * kColumns; ++k) {
      value = k == place ? fragment.value[k / kColumns][k % kColumns] : value;
    }
    value = __shfl_sync(kAllLanes, value, owner);
    const int j = place % kColumns;
    value = serve(warp_number() * 16 + place / kColumns * 8 + owner / 4,
                  j / 2 * 8 + owner % 4 * 2 + j % 2, value);
    if (lane_number() == owner) {
      (slot == 0 ? near.columns[0] : near.columns[1]) &= columns - 1;
#pragma unroll
      for (int k = 0; k < Fragment::kRows * kColumns; ++k) {
        float& to = fragment.value[k / kColumns][k % kColumns];
        to = k == place ? value : to;
      }
    }
  }
}

// What turns packed numbers into those of the rows is a power of two: its exponent.
__device__ inline int unit_exponent(Metric metric, const PackScale* scale) {
  if (metric == Metric::cosine) {
    return 1 - kScaledExponent;
  }
  return scale->exponent == INT_MIN ? 0 : scale->exponent - kScaledExponent;
}

__device__ inline double unit_of(Metric metric, const PackScale* scale) {
  return scalbn(1.0, unit_exponent(metric, scale));
}

// Of one thread. Lanes of a warp call the functions together.
class Distances {
 public:
  Distances() = default;

  __device__ Distances(const DistanceTask& task, const BlockRows& rows)
      : rows_(&rows), unit_(static_cast<float>(unit_of(task.metric, task.scale))) {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int anchor = rows.anchors[tile_row(slot)];
      norm_[slot] = anchor < 0 ? INFINITY : task.x.norm[anchor];
      self_[slot] = anchor < 0 || task.self == nullptr ? -1 : task.self[anchor];
    }
  }

  // Products become distances, NaN for a pair that does not exist: one with itself, or with a row
  // that is absent or not finite. Values 0 of the policy's column values are the columns' norms.
  __device__ void convert(const DistanceTask& task, const Tile& tile, Fragment& fragment) const {
    NearPairs near;
    convert(task, tile, fragment, near);
  }

  // The same, and which pairs were near.
  __device__ void convert(const DistanceTask& task, const Tile& tile, Fragment& fragment,
                          NearPairs& near) const {
    if (!sums_differences(task.metric)) {
      convert_products(task, tile, fragment);
      return;
    }
    const bool has_root = task.metric == Metric::euclidean;
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const float norm = tile.value(0, j);
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        float& value = fragment.value[slot][j];
        const float norms = norm_[slot] + norm;
        const float square = multiply_add(-2.0f, value, norms);
        const bool exists = is_pair(slot, norms, tile, j);
        near.columns[slot] |= exists && task.is_near(square, norms) ? 1u << j : 0u;
        const float distance = to_units(has_root, square < 0.0f ? 0.0f : square);
        value = exists ? distance : NAN;
      }
      keep_column_order(j);
    }
    // Computed again.
    for_each_near(near, fragment, [&](int row, int column, float) {
      return direct_distance(task, rows_->anchors[row], tile.first_column + column);
    });
  }

  // Which pairs are near, of distances that are known already.
  __device__ void find_near(const DistanceTask& task, const Tile& tile, const Fragment& fragment,
                            NearPairs& near) const {
    if (!sums_differences(task.metric)) {
      return;
    }
    const float inverse_unit = 1.0f / unit_;
    const bool has_root = task.metric == Metric::euclidean;
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        const float scaled = fragment.value[slot][j] * inverse_unit;
        const float square = has_root ? scaled * scaled : scaled * inverse_unit;
        const float norms = norm_[slot] + tile.value(0, j);
        near.columns[slot] |= task.is_near(square, norms) ? 1u << j : 0u;
      }
      keep_column_order(j);
    }
  }

  __device__ float unit() const { return unit_; }
  __device__ float norm(int slot) const { return norm_[slot]; }

 private:
  __device__ bool is_pair(int slot, float norms, const Tile& tile, int j) const {
    return norms < INFINITY && self_[slot] - tile.column(0) != column_offset(j);
  }

  __device__ void convert_products(const DistanceTask& task, const Tile& tile,
                                   Fragment& fragment) const {
    const bool is_cosine = task.metric == Metric::cosine;
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const float norm = tile.value(0, j);
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        float& value = fragment.value[slot][j];
        const float product = value * unit_ * unit_;
        // A cosine is at most 1, but for rounding.
        const float distance = !is_cosine ? -product : product < 1.0f ? 1.0f - product : 0.0f;
        value = is_pair(slot, norm_[slot] + norm, tile, j) ? distance : NAN;
      }
      keep_column_order(j);
    }
  }

  // From the squared distance of scaled rows.
  __device__ float to_units(bool has_root, float square) const {
    return has_root ? square_root(square) * unit_ : square * unit_ * unit_;
  }

  // Both rows exist, as near pairs do.
  __device__ static float direct_distance(const DistanceTask& task, int anchor, int column) {
    const int lane = lane_number();
    const int64_t x = task.x_order[anchor];
    const int64_t y = task.y_order[column];
    double squares = 0.0;
    if (task.weights.exist()) {
      squares = task.weights.squares(task.x_rows, task.y_rows, x, y, lane);
    } else {
      for (int64_t k = lane; k < task.x_rows.columns; k += 32) {
        const double difference = element(task.x_rows, x, k) - element(task.y_rows, y, k);
        squares += difference * difference;
      }
    }
    squares = warp_sum(squares);
    return static_cast<float>(task.metric == Metric::euclidean ? sqrt(squares) : squares);
  }

  const BlockRows* rows_ = nullptr;
  float unit_ = 1.0f;
  float norm_[Fragment::kRows] = {};
  int self_[Fragment::kRows] = {};
};

}  // namespace dmlfast::cuda
