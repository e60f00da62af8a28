// Exactly the right triplets: distances that are closer to a bound than they may be wrong are
// computed again from the rows as given. With split products alone; with half products, which err
// a thousand times as much, triplets follow the distances as computed.
#pragma once

#include "contrast_triplet_bounds.cuh"

namespace dmlfast::cuda {

// How far a split product of any two rows of two tiles may be from the true one, in scaled units:
// what both parts leave over, the product of the low parts that is left out, three products of a
// step summed from zero (doubled, as tensor cores do not say how they round), and the sum over the
// steps in float32. The search's bound has the same terms.
__device__ inline float split_error(const RowNumbers& x, const RowNumbers& y, float rounded_sums) {
  return x.length * y.low_residual + x.low_residual * y.length + x.low_length * y.low_length +
         36.0f * 0x1p-22f * x.steps * y.steps + rounded_sums * x.length * y.length;
}

// How far the distances of a tile may be from the true ones.
class DistanceError {
 public:
  __device__ DistanceError(Metric metric, const RowNumbers& x, const RowNumbers& y,
                           float rounded_sums, float unit)
      : has_root_(metric == Metric::euclidean), unit_(unit) {
    const float lengths = x.length + y.length;
    const float error = split_error(x, y, rounded_sums);
    // With the rounding of norms, thresholds and sums, and this function's own.
    error_ =
        ((sums_differences(metric) ? 2.0f : 1.0f) * error + 0x1p-22f * lengths * lengths) * 1.02f;
  }

  // By how much a distance at most may be off that is on the wrong side of a bound, for bounds of
  // `lowest` to `greatest` in size. Where the squares are off by e, distances of which one is at
  // least b are off by e / b, and none by more than the root of e.
  __device__ float near(float lowest, float greatest) const {
    const float error = has_root_
                            ? fminf(divide(error_, divide(lowest, unit_)), square_root(error_)) *
                                  (1.0f + 0x1p-10f) * unit_
                            : error_ * unit_ * unit_;
    return error + 0x1p-20f * greatest + FLT_MIN;
  }

 private:
  bool has_root_;
  float unit_;
  float error_;
};

// The distance of a pair as it is returned, computed by a warp. The lanes' sums are in another
// order than the one that counts: where that might show, it is summed again in this order.
__device__ inline float returned_distance(const DistanceTask& task, const TripletExactness& exact,
                                          int x_position, int y_position) {
  const int lane = lane_number();
  const int64_t x = task.x_order[x_position];
  const int64_t y = task.y_order[y_position];
  const int64_t columns = task.x_rows.columns;
  const bool differences = sums_differences(task.metric);
  const auto share = [&](int64_t k) {
    const double a = element(task.x_rows, x, k);
    const double b = element(task.y_rows, y, k);
    const double factor = differences ? a - b : a;
    return factor * (differences ? factor : b);
  };
  const auto returned = [&](double sum) {
    const bool has_norms = task.metric == Metric::cosine;
    const double x_norm = has_norms ? exact.x_norms[x] : 0.0;
    const double y_norm = has_norms ? exact.y_norms[y] : 0.0;
    return static_cast<float>(distance_of(task.metric, value_of(task.metric, sum, x_norm, y_norm)));
  };
  double sum = 0.0;
  double sizes = 0.0;
  for (int64_t k = lane; k < columns; k += 32) {
    const double term = share(k);
    sum += term;
    sizes += fabs(term);
  }
  sum = warp_sum(sum);
  const double error = warp_sum(sizes) * static_cast<double>(columns + 4) * 0x1p-52;
  const float distance = returned(sum - error);
  if (distance == returned(sum + error)) {
    return distance;
  }
  sum = 0.0;
  for (int64_t first = 0; first < columns; first += 32) {
    const double term = first + lane < columns ? share(first + lane) : 0.0;
#pragma unroll 1
    for (int k = 0; k < 32; ++k) {
      sum += __shfl_sync(kAllLanes, term, k);
    }
  }
  return returned(sum);
}

// The bounds that the pairs of a tile are held against, where the rows are the anchors.
class RowBounds {
 public:
  static constexpr bool kByColumn = false;

  __device__ RowBounds(const TripletBounds& bounds, const BlockRows& rows, const Tile&)
      : places_(bounds.places(rows.first_place / kTileRows)),
        stride_(bounds.anchors),
        bound_(bounds.bound + rows.first_place) {}

  __device__ int places() const { return places_; }
  __device__ float value(int place, int slot, int) const {
    return bound_[place * stride_ + tile_row(slot)];
  }

 private:
  int places_;
  int64_t stride_;
  const float* bound_;
};

// The same where the columns are.
class ColumnBounds {
 public:
  static constexpr bool kByColumn = true;

  __device__ ColumnBounds(const TripletBounds& bounds, const BlockRows&, const Tile& tile)
      : places_(bounds.places(tile.first_column / kTileColumns)),
        stride_(bounds.anchors),
        bound_(bounds.bound + tile.first_column) {}

  __device__ int places() const { return places_; }
  __device__ float value(int place, int, int j) const {
    return bound_[place * stride_ + tile_column(j)];
  }

 private:
  int places_;
  int64_t stride_;
  const float* bound_;
};

__device__ inline float least_of(const float (&values)[Fragment::kColumns]) {
  float least = INFINITY;
#pragma unroll
  for (int j = 0; j < Fragment::kColumns; ++j) {
    least = fminf(least, values[j]);
  }
  return least;
}

// The columns of one of a thread's rows whose distances are too close to a bound, a bit for each.
template <class Bounds>
__device__ inline uint32_t near_bounds(const Bounds& bounds, const DistanceError& error, int slot,
                                       const float (&values)[Fragment::kColumns]) {
  uint32_t near = 0;
  const float least = least_of(values);
#pragma unroll 1
  for (int place = 0; place < bounds.places(); ++place) {
    float closest = INFINITY;
    float lowest = INFINITY;
    float greatest = 0.0f;
    if constexpr (!Bounds::kByColumn) {
      const float bound = bounds.value(place, slot, 0);
      lowest = bound == -INFINITY ? INFINITY : fabsf(bound);
      greatest = bound == -INFINITY ? 0.0f : fabsf(bound);
      if (__ballot_sync(kAllLanes, least <= bound + error.near(lowest, greatest)) == 0) {
        continue;
      }
    }
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const float bound = bounds.value(place, slot, j);
      if constexpr (Bounds::kByColumn) {
        const float size = fabsf(bound);
        lowest = fminf(lowest, size);
        greatest = fmaxf(greatest, bound == -INFINITY ? 0.0f : size);
      }
      closest = fminf(closest, fabsf(values[j] - bound));
      if constexpr (Bounds::kByColumn) {
        keep_column_order(j);
      }
    }
    const float distance = error.near(lowest, greatest);
    if (__ballot_sync(kAllLanes, closest <= distance) == 0) {
      continue;
    }
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const float away = fabsf(values[j] - bounds.value(place, slot, j));
      near |= away <= distance ? 1u << j : 0u;
      if constexpr (Bounds::kByColumn) {
        keep_column_order(j);
      }
    }
  }
  return near;
}

// Replaces the distances of a tile that a bound is too close to. Lanes of a warp call it together.
template <class Bounds>
__device__ inline void make_exact(const DistanceTask& task, const TripletExactness& exact,
                                  const BlockRows& rows, const Tile& tile, const Bounds& bounds,
                                  float unit, Fragment& fragment) {
  const DistanceError error(task.metric, exact.x_numbers[rows.first_place / kTileRows],
                            exact.y_numbers[tile.first_column / kTileColumns], exact.rounded_sums,
                            unit);
  NearPairs near;
#pragma unroll
  for (int slot = 0; slot < Fragment::kRows; ++slot) {
    near.columns[slot] = near_bounds(bounds, error, slot, fragment.value[slot]);
    __syncwarp();
  }
  for_each_near(near, fragment, [&](int row, int column, float) {
    return returned_distance(task, exact, rows.anchors[row], tile.first_column + column);
  });
}

}  // namespace dmlfast::cuda
