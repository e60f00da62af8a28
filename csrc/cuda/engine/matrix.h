// Matrices and streams as host and device name them, without a kernel: what the files that
// check tensors and launch kernels include.
#pragma once

#include <cstdint>

#ifdef DMLFAST_EMULATION
#include "engine/emulation.h"
#else
#include <cuda_runtime_api.h>
#endif

#if defined(__CUDACC__)
#define DMLFAST_HOST_DEVICE __host__ __device__
#else
#define DMLFAST_HOST_DEVICE
#endif

namespace dmlfast::cuda {

// A strided matrix.
template <class T>
struct Rows {
  const T* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
};

enum class ElementType { float32, float64, float16, bfloat16 };

// The same of a dtype that kernels learn when they run.
struct AnyRows {
  const void* data;
  ElementType type;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;

  template <class T>
  DMLFAST_HOST_DEVICE Rows<T> as() const {
    return {static_cast<const T*>(data), rows, columns, row_stride, column_stride};
  }
};

// Whether two views are of the same rows.
template <class Matrix>
DMLFAST_HOST_DEVICE bool are_same_rows(const Matrix& x, const Matrix& y) {
  return x.data == y.data && x.rows == y.rows && x.row_stride == y.row_stride &&
         x.column_stride == y.column_stride;
}

// A contiguous matrix that is written.
struct AnyResult {
  void* data;
  ElementType type;
  int64_t columns;
};

}  // namespace dmlfast::cuda
