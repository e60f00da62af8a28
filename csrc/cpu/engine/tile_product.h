// The float32 product of packed rows: a tile of registers, with chains short enough for the error
// bounds of those who search with it. Included only by sources that are compiled once per
// instruction set level and that may fuse multiplication and addition.
#pragma once

#include <cstdint>

#include "engine/search_rows.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef DMLFAST_ISA
#error "compile this source through CMakeLists.txt, once per instruction set level"
#endif

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// The level's own vector, and a tile of as many accumulators as its registers hold.
#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
constexpr int64_t kTileRows = 8;
constexpr int64_t kTilePanels = 2;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
constexpr int64_t kTileRows = 4;
constexpr int64_t kTilePanels = 1;
#else
constexpr int64_t kVectorBytes = 16;
constexpr int64_t kTileRows = 2;
constexpr int64_t kTilePanels = 1;
#endif
constexpr int64_t kLanes = kVectorBytes / int64_t{sizeof(float)};
constexpr int64_t kPanelParts = kSearchPanelRows / kLanes;
constexpr int64_t kParts = kTilePanels * kPanelParts;

typedef float Part __attribute__((vector_size(kVectorBytes)));
typedef int32_t MaskPart __attribute__((vector_size(kVectorBytes)));
typedef float LoosePart __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

inline Part load(const float* from) { return *reinterpret_cast<const LoosePart*>(from); }

// The lanes whose mask is set, the first in the lowest bit.
inline uint32_t bits(MaskPart mask) {
#if defined(__AVX512DQ__)
  return static_cast<uint32_t>(_mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  uint32_t lanes = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    lanes |= (mask[lane] != 0 ? 1u : 0u) << lane;
  }
  return lanes;
#endif
}

inline bool any(MaskPart mask) { return bits(mask) != 0; }

// Products of kTileRows rows of x with kTilePanels panels of y.
inline void multiply(const float* x, const float* const (&y)[kTilePanels], int64_t dimensions,
                     Part (&totals)[kTileRows][kParts]) {
#pragma GCC unroll 8
  for (int64_t r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int64_t p = 0; p < kParts; ++p) {
      totals[r][p] = Part{};
    }
  }
  for (int64_t begin = 0; begin < dimensions; begin += kSearchChain) {
    const int64_t end = begin + kSearchChain < dimensions ? begin + kSearchChain : dimensions;
    Part sums[kTileRows][kParts] = {};
    for (int64_t k = begin; k < end; ++k) {
      Part columns[kParts];
#pragma GCC unroll 8
      for (int64_t p = 0; p < kParts; ++p) {
        columns[p] = load(y[p / kPanelParts] + k * kSearchPanelRows + (p % kPanelParts) * kLanes);
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTileRows; ++r) {
        const float row = x[k * kSearchPanelRows + r];
#pragma GCC unroll 8
        for (int64_t p = 0; p < kParts; ++p) {
          sums[r][p] += row * columns[p];
        }
      }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
      for (int64_t p = 0; p < kParts; ++p) {
        totals[r][p] += sums[r][p];
      }
    }
  }
}

}  // namespace

}  // namespace dmlfast::cpu::DMLFAST_ISA
