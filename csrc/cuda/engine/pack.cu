#include "engine/pack.cuh"

namespace dmlfast::cuda {

namespace {

__global__ void centre_kernel(const double* sums, int64_t rows, int64_t columns, bool has_centre,
                              double* centre, PackScale* scale) {
  for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < columns;
       k += int64_t{gridDim.x} * blockDim.x) {
    double mean = 0.0;
    for (int64_t chunk = 0; has_centre && chunk < kCentreChunks; ++chunk) {
      mean += sums[chunk * columns + k];
    }
    mean = has_centre ? mean / static_cast<double>(rows) : 0.0;
    centre[k] = mean - mean == 0.0 ? mean : 0.0;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *scale = {INT_MIN, 0, {0.0f, 0.0f, 0.0f, 0.0f, 0.0f}};
  }
}

}  // namespace

void launch_centre(const double* sums, int64_t rows, int64_t columns, bool has_centre,
                   double* centre, PackScale* scale, cudaStream_t stream) {
  DMLFAST_LAUNCH(centre_kernel, element_blocks(columns), kElementThreads, stream, sums, rows,
                 columns, has_centre, centre, scale);
}

void launch_row_centre(const AnyRows& rows, double* sums, double* centre, PackScale* scale,
                       cudaStream_t stream) {
  with_narrow_type_of(rows, [&](auto type) {
    launch_column_means(rows.as<decltype(type)>(), true, sums, centre, scale, stream);
  });
}

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
