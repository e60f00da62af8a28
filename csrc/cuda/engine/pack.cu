#include "engine/pack.cuh"

namespace dmlfast::cuda {

PackedPair launch_pack_rows(const AnyRows& x, const int64_t* order, const AnyRows& references,
                            const int64_t* reference_order, bool within_batch, Metric metric,
                            const PackPairMemory& memory, cudaStream_t stream) {
  return with_type_of(x, [&](auto type) {
    using T = decltype(type);
    return launch_pack_pair(x.as<T>(), order, references.as<T>(), reference_order, within_batch,
                            metric, memory, stream);
  });
}

#ifndef DMLFAST_EMULATION
#define DMLFAST_PACK(T)                                                                          \
  template PackedPair launch_pack_centred<T>(const Rows<T>&, const int64_t*, const PackCentre&,  \
                                             const Rows<T>&, const int64_t*, const PackCentre&,  \
                                             bool, Metric, const PackPairMemory&, cudaStream_t); \
  template PackedPair launch_pack_pair<T>(const Rows<T>&, const int64_t*, const Rows<T>&,        \
                                          const int64_t*, bool, Metric, const PackPairMemory&,   \
                                          cudaStream_t);

DMLFAST_PACK(float)
DMLFAST_PACK(double)
DMLFAST_PACK(__half)
DMLFAST_PACK(__nv_bfloat16)
#endif

}  // namespace dmlfast::cuda
