// The nearest negative of every anchor by a float32 search, proven exact anchor by anchor.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/labelled_rows.h"
#include "metric.h"

namespace dmlfast::cpu {

struct NegativeQuery {
  LabelledRows anchors;
  LabelledRows references;
  Metric metric;
  const int64_t* self_index;  // [anchor] reference that is the anchor itself, or null
  const double* lower;        // [position] least admissible value; NaN admits none
};

// Finds, by anchor position in label order, the least admissible value among references of other
// classes and its reference, the lowest of equals; leaves +inf and -1 where there is none.
// Returns the positions that the error bound leaves undecided: all of them when the rows are not
// finite or there are too few to be worth it.
std::vector<int64_t> search_negatives(const NegativeQuery& query, double* best_value,
                                      int64_t* best_index);

}  // namespace dmlfast::cpu
