#include "structure_clusters.cuh"

namespace dmlfast::cuda {

namespace {

// Beyond, a pair has one cluster, but for ties.
constexpr double kGreatestSharpness = 1e30;

// Rounded, or 0 where one of them is not finite: then all is lost. One warp.
__global__ void round_targets_kernel(Clusters clusters, float* targets, int32_t* are_finite) {
  const int lane = lane_number();
  bool is_finite = true;
  for (int k = lane; k < clusters.clusters; k += 32) {
    is_finite = is_finite && clusters.targets[k] - clusters.targets[k] == 0.0;
  }
  is_finite = __ballot_sync(kAllLanes, !is_finite) == 0;
  for (int k = lane; k < clusters.clusters; k += 32) {
    targets[k] = is_finite ? static_cast<float>(clusters.targets[k]) : 0.0f;
  }
  if (lane == 0) {
    *are_finite = is_finite ? 1 : 0;
  }
}

// Without a target no pair has a loss.
__global__ void partners_kernel(const float* norms, int64_t rows, ClusterMemory memory) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * blockDim.x) {
    memory.partner_norms[i] = *memory.are_finite != 0 ? norms[i] : INFINITY;
    memory.self[i] = static_cast<int32_t>(i);
  }
}

// Sums of an item, by row of the tile, and where wanted by cluster.
struct ItemSums {
  Split split;
  double* loss;
  double* mass;  // null unless wanted
  double* moment;

  static ItemSums take(Workspace& workspace, const StructureRows& rows, const Clusters& clusters) {
    const int64_t anchors = rows.e.rows;
    ItemSums sums{};
    sums.split = walk_split(anchors, anchors, rows.wanted_items);
    const int64_t places = int64_t{sums.split.items()} * kTileRows;
    sums.loss = workspace.take<double>(places);
    if (clusters.ordered) {
      sums.mass = workspace.take<double>(places * clusters.clusters);
      sums.moment = workspace.take<double>(places * clusters.clusters);
    }
    return sums;
  }
};

__global__ void clear_sums_kernel(double* first, double* second, int64_t number) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < number;
       i += int64_t{gridDim.x} * blockDim.x) {
    first[i] = 0.0;
    second[i] = 0.0;
  }
}

class ClusterPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 1;

  ClusterPolicy(const ClusterTask& task, const ItemSums& sums) : task_(task), sums_(sums) {}

  __device__ const float* column_values(int) const { return task_.distances.y.norm; }
  __device__ TileRange tiles(const BlockRows&) const { return {0, INT_MAX}; }

  // What can be read again is: during a product few registers are left.
  struct State {
    const BlockRows* rows;
    double loss[Fragment::kRows];
  };

  __device__ void start(State& s, const BlockRows& rows) const {
    s.rows = &rows;
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      s.loss[slot] = 0.0;
    }
  }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
    Distances(task_.distances, *s.rows).convert(task_.distances, tile, fragment);
    const int64_t first_place = item_place(*s.rows, tile);
    float loss[Fragment::kRows] = {};
    for_each_part(fragment, [&](int slot, int) {
      loss[slot] += sum(ClusterPart(task_, fragment.value[slot]), first_place + tile_row(slot));
    });
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      s.loss[slot] += loss[slot];
    }
  }

  __device__ void finish(const State& s, const BlockRows&, int item) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const double loss = join_quad(s.loss[slot], [](double a, double b) { return a + b; });
      if (threadIdx.x % 4 == 0) {
        sums_.loss[int64_t{item} * kTileRows + tile_row(slot)] = loss;
      }
    }
  }

 private:
  // Of the sums of the item that a tile belongs to.
  __device__ int64_t item_place(const BlockRows& rows, const Tile& tile) const {
    const int part = tile.first_column / kTileColumns / sums_.split.tiles_per_part;
    return int64_t{rows.first_place} * sums_.split.parts + part * kTileRows;
  }

  // The losses of the part, whose masses and moments are added to those at a place.
  __device__ float sum(const ClusterPart& part, int64_t place) const {
    float total[ClusterPart::kColumns] = {};
    float excess[ClusterPart::kColumns] = {};
#pragma unroll 1
    for (int k = 0; k < task_.clusters; ++k) {
      const float target = task_.targets[k];
      ClusterPart::for_each([&](int j) {
        const float gap = fabsf(part.at(j) - target);
        const float power = exponential2(-part.exponent(task_, j, gap));
        total[j] += power;
        excess[j] = multiply_add(power, gap - part.least[j], excess[j]);
      });
    }
    float loss = 0.0f;
    ClusterPart::for_each([&](int j) {
      total[j] = divide(1.0f, total[j]);
      const float term = part.least[j] + excess[j] * total[j];
      loss += part.at(j) == part.at(j) ? term : 0.0f;
    });
    if (sums_.mass != nullptr) {
      add_clusters(part, total, place * task_.clusters);
    }
    return loss;
  }

  __device__ void add_clusters(const ClusterPart& part,
                               const float (&inverse)[ClusterPart::kColumns], int64_t place) const {
    const auto add = [](float a, float b) { return a + b; };
#pragma unroll 1
    for (int k = 0; k < task_.clusters; ++k) {
      const float target = task_.targets[k];
      float mass = 0.0f;
      float moment = 0.0f;
      ClusterPart::for_each([&](int j) {
        const float distance = part.at(j);
        const float power = exponential2(-part.exponent(task_, j, fabsf(distance - target)));
        const float share = distance == distance ? power * inverse[j] : 0.0f;
        mass += share;
        moment += distance == distance ? share * distance : 0.0f;
      });
      mass = join_quad(mass, add);
      moment = join_quad(moment, add);
      // A row has one writer.
      if (threadIdx.x % 4 == 0) {
        sums_.mass[place + k] += mass;
        sums_.moment[place + k] += moment;
      }
    }
  }

  ClusterTask task_;
  ItemSums sums_;
};

// Adds up the parts in their order.
__global__ void join_clusters_kernel(ItemSums sums, int clusters, LostPairs lost,
                                     ClusterSums results) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < lost.anchors;
       i += int64_t{gridDim.x} * blockDim.x) {
    const double none = lost.has_anchor(static_cast<int>(i)) ? NAN : 0.0;
    const int64_t first = first_part_of(sums.split, static_cast<int>(i));
    const auto joined = [&](const double* of, int64_t stride) {
      double sum = none;
      for (int part = 0; part < sums.split.parts; ++part) {
        sum += of[(first + int64_t{part} * kTileRows) * stride];
      }
      return sum;
    };
    results.loss[i] = joined(sums.loss, 1);
    for (int k = 0; k < clusters && sums.mass != nullptr; ++k) {
      results.mass[i * clusters + k] = joined(sums.mass + k, clusters);
      results.moment[i * clusters + k] = joined(sums.moment + k, clusters);
    }
  }
}

struct SumsMemory {
  StructureMemory pairs;
  ClusterMemory clusters;
  ItemSums sums;

  static SumsMemory take(Workspace& workspace, const StructureRows& rows,
                         const Clusters& clusters) {
    SumsMemory memory{};
    memory.pairs = StructureMemory::take(workspace, rows);
    memory.clusters = ClusterMemory::take(workspace, rows, clusters);
    memory.sums = ItemSums::take(workspace, rows, clusters);
    return memory;
  }
};

}  // namespace

ClusterWalk launch_cluster_walk(const StructureRows& rows, const Clusters& clusters,
                                const StructureMemory& pairs_memory, const ClusterMemory& memory,
                                cudaStream_t stream) {
  ClusterWalk walk{};
  walk.pairs = launch_structure_pack(rows, pairs_memory, stream);
  const PackedRows& x = walk.pairs.walk.x;
  const PackedRows& y = walk.pairs.walk.y;
  DMLFAST_LAUNCH(round_targets_kernel, dim3{1}, 32, stream, clusters, memory.targets,
                 memory.are_finite);
  DMLFAST_LAUNCH(partners_kernel, element_blocks(x.rows), kElementThreads, stream, y.norm,
                 int64_t{x.rows}, memory);
  walk.pairs.distances.self = memory.self;
  const double sharpness =
      clusters.sharpness < kGreatestSharpness ? clusters.sharpness : kGreatestSharpness;
  walk.task = {walk.pairs.distances, memory.targets, clusters.clusters,
               static_cast<float>(sharpness)};
  walk.lost.x_norms = x.norm;
  walk.lost.y_norms = memory.partner_norms;
  walk.lost.self = memory.self;
  walk.lost.anchors = x.rows;
  walk.lost.references = x.rows;
  walk.lost.lost_references = memory.counts;
  walk.lost.wanted_anchors = memory.counts + 1;
  walk.lost.lost_anchors = memory.counts + 2;
  return walk;
}

int64_t structure_clusters_bytes(const StructureRows& rows, const Clusters& clusters) {
  Workspace workspace;
  SumsMemory::take(workspace, rows, clusters);
  return workspace.bytes();
}

void launch_structure_clusters(const StructureRows& rows, const Clusters& clusters,
                               const ClusterSums& sums, void* workspace, cudaStream_t stream) {
  Workspace parts(workspace);
  const SumsMemory memory = SumsMemory::take(parts, rows, clusters);
  const ClusterWalk walk =
      launch_cluster_walk(rows, clusters, memory.pairs, memory.clusters, stream);
  launch_count_lost(walk.lost, stream);
  if (clusters.ordered) {
    const int64_t number = int64_t{memory.sums.split.items()} * kTileRows * clusters.clusters;
    DMLFAST_LAUNCH(clear_sums_kernel, element_blocks(number), kElementThreads, stream,
                   memory.sums.mass, memory.sums.moment, number);
  }
  launch_walk<ClusterPolicy, Precision::split>(
      walk.pairs.walk, ClusterPolicy(walk.task, memory.sums), rows.shared_bytes, stream);
  DMLFAST_LAUNCH(join_clusters_kernel, element_blocks(rows.e.rows), kElementThreads, stream,
                 memory.sums, clusters.clusters, walk.lost, sums);
}

}  // namespace dmlfast::cuda
