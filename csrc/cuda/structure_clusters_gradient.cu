#include "structure_clusters.cuh"
#include "structure_rows.cuh"

namespace dmlfast::cuda {

namespace {

// What the sums of each anchor are multiplied by, padded to whole tiles.
struct ClusterWeights {
  float* loss;
  float* mass;  // [anchor][cluster]; null unless wanted
  float* moment;
  float* are_wanted;  // whether one of them is not 0
  int32_t* exponent;  // what they are divided by is 2 to this
};

struct WeightArguments {
  ClusterUpstream upstream;
  int64_t anchors;
  int clusters;
  ClusterWeights to;
};

__device__ double mass_of(const ClusterUpstream& from, int64_t i, int k) {
  return from.mass[i * from.mass_strides[0] + k * from.mass_strides[1]];
}

__device__ double moment_of(const ClusterUpstream& from, int64_t i, int k) {
  return from.moment[i * from.moment_strides[0] + k * from.moment_strides[1]];
}

// That of the greatest finite one, if greater than what there is.
__device__ int exponent_of(double value, int exponent) {
  const double size = fabs(value);
  return size > 0.0 && size < INFINITY ? max(ilogb(size), exponent) : exponent;
}

__global__ void clear_exponent_kernel(int32_t* exponent) { *exponent = INT_MIN; }

__global__ void upstream_exponent_kernel(WeightArguments a) {
  const ClusterUpstream& from = a.upstream;
  int exponent = INT_MIN;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < a.anchors;
       i += int64_t{gridDim.x} * blockDim.x) {
    exponent = exponent_of(from.loss[i * from.loss_stride], exponent);
    for (int k = 0; k < a.clusters && a.to.mass != nullptr; ++k) {
      exponent = exponent_of(mass_of(from, i, k), exponent);
      exponent = exponent_of(moment_of(from, i, k), exponent);
    }
  }
  exponent = warp_greatest(exponent);
  if (lane_number() == 0) {
    atomicMax(a.to.exponent, exponent);
  }
}

__global__ void settle_exponent_kernel(int32_t* exponent) {
  *exponent = *exponent == INT_MIN ? 0 : *exponent;
}

__global__ void cluster_weights_kernel(WeightArguments a, int64_t padded) {
  const int exponent = *a.to.exponent;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < padded;
       i += int64_t{gridDim.x} * blockDim.x) {
    const bool exists = i < a.anchors;
    const ClusterUpstream& from = a.upstream;
    const double loss = exists ? from.loss[i * from.loss_stride] : 0.0;
    bool is_wanted = loss != 0.0;
    a.to.loss[i] = static_cast<float>(scalbn(loss, -exponent));
    for (int k = 0; k < a.clusters && a.to.mass != nullptr; ++k) {
      const int64_t at = i * a.clusters + k;
      const double mass = exists ? mass_of(from, i, k) : 0.0;
      const double moment = exists ? moment_of(from, i, k) : 0.0;
      is_wanted = is_wanted || mass != 0.0 || moment != 0.0;
      a.to.mass[at] = static_cast<float>(scalbn(mass, -exponent));
      a.to.moment[at] = static_cast<float>(scalbn(moment, -exponent));
    }
    a.to.are_wanted[i] = is_wanted ? 1.0f : 0.0f;
  }
}

// Which gradients are lost, by the role of a row.
__global__ void lost_rows_kernel(LostPairs lost, uint8_t* anchors, uint8_t* references) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < lost.anchors;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int row = static_cast<int>(i);
    anchors[i] = lost.has_anchor(row) ? 1 : 0;
    references[i] = lost.has_reference(row) ? 1 : 0;
  }
}

// Either the rows of the walk or its columns are the anchors. Nothing is kept from tile to tile:
// during a product few registers are left.
class ClusterGradientPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 2;

  ClusterGradientPolicy(const ClusterTask& task, const ClusterWeights& weights)
      : task_(task), weights_(weights) {}

  __device__ const float* column_values(int i) const {
    return i == 0 ? task_.distances.y.norm : weights_.loss;
  }
  __device__ TileRange tiles(const BlockRows&) const { return {0, INT_MAX}; }

  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const { s.rows = &rows; }

  __device__ void weigh(const State& s, const Tile& tile, Fragment& fragment) const {
    const float inverse_unit = inverse_unit_of(task_.distances);
    for_each_part(fragment, [&](int slot, int first) {
      const ClusterPart part(task_, fragment.value[slot]);
      const Place place{max(s.rows->anchors[tile_row(slot)], 0), tile, first};
      float derivative[ClusterPart::kColumns];
      derive(part, place, derivative);
      ClusterPart::for_each([&](int j) {
        float& value = fragment.value[slot][j];
        value = weight_of(Metric::euclidean, derivative[j], value, inverse_unit);
      });
    });
  }

  __device__ void finish(const State&, const BlockRows&, int, bool) const {}

 private:
  // Where a part is: in a row of the walk, from one of the thread's columns of a tile on.
  struct Place {
    int row;
    const Tile& tile;
    int first;
  };

  // The derivatives by the distances: with the mean exponent m and sign s of the shares, that of
  // the loss is sum c_k s_k (1 - exponent_k + m), of what all gaps share nothing.
  __device__ void derive(const ClusterPart& part, const Place& place,
                         float (&derivative)[ClusterPart::kColumns]) const {
    constexpr float kLogOf2 = 1.0f / kLog2OfE;
    float inverse[ClusterPart::kColumns] = {};
    float exponent[ClusterPart::kColumns] = {};
    float sign[ClusterPart::kColumns] = {};
    float slant[ClusterPart::kColumns] = {};
#pragma unroll 1
    for (int k = 0; k < task_.clusters; ++k) {
      const float target = task_.targets[k];
      ClusterPart::for_each([&](int j) {
        const float away = part.at(j) - target;
        const float power_exponent = part.exponent(task_, j, fabsf(away));
        const float power = exponential2(-power_exponent);
        const float signed_power = power * sign_of(away);
        inverse[j] += power;
        exponent[j] = multiply_add(power, power_exponent, exponent[j]);
        sign[j] += signed_power;
        slant[j] = multiply_add(signed_power, power_exponent, slant[j]);
      });
    }
    ClusterPart::for_each([&](int j) {
      inverse[j] = divide(1.0f, inverse[j]);
      sign[j] *= inverse[j];
      const float change = exponent[j] * inverse[j] * sign[j] - slant[j] * inverse[j];
      const float weight =
          rows_are_anchors() ? weights_.loss[place.row] : place.tile.value(1, place.first + j);
      derivative[j] = weight * multiply_add(kLogOf2, change, sign[j]);
    });
    if (weights_.mass != nullptr) {
      add_clusters(part, place, inverse, sign, derivative);
    }
  }

  // Those of the weighted masses and moments.
  __device__ void add_clusters(const ClusterPart& part, const Place& place,
                               const float (&inverse)[ClusterPart::kColumns],
                               const float (&sign)[ClusterPart::kColumns],
                               float (&derivative)[ClusterPart::kColumns]) const {
#pragma unroll 1
    for (int k = 0; k < task_.clusters; ++k) {
      const float target = task_.targets[k];
      ClusterPart::for_each([&](int j) {
        const int anchor = rows_are_anchors() ? place.row : place.tile.column(place.first + j);
        const int64_t at = int64_t{anchor} * task_.clusters + k;
        const float distance = part.at(j);
        const float away = distance - target;
        const float share = exponential2(-part.exponent(task_, j, fabsf(away))) * inverse[j];
        const float change = -task_.sharpness * share * (sign_of(away) - sign[j]);
        derivative[j] += weights_.mass[at] * change +
                         weights_.moment[at] * multiply_add(distance, change, share);
      });
    }
  }

  __device__ bool rows_are_anchors() const { return !task_.distances.weights.are_of_columns; }

  __device__ static float sign_of(float value) {
    return value > 0.0f ? 1.0f : value < 0.0f ? -1.0f : 0.0f;
  }

  ClusterTask task_;
  ClusterWeights weights_;
};

}  // namespace

template <>
constexpr bool kMayWeighDimensions<ClusterGradientPolicy> = true;

namespace {

struct ClusterGradientMemory {
  StructureSums sums;
  ClusterMemory clusters;
  ClusterWeights weights;
  int32_t* own;
  int32_t* own_lost;

  static ClusterGradientMemory take(Workspace& workspace, const StructureRows& rows,
                                    const Clusters& clusters) {
    const int64_t padded = padded_rows(rows.e.rows);
    ClusterGradientMemory memory{};
    memory.sums = StructureSums::take(workspace, rows);
    memory.clusters = ClusterMemory::take(workspace, rows, clusters);
    memory.weights.loss = workspace.take<float>(padded);
    memory.weights.are_wanted = workspace.take<float>(padded);
    memory.weights.exponent = workspace.take<int32_t>(1);
    memory.sums.upstream_exponent = memory.weights.exponent;
    if (clusters.ordered) {
      memory.weights.mass = workspace.take<float>(padded * clusters.clusters);
      memory.weights.moment = workspace.take<float>(padded * clusters.clusters);
    }
    memory.own = workspace.take<int32_t>(rows.e.rows);
    memory.own_lost = workspace.take<int32_t>(rows.e.rows);
    return memory;
  }
};

void launch_weights(const WeightArguments& weights, int64_t padded, cudaStream_t stream) {
  int32_t* const exponent = weights.to.exponent;
  DMLFAST_LAUNCH(clear_exponent_kernel, dim3{1}, 1, stream, exponent);
  DMLFAST_LAUNCH(upstream_exponent_kernel, element_blocks(weights.anchors), kElementThreads, stream,
                 weights);
  DMLFAST_LAUNCH(settle_exponent_kernel, dim3{1}, 1, stream, exponent);
  DMLFAST_LAUNCH(cluster_weights_kernel, element_blocks(padded), kElementThreads, stream, weights,
                 padded);
}

// The weighted sums of the rows of a walk, of anchors or of references.
void launch_sums(const StructureRows& rows, const PairwiseWalk& pairs, ClusterTask task,
                 const ClusterGradientMemory& memory, cudaStream_t stream) {
  task.distances = pairs.distances;
  launch_gradient_walk<ClusterGradientPolicy, Precision::split>(
      gradient_task(pairs, memory.sums.sums), ClusterGradientPolicy(task, memory.weights),
      rows.shared_bytes, stream);
}

}  // namespace

int64_t structure_clusters_gradient_bytes(const StructureRows& rows, const Clusters& clusters) {
  Workspace workspace;
  ClusterGradientMemory::take(workspace, in_gradient_items(rows), clusters);
  return workspace.bytes();
}

void launch_structure_clusters_gradient(const StructureRows& given, const Clusters& clusters,
                                        const ClusterUpstream& upstream,
                                        const StructureResults& results, void* workspace,
                                        cudaStream_t stream) {
  const StructureRows rows = in_gradient_items(given);
  Workspace parts(workspace);
  const ClusterGradientMemory memory = ClusterGradientMemory::take(parts, rows, clusters);
  ClusterWalk walk =
      launch_cluster_walk(rows, clusters, memory.sums.pairs, memory.clusters, stream);
  launch_weights({upstream, rows.e.rows, clusters.clusters, memory.weights},
                 padded_rows(rows.e.rows), stream);
  walk.lost.first = memory.weights.are_wanted;
  walk.lost.second = memory.weights.are_wanted;
  walk.lost.own = memory.own;
  walk.lost.own_lost = memory.own_lost;
  launch_count_lost(walk.lost, stream);
  DMLFAST_LAUNCH(lost_rows_kernel, element_blocks(rows.e.rows), kElementThreads, stream, walk.lost,
                 memory.sums.lost_anchors, memory.sums.lost_references);
  PairwiseWalk of_references = exchanged(walk.pairs);
  of_references.distances.self = memory.clusters.self;
  launch_sums(rows, of_references, walk.task, memory, stream);
  launch_reference_rows(rows, of_references, memory.sums, results, stream);
  launch_sums(rows, walk.pairs, walk.task, memory, stream);
  launch_anchor_rows(rows, walk.pairs, memory.sums, results, stream);
}

}  // namespace dmlfast::cuda
