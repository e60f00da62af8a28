// The sums of the family `contrast`, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/span.h"
#include "engine/walk_task.h"

namespace dmlfast::cpu {

// What is summed over the partners of an anchor. `greatest` finds the greatest exponent.
enum class SumForm { none, logsumexp, greatest, hinge, sum, softplus };

// One side, positives or negatives. It works on e = sign * distance, so that on both sides a
// partner counts where e < bound. Arrays are indexed by the anchor's position, padded to whole
// panels; units are those of the packed rows.
struct SumSide {
  SumForm form;
  float sign;          // 1 for negatives, -1 for positives
  float scale;         // of e in an exponent
  bool has_one_shift;  // logsumexp: `shift` is taken from every exponent, else the anchor's own
  float shift;
  const float* bounds;  // +inf where there is none
  const float* shifts;  // logsumexp: own shifts; softplus: what is added to scale * e
  // Sums, and for the gradient those of the derivatives by the bound or shift.
  double* sums;
  int64_t* counts;
  // For the gradient: factors of exponentials, of hinges, of terms.
  const float* weights;
};

struct SumTask {
  WalkTask walk;
  const int64_t* class_begin;  // [anchor position] positions in y of the anchor's class
  const int64_t* class_end;
  SumSide positive;
  SumSide negative;
};

// Adds the pairs of two spans of panels to the sums, or their gradient where that is wanted.
using SumFunction = void (*)(const SumTask&, Span x, Span y);

namespace baseline {
void contrast_sums(const SumTask& task, Span x, Span y);
}
namespace avx2 {
void contrast_sums(const SumTask& task, Span x, Span y);
}
namespace avx512 {
void contrast_sums(const SumTask& task, Span x, Span y);
}

}  // namespace dmlfast::cpu
