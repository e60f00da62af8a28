// A matrix with the labels of its rows and the order that sorts these.
#pragma once

#include <cstdint>

#include "engine/matrix.h"

namespace dmlfast::cpu {

struct LabelledRows {
  Matrix rows;
  const int64_t* labels;  // [row]
  const int64_t* order;   // [position] -> row, by ascending label

  // Whether both are the same rows with the same labels in the same order.
  bool is(const LabelledRows& other) const {
    return rows.is(other.rows) && labels == other.labels && order == other.order;
  }
};

}  // namespace dmlfast::cpu
