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
#include "engine/weighted_products.cuh"

namespace dmlfast::cuda {

constexpr int kGradientColumns = kTileColumns;

// What Euclidean distances are multiplied by to be those of the packed rows.
__device__ inline float inverse_unit_of(const DistanceTask& task) {
  return static_cast<float>(scalbn(1.0, -unit_exponent(task.metric, task.scale)));
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

// What a weight is multiplied by to be that of the difference of the rows as given.
__device__ inline double weight_unit(const DistanceTask& task) {
  return task.metric == Metric::euclidean ? scalbn(1.0, -unit_exponent(task.metric, task.scale))
                                          : 1.0;
}

// Sums of an item: over its tiles, of weighted rows of y and of the weights themselves.
struct GradientSums {
  float* rows;     // (items, 128 rows, padded columns)
  float* weights;  // (items, 128 rows)
  // Of rows with weights of the dimensions, as `rows`: what near pairs add to the gradients.
  float* near = nullptr;
};

struct GradientTask {
  WalkTask walk;
  DistanceTask distances;
  GradientSums sums;
  bool accumulates = false;  // adds to the sums of earlier walks
};

__host__ __device__ inline int gradient_chunks(int padded_columns) {
  return (padded_columns + kGradientColumns - 1) / kGradientColumns;
}

// Items into which a gradient walk is divided, 0 standing for the usual number: these are to fill a
// device. Each has room for its sums, all columns of them: so they are the fewer the more chunks of
// columns there are.
inline int wanted_gradient_items(int64_t columns, int wanted_items) {
  constexpr int kWantedBlocks = 512;
  if (wanted_items > 0) {
    return wanted_items;
  }
  const int wanted = kWantedBlocks / gradient_chunks(static_cast<int>(padded_columns(columns)));
  return wanted > 0 ? wanted : 1;
}

// What a thread sums over the tiles: its two rows, 32 of the 128 columns of the gradient.
template <Precision kPrecision>
struct GradientState {
  static constexpr int kSlabs = kGradientColumns / kSlabColumns<kPrecision>;
  float rows[kSlabs][Fragment::kRows][kSlabColumns<kPrecision> / 4] = {};
};

// What a block is at. It lies in shared memory: during a walk no registers are left for it.
struct GradientPlace {
  int item;
  int first_column;  // of the gradient
};

__device__ inline GradientPlace gradient_place(const WalkTask& walk, unsigned number) {
  const auto chunks = static_cast<unsigned>(gradient_chunks(walk.x.padded_columns));
  return {static_cast<int>(number / chunks), static_cast<int>(number % chunks) * kGradientColumns};
}

// Whether rows may have weights of the dimensions. Where they have none, registers are not either.
template <class Policy>
constexpr bool kMayWeighDimensions = false;

template <class Policy, Precision kPrecision>
class GradientWalk {
 public:
  __device__ GradientWalk(const GradientTask& task, const Policy& policy, const BlockRows& rows,
                          const GradientPlace& place)
      : task_(task), policy_(policy), rows_(rows), place_(place) {}

  __device__ void run(typename Policy::State& state, unsigned char* memory, TileRange range) {
    using State = GradientState<kPrecision>;
    SlabWalk<Policy, kPrecision> walk(
        task_.walk, policy_, rows_, memory, range,
        {State::kSlabs, place_.first_column / kSlabColumns<kPrecision>});
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
          walk.multiply(fragment);
          distances().convert(task_.distances, walk.tile(number), fragment, near);
        } else {
          y = walk.further();
          policy_.load(state, walk.tile(number), fragment);
          distances().find_near(task_.distances, walk.tile(number), fragment, near);
        }
        policy_.weigh(state, walk.tile(number), fragment);
        serve_near(walk.tile(number), fragment, near);
        add_weights(fragment);
        pack_weights(fragment, operands);
      }
#pragma unroll
      for (int slab = 0; slab < State::kSlabs; ++slab) {
        if (Policy::kMultiplies || slab > 0) {
          y = walk.further();
        }
        add_weighted(operands, y, sums.rows[slab][0], sums.rows[slab][1]);
      }
    }
    walk.end();
    store(sums);
  }

 private:
  // Made anew for each tile, to be in no register while products are summed.
  __device__ Distances distances() const { return Distances(task_.distances, rows_); }

  __device__ int64_t first_row() const { return int64_t{place_.item} * kTileRows; }

  __device__ float* row_of(float* sums, int row) const {
    return sums + (first_row() + row) * task_.walk.x.padded_columns;
  }

  __device__ float* sums_row(int row) const { return row_of(task_.sums.rows, row); }

  __device__ int columns() const {
    return min(kGradientColumns, task_.walk.x.padded_columns - place_.first_column);
  }

  // Near pairs add to these rows before the end; a warp clears what it alone will touch.
  __device__ void clear_sums() const {
    const int lane = lane_number();
    const int first = warp_number() * 16;
    for (int row = first; row < first + 16; ++row) {
      for (int k = lane; k < columns() && !task_.accumulates; k += 32) {
        sums_row(row)[place_.first_column + k] = 0.0f;
      }
      if (lane == 0) {
        weight_sum(row) = 0.0f;
      }
    }
    if constexpr (kMayWeighDimensions<Policy>) {
      if (task_.sums.near != nullptr && !task_.accumulates) {
        clear_near(first);
      }
    }
    __syncwarp();
  }

  __device__ void clear_near(int first) const {
#pragma unroll 1
    for (int row = first; row < first + 16; ++row) {
#pragma unroll 1
      for (int k = lane_number(); k < columns(); k += 32) {
        row_of(task_.sums.near, row)[place_.first_column + k] = 0.0f;
      }
    }
  }

  // Weights of near pairs go to the sums at once, and to none of the products.
  __device__ void serve_near(const Tile& tile, Fragment& weights, const NearPairs& near) const {
    for_each_near(near, weights, [&](int row, int column, float weight) {
      add_difference(row, tile.first_column + column, weight);
      return 0.0f;
    });
  }

  // Adds weight * (y - x), from the values as given, in packed units; of rows with weights of the
  // dimensions, the gradients themselves: their packed rows have squares, by which what is left of
  // close rows would be lost.
  __device__ void add_difference(int row, int column, float weight) const {
    const int lane = lane_number();
    const DistanceTask& task = task_.distances;
    const int64_t x = task.x_order[rows_.anchors[row]];
    const int64_t y = task.y_order[column];
    if constexpr (kMayWeighDimensions<Policy>) {
      if (task.weights.exist()) {
        add_near_gradient(row, x, y, weight);
        return;
      }
    }
    const double scale = weight / unit_of(task.metric, task.scale);
    const int64_t end = min(int64_t{place_.first_column} + columns(), task.x_rows.columns);
    for (int64_t k = place_.first_column + lane; k < end; k += 32) {
      const double difference = element(task.y_rows, y, k) - element(task.x_rows, x, k);
      sums_row(row)[k] += static_cast<float>(scale * difference);
    }
    __syncwarp();
  }

  __device__ void add_near_gradient(int row, int64_t x, int64_t y, float weight) const {
    const DistanceTask& task = task_.distances;
    const double scale = weight * weight_unit(task);
    const int64_t end = min(int64_t{place_.first_column} + columns(), 2 * task.x_rows.columns);
#pragma unroll 1
    for (int64_t k = place_.first_column + lane_number(); k < end; k += 32) {
      const double gradient = task.weights.near_gradient(task.x_rows, task.y_rows, x, y, k);
      row_of(task_.sums.near, row)[k] += static_cast<float>(scale * gradient);
    }
    __syncwarp();
  }

  // The sum of a row's weights, in shared memory as registers are few; a row has one writer.
  __device__ static float& weight_sum(int row) {
    __shared__ float sums[kTileRows];
    return sums[row];
  }

  __device__ static void add_weights(const Fragment& weights) {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        sum += weights.value[slot][j];
      }
      sum = join_quad(sum, [](float a, float b) { return a + b; });
      if (threadIdx.x % 4 == 0) {
        weight_sum(tile_row(slot)) += sum;
      }
    }
  }

  __device__ void store(const GradientState<kPrecision>& sums) const {
    constexpr int kColumns = kSlabColumns<kPrecision>;
    const int own_column = first_own_column();
    __syncwarp();
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      float* const row = sums_row(tile_row(slot)) + place_.first_column;
#pragma unroll
      for (int slab = 0; slab < GradientState<kPrecision>::kSlabs; ++slab) {
#pragma unroll
        for (int j = 0; j < kColumns / 4; ++j) {
          const int column = own_column + slab * kColumns + column_offset(j);
          if (column < columns()) {
            row[column] += sums.rows[slab][slot][j];
          }
        }
      }
      if (place_.first_column == 0 && own_column == 0) {
        float& to = task_.sums.weights[first_row() + tile_row(slot)];
        to = weight_sum(tile_row(slot)) + (task_.accumulates ? to : 0.0f);
      }
    }
  }

  const GradientTask& task_;
  const Policy& policy_;
  const BlockRows& rows_;
  const GradientPlace& place_;
};

// A block an item and chunk: with a loop over several the compiler would keep, for all of the walk,
// what is the same for each.
template <class Policy, Precision kPrecision>
__global__ void __launch_bounds__(kTileThreads, 1)
    gradient_walk_kernel(GradientTask task, Policy policy) {
  DMLFAST_SHARED_MEMORY(memory);
  __shared__ int queries[kTileRows];
  __shared__ int anchors[kTileRows];
  __shared__ WalkPlan plan;
  __shared__ GradientPlace place;
  const WalkTask& walk = task.walk;
  if (threadIdx.x == 0) {
    plan = walk_plan(walk);
    place = gradient_place(walk, blockIdx.x);
  }
  __syncthreads();
  if (place.item >= plan.split.items()) {
    return;
  }
  const WalkItem item = walk_item(walk, plan, place.item, queries, anchors);
  const TileRange wanted = policy.tiles(item.rows);
  const TileRange range{max(wanted.begin, item.begin), min(wanted.end, item.end)};
  typename Policy::State state;
  policy.start(state, item.rows);
  GradientWalk<Policy, kPrecision>(task, policy, item.rows, place).run(state, memory, range);
  policy.finish(state, item.rows, place.item, place.first_column == 0);
}

template <class Policy, Precision kPrecision>
void launch_gradient_walk(GradientTask task, const Policy& policy, int shared_bytes,
                          cudaStream_t stream) {
  const int bytes = choose_stages<Policy, kPrecision>(task.walk, shared_bytes);
  const int items = most_items(task.walk.queries.most, kTileRows, task.walk.queries.wanted_items);
  const auto blocks = static_cast<unsigned>(items) *
                      static_cast<unsigned>(gradient_chunks(task.walk.x.padded_columns));
  if (blocks > 0) {
    DMLFAST_LAUNCH_SHARED((gradient_walk_kernel<Policy, kPrecision>), dim3{blocks}, kTileThreads,
                          bytes, stream, task, policy);
  }
}

// The sums of a walk's row over the parts of its columns.
class PartSums {
 public:
  __device__ PartSums(const GradientTask& task, int position)
      : sums_(task.sums),
        columns_(task.walk.x.padded_columns),
        split_(split_of(task.walk.queries.number(), kTileRows, task.walk.y.tiles(),
                        task.walk.queries.wanted_items)),
        first_(first_part_of(split_, position)) {}

  __device__ double column(int64_t k) const { return sum(sums_.rows + k, columns_); }
  __device__ double near(int64_t k) const { return sum(sums_.near + k, columns_); }
  __device__ double weight() const { return sum(sums_.weights, 1); }

 private:
  __device__ double sum(const float* from, int64_t stride) const {
    double sum = 0.0;
    for (int part = 0; part < split_.parts; ++part) {
      sum += from[(first_ + int64_t{part} * kTileRows) * stride];
    }
    return sum;
  }

  GradientSums sums_;
  int64_t columns_;
  Split split_;
  int64_t first_;
};

// From the sums to the gradient of the rows as given.
struct GradientResult {
  GradientTask task;
  const uint8_t* lost;  // by anchor position: the gradient is NaN; or null
  AnyResult gradient;
};

void launch_gradient_rows(const GradientResult& result, cudaStream_t stream);

}  // namespace dmlfast::cuda
