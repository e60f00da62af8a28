#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "neighbors_select.cuh"

namespace dmlfast::cuda {

#define DMLFAST_SELECT(T)                                                     \
  template int64_t select_memory_bytes<T>(const SelectArguments<T>&);         \
  template const int32_t* search_counts<T>(const SelectArguments<T>&, void*); \
  template void launch_select<T>(const SelectArguments<T>&, void*, int, cudaStream_t);

DMLFAST_SELECT(float)
DMLFAST_SELECT(double)
DMLFAST_SELECT(__half)
DMLFAST_SELECT(__nv_bfloat16)

// What neighbors_choice.cuh and neighbors_pairs.cuh name.
template void launch_norms<float>(const Rows<float>&, double*, cudaStream_t);
template void launch_norms<double>(const Rows<double>&, double*, cudaStream_t);
template void launch_norms<__half>(const Rows<__half>&, double*, cudaStream_t);
template void launch_norms<__nv_bfloat16>(const Rows<__nv_bfloat16>&, double*, cudaStream_t);
template void launch_search_numbers<float>(const SelectArguments<float>&, const PackedPair&,
                                           const PackGroups&, const PreparedMemory&, const int32_t*,
                                           cudaStream_t);

}  // namespace dmlfast::cuda
