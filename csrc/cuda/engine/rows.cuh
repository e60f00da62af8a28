// Matrices as they are handed in, and their elements in float64.
#pragma once

#include <cstdint>

#include "engine/launch.cuh"
#include "engine/matrix.h"

namespace dmlfast::cuda {

// The type through which elements convert to and from float64: 16-bit types go by float.
template <class T>
struct Widened {
  using type = float;
};
template <>
struct Widened<double> {
  using type = double;
};

template <class T>
__device__ inline double element(const Rows<T>& rows, int64_t row, int64_t column) {
  const T value = rows.data[row * rows.row_stride + column * rows.column_stride];
  return static_cast<double>(static_cast<typename Widened<T>::type>(value));
}

template <class T>
__device__ inline T rounded(double value) {
  return static_cast<T>(static_cast<typename Widened<T>::type>(value));
}

template <class T>
__device__ inline bool row_is_finite(const Rows<T>& rows, int64_t row) {
  double zero = 0.0;
  for (int64_t k = 0; k < rows.columns; ++k) {
    const double value = element(rows, row, k);
    zero += value - value;
  }
  return zero == 0.0;
}

// First place of `order` whose value is not less than (or, `after`, greater than) `wanted`.
__device__ inline int64_t class_bound(const int64_t* values, const int64_t* order, int64_t rows,
                                      int64_t wanted, bool after) {
  int64_t low = 0;
  int64_t high = rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const int64_t found = values[order[middle]];
    if (found < wanted || (after && found == wanted)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace dmlfast::cuda
