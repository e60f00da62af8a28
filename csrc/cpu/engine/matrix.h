// Strided matrices of any floating dtype, read as float64.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace dmlfast::cpu {

// Calls `f` with a value of the C++ type of the dtype.
template <class F>
void with_float_type(torch::headeronly::ScalarType dtype, const F& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16{});
    default:
      STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

// A strided view of the rows of a 2-D tensor.
class Matrix {
 public:
  explicit Matrix(const torch::stable::Tensor& tensor)
      : data_(tensor.const_data_ptr()),
        dtype_(tensor.scalar_type()),
        rows_(tensor.size(0)),
        columns_(tensor.size(1)),
        row_stride_(tensor.stride(0)),
        column_stride_(tensor.stride(1)) {}

  // A 1-D tensor as a matrix of one column.
  struct Column {};
  Matrix(const torch::stable::Tensor& tensor, Column)
      : data_(tensor.const_data_ptr()),
        dtype_(tensor.scalar_type()),
        rows_(tensor.size(0)),
        columns_(1),
        row_stride_(tensor.stride(0)),
        column_stride_(0) {}

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  // Writes row `row` to out[0], out[step], out[2 * step], ...
  void read_row(int64_t row, double* out, int64_t step = 1) const {
    with_float_type(dtype_, [&](auto type) {
      using T = decltype(type);
      const T* from = static_cast<const T*>(data_) + row * row_stride_;
      if (column_stride_ == 1 && step == 1) {  // known strides become vector instructions
        for (int64_t k = 0; k < columns_; ++k) {
          out[k] = static_cast<double>(from[k]);
        }
        return;
      }
      for (int64_t k = 0; k < columns_; ++k) {
        out[k * step] = static_cast<double>(from[k * column_stride_]);
      }
    });
  }

  // Asks for a row that is read soon, where its elements lie side by side.
  void prefetch_row(int64_t row) const {
    constexpr int64_t kLine = 64;
    if (column_stride_ != 1) {
      return;
    }
    with_float_type(dtype_, [&](auto type) {
      using T = decltype(type);
      const T* from = static_cast<const T*>(data_) + row * row_stride_;
      for (int64_t k = 0; k < columns_; k += kLine / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(from + k);
      }
    });
  }

  bool is_finite(int64_t row) const {
    bool finite = true;
    with_float_type(dtype_, [&](auto type) {
      using T = decltype(type);
      const T* from = static_cast<const T*>(data_) + row * row_stride_;
      for (int64_t k = 0; k < columns_; ++k) {
        finite = finite && std::isfinite(static_cast<double>(from[k * column_stride_]));
      }
    });
    return finite;
  }

  // Whether both view the same elements in the same way.
  bool is(const Matrix& other) const {
    return data_ == other.data_ && dtype_ == other.dtype_ && rows_ == other.rows_ &&
           columns_ == other.columns_ && row_stride_ == other.row_stride_ &&
           column_stride_ == other.column_stride_;
  }

 private:
  const void* data_;
  torch::headeronly::ScalarType dtype_;
  int64_t rows_;
  int64_t columns_;
  int64_t row_stride_;
  int64_t column_stride_;
};

// Rounds a row of float64 into a contiguous 2-D tensor of any floating dtype.
inline void write_row(torch::stable::Tensor& tensor, int64_t row, const double* from) {
  with_float_type(tensor.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using Rounded = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const int64_t columns = tensor.size(1);
    T* to = static_cast<T*>(tensor.mutable_data_ptr()) + row * columns;
    for (int64_t k = 0; k < columns; ++k) {
      to[k] = static_cast<T>(static_cast<Rounded>(from[k]));
    }
  });
}

// The dtype in which distances of inputs of a dtype are returned.
inline torch::headeronly::ScalarType distance_dtype(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace dmlfast::cpu
