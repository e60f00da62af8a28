// The k nearest references of every anchor under a label rule.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "engine/labelled_rows.h"
#include "label_rule.h"
#include "metric.h"
#include "neighbors_top_isa.h"

namespace dmlfast::cpu {

struct TopProblem {
  LabelledRows anchors;
  LabelledRows references;
  Metric metric;
  LabelRule rule;
  const int64_t* self_index;  // [anchor] reference that is the anchor itself, or null
  int64_t k;

  // Places for candidates: what is kept of a full array leaves room for many more.
  int64_t capacity() const;
};

// An object, not a function: its calls are inlined.
struct IsNearer {
  bool operator()(const Neighbor& a, const Neighbor& b) const {
    return a.value < b.value || (a.value == b.value && a.index < b.index);
  }
};

// The tensors that a problem's result is written to.
class TopResult {
 public:
  TopResult(const TopProblem& problem, torch::stable::Tensor& distance,
            torch::stable::Tensor& index);

  // Sorts the candidates of the anchor at a position and writes the k nearest. Anchors may be
  // written by several threads.
  void write(int64_t position, Neighbor* candidates, int64_t count) const;

 private:
  const TopProblem& problem_;
  bool returns_double_;
  void* distances_;
  int64_t* indices_;
};

// Writes what a float32 search decides, and returns the positions of the other anchors, ascending:
// all of them when a row is infinite.
std::vector<int64_t> search_top(const TopProblem& problem, const TopResult& result);

}  // namespace dmlfast::cpu
