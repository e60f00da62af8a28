#include "clusters_soft.cuh"

namespace dmlfast::cuda {

namespace {

// Over some centres: the least distance, and relative to it the sums of the powers
// exp(-excess / temperature), and of power * excess.
struct SoftSums {
  double mass;
  double moment;
  float least;
};

// No distances yet.
__device__ inline SoftSums no_sums() { return {0.0, 0.0, INFINITY}; }

// Adds sums that may be relative to another least distance.
__device__ inline void add_sums(SoftSums& to, const SoftSums& more, const Sharpness& sharpness) {
  // There are none, or nothing compares with what there is.
  if (more.least == INFINITY || to.least == -INFINITY) {
    return;
  }
  if (to.least - more.least == INFINITY) {
    to = more;
    return;
  }
  const float least = fminf(to.least, more.least);
  double mass = 0.0;
  double moment = 0.0;
  const auto add = [&](const SoftSums& sums) {
    const double rise = static_cast<double>(sums.least) - least;
    const double power = exponential2(-sharpness.of_2 * static_cast<float>(rise));
    mass += power * sums.mass;
    moment += power * (sums.moment + sums.mass * rise);
  };
  add(to);
  add(more);
  to = {mass, moment, least};
}

struct SoftPolicyArguments {
  DistanceTask distances;
  ClassRanges ranges;
  Sharpness sharpness;
  SoftSums* parts;  // by item and row of the tile
};

class SoftPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 1;

  explicit SoftPolicy(const SoftPolicyArguments& arguments) : a_(arguments) {}

  __device__ const float* column_values(int) const { return a_.distances.y.norm; }

  __device__ TileRange tiles(const BlockRows& rows) const {
    return ClassSpans(a_.ranges, rows, a_.distances.x.rows).tiles();
  }

  // Sums are in shared memory, to be in no register during products.
  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const {
    s.rows = &rows;
    for_each_own([](SoftSums& sums, int) { sums = no_sums(); });
  }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
    Distances(a_.distances, *s.rows).convert(a_.distances, tile, fragment);
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const SoftSums sums = sum(OwnColumns(a_.ranges, *s.rows, tile, slot), fragment.value[slot]);
      if (threadIdx.x % 4 == 0) {
        add_sums(sums_of(tile_row(slot)), sums, a_.sharpness);
      }
    }
  }

  __device__ void finish(const State&, const BlockRows&, int item) const {
    for_each_own(
        [&](const SoftSums& sums, int row) { a_.parts[int64_t{item} * kTileRows + row] = sums; });
  }

 private:
  // Those of a row over the columns of a tile, in all lanes that have some of these.
  __device__ SoftSums sum(const OwnColumns& own, float (&distances)[Fragment::kColumns]) const {
    const auto add = [](float a, float b) { return a + b; };
    float least = INFINITY;
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      distances[j] = own.holds(j) ? distances[j] : NAN;
      least = fminf(least, distances[j]);
    }
    least = join_quad(least, [](float a, float b) { return fminf(a, b); });
    float mass[2] = {0.0f, 0.0f};
    float moment[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const float excess = distances[j] - least;
      const float power = exponential2(-a_.sharpness.of_2 * excess);
      // Not for a pair that does not exist.
      const bool counts = power > 0.0f;
      mass[j % 2] += counts ? power : 0.0f;
      moment[j % 2] += counts ? power * excess : 0.0f;
    }
    return {join_quad(mass[0] + mass[1], add), join_quad(moment[0] + moment[1], add), least};
  }

  __device__ static SoftSums& sums_of(int row) {
    __shared__ SoftSums sums[kTileRows];
    return sums[row];
  }

  // The rows whose sums belong to the calling thread: of a quad's lanes, which have the same rows,
  // to the first.
  template <class F>
  __device__ static void for_each_own(const F& f) {
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        f(sums_of(tile_row(slot)), tile_row(slot));
      }
    }
  }

  SoftPolicyArguments a_;
};

struct JoinArguments {
  PackedRows x;
  const int64_t* order;
  Split split;
  const SoftSums* parts;
  double temperature;
  Sharpness sharpness;
  SoftResults results;
};

// Adds up the parts of a row in their order; a thread a row.
__global__ void join_soft_kernel(JoinArguments a) {
  for (int position = blockIdx.x * blockDim.x + threadIdx.x; position < a.x.rows;
       position += gridDim.x * blockDim.x) {
    const int64_t first = first_part_of(a.split, position);
    SoftSums sums = no_sums();
    for (int part = 0; part < a.split.parts; ++part) {
      add_sums(sums, a.parts[first + int64_t{part} * kTileRows], a.sharpness);
    }
    const double nearest = a.x.norm[position] == INFINITY ? NAN : sums.least;
    const bool has_centre = sums.mass > 0.0;
    const int64_t row = a.order[position];
    a.results.minimum[row] = has_centre ? nearest - a.temperature * log(sums.mass) : nearest;
    a.results.mean[row] = has_centre ? nearest + sums.moment / sums.mass : nearest;
    a.results.mass[row] = sums.mass;
  }
}

struct SoftMemory {
  SoftPairMemory pairs;
  SoftSums* parts;

  static SoftMemory take(Workspace& workspace, const SoftArguments& a) {
    const int wanted = wanted_or_usual(a.wanted_items);
    const int items = most_items(static_cast<int>(a.x.rows), kTileRows, wanted);
    SoftMemory memory{};
    memory.pairs = SoftPairMemory::take(workspace, a);
    memory.parts = workspace.take<SoftSums>(int64_t{items} * kTileRows);
    return memory;
  }
};

}  // namespace

DistanceTask launch_soft_preparation(const SoftArguments& a, const SoftPairMemory& memory,
                                     cudaStream_t stream) {
  const PackedPair pair = launch_pack_rows(a.x, a.order, a.references, a.reference_order, false,
                                           a.metric, memory.packed, stream);
  launch_class_places(labels_of_x(a), labels_of_references(a), nullptr, nullptr,
                      {memory.ranges, nullptr}, stream);
  return distance_task(a, as_multiplied(pair, is_split(a)), nullptr);
}

int64_t clusters_soft_bytes(const SoftArguments& a) {
  Workspace workspace;
  SoftMemory::take(workspace, a);
  return workspace.bytes();
}

void launch_clusters_soft(const SoftArguments& a, const SoftResults& results, void* workspace,
                          cudaStream_t stream) {
  Workspace parts(workspace);
  const SoftMemory memory = SoftMemory::take(parts, a);
  const DistanceTask distances = launch_soft_preparation(a, memory.pairs, stream);
  const WalkTask task = walk_of(distances.x, distances.y, a.wanted_items);
  const Sharpness sharpness(a.temperature);
  const SoftPolicy policy({distances, memory.pairs.ranges, sharpness, memory.parts});
  if (is_split(a)) {
    launch_walk<SoftPolicy, Precision::split>(task, policy, a.shared_bytes, stream);
  } else {
    launch_walk<SoftPolicy, Precision::half>(task, policy, a.shared_bytes, stream);
  }
  const JoinArguments join{
      distances.x,  a.order,       walk_split(a.x.rows, a.references.rows, a.wanted_items),
      memory.parts, a.temperature, sharpness,
      results};
  DMLFAST_LAUNCH(join_soft_kernel, element_blocks(a.x.rows), kElementThreads, stream, join);
}

}  // namespace dmlfast::cuda
