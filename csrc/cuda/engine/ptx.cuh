// Every machine instruction that the engine names: half-precision numbers, copies in flight, matrix
// loads and products. In the emulation each has a twin that does the same on the lanes' values.
//
// Where kHasGroupProducts, four warps also multiply matrices right from shared memory, told where
// these are by descriptors. Such products run asynchronously: between begin_products and
// end_products nothing else may touch the registers they sum into or take operands from.
#pragma once

#include "engine/launch.cuh"

#ifdef DMLFAST_EMULATION
#include "engine/emulated_ptx.h"
#else

namespace dmlfast::cuda {

using Half = __half;

__device__ inline Half to_half(float value) { return __float2half_rn(value); }
__device__ inline float to_float(Half value) { return __half2float(value); }

// Two halves in one register, the first in the lower bits.
__device__ inline uint32_t pack_halves(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ inline float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// For b > 0; correct to two units in the last place, but as if b were at least 2^-126, and 0 where
// b is more than 2^126.
__device__ inline float divide(float a, float b) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(inverse) : "f"(fmaxf(b, 0x1p-126f)));
  return a * inverse;
}

// 0 for a number below the range of normal ones.
__device__ inline float square_root(float value) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;\n" : "=f"(root) : "f"(value));
  return root;
}

// 2^x to a few units in the last place; 0 where that is below the range of normal numbers.
__device__ inline float exponential2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// threadIdx.x, of which the compiler keeps nothing in registers: what is computed from it is
// computed anew.
__device__ inline unsigned thread_anew() {
  unsigned thread;
  asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(thread));
  return thread;
}

__device__ inline uint32_t shared_address(const void* address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

// Starts a copy of 16 bytes to shared memory, of zeros where there is nothing to copy.
__device__ inline void copy_async(void* to, const void* from, bool exists) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)),
               "l"(from), "r"(exists ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = exists ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}

// Closes a group of the copies that this thread has started.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most `kPending` groups of this thread's copies are in flight.
template <int kPending>
__device__ inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// Four 8 x 8 matrices of halves; lane l brings the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a * b for a (16, 16) and b (16, 8), rows g and g + 8, columns 2t and 2t + 1 of the result in
// lane 4g + t.
__device__ inline void multiply_matrices(float& d0, float& d1, float& d2, float& d3,
                                         const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// Compiled for Hopper alone: other devices have no such instructions.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHasGroupProducts = true;
#else
constexpr bool kHasGroupProducts = false;
#endif

// Lets group products see what this thread has stored or copied to shared memory: they read it in
// a way of their own. To be called before the barrier that tells other threads of it.
__device__ inline void publish_copies() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ inline void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" ::: "memory");
}

// Keeps the compiler from moving uses of sums to where products are under way.
template <int kColumns>
__device__ inline void hold_sums(float (&d)[2][kColumns]) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    asm volatile("" : "+f"(d[0][j]), "+f"(d[1][j])::"memory");
  }
}

// Has the compiler compute operands before it goes on, not where they are wanted.
template <int kSteps>
__device__ inline void hold_operands(uint32_t (&words)[kSteps][4]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    asm volatile("" : "+r"(words[k][0]), "+r"(words[k][1]), "+r"(words[k][2]), "+r"(words[k][3]));
  }
}

// The sums of eight columns, as an operand each.
#define DMLFAST_EIGHT(access, d, n)                                              \
  access((d)[0][2 * (n)]), access((d)[0][2 * (n) + 1]), access((d)[1][2 * (n)]), \
      access((d)[1][2 * (n) + 1])
#define DMLFAST_64(access, d)                                                                \
  DMLFAST_EIGHT(access, d, 0), DMLFAST_EIGHT(access, d, 1), DMLFAST_EIGHT(access, d, 2),     \
      DMLFAST_EIGHT(access, d, 3), DMLFAST_EIGHT(access, d, 4), DMLFAST_EIGHT(access, d, 5), \
      DMLFAST_EIGHT(access, d, 6), DMLFAST_EIGHT(access, d, 7)
#define DMLFAST_128(access, d)                                                                  \
  DMLFAST_64(access, d), DMLFAST_EIGHT(access, d, 8), DMLFAST_EIGHT(access, d, 9),              \
      DMLFAST_EIGHT(access, d, 10), DMLFAST_EIGHT(access, d, 11), DMLFAST_EIGHT(access, d, 12), \
      DMLFAST_EIGHT(access, d, 13), DMLFAST_EIGHT(access, d, 14), DMLFAST_EIGHT(access, d, 15)
#define DMLFAST_SUM(value) "+f"(value)
#define DMLFAST_FRESH(value) "=f"(value)
#define DMLFAST_32_REGISTERS                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DMLFAST_64_REGISTERS                                                                     \
  DMLFAST_32_REGISTERS                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d += a * b, or d = a * b, for a (64, 16) and b (16, 128), the columns of b in memory as rows.
// Warp w of the four has rows 16w to 16w + 15, lane 4g + t of it rows g and g + 8, and of every
// eight columns 2t and 2t + 1.
template <bool kAdds>
__device__ inline void multiply_group(float (&d)[2][32], uint64_t a, uint64_t b) {
  if constexpr (kAdds) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" DMLFAST_64_REGISTERS
                 "}, %64, %65, 1, 1, 1, 0, 0;\n"
                 : DMLFAST_128(DMLFAST_SUM, d)
                 : "l"(a), "l"(b));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" DMLFAST_64_REGISTERS
                 "}, %64, %65, 0, 1, 1, 0, 0;\n"
                 : DMLFAST_128(DMLFAST_FRESH, d)
                 : "l"(a), "l"(b));
  }
}

// The same for a in registers, those of multiply_matrices, and b (16, 64), rows in memory as rows.
template <bool kAdds>
__device__ inline void multiply_group(float (&d)[2][16], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (kAdds) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" DMLFAST_32_REGISTERS
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
                 : DMLFAST_64(DMLFAST_SUM, d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" DMLFAST_32_REGISTERS
                 "}, {%32, %33, %34, %35}, %36, 0, 1, 1, 1;\n"
                 : DMLFAST_64(DMLFAST_FRESH, d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
}
#undef DMLFAST_EIGHT
#undef DMLFAST_64
#undef DMLFAST_128
#undef DMLFAST_SUM
#undef DMLFAST_FRESH
#undef DMLFAST_32_REGISTERS
#undef DMLFAST_64_REGISTERS

}  // namespace dmlfast::cuda

#endif

namespace dmlfast::cuda {

// Where a matrix is in shared memory, for group products. Its lines of 128 bytes are permuted by
// 16-byte chunks as slabs are, eight lines to a block of 1024 bytes. Where a line is a row (or a
// column of the other operand), `stride` is from eight of them to the next eight, and `leading`
// means nothing. Where a line is one step along the sum, it holds 64 rows; `stride` is from eight
// steps to the next eight, and `leading` from 64 rows to the next 64.
__device__ inline uint64_t matrix_descriptor(const void* start, uint32_t leading, uint32_t stride) {
  constexpr uint64_t kChunksOf128Bytes = uint64_t{1} << 62;
  return kChunksOf128Bytes | uint64_t{stride >> 4} << 32 | uint64_t{leading >> 4} << 16 |
         (shared_address(start) & 0x3ffff) >> 4;
}

// The same matrix `bytes` further on.
__device__ inline uint64_t advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace dmlfast::cuda
