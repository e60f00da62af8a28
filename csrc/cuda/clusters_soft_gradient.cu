#include "clusters_soft.cuh"
#include "engine/gradient_walk.cuh"

namespace dmlfast::cuda {

namespace {

// By position of x, padded to whole tiles. With s and s' what distances D are multiplied by to be
// exponents of e and of 2, a pair's share is p = 2^(s' (least - D) + shift), and the derivative by
// its distance p (term + factor s (mean - D)). The shift divides by the mass. What the mean loses
// to rounding, which s may magnify, is in the term.
struct SoftWeights {
  static constexpr int kNumber = 5;

  float* least;
  float* shift;
  float* mean;
  float* term;
  float* factor;

  static SoftWeights take(Workspace& workspace, int64_t rows) {
    const int64_t padded = padded_rows(rows);
    return {workspace.take<float>(padded), workspace.take<float>(padded),
            workspace.take<float>(padded), workspace.take<float>(padded),
            workspace.take<float>(padded)};
  }
};

// One row's.
struct SoftWeight {
  float least = 0.0f;
  float shift = 0.0f;
  float mean = 0.0f;
  float term = 0.0f;
  float factor = 0.0f;
};

// What float32 rounds off; 0 where there is no number.
__device__ inline double rounded_off(double value, float rounded) {
  return rounded - rounded == 0.0f ? value - rounded : 0.0;
}

__device__ inline SoftWeight weight_at(const SoftGradientArguments& a, const Sharpness& sharpness,
                                       int64_t row) {
  const double to_minimum = a.grad_minimum.data[row * a.grad_minimum.stride];
  const double to_mean = a.grad_mean.data[row * a.grad_mean.stride];
  SoftWeight weight;
  const double mass = a.results.mass[row];
  const double logarithm = mass > 0.0 ? log(mass) : 0.0;
  // The least distance was a float32 number, which rounding restores, and what a great temperature
  // takes off is added again to the bit.
  weight.least = static_cast<float>(a.results.minimum[row] + a.pairs.temperature * logarithm);
  weight.shift = static_cast<float>(-1.4426950408889634 * logarithm);
  weight.mean = static_cast<float>(a.results.mean[row]);
  const double low_mean = sharpness.of_e * rounded_off(a.results.mean[row], weight.mean);
  weight.term = static_cast<float>(to_minimum + to_mean * (1.0 + low_mean));
  weight.factor = static_cast<float>(to_mean);
  return weight;
}

struct WeightArguments {
  SoftGradientArguments given;
  Sharpness sharpness;
  const float* norms;
  SoftWeights to;
  uint8_t* lost;  // by position: the row is not finite, and its gradient is asked for
};

__global__ void soft_weights_kernel(WeightArguments a, int padded) {
  for (int position = blockIdx.x * blockDim.x + threadIdx.x; position < padded;
       position += gridDim.x * blockDim.x) {
    SoftWeight weight;
    if (position < a.given.pairs.x.rows) {
      weight = weight_at(a.given, a.sharpness, a.given.pairs.order[position]);
      const bool is_wanted = weight.term != 0.0f || weight.factor != 0.0f;
      a.lost[position] = a.norms[position] == INFINITY && is_wanted ? 1 : 0;
    }
    a.to.least[position] = weight.least;
    a.to.shift[position] = weight.shift;
    a.to.mean[position] = weight.mean;
    a.to.term[position] = weight.term;
    a.to.factor[position] = weight.factor;
  }
}

struct SoftGradientPolicyArguments {
  DistanceTask distances;
  ClassRanges ranges;  // of the rows' classes among the columns
  Sharpness sharpness;
  SoftWeights weights;
};

// The rows of the walk are shared among its columns, or its columns among its rows.
template <bool kSharesColumns>
class SoftGradientPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = kSharesColumns ? 1 + SoftWeights::kNumber : 1;

  explicit SoftGradientPolicy(const SoftGradientPolicyArguments& arguments) : a_(arguments) {}

  __device__ const float* column_values(int i) const {
    switch (i) {
      case 1:
        return a_.weights.least;
      case 2:
        return a_.weights.shift;
      case 3:
        return a_.weights.mean;
      case 4:
        return a_.weights.term;
      case 5:
        return a_.weights.factor;
      default:
        return a_.distances.y.norm;
    }
  }

  __device__ TileRange tiles(const BlockRows& rows) const {
    return ClassSpans(a_.ranges, rows, a_.distances.x.rows).tiles();
  }

  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const { s.rows = &rows; }

  __device__ void weigh(const State& s, const Tile& tile, Fragment& fragment) const {
    const float inverse_unit = inverse_unit_of(a_.distances);
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      // Rows that are absent have distance NaN to all.
      const int row = max(s.rows->anchors[tile_row(slot)], 0);
      const OwnColumns own(a_.ranges, *s.rows, tile, slot);
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        float& value = fragment.value[slot][j];
        const float derivative = derive(kSharesColumns ? of_column(tile, j) : of_row(row), value);
        const float weight = weight_of(a_.distances.metric, derivative, value, inverse_unit);
        value = own.holds(j) ? weight : 0.0f;
        keep_column_order(j);
      }
    }
  }

  __device__ void finish(const State&, const BlockRows&, int, bool) const {}

 private:
  __device__ SoftWeight of_row(int row) const {
    return {a_.weights.least[row], a_.weights.shift[row], a_.weights.mean[row],
            a_.weights.term[row], a_.weights.factor[row]};
  }

  __device__ static SoftWeight of_column(const Tile& tile, int j) {
    return {tile.value(1, j), tile.value(2, j), tile.value(3, j), tile.value(4, j),
            tile.value(5, j)};
  }

  __device__ float derive(const SoftWeight& weight, float distance) const {
    const float exponent = multiply_add(a_.sharpness.of_2, weight.least - distance, weight.shift);
    const float power = exponential2(exponent);
    const float change = a_.sharpness.of_e * (weight.mean - distance);
    const float slope = multiply_add(weight.factor, change, weight.term);
    // Without a share the change may be infinite.
    return power > 0.0f ? power * slope : 0.0f;
  }

  SoftGradientPolicyArguments a_;
};

}  // namespace

template <>
constexpr bool kIsExchanged<SoftGradientPolicy<true>> = true;

namespace {

Split gradient_split(const SoftArguments& a, int64_t rows, int64_t columns) {
  return walk_split(rows, columns, wanted_gradient_items(a.x.columns, a.wanted_items));
}

struct SoftGradientMemory {
  SoftPairMemory pairs;
  SoftWeights weights;
  uint8_t* lost;
  ClassRanges reference_ranges;  // of the references' classes among the rows of x
  GradientSums sums;             // of one walk after the other

  static SoftGradientMemory take(Workspace& workspace, const SoftArguments& a) {
    const int64_t x_rows = a.x.rows;
    const int64_t references = a.references.rows;
    const int of_x = gradient_split(a, x_rows, references).items();
    const int of_references = gradient_split(a, references, x_rows).items();
    const int64_t rows = int64_t{of_x > of_references ? of_x : of_references} * kTileRows;
    SoftGradientMemory memory{};
    memory.pairs = SoftPairMemory::take(workspace, a);
    memory.weights = SoftWeights::take(workspace, x_rows);
    memory.lost = workspace.take<uint8_t>(x_rows);
    memory.reference_ranges.begin = workspace.take<int32_t>(references);
    memory.reference_ranges.end = workspace.take<int32_t>(references);
    memory.sums.rows = workspace.take<float>(rows * padded_columns(a.x.columns));
    memory.sums.weights = workspace.take<float>(rows);
    return memory;
  }
};

// The gradient of the rows of a walk.
template <bool kSharesColumns>
void launch_gradient(const SoftArguments& a, const SoftGradientPolicyArguments& arguments,
                     const GradientSums& sums, const uint8_t* lost, const AnyResult& gradient,
                     cudaStream_t stream) {
  using Policy = SoftGradientPolicy<kSharesColumns>;
  const DistanceTask& distances = arguments.distances;
  if (distances.x.rows == 0) {
    return;
  }
  const int items = wanted_gradient_items(a.x.columns, a.wanted_items);
  const GradientTask task{walk_of(distances.x, distances.y, items), distances, sums};
  const Policy policy(arguments);
  if (is_split(a)) {
    launch_gradient_walk<Policy, Precision::split>(task, policy, a.shared_bytes, stream);
  } else {
    launch_gradient_walk<Policy, Precision::half>(task, policy, a.shared_bytes, stream);
  }
  launch_gradient_rows({task, lost, gradient}, stream);
}

}  // namespace

int64_t clusters_soft_gradient_bytes(const SoftArguments& a) {
  Workspace workspace;
  SoftGradientMemory::take(workspace, a);
  return workspace.bytes();
}

void launch_clusters_soft_gradient(const SoftGradientArguments& arguments, void* workspace,
                                   cudaStream_t stream) {
  const SoftArguments& a = arguments.pairs;
  Workspace parts(workspace);
  const SoftGradientMemory memory = SoftGradientMemory::take(parts, a);
  const DistanceTask distances = launch_soft_preparation(a, memory.pairs, stream);
  const Sharpness sharpness(a.temperature);
  const int64_t padded = padded_rows(a.x.rows);
  const WeightArguments weights{arguments, sharpness, distances.x.norm, memory.weights,
                                memory.lost};
  DMLFAST_LAUNCH(soft_weights_kernel, element_blocks(padded), kElementThreads, stream, weights,
                 static_cast<int>(padded));
  launch_gradient<false>(a, {distances, memory.pairs.ranges, sharpness, memory.weights},
                         memory.sums, memory.lost, arguments.grad_x, stream);
  launch_class_places(labels_of_references(a), labels_of_x(a), nullptr, nullptr,
                      {memory.reference_ranges, nullptr}, stream);
  launch_gradient<true>(a,
                        {exchanged(distances), memory.reference_ranges, sharpness, memory.weights},
                        memory.sums, nullptr, arguments.grad_references, stream);
}

}  // namespace dmlfast::cuda
