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

// What neighbors_pairs.cuh names.
#define DMLFAST_PREPARE(T)                                                                     \
  template void launch_norms<T>(const Rows<T>&, double*, cudaStream_t);                        \
  template PackedPair launch_pack_pair<T>(const Rows<T>&, const int64_t*, const Rows<T>&,      \
                                          const int64_t*, bool, Metric, const PackPairMemory&, \
                                          cudaStream_t);

DMLFAST_PREPARE(float)
DMLFAST_PREPARE(double)
DMLFAST_PREPARE(__half)
DMLFAST_PREPARE(__nv_bfloat16)
template void launch_query_classes<float>(const SelectArguments<float>&, const PreparedMemory&,
                                          const int32_t*, cudaStream_t);
template void launch_search_numbers<float>(const SelectArguments<float>&, const PackedPair&,
                                           const PackGroups&, const PreparedMemory&, const int32_t*,
                                           cudaStream_t);

}  // namespace dmlfast::cuda
