// Distance-weighted draws, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/packed_rows.h"
#include "metric.h"

namespace dmlfast::cpu {

// What a weight is, of a squared distance q on the unit sphere:
// sqrt((scale / (q * (1 - q / 4)))^power / q), with q not below `least` and 1 - q / 4 not below
// 1e-8, and 0 from `end` on. The scale makes the greatest weight ordinary; it drops out.
struct SampleWeight {
  double least;
  double end;
  int64_t power;  // dimensions - 3
};

// Arrays are indexed by the anchor's position in label order. References are summed in blocks of
// panels, so that a draw computes one block again.
struct SampleTask {
  PackedRows anchors;
  PackedRows references;
  Metric metric;
  SampleWeight weight;
  const int64_t* self_index;  // [position] reference row that is the anchor itself, -1 for none
  const double* uniform;      // [position] in [0, 1)
  int64_t block_panels;
  int64_t blocks;
  double* scales;   // [position][blocks] in and out; +inf at the start
  double* sums;     // [position][blocks] in and out; 0 at the start
  int64_t* chosen;  // [position] reference row; -1 where all weights are 0
};

using SampleFunction = void (*)(const SampleTask&, int64_t panel_begin, int64_t panel_end);

namespace baseline {
void sample(const SampleTask& task, int64_t panel_begin, int64_t panel_end);
}
namespace avx2 {
void sample(const SampleTask& task, int64_t panel_begin, int64_t panel_end);
}
namespace avx512 {
void sample(const SampleTask& task, int64_t panel_begin, int64_t panel_end);
}

}  // namespace dmlfast::cpu
