// Where the classes of anchors lie among references, both in label order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/labelled_rows.h"

namespace dmlfast::cpu {

// Calls f(position, begin, end) for every anchor, in order: [begin, end) are the positions of the
// references of its class.
template <class F>
void for_class_ranges(const LabelledRows& anchors, const LabelledRows& references, const F& f) {
  const int64_t count = references.rows.rows();
  const auto label_at = [&](int64_t position) {
    return references.labels[references.order[position]];
  };
  int64_t begin = 0;
  int64_t end = 0;
  for (int64_t i = 0; i < anchors.rows.rows(); ++i) {
    const int64_t label = anchors.labels[anchors.order[i]];
    while (begin < count && label_at(begin) < label) {
      ++begin;
    }
    end = std::max(begin, end);
    while (end < count && label_at(end) == label) {
      ++end;
    }
    f(i, begin, end);
  }
}

}  // namespace dmlfast::cpu
