// Rows of a dtype that kernels learn when they run: what reads them is so seldom that no kernel is
// compiled for each dtype.
#pragma once

#include "engine/rows.cuh"
#include "engine/warp.cuh"

#ifndef DMLFAST_EMULATION
#include <cuda_bf16.h>
#endif

namespace dmlfast::cuda {

// Calls f with the rows as those of their dtype.
template <class F>
__device__ __forceinline__ void with_rows(const AnyRows& rows, const F& f) {
  switch (rows.type) {
    case ElementType::float64:
      return f(rows.as<double>());
#ifndef DMLFAST_EMULATION
    case ElementType::float16:
      return f(rows.as<__half>());
    case ElementType::bfloat16:
      return f(rows.as<__nv_bfloat16>());
#endif
    default:
      return f(rows.as<float>());
  }
}

// The same on the host, with a value of the elements' type, for what does not serve float64.
template <class F>
auto with_narrow_type_of(const AnyRows& rows, const F& f) {
  switch (rows.type) {
#ifndef DMLFAST_EMULATION
    case ElementType::float16:
      return f(__half{});
    case ElementType::bfloat16:
      return f(__nv_bfloat16{});
#endif
    default:
      return f(float{});
  }
}

template <class F>
auto with_type_of(const AnyRows& rows, const F& f) {
  return rows.type == ElementType::float64 ? f(double{}) : with_narrow_type_of(rows, f);
}

__device__ __forceinline__ double element(const AnyRows& rows, int64_t row, int64_t column) {
  switch (rows.type) {
    case ElementType::float64:
      return element(rows.as<double>(), row, column);
#ifndef DMLFAST_EMULATION
    case ElementType::float16:
      return element(rows.as<__half>(), row, column);
    case ElementType::bfloat16:
      return element(rows.as<__nv_bfloat16>(), row, column);
#endif
    default:
      return element(rows.as<float>(), row, column);
  }
}

// Whether all elements of a row are finite.
__device__ __forceinline__ bool any_row_is_finite(const AnyRows& rows, int64_t row) {
  double zero = 0.0;
  for (int64_t k = 0; k < rows.columns; ++k) {
    const double value = element(rows, row, k);
    zero += value - value;
  }
  return zero == 0.0;
}

// Whether all elements of a row are finite, for all lanes of a warp.
__device__ __forceinline__ bool warp_row_is_finite(const AnyRows& rows, int row) {
  double zero = 0.0;
  for (int64_t k = threadIdx.x % 32; k < rows.columns; k += 32) {
    const double value = element(rows, row, k);
    zero += value - value;
  }
  return __ballot_sync(kAllLanes, zero != 0.0) == 0;
}

__device__ inline void store_element(const AnyResult& to, int64_t row, int64_t column,
                                     double value) {
  const int64_t at = row * to.columns + column;
  switch (to.type) {
    case ElementType::float64:
      static_cast<double*>(to.data)[at] = value;
      return;
#ifndef DMLFAST_EMULATION
    case ElementType::float16:
      static_cast<__half*>(to.data)[at] = rounded<__half>(value);
      return;
    case ElementType::bfloat16:
      static_cast<__nv_bfloat16*>(to.data)[at] = rounded<__nv_bfloat16>(value);
      return;
#endif
    default:
      static_cast<float*>(to.data)[at] = static_cast<float>(value);
  }
}

}  // namespace dmlfast::cuda
