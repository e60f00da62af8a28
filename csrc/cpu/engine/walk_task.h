// What a walk over blocks of pairs reads, and the gradients it may add to.
#pragma once

#include <cstdint>

#include "engine/gradient_rows.h"
#include "engine/pair_distance.h"
#include "engine/search_rows.h"

namespace dmlfast::cpu {

struct WalkTask {
  SearchRows x;
  SearchRows y;
  bool is_symmetric;  // y is x: a pair serves both its rows as anchors
  PairDistance distance;
  const int64_t* self;  // [anchor position] position in y that is no partner, or -1
  // Null without gradient; in a symmetric task that of x alone is used.
  const GradientRows* x_gradient;
  const GradientRows* y_gradient;
};

}  // namespace dmlfast::cpu
