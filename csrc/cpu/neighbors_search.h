// Selections by a float32 search, proven exact anchor by anchor.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/labelled_rows.h"
#include "metric.h"

namespace dmlfast::cpu {

// What is selected: per anchor and threshold the nearest or farthest reference under a label rule.
struct SelectProblem {
  LabelledRows anchors;
  LabelledRows references;
  Metric metric;
  bool same_class;
  bool farthest;
  const int64_t* self_index;  // [anchor] reference that is the anchor itself, or null
  int64_t thresholds;
};

// Per anchor position in label order, times thresholds, what a search reads and writes.
struct SelectState {
  SelectState(int64_t rows, int64_t thresholds);

  std::vector<double> lower;       // least admissible value; NaN admits none
  std::vector<double> best_value;  // +inf where nothing was found; negated for the farthest
  std::vector<int64_t> best_index;
};

// Whether a float32 search of the pairs of one class, or of all, is worth packing the rows for it.
bool search_pays(const LabelledRows& anchors, const LabelledRows& references, bool same_class);

// Whether `search` is worth its while.
bool search_applies(const SelectProblem& problem);

// Writes the selections that the error bound decides, the lowest reference of equal values, and
// returns the positions of the other anchors, in ascending order: all of them when a row is
// infinite.
std::vector<int64_t> search(const SelectProblem& problem, SelectState& state);

}  // namespace dmlfast::cpu
