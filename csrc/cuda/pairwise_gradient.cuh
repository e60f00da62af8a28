// Gradients of the distances and of their moments: what a pair weighs.
#pragma once

#include <climits>

#include "pairwise_moments.cuh"
#include "pairwise_walks.cuh"

namespace dmlfast::cuda {

// Reads distances and upstream gradients, each by row and column of the walk. Nothing is kept from
// tile to tile: during a product few registers are left.
class DistanceGradientPolicy {
 public:
  static constexpr bool kMultiplies = false;
  static constexpr int kColumnValues = 1;

  DistanceGradientPolicy(const DistanceTask& task, const DistanceGradient& gradient)
      : task_(task), of_(gradient) {}

  __device__ const float* column_values(int) const { return task_.y.norm; }
  __device__ TileRange tiles(const BlockRows&) const { return {0, INT_MAX}; }

  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const { s.rows = &rows; }

  __device__ void load(const State& s, const Tile& tile, Fragment& fragment) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int row = s.rows->anchors[tile_row(slot)];
      const PairCursor distances(of_.distance, row, tile.column(0));
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        const bool exists = row >= 0 && tile.column(j) < task_.y.rows;
        fragment.value[slot][j] = exists ? distances.at(j) : NAN;
        keep_column_order(j);
      }
    }
  }

  __device__ void weigh(const State& s, const Tile& tile, Fragment& fragment) const {
    const float inverse_unit = inverse_unit_of(task_);
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int row = s.rows->anchors[tile_row(slot)];
      const PairCursor grads(of_.grad, row, tile.column(0));
      // Within a batch the pair comes up once more, with its rows exchanged.
      const PairCursor others(transposed(of_.grad), row, tile.column(0));
      bool is_lost = false;
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        float& value = fragment.value[slot][j];
        const bool exists = row >= 0 && tile.column(j) < task_.y.rows;
        const float grad = exists ? grads.at(j) : 0.0f;
        const float other = of_.within_batch && exists ? others.at(j) : 0.0f;
        is_lost = is_lost || (value != value && (grad != 0.0f || other != 0.0f));
        value = weight_of(task_.metric, grad + other, value, inverse_unit);
        keep_column_order(j);
      }
      if (is_lost) {
        of_.lost[row] = 1;
      }
    }
  }

  __device__ void finish(const State&, const BlockRows&, int, bool) const {}

 private:
  // A row of a matrix from a thread's first column of a tile on.
  class PairCursor {
   public:
    __device__ PairCursor(const PairMatrix& matrix, int row, int column)
        : first_(matrix.data + row * matrix.row_stride + column * matrix.column_stride),
          stride_(matrix.column_stride) {}

    __device__ float at(int j) const { return first_[(j / 2 * 8 + j % 2) * stride_]; }

   private:
    const float* first_;
    int64_t stride_;
  };

  DistanceTask task_;
  DistanceGradient of_;
};

template <>
constexpr bool kMayWeighDimensions<DistanceGradientPolicy> = true;

static __global__ void clear_lost_rows_kernel(uint8_t* lost, int64_t rows) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * blockDim.x) {
    lost[i] = 0;
  }
}

// Upstream gradients of the moments by row or column of a walk, padded to whole tiles.
struct MomentWeights {
  float* first;
  float* second;  // times the unit in which distances less the centre are multiplied by it
  int32_t* self;  // the row that is not this column's partner, -1 for none

  static MomentWeights take(Workspace& workspace, int64_t rows) {
    const int64_t padded = padded_rows(rows);
    return {workspace.take<float>(padded), workspace.take<float>(padded),
            workspace.take<int32_t>(padded)};
  }
};

static __global__ void moment_weights_kernel(MomentGradientArguments moments, Metric metric,
                                             const PackScale* scale, int64_t anchors,
                                             int64_t padded, MomentWeights weights) {
  const double unit = moment_unit(metric, scale);
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < padded;
       i += int64_t{gridDim.x} * blockDim.x) {
    const bool exists = i < anchors;
    const double first = exists ? moments.grad_first[i * moments.first_stride] : 0.0;
    const double second = exists ? moments.grad_second[i * moments.second_stride] : 0.0;
    weights.first[i] = static_cast<float>(first);
    weights.second[i] = static_cast<float>(second * unit);
  }
}

static __global__ void no_weights_kernel(int64_t padded, MomentWeights weights) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < padded;
       i += int64_t{gridDim.x} * blockDim.x) {
    weights.first[i] = 0.0f;
    weights.second[i] = 0.0f;
    weights.self[i] = -1;
  }
}

// Adds what the row's role as an anchor weighs and what the column's does; one of the two may have
// no weights. Nothing is kept from tile to tile: during a product few registers are left.
class MomentGradientPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 4;

  MomentGradientPolicy(const DistanceTask& task, const double* centre, const MomentWeights& rows,
                       const MomentWeights& columns)
      : task_(task), centre_(centre), rows_(rows), columns_(columns) {}

  __device__ const float* column_values(int i) const {
    return i == 0   ? task_.y.norm
           : i == 1 ? columns_.first
           : i == 2 ? columns_.second
                    : reinterpret_cast<const float*>(columns_.self);
  }
  __device__ TileRange tiles(const BlockRows&) const { return {0, INT_MAX}; }

  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const { s.rows = &rows; }

  __device__ void weigh(const State& s, const Tile& tile, Fragment& fragment) const {
    const float centre = static_cast<float>(*centre_);
    const float inverse_unit = inverse_unit_of(task_);
    const float inverse_moment_unit =
        static_cast<float>(1.0 / moment_unit(task_.metric, task_.scale));
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int row = s.rows->anchors[tile_row(slot)];
      const float row_first = row < 0 ? 0.0f : rows_.first[row];
      const float row_second = row < 0 ? 0.0f : rows_.second[row];
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        float& value = fragment.value[slot][j];
        const float first = row_first + tile.value(1, j);
        const float second = row_second + tile.value(2, j);
        const float away = (value - centre) * inverse_moment_unit;
        const float derivative = multiply_add(2.0f * second, away, first);
        const float weight = weight_of(task_.metric, derivative, value, inverse_unit);
        value = __float_as_int(tile.value(3, j)) == row ? 0.0f : weight;
        keep_column_order(j);
      }
    }
  }

  __device__ void finish(const State&, const BlockRows&, int, bool) const {}

 private:
  DistanceTask task_;
  const double* centre_;
  MomentWeights rows_;
  MomentWeights columns_;
};

// Which gradients are lost, by anchor and by reference; within a batch an anchor is both.
static __global__ void lost_gradients_kernel(LostPairs lost, bool within_batch, uint8_t* anchors,
                                             uint8_t* references) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = first; i < lost.anchors; i += step) {
    const int row = static_cast<int>(i);
    anchors[i] = lost.has_anchor(row) || (within_batch && lost.has_reference(row)) ? 1 : 0;
  }
  for (int64_t j = first; !within_batch && j < lost.references; j += step) {
    references[j] = lost.has_reference(static_cast<int>(j)) ? 1 : 0;
  }
}

}  // namespace dmlfast::cuda
