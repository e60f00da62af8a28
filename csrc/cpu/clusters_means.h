// Means of the rows of clusters.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "engine/matrix.h"

namespace dmlfast::cpu {

// The rows of each cluster, ascending. A row whose index is -1 is in none.
struct ClusterRows {
  ClusterRows(const int64_t* index, int64_t rows, int64_t clusters);

  int64_t clusters() const { return static_cast<int64_t>(begin.size()) - 1; }
  int64_t count(int64_t cluster) const { return begin[cluster + 1] - begin[cluster]; }

  std::vector<int64_t> begin;  // [cluster] place of the first in `order`, and the end
  std::vector<int64_t> order;
};

// Writes the float64 mean of each cluster, its rows added up in ascending order, rounded once. The
// rows of `means` whose clusters are empty are left as they are.
void write_means(const Matrix& x, const ClusterRows& rows, torch::stable::Tensor& means);

}  // namespace dmlfast::cpu
