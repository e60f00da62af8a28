// The walk for gradients: a policy replaces the distances of a tile by the weights of their
// derivatives, and the weighted rows of y are summed on the tensor cores. A block owns the
// gradients of its 128 rows, 128 columns of them at a time: no atomics, and one order of all sums.
//
// A policy has, besides what the walk over pairs asks for,
//   kMultiplies                      whether distances come from products, or are read by `load`
//   load(state, tile, fragment)      the distances, where there are no products
//   weigh(state, tile, fragment)     distances become weights, by weight_of: the derivative of the
//                                    loss by the distance, summed over the roles that the pair
//                                    plays
//   finish(state, rows, item, leads) what there is after the last tile; `leads` for one of the
//                                    blocks that share rows and tiles
#pragma once

#include "engine/distances.cuh"

namespace dmlfast::cuda {

constexpr int kGradientColumns = kTileColumns;

// What Euclidean distances are multiplied by to be those of the packed rows.
__device__ inline float inverse_unit_of(const DistanceTask& task) {
  return static_cast<float>(1.0 / unit_of(task.metric, task.scale));
}

// From the derivative by a distance to the weight of the difference of the rows, or of the other
// row where distances are products. Nothing for a pair that does not exist, or at distance 0. Under
// the root of a square that of the packed rows, so that tiny and huge rows leave no range.
__device__ inline float weight_of(Metric metric, float derivative, float distance,
                                  float inverse_unit) {
  if (metric == Metric::euclidean) {
    return distance > 0.0f ? divide(derivative, distance * inverse_unit) : 0.0f;
  }
  const float weight = metric == Metric::sqeuclidean ? 2.0f * derivative : derivative;
  return distance == distance ? weight : 0.0f;
}

// Sums of an item: over its tiles, of weighted rows of y and of the weights themselves.
struct GradientSums {
  float* rows;     // (items, 128 rows, padded columns)
  float* weights;  // (items, 128 rows)
};

struct GradientTask {
  WalkTask walk;
  DistanceTask distances;
  GradientSums sums;
};

__host__ __device__ inline int gradient_chunks(int padded_columns) {
  return (padded_columns + kGradientColumns - 1) / kGradientColumns;
}

// A thread's weights as operands: rows, times 16 columns of the tile for each k.
template <Precision kPrecision>
struct WeightOperands {
  static constexpr int kSteps = kTileColumns / kStepColumns;
  uint32_t high[kSteps][4];
  uint32_t low[kPrecision == Precision::split ? kSteps : 1][4];
  float unit[Fragment::kRows];  // a power of two for each row: the greatest weight to 2^13
};

// The power of two that brings a number to [2^13, 2^14), and its inverse; 1 where there is none.
__device__ inline float weight_scale(float greatest, float* inverse) {
  *inverse = 1.0f;
  if (!(greatest > 0.0f && greatest < INFINITY)) {
    return 1.0f;
  }
  int exponent = ilogbf(greatest) + 1 - kScaledExponent;
  exponent = exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  *inverse = scalbnf(1.0f, exponent);
  return scalbnf(1.0f, -exponent);
}

template <Precision kPrecision>
__device__ inline void pack_weights(const Fragment& weights, WeightOperands<kPrecision>& to) {
  float scale[Fragment::kRows];
#pragma unroll
  for (int slot = 0; slot < Fragment::kRows; ++slot) {
    float greatest = 0.0f;
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      greatest = fmaxf(greatest, fabsf(weights.value[slot][j]));
    }
    greatest = join_quad(greatest, [](float a, float b) { return fmaxf(a, b); });
    scale[slot] = weight_scale(greatest, &to.unit[slot]);
  }
#pragma unroll
  for (int k = 0; k < WeightOperands<kPrecision>::kSteps; ++k) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      // Operand registers hold rows g and g + 8 of the first eight columns, then of the others.
      const int slot = part % 2;
      const int j = 4 * k + part / 2 * 2;
      const float first = weights.value[slot][j] * scale[slot];
      const float second = weights.value[slot][j + 1] * scale[slot];
      to.high[k][part] = pack_halves(first, second);
      if constexpr (kPrecision == Precision::split) {
        to.low[k][part] =
            pack_halves(first - to_float(to_half(first)), second - to_float(to_half(second)));
      }
    }
  }
}

// The operands of 16 columns of y (from chunk on), 16 of the tile's columns deep.
__device__ inline void load_depth(uint32_t (&to)[4], unsigned char* slab, int first, int chunk) {
  const int lane = threadIdx.x % 32;
  load_matrices_transposed(to, chunk_at(slab, first + lane % 16, chunk + lane / 16));
}

// Adds the weighted sum of one slab of y to its columns of the gradient.
template <Precision kPrecision>
__device__ inline void add_weighted(const WeightOperands<kPrecision>& weights, unsigned char* y,
                                    float (&low_row)[kSlabColumns<kPrecision> / 4],
                                    float (&high_row)[kSlabColumns<kPrecision> / 4]) {
#pragma unroll
  for (int n = 0; n < kSlabColumns<kPrecision> / 16; ++n) {
    float d[2][4] = {};
#pragma unroll
    for (int k = 0; k < WeightOperands<kPrecision>::kSteps; ++k) {
      uint32_t b[4];
      load_depth(b, y, 16 * k, 2 * n);
      if constexpr (kPrecision == Precision::split) {
        uint32_t b_low[4];
        load_depth(b_low, y, 16 * k, 4 + 2 * n);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float (&sum)[4] = d[half];
          multiply_matrices(sum[0], sum[1], sum[2], sum[3], weights.low[k], b[2 * half],
                            b[2 * half + 1]);
          multiply_matrices(sum[0], sum[1], sum[2], sum[3], weights.high[k], b_low[2 * half],
                            b_low[2 * half + 1]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float (&sum)[4] = d[half];
        multiply_matrices(sum[0], sum[1], sum[2], sum[3], weights.high[k], b[2 * half],
                          b[2 * half + 1]);
      }
      // Keeps the compiler from having the operands of all steps in registers at once.
      if (k % 2 == 1) {
        __syncwarp();
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        low_row[4 * n + 2 * half + i] += d[half][i] * weights.unit[0];
        high_row[4 * n + 2 * half + i] += d[half][2 + i] * weights.unit[1];
      }
    }
  }
}

// What a thread sums over the tiles: its two rows, 32 of the 128 columns of the gradient.
template <Precision kPrecision>
struct GradientState {
  static constexpr int kSlabs = kGradientColumns / kSlabColumns<kPrecision>;
  float rows[kSlabs][Fragment::kRows][kSlabColumns<kPrecision> / 4] = {};
  float weights[Fragment::kRows] = {};
};

template <class Policy, Precision kPrecision>
class GradientWalk {
 public:
  __device__ GradientWalk(const GradientTask& task, const Policy& policy, const WalkItem& item,
                          int item_number, int chunk)
      : task_(task),
        policy_(policy),
        item_(item),
        distances_(task.distances, item.rows),
        first_column_(chunk * kGradientColumns),
        first_row_(int64_t{item_number} * kTileRows) {}

  __device__ void run(typename Policy::State& state, unsigned char* memory) {
    const TileRange wanted = policy_.tiles(item_.rows);
    const TileRange range{max(wanted.begin, item_.begin), min(wanted.end, item_.end)};
    using State = GradientState<kPrecision>;
    const SlabWalk<Policy, kPrecision> walk(
        task_.walk, policy_, item_.rows, memory, range,
        {State::kSlabs, first_column_ / kSlabColumns<kPrecision>});
    clear_sums();
    walk.start();
    State sums;
    for (int number = 0; number < walk.tiles(); ++number) {
      WeightOperands<kPrecision> operands;
      unsigned char* y = nullptr;
      {
        Fragment fragment;
        NearPairs near;
        if constexpr (Policy::kMultiplies) {
          walk.multiply(number, fragment);
          distances_.convert(task_.distances, walk.tile(number), fragment, near);
        } else {
          y = walk.further(number, 0);
          policy_.load(state, walk.tile(number), fragment);
          distances_.find_near(task_.distances, walk.tile(number), fragment, near);
        }
        policy_.weigh(state, walk.tile(number), fragment);
        serve_near(walk.tile(number), fragment, near);
        add_weights(fragment, sums);
        pack_weights(fragment, operands);
      }
#pragma unroll
      for (int slab = 0; slab < State::kSlabs; ++slab) {
        if (Policy::kMultiplies || slab > 0) {
          y = walk.further(number, slab);
        }
        add_weighted(operands, y, sums.rows[slab][0], sums.rows[slab][1]);
      }
    }
    walk.end();
    store(sums);
  }

 private:
  __device__ float* sums_row(int row) const {
    return task_.sums.rows + (first_row_ + row) * task_.walk.x.padded_columns;
  }

  __device__ int columns() const {
    return min(kGradientColumns, task_.walk.x.padded_columns - first_column_);
  }

  // Near pairs add to these rows before the end; a warp clears what it alone will touch.
  __device__ void clear_sums() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int first = static_cast<int>(threadIdx.x) / 32 * 16;
    for (int row = first; row < first + 16; ++row) {
      for (int k = lane; k < columns(); k += 32) {
        sums_row(row)[first_column_ + k] = 0.0f;
      }
    }
    __syncwarp();
  }

  // Weights of near pairs go to the sums at once, and to none of the products.
  __device__ void serve_near(const Tile& tile, Fragment& weights, const NearPairs& near) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      for_each_near(slot, near.columns[slot], weights.value[slot],
                    [&](int row, int column, float weight) {
                      add_difference(row, tile.first_column + column, weight);
                      return 0.0f;
                    });
    }
  }

  // Adds weight * (y - x), from the values as given, in packed units.
  __device__ void add_difference(int row, int column, float weight) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const DistanceTask& task = task_.distances;
    const int64_t x = task.x_order[item_.rows.anchors[row]];
    const int64_t y = task.y_order[column];
    const double scale = weight / unit_of(task.metric, task.scale);
    const int64_t end = min(int64_t{first_column_} + columns(), task.x_rows.columns);
    for (int64_t k = first_column_ + lane; k < end; k += 32) {
      const double difference = element(task.y_rows, y, k) - element(task.x_rows, x, k);
      sums_row(row)[k] += static_cast<float>(scale * difference);
    }
    __syncwarp();
  }

  __device__ static void add_weights(const Fragment& weights, GradientState<kPrecision>& sums) {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        sum += weights.value[slot][j];
      }
      sums.weights[slot] += sum;
    }
  }

  __device__ void store(const GradientState<kPrecision>& sums) const {
    constexpr int kColumns = kSlabColumns<kPrecision>;
    __syncwarp();
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      float* const row = sums_row(tile_row(slot)) + first_column_;
#pragma unroll
      for (int slab = 0; slab < GradientState<kPrecision>::kSlabs; ++slab) {
#pragma unroll
        for (int j = 0; j < kColumns / 4; ++j) {
          const int column = slab * kColumns + tile_column(j);
          if (column < columns()) {
            row[column] += sums.rows[slab][slot][j];
          }
        }
      }
      const float weight = join_quad(sums.weights[slot], [](float a, float b) { return a + b; });
      if (first_column_ == 0 && threadIdx.x % 4 == 0) {
        task_.sums.weights[first_row_ + tile_row(slot)] = weight;
      }
    }
  }

  const GradientTask& task_;
  const Policy& policy_;
  const WalkItem& item_;
  const Distances distances_;
  const int first_column_;
  const int64_t first_row_;
};

template <class Policy, Precision kPrecision>
__global__ void __launch_bounds__(kTileThreads)
    gradient_walk_kernel(GradientTask task, Policy policy) {
  DMLFAST_SHARED_MEMORY(memory);
  __shared__ int queries[kTileRows];
  __shared__ int anchors[kTileRows];
  const WalkTask& walk = task.walk;
  const Split split =
      split_of(walk.queries.number(), kTileRows, walk.y.tiles(), walk.queries.wanted_items);
  const int chunks = gradient_chunks(walk.x.padded_columns);
  for (int number = blockIdx.x; number < split.items() * chunks; number += gridDim.x) {
    const int item_number = number / chunks;
    const int chunk = number % chunks;
    const WalkItem item = walk_item(walk, split, item_number, queries, anchors);
    typename Policy::State state;
    policy.start(state, item.rows);
    GradientWalk<Policy, kPrecision>(task, policy, item, item_number, chunk).run(state, memory);
    policy.finish(state, item.rows, item_number, chunk == 0);
    __syncthreads();
  }
}

template <class Policy, Precision kPrecision>
void launch_gradient_walk(GradientTask task, const Policy& policy, int shared_bytes,
                          cudaStream_t stream) {
  const int bytes = choose_stages<Policy, kPrecision>(task.walk, shared_bytes);
  const int64_t items =
      int64_t{most_items(task.walk.queries.most, kTileRows, task.walk.queries.wanted_items)} *
      gradient_chunks(task.walk.x.padded_columns);
  DMLFAST_LAUNCH_SHARED((gradient_walk_kernel<Policy, kPrecision>), dim3{grid_for(items)},
                        kTileThreads, bytes, stream, task, policy);
}

// From the sums to the gradient of the rows as given.
struct GradientResult {
  GradientTask task;
  const uint8_t* lost;  // by anchor position: the gradient is NaN; or null
  AnyResult gradient;
};

// A warp a row.
static __global__ void gradient_rows_kernel(GradientResult result) {
  const GradientTask& task = result.task;
  const DistanceTask& distances = task.distances;
  const WalkTask& walk = task.walk;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Split split =
      split_of(walk.queries.number(), kTileRows, walk.y.tiles(), walk.queries.wanted_items);
  const int padded = walk.x.padded_columns;
  const double unit = unit_of(distances.metric, distances.scale);
  for (int position = blockIdx.x * kPackWarps + threadIdx.x / 32; position < walk.x.rows;
       position += gridDim.x * kPackWarps) {
    const int64_t row = distances.x_order[position];
    const int64_t first =
        int64_t{position / kTileRows} * split.parts * kTileRows + position % kTileRows;
    const auto sum_of_parts = [&](const float* sums, int64_t stride, int64_t k) {
      double sum = 0.0;
      for (int part = 0; part < split.parts; ++part) {
        sum += sums[(first + int64_t{part} * kTileRows) * stride + k];
      }
      return sum;
    };
    const bool is_lost = result.lost != nullptr && result.lost[position] != 0;
    const double weight = sum_of_parts(task.sums.weights, 1, 0);
    const auto packed = [&](int64_t k) {
      const int64_t at = int64_t{position} * padded + k;
      return static_cast<double>(to_float(walk.x.high[at])) + to_float(walk.x.low[at]);
    };
    // Under cosine: the part along the row, and the row's length.
    double along = 0.0;
    double squares = 0.0;
    if (distances.metric == Metric::cosine) {
      for (int64_t k = lane; k < walk.x.padded_columns; k += 32) {
        along += packed(k) * sum_of_parts(task.sums.rows, padded, k);
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
      const double sum = sum_of_parts(task.sums.rows, padded, k);
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

inline void launch_gradient_rows(const GradientResult& result, cudaStream_t stream) {
  if (result.task.walk.x.rows > 0) {
    const int64_t blocks = (int64_t{result.task.walk.x.rows} + kPackWarps - 1) / kPackWarps;
    DMLFAST_LAUNCH(gradient_rows_kernel, dim3{grid_for(blocks)}, kPackThreads, stream, result);
  }
}

}  // namespace dmlfast::cuda
