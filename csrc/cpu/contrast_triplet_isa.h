// Triplets of few positives and all negatives, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/span.h"
#include "engine/walk_task.h"

namespace dmlfast::cpu {

// A negative at distance D makes a triplet with every positive whose bound, its distance plus the
// margin, is greater than D. Arrays are indexed by the anchor's position, padded to whole panels;
// distances are in the unit of the packed rows.
struct TripletTask {
  WalkTask walk;
  const int64_t* class_begin;  // [anchor position] positions in y of the anchor's class
  const int64_t* class_end;
  int64_t anchors;      // the length of an array
  int64_t positives;    // bounds of an anchor
  const float* bounds;  // [positive][anchor]; -inf for none
  // Distances this close to a bound are computed again, so that every triplet is found and no
  // other: their difference, or under the Euclidean metric that of the squares, is at most `error`.
  float error;
  const void* rows;
  float (*exact_distance)(const void* rows, int64_t x, int64_t y);
  double* losses;   // [anchor]
  int64_t* active;  // [anchor] triplets
  // For a gradient.
  const float* weights;  // [anchor]
  int64_t* hits;         // [positive][anchor] triplets
};

using TripletFunction = void (*)(const TripletTask& task, Span x, Span y);

namespace baseline {
void triplets(const TripletTask& task, Span x, Span y);
}
namespace avx2 {
void triplets(const TripletTask& task, Span x, Span y);
}
namespace avx512 {
void triplets(const TripletTask& task, Span x, Span y);
}

}  // namespace dmlfast::cpu
