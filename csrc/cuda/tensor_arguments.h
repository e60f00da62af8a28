// From torch's tensors to what the kernels take.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "engine/matrix.h"

namespace dmlfast::cuda {

// Calls f with a value of the type of the elements.
template <class F>
void with_float_type(torch::headeronly::ScalarType dtype, const F& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(__half{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    default:
      STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

template <class T>
Rows<T> rows_of(const torch::stable::Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.size(0), tensor.size(1),
          tensor.stride(0), tensor.stride(1)};
}

inline ElementType element_type_of(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Double     ? ElementType::float64
         : dtype == ScalarType::Half     ? ElementType::float16
         : dtype == ScalarType::BFloat16 ? ElementType::bfloat16
                                         : ElementType::float32;
}

inline AnyRows any_rows_of(const torch::stable::Tensor& tensor) {
  return {tensor.const_data_ptr(), element_type_of(tensor.scalar_type()),
          tensor.size(0),          tensor.size(1),
          tensor.stride(0),        tensor.stride(1)};
}

inline AnyResult any_result_of(torch::stable::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), element_type_of(tensor.scalar_type()), tensor.size(1)};
}

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Shared memory that a block may have, less a little that kernels name themselves.
inline int shared_bytes_of(const torch::stable::Tensor& tensor) {
  constexpr int kNamed = 6144;
  int bytes = 0;
  STD_CUDA_CHECK(
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, tensor.get_device()));
  return bytes - kNamed;
}

// Memory of a launch. Freed before the kernels have run, it is reused in the order of the stream.
inline torch::stable::Tensor new_memory(const torch::stable::Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte);
}

// Kernels count rows and queries in 32 bits, and some go on a little past the last.
inline void check_count(const char* name, int64_t count) {
  constexpr int64_t kMost = int64_t{1} << 30;
  STD_TORCH_CHECK(count <= kMost, name, ": expected at most ", kMost, ", got ", count);
}

}  // namespace dmlfast::cuda
