#include "structure_pairs.cuh"

namespace dmlfast::cuda {

namespace {

__global__ void clear_scale_kernel(WeightedScale* scale) {
  scale->rows = INT_MIN;
  scale->weights = INT_MIN;
}

// The exponents of the greatest element, less the centre, of the finite rows, and of the greatest
// weight of the anchors that are used; a warp a row.
__global__ void weighted_exponents_kernel(AnyRows rows, AnyRows weights, const double* centre,
                                          WeightedScale* scale) {
  const int lane = lane_number();
  int row_exponent = INT_MIN;
  int weight_exponent = INT_MIN;
  for (int64_t row = int64_t{blockIdx.x} * kElementWarps + warp_number(); row < rows.rows;
       row += int64_t{gridDim.x} * kElementWarps) {
    double greatest = 0.0;
    double greatest_weight = 0.0;
    bool is_finite = true;
    bool is_metric = true;
    for (int64_t k = lane; k < rows.columns; k += 32) {
      const double value = fabs(element(rows, row, k) - centre[k]);
      is_finite = is_finite && value - value == 0.0;
      greatest = value > greatest ? value : greatest;
      const double weight = weights.data == nullptr ? 0.0 : element(weights, row, k);
      is_metric = is_metric && weight >= 0.0 && weight < INFINITY;
      greatest_weight = weight > greatest_weight ? weight : greatest_weight;
    }
    const bool is_there = __ballot_sync(kAllLanes, !is_finite) == 0;
    const bool is_used = __ballot_sync(kAllLanes, !is_metric) == 0 && is_there;
    if (is_there && greatest > 0.0) {
      row_exponent = max(row_exponent, ilogb(greatest) + 1);
    }
    if (is_used && greatest_weight > 0.0) {
      weight_exponent = max(weight_exponent, ilogb(greatest_weight) + 1);
    }
  }
  row_exponent = warp_greatest(row_exponent);
  weight_exponent = warp_greatest(weight_exponent);
  if (lane == 0) {
    atomicMax(&scale->rows, row_exponent);
    atomicMax(&scale->weights, weight_exponent);
  }
}

__global__ void settle_scale_kernel(WeightedScale* scale) {
  // Smaller elements stay smaller.
  constexpr int kLeastExponent = -400;
  // The inverse of the unit of distances stays a float32 number. Greater distances are not.
  constexpr int kGreatestUnit = 140;
  const int rows = scale->rows == INT_MIN ? 0 : scale->rows;
  const int weights = scale->weights == INT_MIN ? 0 : scale->weights;
  scale->rows = rows < kLeastExponent ? kLeastExponent : rows;
  scale->weights = weights + (weights % 2 == 0 ? 0 : 1);
  const int exponent = scale->rows + scale->weights / 2;
  scale->pairs.exponent = min(exponent, kGreatestUnit + kScaledExponent);
}

struct WeightedPackArguments {
  AnyRows rows;
  AnyRows weights;  // without data: the rows are references
  const double* centre;
  const WeightedScale* scale;
  int64_t* order;
  PackMemory to;
};

__device__ void store_halves(const PackMemory& to, int64_t at, double value) {
  const Half high = to_half(static_cast<float>(value));
  to.high[at] = high;
  to.low[at] = to_half(static_cast<float>(value - static_cast<double>(to_float(high))));
}

// A warp a row, the padding's included.
__global__ void pack_weighted_kernel(WeightedPackArguments a, int64_t padded_rows,
                                     int64_t padded_columns) {
  const int lane = lane_number();
  const int64_t dimensions = a.rows.columns;
  const bool are_anchors = a.weights.data != nullptr;
  const double scale = scalbn(1.0, kScaledExponent - a.scale->rows);
  const double weight_scale = scalbn(1.0, -a.scale->weights);
  for (int64_t row = int64_t{blockIdx.x} * kElementWarps + warp_number(); row < padded_rows;
       row += int64_t{gridDim.x} * kElementWarps) {
    const bool exists = row < a.rows.rows;
    const int64_t first = row * padded_columns;
    double squares = 0.0;
    bool is_used = exists;
    for (int64_t k = lane; k < dimensions; k += 32) {
      const double value = exists ? (element(a.rows, row, k) - a.centre[k]) * scale : 0.0;
      const double weight = exists && are_anchors ? element(a.weights, row, k) * weight_scale : 1.0;
      is_used = is_used && value - value == 0.0 && weight >= 0.0 && weight < INFINITY;
      squares += weight * (value * value);
      store_halves(a.to, first + k,
                   are_anchors ? scalbn(-0.5 * weight, kScaledExponent)
                               : scalbn(value * value, -kScaledExponent));
      store_halves(a.to, first + dimensions + k, weight * value);
    }
    is_used = __ballot_sync(kAllLanes, !is_used) == 0;
    // Other lanes have written what is cleared.
    __syncwarp();
    // A product with NaN would reach the other rows' sums.
    for (int64_t k = lane + (is_used ? 2 * dimensions : 0); k < padded_columns; k += 32) {
      store_halves(a.to, first + k, 0.0);
    }
    squares = warp_sum(squares);
    if (lane == 0) {
      a.to.norm[row] = !is_used ? INFINITY : are_anchors ? static_cast<float>(squares) : 0.0f;
    }
    if (lane == 0 && exists) {
      a.order[row] = row;
    }
  }
}

void launch_exponents(const AnyRows& rows, const AnyRows& weights, const StructureMemory& memory,
                      cudaStream_t stream) {
  // Few blocks: each raises two numbers for all of its rows.
  DMLFAST_LAUNCH(weighted_exponents_kernel, dim3{grid_for(kWantedItems)}, kElementThreads, stream,
                 rows, weights, memory.centre, memory.scale);
}

PackedRows launch_pack_weighted(const AnyRows& rows, const AnyRows& weights,
                                const StructureMemory& memory, const PackMemory& to,
                                cudaStream_t stream) {
  const int64_t padded = padded_rows(rows.rows);
  const PackedRows packed = to.view(rows.rows, 2 * rows.columns);
  if (padded > 0) {
    const WeightedPackArguments arguments{rows,         weights,      memory.centre,
                                          memory.scale, memory.order, to};
    DMLFAST_LAUNCH(pack_weighted_kernel, element_blocks(padded * 32), kElementThreads, stream,
                   arguments, padded, int64_t{packed.padded_columns});
  }
  return packed;
}

}  // namespace

PairwiseWalk launch_structure_pack(const StructureRows& rows, const StructureMemory& memory,
                                   cudaStream_t stream) {
  const AnyRows kNone{};
  launch_row_centre(rows.references, memory.sums, memory.centre, &memory.scale->pairs, stream);
  DMLFAST_LAUNCH(clear_scale_kernel, dim3{1}, 1, stream, memory.scale);
  launch_exponents(rows.e, rows.w, memory, stream);
  if (!rows.within_batch) {
    launch_exponents(rows.references, kNone, memory, stream);
  }
  DMLFAST_LAUNCH(settle_scale_kernel, dim3{1}, 1, stream, memory.scale);
  const PackedRows x = launch_pack_weighted(rows.e, rows.w, memory, memory.x, stream);
  const PackedRows y = launch_pack_weighted(rows.references, kNone, memory, memory.y, stream);
  // Small packed elements are off by up to 2^-25, and so are products of two by up to 2^-11, of
  // which a dimension has four in its square: less than a 2^-14th of this.
  const float least_square = 64.0f * static_cast<float>(rows.e.columns);
  DistanceTask distances{rows.squared ? Metric::sqeuclidean : Metric::euclidean,
                         &memory.scale->pairs,
                         x,
                         y,
                         rows.e,
                         rows.references,
                         memory.order,
                         memory.order,
                         nullptr,
                         {rows.w, false, least_square, memory.centre, memory.scale}};
  return {walk_of(x, y, rows.wanted_items), distances};
}

int64_t structure_distance_bytes(const StructureRows& rows) {
  Workspace workspace;
  StructureMemory::take(workspace, rows);
  return workspace.bytes();
}

void launch_structure_distance(const StructureRows& rows, float* distance, void* workspace,
                               cudaStream_t stream) {
  Workspace memory(workspace);
  const PairwiseWalk pairs =
      launch_structure_pack(rows, StructureMemory::take(memory, rows), stream);
  launch_distance_walk(pairs, kStructureIsSplit, distance, rows.shared_bytes, stream);
}

}  // namespace dmlfast::cuda
