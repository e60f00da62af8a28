// Functions of whole vectors. Included only by sources that are compiled once per instruction set
// level.
#pragma once

#include <cstdint>

#include "engine/tile_product.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

typedef float LooseOut __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef int32_t LooseInt __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

inline void store(float* to, Part values) { *reinterpret_cast<LooseOut*>(to) = values; }

inline Part all_lanes(float value) { return Part{} + value; }

// The values where the mask is set, 0 elsewhere, whatever stood there.
inline Part where(MaskPart mask, Part values) {
  return reinterpret_cast<Part>(mask & reinterpret_cast<MaskPart>(values));
}

inline Part where(MaskPart mask, Part values, Part otherwise) { return mask ? values : otherwise; }

inline Part square_root(Part values) {
#if defined(__AVX512F__)
  // Masked: the plain form warns of a value that it leaves undefined on purpose.
  return _mm512_maskz_sqrt_ps(0xffff, values);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(values);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(values);
#else
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    values[lane] = __builtin_sqrtf(values[lane]);
  }
  return values;
#endif
}

// e^x within 2 units in the last place where the result is a normal number, else 0 below and e^88
// above.
inline Part exponential(Part x) {
  const MaskPart is_normal = x >= -87.0f;
  const Part most = all_lanes(88.0f);
  x = x > most ? most : x;
  // Adding 1.5 * 2^23 rounds to an integer, which the low bits then hold.
  const float magic = 0x1.8p23f;
  const Part rounded = x * 0x1.715476p0f + magic;
  const Part n = rounded - magic;
  const Part r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  // The series to the seventh power: |r| is at most log(2) / 2.
  Part p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const MaskPart exponent = (reinterpret_cast<MaskPart>(rounded) << 23) + 0x3f800000;
  return where(is_normal, p * reinterpret_cast<Part>(exponent));
}

// log(1 + e^x), element by element: it meets same-class pairs alone.
inline Part softplus(Part x) {
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const float value = x[lane];
    const float rest = __builtin_log1pf(__builtin_expf(-__builtin_fabsf(value)));
    x[lane] = (value > 0.0f ? value : 0.0f) + rest;
  }
  return x;
}

// Exactly 0 where e^x is.
inline Part sigmoid(Part x) {
  const Part power = exponential(x);
  return power / (1.0f + power);
}

inline double sum_of(Part values) {
  double sum = 0.0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sum += static_cast<double>(values[lane]);
  }
  return sum;
}

inline int64_t sum_of(MaskPart values) {
  int64_t sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    sum += values[lane];
  }
  return sum;
}

inline float greatest_of(Part values) {
  float greatest = values[0];
  for (int64_t lane = 1; lane < kLanes; ++lane) {
    greatest = values[lane] > greatest ? values[lane] : greatest;
  }
  return greatest;
}

}  // namespace

}  // namespace dmlfast::cpu::DMLFAST_ISA
