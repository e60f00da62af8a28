// The part of the family `neighbors` that is compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/packed_rows.h"
#include "metric.h"

namespace dmlfast::cpu {

// Nearest (or farthest) reference per anchor under a label rule. Arrays are indexed by the
// anchor's position in label order, times `thresholds` where said.
struct SelectTask {
  PackedRows anchors;
  PackedRows references;
  Metric metric;
  bool same_class;
  bool farthest;
  const int64_t* self_index;  // [position] reference row that is the anchor itself, -1 for none
  const double* lower;        // [position][thresholds] least admissible value; NaN admits none
  int64_t thresholds;
  double* best_value;   // [position][thresholds] in and out; +inf at the start
  int64_t* best_index;  // [position][thresholds] in and out; -1 at the start
};

using SelectFunction = void (*)(const SelectTask&, int64_t panel_begin, int64_t panel_end);

namespace baseline {
void select(const SelectTask& task, int64_t panel_begin, int64_t panel_end);
}
namespace avx2 {
void select(const SelectTask& task, int64_t panel_begin, int64_t panel_end);
}
namespace avx512 {
void select(const SelectTask& task, int64_t panel_begin, int64_t panel_end);
}

}  // namespace dmlfast::cpu
