#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "engine/isa.h"
#include "engine/matrix.h"
#include "engine/packed_rows.h"
#include "engine/upstream.h"
#include "ranking_checks.h"
#include "ranking_isa.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kLeastPanels = 16;  // of a thread

// What the differences of a side's exponents share, and the rest of them.
struct Side {
  double common;
  RankingSide pairs;
};

// The loss of a row is the sum over its sides of
// log(1 + sum exp(scale * (difference + common))) / scale.
class Sides {
 public:
  Sides(int64_t columns, const RankingForm& form) : zeros_(columns, 0.0), steps_(columns) {
    for (int64_t k = 0; k < columns; ++k) {
      // Far beyond any float32, and no infinity whose difference with another would be NaN.
      steps_[k] = std::clamp(-static_cast<double>(k) * form.margin, -1e300, 1e300);
    }
    const bool is_adjacent = form.pairs == RankingPairs::adjacent;
    sides_.push_back({form.margin, {1.0, form.scale, is_adjacent, zeros_.data(), columns}});
    if (form.pairs == RankingPairs::band) {
      sides_.push_back({0.0, {-1.0, form.scale, false, steps_.data(), columns}});
    }
  }

  const std::vector<Side>& all() const { return sides_; }

 private:
  std::vector<double> zeros_;
  std::vector<double> steps_;
  std::vector<Side> sides_;
};

// The rows of a panel, column by column; 0 where a row is not finite or not there.
class Panel {
 public:
  explicit Panel(int64_t columns)
      : columns_(columns),
        values_(columns * kPanelRows),
        terms_(values_.size()),
        gradients_(values_.size()),
        row_(columns) {}

  void read(const Matrix& similarities, int64_t panel) {
    first_ = panel * kPanelRows;
    rows_ = std::min(kPanelRows, similarities.rows() - first_);
    std::fill(values_.begin(), values_.end(), 0.0);
    for (int64_t r = 0; r < rows_; ++r) {
      similarities.read_row(first_ + r, values_.data() + r, kPanelRows);
    }
    std::fill_n(lost_, kPanelRows, 0.0);
    for (int64_t k = 0; k < columns_; ++k) {
      for (int64_t r = 0; r < kPanelRows; ++r) {
        lost_[r] += 0.0 * values_[k * kPanelRows + r];  // NaN from then on
      }
    }
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t k = 0; is_lost(r) && k < columns_; ++k) {
        values_[k * kPanelRows + r] = 0.0;
      }
    }
  }

  void write_losses(const Sides& sides, float* losses) {
    double totals[kPanelRows] = {};
    for (const Side& side : sides.all()) {
      sum(side);
      for (int64_t r = 0; r < rows_; ++r) {
        totals[r] += logarithm(side, r);
      }
    }
    for (int64_t r = 0; r < rows_; ++r) {
      losses[first_ + r] = static_cast<float>(is_lost(r) ? kNan : totals[r]);
    }
  }

  void write_gradients(const Sides& sides, const std::vector<double>& upstream, Tensor& gradients) {
    const RankingGradientFunction add = DMLFAST_OF_ISA(ranking_gradients);
    std::fill(gradients_.begin(), gradients_.end(), 0.0);
    for (const Side& side : sides.all()) {
      sum(side);
      double weights[kPanelRows] = {};
      for (int64_t r = 0; r < rows_; ++r) {
        weights[r] = weight(side, r);
      }
      if (columns_ > 1) {
        add(side.pairs, values_.data(), greatest_, terms_.data(), weights, gradients_.data());
      }
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const double factor = upstream[first_ + r];
      for (int64_t k = 0; k < columns_; ++k) {
        const double value = is_lost(r) ? kNan : gradients_[k * kPanelRows + r];
        // 0 * NaN: neither a similarity without a pair nor a row that nobody asks for counts.
        row_[k] = value == 0.0 || factor == 0.0 ? 0.0 : value * factor;
      }
      write_row(gradients, first_ + r, row_.data());
    }
  }

 private:
  bool is_lost(int64_t r) const { return std::isnan(lost_[r]); }

  void sum(const Side& side) {
    if (columns_ < 2) {
      std::fill_n(greatest_, kPanelRows, -std::numeric_limits<double>::infinity());
      return;
    }
    const RankingSumFunction sum = DMLFAST_OF_ISA(ranking_sums);
    sum(side.pairs, values_.data(), greatest_, sums_, terms_.data());
  }

  // log(1 + sum exp(scale * (difference + common))) / scale. No exponent is above 0.
  double logarithm(const Side& side, int64_t r) const {
    const double scale = side.pairs.scale;
    const double most = greatest_[r] + side.common;
    return most > 0.0 ? most + std::log1p(sums_[r] + std::expm1(-scale * most)) / scale
                      : std::log1p(sums_[r] * std::exp(scale * most)) / scale;
  }

  // Its derivative by the sum.
  double weight(const Side& side, int64_t r) const {
    const double scale = side.pairs.scale;
    const double most = greatest_[r] + side.common;
    if (most > 0.0) {
      return 1.0 / (sums_[r] + std::exp(-scale * most));
    }
    const double power = std::exp(scale * most);
    return power / (1.0 + sums_[r] * power);
  }

  int64_t columns_;
  int64_t first_ = 0;
  int64_t rows_ = 0;
  std::vector<double> values_;
  std::vector<double> terms_;
  std::vector<double> gradients_;
  std::vector<double> row_;
  double lost_[kPanelRows] = {};  // NaN or 0
  double greatest_[kPanelRows] = {};
  double sums_[kPanelRows] = {};
};

// Calls f(panel) for each panel of the rows, read.
template <class F>
void for_each_panel(const Tensor& similarities, const F& f) {
  const Matrix matrix(similarities);
  const int64_t panels = (matrix.rows() + kPanelRows - 1) / kPanelRows;
  torch::stable::parallel_for(0, panels, kLeastPanels, [&](int64_t begin, int64_t end) {
    Panel panel(matrix.columns());
    for (int64_t p = begin; p < end; ++p) {
      panel.read(matrix, p);
      f(panel);
    }
  });
}

Tensor ranking_loss(Tensor similarities, double margin, double scale, std::string pairs) {
  check_similarities(similarities);
  const Sides sides(similarities.size(1), ranking_form(margin, scale, pairs));
  Tensor loss = torch::stable::new_empty(similarities, {similarities.size(0)}, ScalarType::Float);
  float* losses = static_cast<float*>(loss.mutable_data_ptr());
  for_each_panel(similarities, [&](Panel& panel) { panel.write_losses(sides, losses); });
  return loss;
}

Tensor ranking_loss_backward(Tensor grad, Tensor similarities, double margin, double scale,
                             std::string pairs) {
  check_similarities(similarities);
  check_row_gradient(grad, similarities);
  const Sides sides(similarities.size(1), ranking_form(margin, scale, pairs));
  Tensor result =
      torch::stable::new_empty(similarities, {similarities.size(0), similarities.size(1)});
  const std::vector<double> upstream = read_column(grad);
  for_each_panel(similarities,
                 [&](Panel& panel) { panel.write_gradients(sides, upstream, result); });
  return result;
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("ranking_loss", TORCH_BOX(&dmlfast::cpu::ranking_loss));
  m.impl("ranking_loss_backward", TORCH_BOX(&dmlfast::cpu::ranking_loss_backward));
}
