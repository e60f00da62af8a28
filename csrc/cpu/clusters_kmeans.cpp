#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "clusters_checks.h"
#include "clusters_means.h"
#include "clusters_search.h"
#include "engine/matrix.h"
#include "seed_section.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Hands the rows that are farthest from their centres to the clusters without rows, the farthest to
// the first of them. A row at its centre stays, and so does one that is alone.
class EmptyClusters {
 public:
  EmptyClusters(const std::vector<double>& values, int64_t clusters)
      : values_(values), counts_(clusters) {}

  void fill(std::vector<int64_t>& index) {
    std::fill(counts_.begin(), counts_.end(), 0);
    for (int64_t cluster : index) {
      if (cluster >= 0) {
        ++counts_[cluster];
      }
    }
    if (std::count(counts_.begin(), counts_.end(), 0) == 0) {
      return;
    }
    const auto is_nearer = [&](int64_t a, int64_t b) {
      return values_[a] < values_[b] || (values_[a] == values_[b] && a > b);
    };
    std::vector<int64_t> rows;
    for (size_t i = 0; i < index.size(); ++i) {
      if (index[i] >= 0 && values_[i] > 0.0) {
        rows.push_back(static_cast<int64_t>(i));
      }
    }
    std::make_heap(rows.begin(), rows.end(), is_nearer);
    for (size_t cluster = 0; cluster < counts_.size(); ++cluster) {
      while (counts_[cluster] == 0 && !rows.empty()) {
        std::pop_heap(rows.begin(), rows.end(), is_nearer);
        const int64_t row = rows.back();
        rows.pop_back();
        if (counts_[index[row]] > 1) {
          --counts_[index[row]];
          index[row] = static_cast<int64_t>(cluster);
          counts_[cluster] = 1;
        }
      }
    }
  }

 private:
  const std::vector<double>& values_;
  std::vector<int64_t> counts_;
};

std::tuple<Tensor, Tensor, Tensor> clusters_kmeans(Tensor x, Tensor initial, int64_t iterations) {
  check_kmeans(x, initial, iterations);
  const int64_t clusters = initial.size(0);
  const Matrix rows(x);
  Tensor centers = torch::stable::new_empty(x, {clusters, x.size(1)});
  torch::stable::copy_(centers, initial);
  Tensor index = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  Tensor history = torch::stable::new_empty(x, {iterations + 1}, ScalarType::Double);
  double* inertia = history.mutable_data_ptr<double>();
  NearestCentres nearest(rows, clusters);
  EmptyClusters empty(nearest.values(), clusters);
  std::vector<int64_t> members;
  for (int64_t t = 0;; ++t) {
    nearest.assign(Matrix(centers));
    inertia[t] = std::accumulate(nearest.values().begin(), nearest.values().end(), 0.0);
    if (t == iterations) {
      break;
    }
    std::vector<int64_t> next = nearest.index();
    empty.fill(next);
    if (next == members) {  // the means stay where they are
      std::fill(inertia + t, inertia + iterations + 1, inertia[t]);
      break;
    }
    members.swap(next);
    write_means(rows, ClusterRows(members.data(), rows.rows(), clusters), centers);
  }
  std::copy(nearest.index().begin(), nearest.index().end(), index.mutable_data_ptr<int64_t>());
  return {centers, index, history};
}

// Draws rows, the first uniformly and the others in proportion to their squared distance to the
// nearest of those before.
class Seeds {
 public:
  explicit Seeds(const Matrix& rows)
      : rows_(rows), values_(rows.rows(), 0.0), centre_(rows.columns()) {
    for (int64_t i = 0; i < rows.rows(); ++i) {
      if (rows.is_finite(i)) {
        finite_.push_back(i);
      }
    }
  }

  // `uniform` is in [0, 1).
  int64_t draw(double uniform) {
    int64_t row = drawn_ ? weighted(uniform) : -1;
    if (row < 0) {
      const auto count = static_cast<double>(finite_.size());
      row = finite_.empty() ? -1
                            : finite_[std::min<int64_t>(static_cast<int64_t>(uniform * count),
                                                        static_cast<int64_t>(finite_.size()) - 1)];
    }
    if (row >= 0) {
      approach(row);
      drawn_ = true;
    }
    return row;
  }

 private:
  // The row where the sum of the weights passes a part of the whole; -1 where that is 0 or not
  // finite.
  int64_t weighted(double uniform) const {
    const auto count = static_cast<int64_t>(values_.size());
    std::vector<double> before;  // each section
    double total = 0.0;
    for (int64_t first = 0; first < count; first += kSeedSection) {
      before.push_back(total);
      const auto begin = values_.begin() + first;
      total += std::accumulate(begin, begin + std::min(kSeedSection, count - first), 0.0);
    }
    if (!(total > 0.0 && total < kInfinity)) {
      return -1;
    }
    const double target = uniform * total;
    double sum = 0.0;
    int64_t last = -1;
    for (int64_t i = 0; i < count; ++i) {
      sum = i % kSeedSection == 0 ? values_[i] : sum + values_[i];
      last = values_[i] > 0.0 ? i : last;
      if (before[i / kSeedSection] + sum > target) {
        return i;
      }
    }
    return last;
  }

  void approach(int64_t row) {
    rows_.read_row(row, centre_.data());
    torch::stable::parallel_for(0, rows_.rows(), 256, [&](int64_t begin, int64_t end) {
      std::vector<double> buffer(kRowsTogether * rows_.columns());
      const double* const centres[kRowsTogether] = {centre_.data(), centre_.data(), centre_.data(),
                                                    centre_.data()};
      for (int64_t first = begin; first < end; first += kRowsTogether) {
        const int64_t count = std::min(kRowsTogether, end - first);
        double values[kRowsTogether];
        squared_distances(rows_, first, count, centres, buffer.data(), values);
        for (int64_t r = 0; r < count; ++r) {
          double& least = values_[first + r];
          // A row that is not finite keeps weight 0.
          least = std::isnan(values[r]) || std::isinf(values[r]) ? 0.0
                  : drawn_                                       ? std::min(least, values[r])
                                                                 : values[r];
        }
      }
    });
  }

  const Matrix rows_;
  std::vector<int64_t> finite_;
  std::vector<double> values_;
  std::vector<double> centre_;
  bool drawn_ = false;
};

Tensor clusters_seeds(Tensor x, Tensor uniform) {
  check_seeds(x, uniform);
  Tensor index = torch::stable::new_empty(x, {uniform.numel()}, ScalarType::Long);
  Seeds seeds{Matrix(x)};
  for (int64_t k = 0; k < uniform.numel(); ++k) {
    index.mutable_data_ptr<int64_t>()[k] = seeds.draw(uniform.const_data_ptr<double>()[k]);
  }
  return index;
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("clusters_kmeans", TORCH_BOX(&dmlfast::cpu::clusters_kmeans));
  m.impl("clusters_seeds", TORCH_BOX(&dmlfast::cpu::clusters_seeds));
}
