// The exact product of rows packed as 16-bit integers: twice as many of them fit a register as
// float32 numbers, and their sums fit 32 bits. Included only by sources that are compiled once per
// instruction set level.
#pragma once

#include <cstdint>

#include "engine/tile_product.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

inline MaskPart load(const int32_t* from) {
  typedef int32_t Loose __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  return *reinterpret_cast<const Loose*>(from);
}

// Of two integers in each lane, the sum of their products.
inline MaskPart pair_products(MaskPart a, MaskPart b) {
#if defined(__AVX512BW__)
  return reinterpret_cast<MaskPart>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<MaskPart>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<MaskPart>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// Products of kTileRows rows of x with kTilePanels panels of y, rounded to float32.
inline void multiply(const int32_t* x, const int32_t* const (&y)[kTilePanels], int64_t pairs,
                     Part (&products)[kTileRows][kParts]) {
  MaskPart sums[kTileRows][kParts] = {};
  for (int64_t k = 0; k < pairs; ++k) {
    MaskPart columns[kParts];
#pragma GCC unroll 8
    for (int64_t p = 0; p < kParts; ++p) {
      columns[p] = load(y[p / kPanelParts] + k * kSearchPanelRows + (p % kPanelParts) * kLanes);
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < kTileRows; ++r) {
      const MaskPart row = MaskPart{} + x[k * kSearchPanelRows + r];
#pragma GCC unroll 8
      for (int64_t p = 0; p < kParts; ++p) {
        sums[r][p] += pair_products(row, columns[p]);
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int64_t p = 0; p < kParts; ++p) {
      products[r][p] = __builtin_convertvector(sums[r][p], Part);
    }
  }
}

}  // namespace

}  // namespace dmlfast::cpu::DMLFAST_ISA
