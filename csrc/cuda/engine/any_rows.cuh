// Rows of a dtype that kernels learn when they run: what reads them is so seldom that no kernel is
// compiled for each dtype.
#pragma once

#include "engine/rows.cuh"

#ifndef DMLFAST_EMULATION
#include <cuda_bf16.h>
#endif

namespace dmlfast::cuda {

enum class ElementType { float32, float64, float16, bfloat16 };

struct AnyRows {
  const void* data;
  ElementType type;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;

  template <class T>
  __host__ __device__ Rows<T> as() const {
    return {static_cast<const T*>(data), rows, columns, row_stride, column_stride};
  }
};

__device__ inline double element(const AnyRows& rows, int64_t row, int64_t column) {
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

}  // namespace dmlfast::cuda
