// The tile walk: every pair of an anchor block and a reference panel is multiplied in registers
// and its values are handed to a policy. Included only by sources that are compiled once per
// instruction set level, inside the level's own namespace; it must not pull in any function that
// the linker could share between levels.
#pragma once

#include <cstdint>

#include "engine/packed_rows.h"
#include "metric.h"

#ifndef DMLFAST_ISA
#error "compile this source through CMakeLists.txt, once per instruction set level"
#endif

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

typedef double Vector __attribute__((vector_size(64)));
typedef int64_t Mask __attribute__((vector_size(64)));
typedef double LooseVector __attribute__((vector_size(64), aligned(8), may_alias));
typedef int64_t LooseMask __attribute__((vector_size(64), aligned(8), may_alias));

// The level's own vector, and the anchors of a register block: as many as its registers hold
// accumulators for.
#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
constexpr int64_t kBlockRows = 8;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
constexpr int64_t kBlockRows = 4;
#else
constexpr int64_t kVectorBytes = 16;
constexpr int64_t kBlockRows = 2;
#endif
constexpr int64_t kLanes = kVectorBytes / int64_t{sizeof(double)};
constexpr int64_t kParts = kPanelRows / kLanes;  // vectors that hold one anchor's sums
typedef double Part __attribute__((vector_size(kVectorBytes)));
typedef double LoosePart __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));

// Reference panels walked for one anchor block after another while they stay in the L2 cache.
constexpr int64_t kCacheBytes = 256 * 1024;

inline Vector load(const double* from) { return *reinterpret_cast<const LooseVector*>(from); }
inline Mask load(const int64_t* from) { return *reinterpret_cast<const LooseMask*>(from); }

inline bool any(Mask mask) {
  typedef int64_t MaskPart __attribute__((vector_size(kVectorBytes), may_alias));
  const MaskPart* parts = reinterpret_cast<const MaskPart*>(&mask);
  MaskPart bits = parts[0];
  for (int64_t p = 1; p < kParts; ++p) {
    bits |= parts[p];
  }
  int64_t merged = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    merged |= bits[lane];
  }
  return merged != 0;
}

// Sums over the dimensions in ascending order. Compiled without contraction to fused
// multiply-add: every level, device and the reference round the same way.
template <bool kDifferences>
inline void multiply(const double* anchors, const double* references, int64_t dimensions,
                     double (&result)[kBlockRows][kPanelRows]) {
  Part sums[kBlockRows][kParts] = {};
  for (int64_t k = 0; k < dimensions; ++k) {
    Part y[kParts];
#pragma GCC unroll 8
    for (int64_t p = 0; p < kParts; ++p) {
      y[p] = *reinterpret_cast<const LoosePart*>(references + k * kPanelRows + p * kLanes);
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < kBlockRows; ++r) {
      const double x = anchors[k * kPanelRows + r];
#pragma GCC unroll 8
      for (int64_t p = 0; p < kParts; ++p) {
        if constexpr (kDifferences) {
          const Part difference = x - y[p];
          sums[r][p] += difference * difference;
        } else {
          sums[r][p] += x * y[p];
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 8
    for (int64_t p = 0; p < kParts; ++p) {
      *reinterpret_cast<LoosePart*>(result[r] + p * kLanes) = sums[r][p];
    }
  }
}

template <Metric kMetric>
inline Vector values(Vector sums, double norm_x, const double* norms_y) {
  if constexpr (kMetric == Metric::cosine) {
    const Vector norms = norm_x * load(norms_y);
    const Vector zero_vector = 1.0 + 0.0 * sums;
    const Vector ordinary = 1.0 - sums / norms;
    return norms == 0.0 ? zero_vector : ordinary;
  } else if constexpr (kMetric == Metric::dot) {
    return -sums;
  } else {
    return sums;
  }
}

// A policy has
//   bool is_class_bound()            whether anchors need few panels, each its own
//   PanelRange panels(first, last)   the reference panels that the anchors at these positions need
//   bool skips(first, last, panel)   whether none of the panel's pairs with them counts
//   void take(position, panel, Vector values)
struct PanelRange {
  int64_t begin;
  int64_t end;
};

// Multiplies the anchors [row, last] with a range of panels.
template <Metric kMetric, class Policy>
inline void walk_block(const PackedRows& anchors, const PackedRows& references, int64_t row,
                       int64_t last, PanelRange panels, Policy& policy) {
  const double* block = panel_of(anchors, row / kPanelRows) + row % kPanelRows;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    if (policy.skips(row, last, panel)) {
      continue;
    }
    double sums[kBlockRows][kPanelRows];
    multiply<sums_differences(kMetric)>(block, panel_of(references, panel), references.dimensions,
                                        sums);
    for (int64_t r = 0; row + r <= last; ++r) {
      policy.take(row + r, panel,
                  values<kMetric>(load(sums[r]), anchors.norms[row + r],
                                  references.norms + panel * kPanelRows));
    }
  }
}

template <Metric kMetric, class Policy>
void walk(const PackedRows& anchors, const PackedRows& references, PanelRange anchor_panels,
          Policy& policy) {
  const int64_t first_row = anchor_panels.begin * kPanelRows;
  const int64_t end_row =
      anchor_panels.end * kPanelRows < anchors.rows ? anchor_panels.end * kPanelRows : anchors.rows;
  // Panels that all anchors need pass in pieces that stay in the cache.
  int64_t step = references.panel_count;
  if (!policy.is_class_bound()) {
    const int64_t panel_bytes = references.dimensions * kPanelRows * int64_t{sizeof(double)};
    step = panel_bytes == 0 ? step : kCacheBytes / panel_bytes;
  }
  step = step < 1 ? 1 : step;
  for (int64_t begin = 0; begin < references.panel_count; begin += step) {
    const int64_t end = begin + step;
    for (int64_t row = first_row; row < end_row; row += kBlockRows) {
      const int64_t last = row + kBlockRows < end_row ? row + kBlockRows - 1 : end_row - 1;
      PanelRange panels = policy.panels(row, last);
      panels.begin = panels.begin < begin ? begin : panels.begin;
      panels.end = panels.end < end ? panels.end : end;
      walk_block<kMetric>(anchors, references, row, last, panels, policy);
    }
  }
}

// Calls the walk compiled for the metric.
template <class Policy>
void walk(Metric metric, const PackedRows& anchors, const PackedRows& references,
          PanelRange anchor_panels, Policy& policy) {
  switch (metric) {
    case Metric::euclidean:
    case Metric::sqeuclidean:
      return walk<Metric::sqeuclidean>(anchors, references, anchor_panels, policy);
    case Metric::cosine:
      return walk<Metric::cosine>(anchors, references, anchor_panels, policy);
    case Metric::dot:
      return walk<Metric::dot>(anchors, references, anchor_panels, policy);
  }
}

}  // namespace

}  // namespace dmlfast::cpu::DMLFAST_ISA
