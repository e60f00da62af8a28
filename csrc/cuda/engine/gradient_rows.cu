#include "engine/gradient_walk.cuh"

namespace dmlfast::cuda {

namespace {

// A warp a row.
__global__ void gradient_rows_kernel(GradientResult result) {
  const GradientTask& task = result.task;
  const DistanceTask& distances = task.distances;
  const WalkTask& walk = task.walk;
  const int lane = lane_number();
  const int padded = walk.x.padded_columns;
  const double unit = unit_of(distances.metric, distances.scale);
  for (int position = blockIdx.x * kElementWarps + threadIdx.x / 32; position < walk.x.rows;
       position += gridDim.x * kElementWarps) {
    const int64_t row = distances.x_order[position];
    const PartSums sums(task, position);
    const bool is_lost = result.lost != nullptr && result.lost[position] != 0;
    const double weight = sums.weight();
    const auto packed = [&](int64_t k) {
      const int64_t at = int64_t{position} * padded + k;
      return static_cast<double>(to_float(walk.x.high[at])) + to_float(walk.x.low[at]);
    };
    // Under cosine: the part along the row, and the row's length.
    double along = 0.0;
    double squares = 0.0;
    if (distances.metric == Metric::cosine) {
      for (int64_t k = lane; k < walk.x.padded_columns; k += 32) {
        along += packed(k) * sums.column(k);
      }
      along = warp_sum(along) * unit * unit;
      for (int64_t k = lane; k < distances.x_rows.columns; k += 32) {
        const double value = element(distances.x_rows, row, k);
        squares += value * value;
      }
      squares = warp_sum(squares);
    }
    const double length = sqrt(squares);
    for (int64_t k = lane; k < distances.x_rows.columns; k += 32) {
      const double sum = sums.column(k);
      double gradient = -unit * sum;
      if (sums_differences(distances.metric)) {
        // Euclidean weights are of packed rows.
        const double factor = distances.metric == Metric::euclidean ? 1.0 : unit;
        gradient = factor * (weight * packed(k) - sum);
      } else if (distances.metric == Metric::cosine) {
        const bool has_direction = length > 0.0 && length < INFINITY;
        gradient = has_direction ? (along * unit * packed(k) - unit * sum) / length : 0.0;
      }
      store_element(result.gradient, row, k, is_lost ? NAN : gradient);
    }
  }
}

}  // namespace

void launch_gradient_rows(const GradientResult& result, cudaStream_t stream) {
  const int64_t rows = result.task.walk.x.rows;
  if (rows > 0) {
    DMLFAST_LAUNCH(gradient_rows_kernel, element_blocks(rows * 32), kElementThreads, stream,
                   result);
  }
}

}  // namespace dmlfast::cuda
