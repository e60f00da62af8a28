// CUDA kernels of the family `neighbors`: plain, exact, deterministic. No torch header, so that
// the same source runs under the CPU emulation. Arithmetic is float64 without contraction to fused
// multiply-add, in ascending order of the dimensions, as on the CPU.
#pragma once

#include <cstdint>

#include "engine/launch.cuh"
#include "engine/rows.cuh"
#include "metric.h"
#include "threshold.h"

namespace dmlfast::cuda {

constexpr int kThreads = 128;
template <class T>
struct SelectArguments {
  Rows<T> x;
  Rows<T> references;
  const int64_t* labels;            // (N,)
  const int64_t* reference_labels;  // (M,)
  const int64_t* reference_order;   // (M,) sorts the reference labels
  const int64_t* self_index;        // (N,) or null
  const double* beyond;             // (N, thresholds) or null
  int64_t thresholds;
  Metric metric;
  bool same_class;
  bool farthest;
  double* norms_x;           // (N,) workspace
  double* norms_references;  // (M,) workspace
  void* distance;            // (N, thresholds) float, or double where x is double
  int64_t* index;            // (N, thresholds)
};

// Euclidean norms, one thread a row.
template <class T>
__global__ void norms_kernel(Rows<T> rows, double* norms) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < rows.rows; row += step) {
    double squares = 0.0;
    for (int64_t k = 0; k < rows.columns; ++k) {
      const double value = element(rows, row, k);
      squares += value * value;
    }
    norms[row] = sqrt(squares);
  }
}

template <class T>
__device__ inline double pair_value(const SelectArguments<T>& a, int64_t anchor, int64_t other) {
  double sum = 0.0;
  for (int64_t k = 0; k < a.x.columns; ++k) {
    const double x = element(a.x, anchor, k);
    const double y = element(a.references, other, k);
    if (sums_differences(a.metric)) {
      const double difference = x - y;
      sum += difference * difference;
    } else {
      sum += x * y;
    }
  }
  return a.metric == Metric::cosine
             ? value_of(a.metric, sum, a.norms_x[anchor], a.norms_references[other])
             : value_of(a.metric, sum, 0.0, 0.0);
}

__device__ inline bool is_better(double key, int64_t index, double best, int64_t best_index) {
  return key < best || (key == best && index >= 0 && (best_index < 0 || index < best_index));
}

// The best admissible candidate among those of one thread.
template <class T>
__device__ inline void scan(const SelectArguments<T>& a, int64_t anchor, double lower, double* best,
                            int64_t* best_index) {
  const int64_t label = a.labels[anchor];
  const int64_t self = a.self_index == nullptr ? -1 : a.self_index[anchor];
  const int64_t rows = a.references.rows;
  const int64_t begin = class_bound(a.reference_labels, a.reference_order, rows, label, false);
  const int64_t end = class_bound(a.reference_labels, a.reference_order, rows, label, true);
  const int64_t candidates = a.same_class ? end - begin : rows - (end - begin);
  for (int64_t c = threadIdx.x; c < candidates; c += blockDim.x) {
    int64_t place = begin + c;
    if (!a.same_class) {
      place = c < begin ? c : c + (end - begin);
    }
    const int64_t other = a.reference_order[place];
    if (other == self) {
      continue;
    }
    const double value = pair_value(a, anchor, other);
    const double key = a.farthest ? -value : value;
    if (value >= lower && is_better(key, other, *best, *best_index)) {
      *best = key;
      *best_index = other;
    }
  }
}

// One block per anchor and threshold; its threads share the candidates.
template <class T, class Distance>
__global__ void select_kernel(SelectArguments<T> a) {
  __shared__ double keys[kThreads];
  __shared__ int64_t indices[kThreads];
  const int64_t slots = a.x.rows * a.thresholds;
  for (int64_t slot = blockIdx.x; slot < slots; slot += gridDim.x) {
    const int64_t anchor = slot / a.thresholds;
    constexpr bool returns_double = sizeof(Distance) == sizeof(double);
    const double lower = a.beyond == nullptr
                             ? -INFINITY
                             : least_value_beyond(a.metric, a.beyond[slot], returns_double);
    double best = INFINITY;
    int64_t best_index = -1;
    scan(a, anchor, lower, &best, &best_index);
    keys[threadIdx.x] = best;
    indices[threadIdx.x] = best_index;
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) {
        const unsigned other = threadIdx.x + half;
        if (is_better(keys[other], indices[other], keys[threadIdx.x], indices[threadIdx.x])) {
          keys[threadIdx.x] = keys[other];
          indices[threadIdx.x] = indices[other];
        }
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      double distance = distance_of(a.metric, a.farthest ? -keys[0] : keys[0]);
      if (indices[0] < 0) {
        // An anchor that is not finite and finds nothing reports NaN: a loss must not lose it.
        distance = row_is_finite(a.x, anchor) ? INFINITY : NAN;
      }
      static_cast<Distance*>(a.distance)[slot] = static_cast<Distance>(distance);
      a.index[slot] = indices[0];
    }
    __syncthreads();
  }
}

template <class T, class Distance>
void launch_select(const SelectArguments<T>& a, cudaStream_t stream) {
  if (a.metric == Metric::cosine) {
    DMLFAST_LAUNCH((norms_kernel<T>), dim3{grid_for((a.x.rows + kThreads - 1) / kThreads)},
                   kThreads, stream, a.x, a.norms_x);
    if (a.references.rows > 0) {
      DMLFAST_LAUNCH((norms_kernel<T>),
                     dim3{grid_for((a.references.rows + kThreads - 1) / kThreads)}, kThreads,
                     stream, a.references, a.norms_references);
    }
  }
  DMLFAST_LAUNCH((select_kernel<T, Distance>), dim3{grid_for(a.x.rows * a.thresholds)}, kThreads,
                 stream, a);
}

template <class T>
struct GradientArguments {
  Rows<T> x;
  Rows<T> references;
  Rows<float> grad_float;  // (N, thresholds) upstream gradient; one of the two is used
  Rows<double> grad_double;
  const int64_t* index;       // (N, thresholds)
  const int64_t* slot_order;  // (N * thresholds,) sorts the index
  int64_t thresholds;
  Metric metric;
  double* factors;    // (N * thresholds,) workspace: multiple of the partner, see pair_kernel
  double* own_x;      // (N * thresholds,) workspace: multiple of the anchor itself
  double* own_other;  // (N * thresholds,) workspace: multiple of the reference itself
  T* grad_x;
  T* grad_references;
};

template <class T>
__device__ inline double upstream(const GradientArguments<T>& a, int64_t anchor, int64_t t) {
  return a.grad_double.data == nullptr ? element(a.grad_float, anchor, t)
                                       : element(a.grad_double, anchor, t);
}

// Per slot the gradient of weight * distance(x, y) as factor * y + own * x for x and
// factor * x + own * y for y. Under the Euclidean metrics own = -factor, applied to the
// difference, so that near-duplicates lose no digits.
template <class T>
__global__ void pair_kernel(GradientArguments<T> a) {
  const int64_t slots = a.x.rows * a.thresholds;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t slot = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; slot < slots; slot += step) {
    const int64_t anchor = slot / a.thresholds;
    const int64_t other = a.index[slot];
    const double weight = upstream(a, anchor, slot % a.thresholds);
    a.factors[slot] = 0.0;
    a.own_x[slot] = 0.0;
    a.own_other[slot] = 0.0;
    if (weight == 0.0) {
      continue;
    }
    if (other < 0) {
      a.factors[slot] = row_is_finite(a.x, anchor) ? 0.0 : NAN;
      continue;
    }
    double xx = 0.0;
    double yy = 0.0;
    double xy = 0.0;
    double squares = 0.0;
    for (int64_t k = 0; k < a.x.columns; ++k) {
      const double x = element(a.x, anchor, k);
      const double y = element(a.references, other, k);
      xx += x * x;
      yy += y * y;
      xy += x * y;
      squares += (x - y) * (x - y);
    }
    if (a.metric == Metric::dot) {
      a.factors[slot] = -weight;
    } else if (a.metric == Metric::sqeuclidean) {
      a.factors[slot] = -2.0 * weight;
    } else if (a.metric == Metric::euclidean) {
      a.factors[slot] = squares == 0.0 ? 0.0 : -weight / sqrt(squares);
    } else {
      const double norms = sqrt(xx) * sqrt(yy);
      if (norms != 0.0) {
        a.factors[slot] = -weight / norms;
        a.own_x[slot] = weight * (xy / norms) / xx;
        a.own_other[slot] = weight * (xy / norms) / yy;
      }
    }
  }
}

template <class T>
__device__ inline double slot_gradient(const GradientArguments<T>& a, double factor, double own,
                                       double self, double partner) {
  if (sums_differences(a.metric)) {
    return factor * (partner - self);
  }
  return own == 0.0 ? factor * partner : factor * partner + own * self;
}

// One block per anchor; threads share the dimensions; thresholds are added in ascending order.
template <class T>
__global__ void anchor_gradient_kernel(GradientArguments<T> a) {
  for (int64_t anchor = blockIdx.x; anchor < a.x.rows; anchor += gridDim.x) {
    for (int64_t k = threadIdx.x; k < a.x.columns; k += blockDim.x) {
      double sum = 0.0;
      for (int64_t slot = anchor * a.thresholds; slot < (anchor + 1) * a.thresholds; ++slot) {
        const double factor = a.factors[slot];
        const int64_t other = a.index[slot];
        if (other < 0) {
          sum += factor;
        } else if (upstream(a, anchor, slot - anchor * a.thresholds) != 0.0) {
          sum += slot_gradient(a, factor, a.own_x[slot], element(a.x, anchor, k),
                               element(a.references, other, k));
        }
      }
      a.grad_x[anchor * a.x.columns + k] = rounded<T>(sum);
    }
  }
}

// One block per reference, which owns the slots that chose it, in ascending order: no atomics.
template <class T>
__global__ void reference_gradient_kernel(GradientArguments<T> a) {
  const int64_t slots = a.x.rows * a.thresholds;
  for (int64_t other = blockIdx.x; other < a.references.rows; other += gridDim.x) {
    const int64_t begin = class_bound(a.index, a.slot_order, slots, other, false);
    const int64_t end = class_bound(a.index, a.slot_order, slots, other, true);
    for (int64_t k = threadIdx.x; k < a.references.columns; k += blockDim.x) {
      double sum = 0.0;
      for (int64_t place = begin; place < end; ++place) {
        const int64_t slot = a.slot_order[place];
        const int64_t anchor = slot / a.thresholds;
        if (upstream(a, anchor, slot % a.thresholds) != 0.0) {
          sum += slot_gradient(a, a.factors[slot], a.own_other[slot],
                               element(a.references, other, k), element(a.x, anchor, k));
        }
      }
      a.grad_references[other * a.references.columns + k] = rounded<T>(sum);
    }
  }
}

template <class T>
void launch_gradient(const GradientArguments<T>& a, cudaStream_t stream) {
  const int64_t slots = a.x.rows * a.thresholds;
  if (slots > 0) {
    DMLFAST_LAUNCH((pair_kernel<T>), dim3{grid_for((slots + kThreads - 1) / kThreads)}, kThreads,
                   stream, a);
  }
  if (a.x.rows > 0) {
    DMLFAST_LAUNCH((anchor_gradient_kernel<T>), dim3{grid_for(a.x.rows)}, kThreads, stream, a);
  }
  if (a.references.rows > 0) {
    DMLFAST_LAUNCH((reference_gradient_kernel<T>), dim3{grid_for(a.references.rows)}, kThreads,
                   stream, a);
  }
}

}  // namespace dmlfast::cuda
