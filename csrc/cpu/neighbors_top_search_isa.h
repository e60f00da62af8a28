// The fast search of the k nearest references, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/search_rows.h"
#include "label_rule.h"

namespace dmlfast::cpu {

struct NearKey {
  float key;
  int32_t position;  // among the references
};

// Arrays are indexed by the anchor's position in label order, up to the end of its last panel.
struct TopSearchTask {
  SearchRows x;
  SearchRows y;
  bool symmetric;  // y is x: a tile serves its rows and its columns
  LabelRule rule;
  float factor;
  const int64_t* self;       // [position in x] position in y that is never a candidate, or -1
  const float* twice_error;  // [position] two error bounds of a key
  int64_t k;
  int64_t capacity;  // more than k, or the number of references
  float* limits;     // [position] in and out: no greater key can belong to the k nearest
  int64_t* counts;   // [position] in and out
  NearKey* near;     // [position][capacity]
  // Lowers the limit of an anchor whose array is full, and leaves the keys up to it; to -inf where
  // these are too many, and then leaves the array full. Compiled once for all levels.
  void (*make_room)(const TopSearchTask&, int64_t position);
};

// Anchors are walked in groups of this many panels.
constexpr int64_t kTopSearchGroup = 4;

// A group of anchors meets a range of panels of y. In a symmetric search the range begins no
// earlier than the group, and all panels of it are served by the group's rows.
using TopSearchFunction = void (*)(const TopSearchTask&, int64_t group, int64_t panel_begin,
                                   int64_t panel_end);

namespace baseline {
void search_top(const TopSearchTask& task, int64_t group, int64_t panel_begin, int64_t panel_end);
}
namespace avx2 {
void search_top(const TopSearchTask& task, int64_t group, int64_t panel_begin, int64_t panel_end);
}
namespace avx512 {
void search_top(const TopSearchTask& task, int64_t group, int64_t panel_begin, int64_t panel_end);
}

}  // namespace dmlfast::cpu
