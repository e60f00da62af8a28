// Which reference panels the classes of an anchor block touch. Included by sources that are
// compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/tile_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// First position whose label is not less than `label`.
inline int64_t first_position(const PackedRows& rows, int64_t label) {
  int64_t low = 0;
  int64_t high = rows.rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (rows.labels[middle] < label) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Panels that hold a reference with a label in [first_label, last_label].
inline PanelRange class_panels(const PackedRows& rows, int64_t first_label, int64_t last_label) {
  const int64_t begin = first_position(rows, first_label);
  const int64_t end = last_label == INT64_MAX ? rows.rows : first_position(rows, last_label + 1);
  if (begin >= end) {
    return {0, 0};
  }
  return {begin / kPanelRows, (end + kPanelRows - 1) / kPanelRows};
}

// Whether all anchors at these positions and all references of the panel are of one class.
inline bool is_one_class(const PackedRows& anchors, int64_t first, int64_t last,
                         const PackedRows& references, int64_t panel) {
  const int64_t label = anchors.labels[first];
  return anchors.labels[last] == label && references.labels[panel * kPanelRows] == label &&
         references.labels[panel * kPanelRows + kPanelRows - 1] == label;
}

}  // namespace

}  // namespace dmlfast::cpu::DMLFAST_ISA
