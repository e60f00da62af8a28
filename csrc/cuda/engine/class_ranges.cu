#include "engine/class_ranges.cuh"

namespace dmlfast::cuda {

namespace {

__global__ void class_places_kernel(Labels x, Labels references, const int64_t* self_index,
                                    const int32_t* wanted, ClassPlaces places) {
  const int64_t anchors = wanted == nullptr || *wanted > 0 ? x.rows : 0;
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < anchors;
       p += int64_t{gridDim.x} * blockDim.x) {
    const ClassSpan own = class_of(references, x.label(p));
    places.ranges.begin[p] = own.begin;
    places.ranges.end[p] = own.end;
    if (places.self != nullptr) {
      places.self[p] = self_index == nullptr ? -1 : position_of(references, self_index[x.order[p]]);
    }
  }
}

}  // namespace

void launch_class_places(const Labels& x, const Labels& references, const int64_t* self_index,
                         const int32_t* wanted, const ClassPlaces& places, cudaStream_t stream) {
  DMLFAST_LAUNCH(class_places_kernel, element_blocks(x.rows), kElementThreads, stream, x,
                 references, self_index, wanted, places);
}

}  // namespace dmlfast::cuda
