// Kernels that tests/test_cuda_code.py must tell apart: tensor cores of either kind, and the ways
// to end up in local memory.
struct Mma {};
struct Wgmma {};

template <class Product>
__global__ void product_kernel(float* sums, const unsigned* fragments);

template <>
__global__ void product_kernel<Mma>(float* sums, const unsigned* fragments) {
  const unsigned* a = fragments + 4 * threadIdx.x;
  float* c = sums + 4 * threadIdx.x;
  // The shape that every architecture has.
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]));
}

template <>
__global__ void product_kernel<Wgmma>(float* sums, const unsigned* fragments) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const unsigned long long descriptor = fragments[0];
  float* c = sums + 4 * threadIdx.x;
  asm volatile("wgmma.fence.sync.aligned;");
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, %4, %4, 1, 1, 1, 0, 0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "l"(descriptor));
  asm volatile("wgmma.commit_group.sync.aligned;");
  asm volatile("wgmma.wait_group.sync.aligned 0;");
#endif
}

// Sums in places that are known at run time only.
__device__ inline float sum_by_place(const float* values, const int* places) {
  float sums[32] = {};
  for (int k = 0; k < 1024; ++k) {
    sums[places[k] % 32] += values[k];
  }
  return sums[places[0] % 32];
}

__global__ void array_kernel(float* values, const int* places) {
  values[0] = sum_by_place(values, places);
}

__device__ __noinline__ float called(const float* values, const int* places) {
  return sum_by_place(values, places);
}

__global__ void calling_kernel(float* values, const int* places) {
  values[0] = called(values, places) + called(values + 1, places + 1);
}

// More values alive than the bounds leave registers for: 65536 / 1024 = 64 a thread.
__global__ void __launch_bounds__(1024) spilling_kernel(float* values) {
  float kept[128];
#pragma unroll
  for (int k = 0; k < 128; ++k) {
    kept[k] = values[1024 * k + threadIdx.x];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 128; ++k) {
    values[1024 * k + threadIdx.x] = kept[127 - k] * kept[k];
  }
}
