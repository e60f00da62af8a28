// Sums of weights. References in the order of their labels are summed in panels of eight, and
// these in blocks, in the order of the CPU: the sums are the same to the last bit, and so are the
// draws.
#pragma once

#include "neighbors_pairs.cuh"
#include "neighbors_sample.h"

namespace dmlfast::cuda {

constexpr int kPanelColumns = 8;
constexpr int kSampleBlocks = 64;    // of an anchor, at most: a draw computes one of them again
constexpr int kSampleColumns = 256;  // of an item of work, at least, where there are as many
constexpr double kLeastRest = 1e-8;

// How an anchor's references are divided.
struct SampleBlocks {
  int references;
  int panels;        // of a block
  int count;         // of blocks
  int group_blocks;  // of an item of work

  __host__ __device__ explicit SampleBlocks(int64_t rows) : references(static_cast<int>(rows)) {
    const int all = (references + kPanelColumns - 1) / kPanelColumns;
    panels = (all + kSampleBlocks - 1) / kSampleBlocks;
    panels = panels < 1 ? 1 : panels;
    count = (all + panels - 1) / panels;
    group_blocks = (kSampleColumns + columns() - 1) / columns();
  }

  __host__ __device__ int columns() const { return panels * kPanelColumns; }
  __host__ __device__ int groups() const { return (count + group_blocks - 1) / group_blocks; }

  // The columns of some successive blocks.
  __device__ ColumnRange range(int first, int blocks) const {
    const int64_t end = int64_t{first + blocks} * columns();
    return {first * columns(), end < references ? static_cast<int>(end) : references};
  }
};

// A block's sum is relative to the least product that it has met: no weight overflows, and the
// greatest does not vanish.
struct SampleSums {
  double* scales;  // (N, blocks) by the anchor's position
  double* sums;
};

__device__ __forceinline__ double power_of(double base, int64_t exponent) {
  double result = 1.0;
#pragma unroll 1
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) {
      result *= base;
    }
    base *= base;
  }
  return result;
}

// The factors of a pair's weight.
struct SampleFactors {
  bool is_positive;  // whether the weight is not 0
  double square;
  double product;  // q * (1 - q / 4)
};

__device__ __forceinline__ SampleFactors factors_of(Metric metric, const SampleWeight& weight,
                                                    double value, bool is_candidate) {
  double square = value;
  if (metric == Metric::cosine) {
    square = 2.0 * value;
  } else if (metric == Metric::dot) {
    square = 2.0 + 2.0 * value;
  }
  SampleFactors factors;
  factors.is_positive = is_candidate && square < weight.end && square > -INFINITY;
  factors.square = factors.is_positive && square >= weight.least ? square : weight.least;
  const double rest = 1.0 - 0.25 * factors.square;
  factors.product = factors.square * (rest < kLeastRest ? kLeastRest : rest);
  return factors;
}

__device__ __forceinline__ double weight_of(const SampleWeight& weight,
                                            const SampleFactors& factors, double scale) {
  if (!factors.is_positive) {
    return 0.0;
  }
  const double base = weight.power > 0 ? scale / factors.product : factors.product;
  const double power = power_of(base, weight.power > 0 ? weight.power : -weight.power);
  return sqrt(power / factors.square);
}

// What the weights of one scale are multiplied by for another, lower one.
__device__ __forceinline__ double scale_ratio(const SampleWeight& weight, double lower,
                                              double scale) {
  if (weight.power <= 0 || lower == scale) {
    return 1.0;
  }
  return scale == INFINITY ? 0.0 : sqrt(power_of(lower / scale, weight.power));
}

struct SampleSumArguments {
  SampleArguments sample;
  SampleBlocks blocks;
  SampleSums found;
};

// Adds up the weights of each anchor's candidates.
class SumWeights {
 public:
  using Arguments = SampleSumArguments;

  struct Shared {
    ColumnRange classes[kExactTile];  // the positions of each anchor's class
    double norms[kExactTile];         // the anchors', under cosine
    double scales[kExactTile];        // of the block that is being summed
    double sums[kExactTile];
    int selves[kExactTile];
  };

  __device__ SumWeights(const Arguments& arguments, Shared& shared)
      : arguments_(arguments), shared_(shared) {}

  __device__ void begin(const ExactItem& item) {
    const SampleArguments& a = arguments_.sample;
    const int row = static_cast<int>(threadIdx.x);
    if (row < kExactTile) {
      shared_.scales[row] = INFINITY;
      shared_.sums[row] = 0.0;
      // Rows that do not exist have no candidates.
      shared_.classes[row] = {0, arguments_.blocks.references};
    }
    if (row < item.rows) {
      const int anchor = item.anchors[row];
      shared_.classes[row] = own_class(a, anchor);
      shared_.norms[row] = anchor_norm(a, anchor);
      shared_.selves[row] = self_of(a, anchor);
    }
  }

  __device__ __forceinline__ void take(const ExactItem& item, const ExactColumns& tile,
                                       const ExactSums& sums) {
    double left[kSums];
#pragma unroll
    for (int n = 0; n < kSums; ++n) {
      left[n] = sums[n / kExactPairs][n % kExactPairs];
    }
    // Not unrolled, to save registers and instructions: so the sums move up.
#pragma unroll 1
    for (int n = 0; n < kSums; ++n) {
      add_panels(item, tile, n / kExactPairs, n % kExactPairs, left[0]);
#pragma unroll
      for (int m = 1; m < kSums; ++m) {
        left[m - 1] = left[m];
      }
    }
  }

  __device__ void finish(const ExactItem&) {}

 private:
  static constexpr int kSums = kExactPairs * kExactPairs;

  // Adds two panels to a row's sums: of 16 lanes that share the row, each half has one.
  __device__ __forceinline__ void add_panels(const ExactItem& item, const ExactColumns& tile, int i,
                                             int j, double sum) {
    const SampleWeight& weight = arguments_.sample.weight;
    const int row = row_of(i);
    const bool is_second = column_of(0) >= kPanelColumns;
    const int panel = tile.first / kPanelColumns + 2 * j;
    const SampleFactors factors = factors_at(tile, row, column_of(j), sum);
    double least = factors.is_positive ? factors.product : INFINITY;
    for (int bits = 1; bits < kPanelColumns; bits *= 2) {
      const double other = __shfl_xor_sync(kAllLanes, least, bits);
      least = other < least ? other : least;
    }
    const double other_least = __shfl_xor_sync(kAllLanes, least, kPanelColumns);
    const double scale = shared_.scales[row];
    const double first_scale = lower_of(scale, is_second ? other_least : least);
    const bool first_ends = ends_block(item, panel);
    const double next_scale = first_ends ? INFINITY : first_scale;
    const double second_scale = lower_of(next_scale, is_second ? least : other_least);

    double part = weight_of(weight, factors, is_second ? second_scale : first_scale);
    // In the CPU's order.
    for (const int bits : {4, 1, 2}) {
      part += __shfl_xor_sync(kAllLanes, part, bits);
    }
    const double other_part = __shfl_xor_sync(kAllLanes, part, kPanelColumns);
    const double first_sum =
        rescaled(shared_.sums[row], first_scale, scale) + (is_second ? other_part : part);
    const double second_sum = rescaled(first_ends ? 0.0 : first_sum, second_scale, next_scale) +
                              (is_second ? part : other_part);
    const bool second_ends = ends_block(item, panel + 1);
    __syncwarp();  // all lanes have read the row's sum
    if (column_of(0) == 0) {
      if (first_ends) {
        store(item, row, panel, first_scale, first_sum);
      }
      if (second_ends) {
        store(item, row, panel + 1, second_scale, second_sum);
      }
      shared_.scales[row] = second_ends ? INFINITY : second_scale;
      shared_.sums[row] = second_ends ? 0.0 : second_sum;
    }
    __syncwarp();
  }

  __device__ __forceinline__ SampleFactors factors_at(const ExactColumns& tile, int row, int column,
                                                      double sum) const {
    const SampleArguments& a = arguments_.sample;
    const ColumnRange own = shared_.classes[row];
    const int position = tile.first + column;
    bool is_candidate = column < tile.count && (position < own.begin || position >= own.end);
    double value = 0.0;
    if (is_candidate) {
      const int reference = tile.references[column];
      is_candidate = reference != shared_.selves[row];
      value = value_of_sum(a, sum, shared_.norms[row], reference);
    }
    return factors_of(a.metric, a.weight, value, is_candidate);
  }

  __device__ static double lower_of(double a, double b) { return b < a ? b : a; }

  __device__ __forceinline__ double rescaled(double sum, double lower, double scale) const {
    return lower < scale ? sum * scale_ratio(arguments_.sample.weight, lower, scale) : sum;
  }

  // Whether a panel is the last of a block of this item.
  __device__ bool ends_block(const ExactItem& item, int panel) const {
    const int end = (panel + 1) * kPanelColumns;
    return panel * kPanelColumns < item.columns.end &&
           (end >= item.columns.end || (panel + 1) % arguments_.blocks.panels == 0);
  }

  __device__ void store(const ExactItem& item, int row, int panel, double scale, double sum) const {
    if (row < item.rows) {
      const int64_t at =
          int64_t{item.queries[row]} * arguments_.blocks.count + panel / arguments_.blocks.panels;
      arguments_.found.scales[at] = scale;
      arguments_.found.sums[at] = sum;
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
};

// Items are 64 anchors and a group of blocks.
static __global__ void __launch_bounds__(kExactThreads, 2)
    sum_weights_kernel(ExactOperands<AnyElement> operands, SampleSumArguments arguments) {
  __shared__ ExactShared shared;
  __shared__ SumWeights::Shared policy_shared;
  const SampleBlocks& blocks = arguments.blocks;
  const int anchors = static_cast<int>(operands.anchors.rows);
  const int groups = blocks.groups();
  const int items = (anchors + kExactTile - 1) / kExactTile * groups;
  for (int number = blockIdx.x; number < items; number += gridDim.x) {
    const int row_block = number / groups;
    const int left = anchors - row_block * kExactTile;
    const ExactItem item = {
        number,
        row_block,
        left < kExactTile ? left : kExactTile,
        shared.anchors,
        shared.queries,
        blocks.range(number % groups * blocks.group_blocks, blocks.group_blocks)};
    if (static_cast<int>(threadIdx.x) < item.rows) {
      const int position = row_block * kExactTile + static_cast<int>(threadIdx.x);
      shared.queries[threadIdx.x] = position;
      shared.anchors[threadIdx.x] = static_cast<int>(operands.order[position]);
    }
    __syncthreads();
    walk_item<AnyElement, SumWeights>(operands, item, 0, item.columns.tiles(), arguments, shared,
                                      policy_shared);
    __syncthreads();
  }
}

}  // namespace dmlfast::cuda
