#include "neighbors_search.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "engine/block_schedule.h"
#include "engine/class_ranges.h"
#include "engine/exact_value.h"
#include "engine/isa.h"
#include "engine/search_pair.h"
#include "engine/self_positions.h"
#include "neighbors_search_isa.h"

namespace dmlfast::cpu {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();

// Below this number of pairs packing twice costs more than the exact engine.
constexpr double kFewPairs = 1 << 14;

// Below this number of same-class references per anchor the exact engine is faster.
constexpr double kSmallClass = 64.0;

// The exact engine serves more of them in one pass.
constexpr int64_t kMostThresholds = 4;

// One threshold of a problem.
class Search {
 public:
  Search(const SelectProblem& problem, const SearchPair& rows, SelectState& state,
         int64_t threshold)
      : problem_(problem),
        rows_(rows),
        x_(rows.x()),
        y_(rows.y()),
        sign_(problem.farthest ? -1.0 : 1.0),
        state_(state),
        threshold_(threshold) {}

  // Marks the positions that stay undecided.
  void run(std::vector<uint8_t>& undecided) {
    set_bounds();
    walk();
    torch::stable::parallel_for(0, x_.view().rows, 128,
                                [&](int64_t begin, int64_t end) { decide(begin, end, undecided); });
  }

 private:
  int64_t slot(int64_t position) const { return position * problem_.thresholds + threshold_; }

  void set_bounds() {
    const SearchRows& rows = x_.view();
    const int64_t padded = rows.panel_count * kSearchPanelRows;
    least_.assign(padded, kFloatInfinity);
    surely_.assign(padded, kFloatInfinity);
    twice_error_.assign(padded, 0.0f);
    limits_.assign(padded, -kFloatInfinity);
    for (int64_t i = 0; i < rows.rows; ++i) {
      const double lower = state_.lower[slot(i)];
      // A row of NaN has keys of NaN, which compare with nothing; as an anchor it finds nothing.
      if (std::isnan(lower) || std::isnan(x_.norm(i))) {
        continue;
      }
      const double error = rows_.error(i);
      limits_[i] = kFloatInfinity;
      twice_error_[i] = rounded_up(2.0 * error);
      // Every key is admissible where there is no threshold, as for the farthest.
      const double least = lower == -kInfinity ? lower : key_of(lower, x_.norm(i));
      least_[i] = rounded_down(least - error);
      surely_[i] = rounded_up(least + error);
    }
    self_ = self_positions(problem_.anchors, problem_.references, problem_.self_index, padded);
  }

  double key_of(double value, double norm) const {
    switch (problem_.metric) {
      case Metric::cosine:
        return value - 1.0;
      case Metric::dot:
        return value * rows_.scale() * rows_.scale();
      default:
        return value * rows_.scale() * rows_.scale() - norm * norm;
    }
  }

  void walk() {
    const double factor = sums_differences(problem_.metric) ? -2.0 : -1.0;
    const KeyTask keys{x_.view(),
                       y_.view(),
                       rows_.is_symmetric(),
                       problem_.same_class ? LabelRule::same_class : LabelRule::other_class,
                       static_cast<float>(sign_ * factor),
                       self_.data()};
    lost_.assign(limits_.size(), kFloatInfinity);
    counts_.assign(limits_.size(), 0);
    keys_.reset(new float[limits_.size() * kWindow]);
    positions_.reset(new int32_t[limits_.size() * kWindow]);
    const SearchTask task{
        keys,         least_.data(),  surely_.data(), twice_error_.data(), limits_.data(),
        lost_.data(), counts_.data(), keys_.get(),    positions_.get()};
    const SearchFunction search = DMLFAST_OF_ISA(search);
    meet_all(keys, [&](Span x, Span y) { search(task, x, y); });
  }

  void decide(int64_t begin, int64_t end, std::vector<uint8_t>& undecided) const {
    std::vector<double> row(problem_.anchors.rows.columns());
    std::vector<double> other(row.size());
    for (int64_t i = begin; i < end; ++i) {
      if (lost_[i] <= limits_[i] && lost_[i] < kFloatInfinity) {
        undecided[i] = 1;
      } else if (counts_[i] > 0) {
        decide_anchor(i, row, other);
      }
    }
  }

  void decide_anchor(int64_t i, std::vector<double>& row, std::vector<double>& other) const {
    double& best_value = state_.best_value[slot(i)];
    int64_t& best_index = state_.best_index[slot(i)];
    problem_.anchors.rows.read_row(problem_.anchors.order[i], row.data());
    for (int32_t c = 0; c < counts_[i]; ++c) {
      if (keys_[i * kWindow + c] > limits_[i]) {
        continue;
      }
      const int64_t position = positions_[i * kWindow + c];
      const int64_t index = problem_.references.order[position];
      problem_.references.rows.read_row(index, other.data());
      const double value = exact_value(i, position, row, other);
      const double key = sign_ * value;
      if (value >= state_.lower[slot(i)] &&
          (key < best_value || (key == best_value && index < best_index))) {
        best_value = key;
        best_index = index;
      }
    }
  }

  double exact_value(int64_t i, int64_t position, const std::vector<double>& row,
                     const std::vector<double>& other) const {
    const bool cosine = problem_.metric == Metric::cosine;
    return value_of(problem_.metric, exact_sum(problem_.metric, row, other),
                    cosine ? x_.own_norm(i) : 0.0, cosine ? y_.own_norm(position) : 0.0);
  }

  const SelectProblem& problem_;
  const SearchPair& rows_;
  const SearchMatrix& x_;
  const SearchMatrix& y_;
  double sign_;
  SelectState& state_;
  int64_t threshold_;
  std::vector<float> least_;
  std::vector<float> surely_;
  std::vector<float> twice_error_;
  std::vector<float> limits_;
  std::vector<int64_t> self_;
  std::vector<float> lost_;
  std::vector<int32_t> counts_;
  std::unique_ptr<float[]> keys_;
  std::unique_ptr<int32_t[]> positions_;
};

// Pairs of anchors and references of one class.
double same_class_pairs(const LabelledRows& anchors, const LabelledRows& references) {
  double pairs = 0.0;
  for_class_ranges(anchors, references, [&](int64_t, int64_t begin, int64_t end) {
    pairs += static_cast<double>(end - begin);
  });
  return pairs;
}

std::vector<int64_t> all_positions(int64_t rows) {
  std::vector<int64_t> positions(rows);
  std::iota(positions.begin(), positions.end(), 0);
  return positions;
}

}  // namespace

SelectState::SelectState(int64_t rows, int64_t thresholds)
    : lower(rows * thresholds, -kInfinity),
      best_value(rows * thresholds, kInfinity),
      best_index(rows * thresholds, -1) {}

bool search_pays(const LabelledRows& anchors, const LabelledRows& references, bool same_class) {
  const int64_t rows = anchors.rows.rows();
  const int64_t candidates = references.rows.rows();
  if (anchors.rows.columns() == 0 ||
      std::max(rows, candidates) > std::numeric_limits<int32_t>::max()) {
    return false;
  }
  if (same_class) {
    // The exact engine computes no more than the pairs of a class, which is less than packing
    // where classes are small.
    const double pairs = same_class_pairs(anchors, references);
    return pairs >= kFewPairs && pairs >= kSmallClass * static_cast<double>(rows);
  }
  return static_cast<double>(rows) * static_cast<double>(candidates) >= kFewPairs;
}

bool search_applies(const SelectProblem& problem) {
  return problem.thresholds <= kMostThresholds &&
         search_pays(problem.anchors, problem.references, problem.same_class);
}

std::vector<int64_t> search(const SelectProblem& problem, SelectState& state) {
  SearchPair rows(problem.anchors, problem.references, problem.metric, problem.same_class);
  const int64_t count = problem.anchors.rows.rows();
  if (!rows.is_searchable()) {
    return all_positions(count);
  }
  rows.pack(problem.farthest);
  std::vector<uint8_t> undecided(count, 0);
  for (int64_t t = 0; t < problem.thresholds; ++t) {
    Search(problem, rows, state, t).run(undecided);
  }
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < count; ++i) {
    if (undecided[i] != 0) {
      positions.push_back(i);
    }
  }
  return positions;
}

}  // namespace dmlfast::cpu
