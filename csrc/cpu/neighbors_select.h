// The exact engine of the family `neighbors`, for others that search.
#pragma once

#include <cstdint>

#include "engine/span.h"
#include "neighbors_search.h"

namespace dmlfast::cpu {

// Compares the exact values of all pairs of the anchors at these positions, which ascend, with the
// references at a range of positions.
void select_exactly(const SelectProblem& problem, const int64_t* positions, int64_t count,
                    Span references, SelectState& state);

}  // namespace dmlfast::cpu
