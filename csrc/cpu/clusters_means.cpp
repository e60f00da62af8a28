#include "clusters_means.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "clusters_checks.h"
#include "engine/block_schedule.h"

namespace dmlfast::cpu {

namespace {

// Rows are asked for this many before they are added: they lie anywhere.
constexpr int64_t kAhead = 4;

}  // namespace

ClusterRows::ClusterRows(const int64_t* index, int64_t rows, int64_t clusters)
    : begin(clusters + 1, 0) {
  for (int64_t i = 0; i < rows; ++i) {
    STD_TORCH_CHECK(index[i] >= -1 && index[i] < clusters, "index: expected -1 to ", clusters - 1,
                    ", got ", index[i]);
    if (index[i] >= 0) {
      ++begin[index[i] + 1];
    }
  }
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  order.resize(begin.back());
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t i = 0; i < rows; ++i) {
    if (index[i] >= 0) {
      order[next[index[i]]++] = i;
    }
  }
}

void write_means(const Matrix& x, const ClusterRows& rows, torch::stable::Tensor& means) {
  share(rows.clusters(), [&](int64_t cluster) {
    if (rows.count(cluster) == 0) {
      return;
    }
    std::vector<double> row(x.columns());
    std::vector<double> mean(x.columns(), 0.0);
    for (int64_t at = rows.begin[cluster]; at < rows.begin[cluster + 1]; ++at) {
      if (at + kAhead < static_cast<int64_t>(rows.order.size())) {
        x.prefetch_row(rows.order[at + kAhead]);
      }
      x.read_row(rows.order[at], row.data());
      for (size_t k = 0; k < row.size(); ++k) {
        mean[k] += row[k];
      }
    }
    for (double& value : mean) {
      value /= static_cast<double>(rows.count(cluster));
    }
    write_row(means, cluster, mean.data());
  });
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> clusters_means(Tensor x, Tensor index, int64_t clusters) {
  check_cluster_means(x, index, clusters);
  Tensor means =
      torch::stable::new_empty(x, {clusters, x.size(1)}, distance_dtype(x.scalar_type()));
  torch::stable::zero_(means);
  Tensor count = torch::stable::new_empty(x, {clusters}, ScalarType::Long);
  const ClusterRows rows(index.const_data_ptr<int64_t>(), x.size(0), clusters);
  write_means(Matrix(x), rows, means);
  for (int64_t cluster = 0; cluster < clusters; ++cluster) {
    count.mutable_data_ptr<int64_t>()[cluster] = rows.count(cluster);
  }
  return {means, count};
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("clusters_means", TORCH_BOX(&dmlfast::cpu::clusters_means));
}
