// Draws of a reference of another class in proportion to weights: the sums of all weights, and
// then by inversion the block and in it the reference that a number hits.
#include "neighbors_sample.h"
#include "neighbors_sample_sums.cuh"

namespace dmlfast::cuda {

namespace {

constexpr int kDrawThreads = 128;
static_assert(kSampleBlocks == 64, "every lane of a warp has two blocks");

struct Target {
  int block;      // -1 where all weights are 0
  double weight;  // the sum of the block's weights to be exceeded
};

// The block that the anchor at a position draws from. A warp calls it.
__device__ __forceinline__ Target find_block(const SampleSumArguments& arguments, int position,
                                             double uniform) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int count = arguments.blocks.count;
  double scales[2], factors[2], terms[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int block = lane + 32 * i;
    const int64_t at = int64_t{position} * count + block;
    scales[i] = block < count ? arguments.found.scales[at] : INFINITY;
    terms[i] = block < count ? arguments.found.sums[at] : 0.0;
  }
  const double scale = warp_least(scales[0] < scales[1] ? scales[0] : scales[1]);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const double ratio = scale_ratio(arguments.sample.weight, scale, scales[i]);
    factors[i] = terms[i] == 0.0 ? 0.0 : ratio;
    terms[i] *= factors[i];
  }
  // One after the other, in the order of the blocks.
  double total = 0.0;
  for (int block = 0; block < count; ++block) {
    total += __shfl_sync(kAllLanes, block < 32 ? terms[0] : terms[1], block % 32);
  }
  Target target{-1, INFINITY};
  double left = uniform * total;
  for (int block = 0; total > 0.0 && block < count; ++block) {
    const double term = __shfl_sync(kAllLanes, block < 32 ? terms[0] : terms[1], block % 32);
    const double factor = __shfl_sync(kAllLanes, block < 32 ? factors[0] : factors[1], block % 32);
    if (term > left) {
      return {block, left / factor};
    }
    // Rounding may leave a rest after the last block: its last reference is drawn.
    target.block = term > 0.0 ? block : target.block;
    left -= term;
  }
  return target;
}

// The first reference of a block at which the sum of the weights is greater than the target; the
// last with a weight where there is none. A warp calls it.
__device__ __forceinline__ int draw_in(const SampleSumArguments& arguments, int position,
                                       int anchor, const Target& target) {
  const SampleArguments& a = arguments.sample;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const double scale =
      arguments.found.scales[int64_t{position} * arguments.blocks.count + target.block];
  const ColumnRange columns = arguments.blocks.range(target.block, 1);
  const ColumnRange own = own_class(a, anchor);
  const double norm = anchor_norm(a, anchor);
  const int self = self_of(a, anchor);
  double sum = 0.0;
  int last = -1;
  for (int first = columns.begin; first < columns.end; first += 32) {
    const int column = first + lane;
    int reference = -1;
    double weight = 0.0;
    if (column < columns.end && (column < own.begin || column >= own.end)) {
      reference = static_cast<int>(a.reference_order[column]);
      const double value = pair_value(a, anchor, norm, reference);
      weight = weight_of(a.weight, factors_of(a.metric, a.weight, value, reference != self), scale);
    }
#pragma unroll 1
    for (int i = 0; i < 32; ++i) {
      const double next = __shfl_sync(kAllLanes, weight, i);
      const int drawn = __shfl_sync(kAllLanes, reference, i);
      if (next > 0.0) {
        last = drawn;
        sum += next;
        if (sum > target.weight) {
          return last;
        }
      }
    }
  }
  return last;
}

// A warp an anchor.
__global__ void __launch_bounds__(kDrawThreads, 4) draw_kernel(SampleSumArguments arguments) {
  constexpr int kWarps = kDrawThreads / 32;
  const SampleArguments& a = arguments.sample;
  const int anchors = static_cast<int>(a.x.rows);
  for (int position = blockIdx.x * kWarps + threadIdx.x / 32; position < anchors;
       position += gridDim.x * kWarps) {
    const int anchor = static_cast<int>(a.order[position]);
    const Target target = find_block(arguments, position, a.uniform[anchor]);
    const int drawn = target.block < 0 ? -1 : draw_in(arguments, position, anchor, target);
    if (threadIdx.x % 32 == 0) {
      a.index[anchor] = drawn >= 0 ? drawn : a.fallback[anchor];
    }
  }
}

// Distances of the references that were drawn, or of the fallbacks. A thread an anchor.
__global__ void __launch_bounds__(kDrawThreads)
    sampled_distance_kernel(SampleArguments a, const int64_t* drawn) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < a.x.rows; i += step) {
    const int anchor = static_cast<int>(i);
    // What is no row is none: only the host could say so.
    const int64_t index = drawn[i] < a.references.rows ? drawn[i] : -1;
    double distance;
    if (index >= 0) {
      const double norm = anchor_norm(a, anchor);
      distance = distance_of(a.metric, pair_value(a, anchor, norm, static_cast<int>(index)));
    } else {
      distance = any_row_is_finite(a.x, i) ? INFINITY : NAN;
    }
    write_distance(a, i, distance);
    a.index[i] = index;
  }
}

SampleSums take_sums(Workspace& workspace, const SampleArguments& a) {
  const int64_t sums = a.x.rows * SampleBlocks(a.references.rows).count;
  return {workspace.take<double>(sums), workspace.take<double>(sums)};
}

bool is_drawn(const SampleArguments& a) {
  return a.weighted && a.x.rows > 0 && a.references.rows > 0;
}

}  // namespace

int64_t sample_memory_bytes(const SampleArguments& a) {
  Workspace workspace;
  if (is_drawn(a)) {
    take_sums(workspace, a);
  }
  return workspace.bytes();
}

void launch_sample(const SampleArguments& a, void* memory, cudaStream_t stream) {
  launch_pair_norms(a, stream);
  if (is_drawn(a)) {
    Workspace workspace(memory);
    const SampleBlocks blocks(a.references.rows);
    const SampleSumArguments arguments{a, blocks, take_sums(workspace, a)};
    const int64_t row_blocks = (a.x.rows + kExactTile - 1) / kExactTile;
    DMLFAST_LAUNCH(sum_weights_kernel, dim3{grid_for(row_blocks * blocks.groups())}, kExactThreads,
                   stream, operands_of(a), arguments);
    DMLFAST_LAUNCH(draw_kernel, dim3{grid_for((a.x.rows * 32 + kDrawThreads - 1) / kDrawThreads)},
                   kDrawThreads, stream, arguments);
  }
  DMLFAST_LAUNCH(sampled_distance_kernel,
                 dim3{grid_for((a.x.rows + kDrawThreads - 1) / kDrawThreads)}, kDrawThreads, stream,
                 a, is_drawn(a) ? a.index : a.fallback);
}

}  // namespace dmlfast::cuda
