// The gradient of the distances of chosen pairs, without atomics: every row of a gradient has one
// owner, which adds in a fixed order.
#pragma once

#include "engine/rows.cuh"
#include "engine/warp.cuh"
#include "neighbors.h"

namespace dmlfast::cuda {

constexpr int kSlotColumns = 128;  // dimensions of a warp at once, four a lane
constexpr int kLongList = 128;     // slots of a reference that one warp adds; longer: a block

template <class T>
__device__ inline double upstream(const GradientArguments<T>& a, int anchor, int t) {
  return a.grad_double.data == nullptr ? element(a.grad_float, anchor, t)
                                       : element(a.grad_double, anchor, t);
}

// A slot's gradient of weight * distance(x, y) is factor * y + own_x * x for x and
// factor * x + own_y * y for y. Under the Euclidean metrics own = -factor, applied to the
// difference, so that near-duplicates lose no digits.
struct SlotFactors {
  double factor = 0.0;
  double own_x = 0.0;
  double own_y = 0.0;
};

// The lanes of a warp share the dimensions and get the same.
template <class T>
__device__ inline SlotFactors slot_factors(const GradientArguments<T>& a, int64_t anchor,
                                           int64_t other, double weight) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  SlotFactors result;
  if (a.metric == Metric::dot) {
    result.factor = -weight;
  } else if (a.metric == Metric::sqeuclidean) {
    result.factor = -2.0 * weight;
  } else if (a.metric == Metric::euclidean) {
    double squares = 0.0;
    for (int64_t k = lane; k < a.x.columns; k += 32) {
      const double difference = element(a.x, anchor, k) - element(a.references, other, k);
      squares += difference * difference;
    }
    squares = warp_sum(squares);
    result.factor = squares == 0.0 ? 0.0 : -weight / sqrt(squares);
  } else {
    double xx = 0.0;
    double yy = 0.0;
    double xy = 0.0;
    for (int64_t k = lane; k < a.x.columns; k += 32) {
      const double x = element(a.x, anchor, k);
      const double y = element(a.references, other, k);
      xx += x * x;
      yy += y * y;
      xy += x * y;
    }
    xx = warp_sum(xx);
    yy = warp_sum(yy);
    xy = warp_sum(xy);
    const double norms = sqrt(xx) * sqrt(yy);
    if (norms != 0.0) {
      result.factor = -weight / norms;
      result.own_x = weight * (xy / norms) / xx;
      result.own_y = weight * (xy / norms) / yy;
    }
  }
  return result;
}

// NaN for an anchor that is not finite and found nothing, else 0. For a whole warp.
template <class T>
__device__ inline double factor_of_none(const Rows<T>& x, int64_t anchor) {
  double zero = 0.0;
  for (int64_t k = threadIdx.x % 32; k < x.columns; k += 32) {
    const double value = element(x, anchor, k);
    zero += value - value;
  }
  return warp_sum(zero) == 0.0 ? 0.0 : NAN;
}

// One warp a slot.
template <class T>
__global__ void __launch_bounds__(kElementThreads, 2) pair_kernel(GradientArguments<T> a) {
  const int64_t step = int64_t{gridDim.x} * kElementWarps;
  for (int64_t slot = int64_t{blockIdx.x} * kElementWarps + threadIdx.x / 32; slot < a.slots();
       slot += step) {
    const int anchor = static_cast<int>(slot) / a.thresholds;
    const int64_t other = a.index[slot];
    const double weight = upstream(a, anchor, static_cast<int>(slot) % a.thresholds);
    SlotFactors factors;
    if (weight != 0.0) {
      if (other < 0) {
        factors.factor = factor_of_none(a.x, anchor);
      } else {
        factors = slot_factors(a, anchor, other, weight);
      }
    }
    if (threadIdx.x % 32 == 0) {
      a.factors[slot] = factors.factor;
      a.own_x[slot] = factors.own_x;
      a.own_other[slot] = factors.own_y;
    }
  }
}

// A lane's share of a row of a gradient: dimensions k, k + 32, k + 64 and k + 96.
struct GradientShare {
  double self[4];
  double sums[4];

  template <class T>
  __device__ __forceinline__ void begin(const Rows<T>& rows, int64_t row, int64_t k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      self[i] = k + 32 * i < rows.columns ? element(rows, row, k + 32 * i) : 0.0;
      sums[i] = 0.0;
    }
  }

  template <class T>
  __device__ __forceinline__ void add(bool differences, double factor, double own,
                                      const Rows<T>& partners, int64_t partner, int64_t k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (k + 32 * i < partners.columns) {
        const double y = element(partners, partner, k + 32 * i);
        const double share = factor * (differences ? y - self[i] : y);
        sums[i] += own == 0.0 ? share : share + own * self[i];
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void store(T* row, int64_t columns, int64_t k) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (k + 32 * i < columns) {
        row[k + 32 * i] = rounded<T>(sums[i]);
      }
    }
  }
};

// One warp an anchor; thresholds are added in ascending order.
template <class T>
__global__ void __launch_bounds__(kElementThreads, 2)
    anchor_gradient_kernel(GradientArguments<T> a) {
  const bool differences = sums_differences(a.metric);
  const int64_t columns = a.x.columns;
  const int64_t step = int64_t{gridDim.x} * kElementWarps;
  for (int64_t anchor = int64_t{blockIdx.x} * kElementWarps + threadIdx.x / 32; anchor < a.x.rows;
       anchor += step) {
    for (int64_t k = threadIdx.x % 32; k < columns; k += kSlotColumns) {
      GradientShare share;
      share.begin(a.x, anchor, k);
      for (int t = 0; t < a.thresholds; ++t) {
        const int64_t slot = anchor * a.thresholds + t;
        const int64_t other = a.index[slot];
        if (other < 0) {
          for (double& sum : share.sums) {
            sum += a.factors[slot];
          }
        } else if (upstream(a, static_cast<int>(anchor), t) != 0.0) {
          share.add(differences, a.factors[slot], a.own_x[slot], a.references, other, k);
        }
      }
      share.store(a.grad_x + anchor * columns, columns, k);
    }
  }
}

// Where each reference's slots begin, one thread a reference.
template <class T>
__global__ void __launch_bounds__(kElementThreads, 2) starts_kernel(GradientArguments<T> a) {
  const int64_t step = int64_t{gridDim.x} * kElementThreads;
  for (int64_t other = int64_t{blockIdx.x} * kElementThreads + threadIdx.x;
       other <= a.references.rows; other += step) {
    a.starts[other] = class_bound(a.index, a.slot_order, a.slots(), other, false);
  }
}

// Adds the slots at the places [begin, end) of slot_order in ascending order. For a whole warp.
template <class T>
__device__ __forceinline__ void add_slots(const GradientArguments<T>& a, int64_t other,
                                          int64_t begin, int64_t end, int64_t k,
                                          GradientShare& share) {
  const bool differences = sums_differences(a.metric);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  share.begin(a.references, other, k);
  for (int64_t first = begin; first < end; first += 32) {
    // Each lane looks up one slot, then all go through them.
    double factor = 0.0;
    double own = 0.0;
    int anchor = -1;
    if (first + lane < end) {
      const int slot = static_cast<int>(a.slot_order[first + lane]);
      factor = a.factors[slot];
      own = a.own_other[slot];
      anchor = slot / a.thresholds;
      anchor = upstream(a, anchor, slot % a.thresholds) != 0.0 ? anchor : -1;
    }
    const int count = static_cast<int>(end - first < 32 ? end - first : 32);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const double slot_factor = __shfl_sync(kAllLanes, factor, i);
      const double slot_own = __shfl_sync(kAllLanes, own, i);
      const int slot_anchor = __shfl_sync(kAllLanes, anchor, i);
      if (slot_anchor >= 0) {
        share.add(differences, slot_factor, slot_own, a.x, int64_t{slot_anchor}, k);
      }
    }
  }
}

// A reference that many anchors chose: each warp adds a contiguous share of the slots, and the
// shares are added in their order.
template <class T>
__device__ inline void reference_gradient_of_block(const GradientArguments<T>& a, int64_t other,
                                                   double (&partial)[kElementWarps][kSlotColumns]) {
  const int64_t columns = a.references.columns;
  const int64_t begin = a.starts[other];
  const int64_t length = a.starts[other + 1] - begin;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t first = 0; first < columns; first += kSlotColumns) {
    GradientShare share;
    add_slots(a, other, begin + length * warp / kElementWarps,
              begin + length * (warp + 1) / kElementWarps, first + lane, share);
    for (int i = 0; i < 4; ++i) {
      partial[warp][lane + 32 * i] = share.sums[i];
    }
    __syncthreads();
    const int64_t k = first + threadIdx.x;
    if (threadIdx.x < kSlotColumns && k < columns) {
      double sum = 0.0;
      for (int part = 0; part < kElementWarps; ++part) {
        sum += partial[part][threadIdx.x];
      }
      a.grad_references[other * columns + k] = rounded<T>(sum);
    }
    __syncthreads();
  }
}

// A block takes as many references as it has warps, each of which owns one, and together the
// references that many anchors chose.
template <class T>
__global__ void __launch_bounds__(kElementThreads, 2)
    reference_gradient_kernel(GradientArguments<T> a) {
  __shared__ double partial[kElementWarps][kSlotColumns];
  const int64_t columns = a.references.columns;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t first = int64_t{blockIdx.x} * kElementWarps; first < a.references.rows;
       first += int64_t{gridDim.x} * kElementWarps) {
    bool is_long = false;
    if (first + warp < a.references.rows) {
      const int64_t other = first + warp;
      const int64_t begin = a.starts[other];
      const int64_t end = a.starts[other + 1];
      is_long = end - begin > kLongList;
      for (int64_t base = 0; !is_long && base < columns; base += kSlotColumns) {
        GradientShare share;
        add_slots(a, other, begin, end, base + lane, share);
        share.store(a.grad_references + other * columns, columns, base + lane);
      }
    }
    if (!__syncthreads_or(is_long)) {
      continue;
    }
    for (int i = 0; i < kElementWarps && first + i < a.references.rows; ++i) {
      if (a.starts[first + i + 1] - a.starts[first + i] > kLongList) {
        reference_gradient_of_block(a, first + i, partial);
      }
    }
  }
}

template <class T>
void launch_select_gradient(const GradientArguments<T>& a, cudaStream_t stream) {
  if (a.slots() > 0) {
    DMLFAST_LAUNCH((pair_kernel<T>), element_blocks(a.slots() * 32), kElementThreads, stream, a);
  }
  if (a.x.rows > 0) {
    DMLFAST_LAUNCH((anchor_gradient_kernel<T>), element_blocks(a.x.rows * 32), kElementThreads,
                   stream, a);
  }
  if (a.references.rows > 0) {
    DMLFAST_LAUNCH((starts_kernel<T>), element_blocks(a.references.rows + 1), kElementThreads,
                   stream, a);
    DMLFAST_LAUNCH((reference_gradient_kernel<T>), element_blocks(a.references.rows * 32),
                   kElementThreads, stream, a);
  }
}

}  // namespace dmlfast::cuda
