// The matrix of all distances.
#pragma once

#include <climits>

#include "pairwise_pairs.cuh"

namespace dmlfast::cuda {

// Stores every distance.
class StorePolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 1;

  StorePolicy(const DistanceTask& task, float* distance) : task_(task), distance_(distance) {}

  __device__ const float* column_values(int) const { return task_.y.norm; }
  __device__ TileRange tiles(const BlockRows&) const { return {0, INT_MAX}; }

  // What can be read again is: during a product few registers are left.
  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const { s.rows = &rows; }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
    Distances(task_, *s.rows).convert(task_, tile, fragment);
    const int columns = task_.y.rows;
    // Neighbours in a row are stored together where every row is aligned to them.
    const bool by_two = columns % 2 == 0;
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int row = s.rows->anchors[tile_row(slot)];
      float* const to = distance_ + int64_t{row < 0 ? 0 : row} * columns;
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; j += 2) {
        const int column = row < 0 ? INT_MAX : tile.column(j);
        const float first = fragment.value[slot][j];
        const float second = fragment.value[slot][j + 1];
        if (by_two && column < columns) {
          *reinterpret_cast<float2*>(to + column) = {first, second};
        } else if (column < columns) {
          to[column] = first;
          if (column + 1 < columns) {
            to[column + 1] = second;
          }
        }
      }
    }
  }

  __device__ void finish(const State&, const BlockRows&, int) const {}

 private:
  DistanceTask task_;
  float* distance_;
};

}  // namespace dmlfast::cuda
