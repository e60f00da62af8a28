// The exact engine of the k nearest references, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/packed_rows.h"
#include "label_rule.h"
#include "metric.h"

namespace dmlfast::cpu {

// A candidate and the value that decides about it; of equal values the lowest index comes first.
struct Neighbor {
  double value;
  int64_t index;
};

// Arrays are indexed by the anchor's position in label order.
struct TopTask {
  PackedRows anchors;
  PackedRows references;
  Metric metric;
  LabelRule rule;
  const int64_t* self_index;  // [position] reference row that is the anchor itself, -1 for none
  int64_t k;
  int64_t capacity;     // more than k, or the number of references
  double* limits;       // [position] in and out: no greater value is wanted; +inf at the start
  int64_t* counts;      // [position] in and out
  Neighbor* neighbors;  // [position][capacity]
  // Leaves the k nearest of an anchor's full array, and the greatest of their values as its
  // limit. Not part of the engine: the standard library must not be compiled at several levels.
  void (*make_room)(const TopTask&, int64_t position);
};

using TopFunction = void (*)(const TopTask&, int64_t panel_begin, int64_t panel_end);

namespace baseline {
void top(const TopTask& task, int64_t panel_begin, int64_t panel_end);
}
namespace avx2 {
void top(const TopTask& task, int64_t panel_begin, int64_t panel_end);
}
namespace avx512 {
void top(const TopTask& task, int64_t panel_begin, int64_t panel_end);
}

}  // namespace dmlfast::cpu
