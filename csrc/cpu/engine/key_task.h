// What a float32 search over pairs of packed rows reads.
#pragma once

#include <cstdint>

#include "engine/search_rows.h"
#include "label_rule.h"

namespace dmlfast::cpu {

struct KeyTask {
  SearchRows x;
  SearchRows y;
  bool is_symmetric;  // y is x: a pair serves both its rows as anchors
  LabelRule rule;
  float factor;         // of the product in the key
  const int64_t* self;  // [position in x] position in y that is never a candidate, or -1
};

}  // namespace dmlfast::cpu
