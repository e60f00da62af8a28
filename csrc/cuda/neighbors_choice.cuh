// What a selection is asked for, what it compares and what it reports. No torch header, so that
// the same source runs under the CPU emulation. Arithmetic is float64 without contraction to fused
// multiply-add, in ascending order of the dimensions, as on the CPU.
#pragma once

#include "engine/slab.cuh"
#include "engine/warp.cuh"
#include "neighbors.h"
#include "threshold.h"

namespace dmlfast::cuda {

// Where the result of query q goes: queries are counted in the order of the anchors' labels.
template <class T>
__device__ inline int64_t slot_of(const SelectArguments<T>& a, int query, int anchor) {
  const int thresholds = static_cast<int>(a.thresholds);
  return int64_t{anchor} * thresholds + query % thresholds;
}

// The best candidate so far: the least key, then the lowest index.
struct Choice {
  double key = INFINITY;
  int index = -1;

  // A key that is not a number never wins.
  __device__ void offer(double other_key, int other_index) {
    const bool better = other_key < key || (other_key == key && static_cast<unsigned>(other_index) <
                                                                    static_cast<unsigned>(index));
    key = better ? other_key : key;
    index = better ? other_index : index;
  }

  // Takes the better of the choices of this lane and of the one whose number differs in `bits`.
  __device__ void join_lane(int bits) {
    const double other_key = __shfl_xor_sync(kAllLanes, key, bits);
    const int other_index = __shfl_xor_sync(kAllLanes, index, bits);
    offer(other_key, other_index);
  }
};

// What decides whether a query may choose a reference, besides the labels.
struct Admission {
  double lower;  // the least value allowed; no value where it is NaN
  double norm;   // the anchor's, under cosine
  int self;      // a reference, or -1
};

// The least value that a query may choose; NaN where there is none.
template <class T>
__device__ inline double lower_of(const SelectArguments<T>& a, int query, int anchor) {
  constexpr bool returns_double = sizeof(T) == sizeof(double);
  return a.beyond == nullptr
             ? -INFINITY
             : least_value_beyond(a.metric, a.beyond[slot_of(a, query, anchor)], returns_double);
}

template <class T>
__device__ inline Admission admission_of(const SelectArguments<T>& a, int anchor, double lower) {
  const int64_t self = a.self_index == nullptr ? -1 : a.self_index[anchor];
  return {lower, a.metric == Metric::cosine ? a.norms_x[anchor] : 0.0,
          self >= 0 && self < a.references.rows ? static_cast<int>(self) : -1};
}

// Offers a reference of the wanted class by the sum of its pair.
template <class T>
__device__ __forceinline__ void offer_pair(const SelectArguments<T>& a, const Admission& admission,
                                           double sum, double norm, int reference, Choice& choice) {
  const double value = value_of(a.metric, sum, admission.norm, norm);
  if (value >= admission.lower && reference != admission.self) {
    choice.offer(a.farthest ? -value : value, reference);
  }
}

// Writes a query's result. An anchor that is not finite and finds nothing reports NaN: a loss must
// not lose it.
template <class T, class Distance>
__device__ inline void report(const SelectArguments<T>& a, int64_t slot, const Choice& choice,
                              bool anchor_is_finite) {
  double distance = distance_of(a.metric, a.farthest ? -choice.key : choice.key);
  if (choice.index < 0) {
    distance = anchor_is_finite ? INFINITY : NAN;
  }
  static_cast<Distance*>(a.distance)[slot] = static_cast<Distance>(distance);
  a.index[slot] = choice.index;
}

constexpr int kNormRows = 64;
constexpr int kNormWidth = 32;

// Euclidean norms; a thread adds up a row's squares in ascending order of the dimensions.
template <class T>
__global__ void __launch_bounds__(kSlabThreads) norms_kernel(Rows<T> rows, double* norms) {
  __shared__ double staged[kNormRows * (kNormWidth + 1)];
  for (int64_t first_row = int64_t{blockIdx.x} * kNormRows; first_row < rows.rows;
       first_row += int64_t{gridDim.x} * kNormRows) {
    const int64_t left = rows.rows - first_row;
    const int count = static_cast<int>(left < kNormRows ? left : kNormRows);
    const int row = static_cast<int>(threadIdx.x);
    double squares = 0.0;
    for (int first = 0; first < rows.columns; first += kNormWidth) {
      const Slab slab = slab_at(first, rows.columns, kNormWidth);
      stage_slab(rows, count, [&](int r) { return first_row + r; }, slab, staged);
      __syncthreads();
      for (int k = 0; row < count && k < slab.columns; ++k) {
        const double value = staged[row * slab.stride() + k];
        squares += value * value;
      }
      __syncthreads();
    }
    if (row < count) {
      norms[first_row + row] = sqrt(squares);
    }
  }
}

template <class T>
void launch_norms(const Rows<T>& rows, double* norms, cudaStream_t stream) {
  if (rows.rows > 0) {
    DMLFAST_LAUNCH((norms_kernel<T>), dim3{grid_for((rows.rows + kNormRows - 1) / kNormRows)},
                   kSlabThreads, stream, rows, norms);
  }
}

// Compiled once, in neighbors_select.cu.
#ifndef DMLFAST_EMULATION
extern template void launch_norms<float>(const Rows<float>&, double*, cudaStream_t);
extern template void launch_norms<double>(const Rows<double>&, double*, cudaStream_t);
extern template void launch_norms<__half>(const Rows<__half>&, double*, cudaStream_t);
extern template void launch_norms<__nv_bfloat16>(const Rows<__nv_bfloat16>&, double*, cudaStream_t);
#endif

}  // namespace dmlfast::cuda
