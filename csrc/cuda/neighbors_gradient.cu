#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "neighbors_gradient.cuh"

namespace dmlfast::cuda {

template void launch_select_gradient<float>(const GradientArguments<float>&, cudaStream_t);
template void launch_select_gradient<double>(const GradientArguments<double>&, cudaStream_t);
template void launch_select_gradient<__half>(const GradientArguments<__half>&, cudaStream_t);
template void launch_select_gradient<__nv_bfloat16>(const GradientArguments<__nv_bfloat16>&,
                                                    cudaStream_t);

}  // namespace dmlfast::cuda
