#include "neighbors_search.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>

#include "engine/isa.h"
#include "engine/search_pack.h"
#include "neighbors_search_isa.h"

namespace dmlfast::cpu {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();
constexpr double kUnit = 0x1p-24;  // relative rounding error of float32

// Below this number of pairs packing twice costs more than the exact engine.
constexpr int64_t kFewPairs = 1 << 14;

SearchFunction search_function() {
  switch (active_isa()) {
#ifdef DMLFAST_X86
    case Isa::avx2:
      return avx2::search;
    case Isa::avx512:
      return avx512::search;
#endif
    default:
      return baseline::search;
  }
}

float rounded_down(double value) {
  const float rounded = static_cast<float>(value);
  return static_cast<double>(rounded) <= value ? rounded : std::nextafter(rounded, -kFloatInfinity);
}

float rounded_up(double value) { return -rounded_down(-value); }

// What every thread keeps for itself.
struct OwnWindows {
  explicit OwnWindows(const std::vector<float>& first_limits)
      : limits(first_limits),
        lost(first_limits.size(), kFloatInfinity),
        counts(first_limits.size(), 0),
        keys(new float[first_limits.size() * kWindow]),
        positions(new int32_t[first_limits.size() * kWindow]) {}

  SearchWindows view() {
    return {limits.data(), lost.data(), counts.data(), keys.get(), positions.get()};
  }

  std::vector<float> limits;
  std::vector<float> lost;
  std::vector<int32_t> counts;
  std::unique_ptr<float[]> keys;
  std::unique_ptr<int32_t[]> positions;
};

class NegativeSearch {
 public:
  explicit NegativeSearch(const NegativeQuery& query)
      : query_(query),
        symmetric_(query.anchors.is(query.references)),
        y_(query.references.rows, query.references.labels, query.references.order,
           search_centre(query.references.rows, query.metric), query.metric) {
    if (!symmetric_) {
      own_x_.emplace(query.anchors.rows, query.anchors.labels, query.anchors.order,
                     search_centre(query.references.rows, query.metric), query.metric);
    }
  }

  bool applies() const {
    const double greatest = std::max(y_.greatest_norm(), x().greatest_norm());
    return std::isfinite(y_.greatest_norm()) && std::isfinite(greatest) && greatest > 0.0;
  }

  std::vector<int64_t> run(double* best_value, int64_t* best_index) {
    const double greatest = std::max(y_.greatest_norm(), x().greatest_norm());
    scale_ = query_.metric == Metric::cosine ? 1.0 : std::exp2(-std::ilogb(greatest));
    y_.pack(scale_);
    if (own_x_) {
      own_x_->pack(scale_);
    }
    set_bounds();
    walk();
    return decide(best_value, best_index);
  }

 private:
  const SearchMatrix& x() const { return own_x_ ? *own_x_ : y_; }

  // The key of a pair is the scaled value minus a part that only the anchor decides. Its error
  // has three sources: the elements' rounding (2 units of |x||y|), the sum (a chain of 16 and
  // then the chains), and the rounding of addend and key. One unit in sixteen is spare, far more
  // than the float64 roundings need.
  void set_bounds() {
    const SearchRows& rows = x().view();
    const int64_t padded = rows.panel_count * kSearchPanelRows;
    const double chains = std::ceil(static_cast<double>(rows.dimensions) / kSearchChain);
    const double factor = sums_differences(query_.metric) ? 2.0 : 1.0;
    double greatest = 0.0;
    for (int64_t j = 0; j < y_.view().rows; ++j) {
      greatest = std::max(greatest, y_.norm(j));
    }
    least_.assign(padded, kFloatInfinity);
    surely_.assign(padded, kFloatInfinity);
    twice_error_.assign(padded, 0.0f);
    limits_.assign(padded, -kFloatInfinity);
    self_.assign(padded, -1);
    std::vector<int64_t> position_of;
    if (query_.self_index != nullptr) {
      position_of.resize(y_.view().rows);
      for (int64_t j = 0; j < y_.view().rows; ++j) {
        position_of[query_.references.order[j]] = j;
      }
    }
    for (int64_t i = 0; i < rows.rows; ++i) {
      const double norm = x().norm(i);
      const double products = factor * norm * greatest;
      const double key = products + (factor == 2.0 ? greatest * greatest : 0.0);
      const double error = 1.0625 * kUnit * ((kSearchChain + chains + 4.0) * products + 3.0 * key);
      const double lower = query_.lower[i];
      if (std::isnan(lower)) {
        continue;
      }
      limits_[i] = kFloatInfinity;
      twice_error_[i] = rounded_up(2.0 * error);
      const double least = key_of(lower, norm);
      least_[i] = rounded_down(least - error);
      surely_[i] = rounded_up(least + error);
      if (query_.self_index != nullptr) {
        const int64_t self = query_.self_index[query_.anchors.order[i]];
        self_[i] = self >= 0 && self < y_.view().rows ? position_of[self] : -1;
      }
    }
  }

  double key_of(double value, double norm) const {
    switch (query_.metric) {
      case Metric::cosine:
        return value - 1.0;
      case Metric::dot:
        return value * scale_ * scale_;
      default:
        return value * scale_ * scale_ - norm * norm;
    }
  }

  void walk() {
    const SearchTask task{x().view(),     y_.view(),
                          symmetric_,     sums_differences(query_.metric) ? -2.0f : -1.0f,
                          self_.data(),   least_.data(),
                          surely_.data(), twice_error_.data()};
    const SearchFunction search = search_function();
    const int64_t groups = (task.x.panel_count + kSearchGroup - 1) / kSearchGroup;
    const int64_t workers =
        std::min<int64_t>(std::max<int64_t>(1, torch::stable::get_num_threads()), groups);
    windows_.resize(workers);
    // Groups are taken one by one: in a symmetric product the first have the most tiles. Whoever
    // takes a group, the candidates that matter are found, and the decision is exact.
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) {
        windows_[worker] = std::make_unique<OwnWindows>(limits_);
        const SearchWindows windows = windows_[worker]->view();
        for (int64_t group = next++; group < groups; group = next++) {
          search(task, windows, group);
        }
      }
    });
  }

  std::vector<int64_t> decide(double* best_value, int64_t* best_index) const {
    const int64_t anchors = x().view().rows;
    std::vector<uint8_t> undecided(anchors, 0);
    torch::stable::parallel_for(0, anchors, 128, [&](int64_t begin, int64_t end) {
      std::vector<double> row(query_.anchors.rows.columns());
      std::vector<double> other(row.size());
      for (int64_t i = begin; i < end; ++i) {
        float limit = kFloatInfinity;
        float lost = kFloatInfinity;
        for (const auto& windows : windows_) {
          limit = std::min(limit, windows->limits[i]);
          lost = std::min(lost, windows->lost[i]);
        }
        if (lost <= limit && lost < kFloatInfinity) {
          undecided[i] = 1;
          continue;
        }
        decide_anchor(i, limit, row, other, best_value + i, best_index + i);
      }
    });
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < anchors; ++i) {
      if (undecided[i] != 0) {
        positions.push_back(i);
      }
    }
    return positions;
  }

  void decide_anchor(int64_t i, float limit, std::vector<double>& row, std::vector<double>& other,
                     double* best_value, int64_t* best_index) const {
    bool is_read = false;
    for (const auto& windows : windows_) {
      for (int32_t c = 0; c < windows->counts[i]; ++c) {
        if (windows->keys[i * kWindow + c] > limit) {
          continue;
        }
        const int64_t position = windows->positions[i * kWindow + c];
        const int64_t index = query_.references.order[position];
        if (!is_read) {
          query_.anchors.rows.read_row(query_.anchors.order[i], row.data());
          is_read = true;
        }
        query_.references.rows.read_row(index, other.data());
        const double value = exact_value(i, position, row, other);
        if (value >= query_.lower[i] &&
            (value < *best_value || (value == *best_value && index < *best_index))) {
          *best_value = value;
          *best_index = index;
        }
      }
    }
  }

  double exact_value(int64_t i, int64_t position, const std::vector<double>& row,
                     const std::vector<double>& other) const {
    double sum = 0.0;
    if (sums_differences(query_.metric)) {
      for (size_t k = 0; k < row.size(); ++k) {
        const double difference = row[k] - other[k];
        sum += difference * difference;
      }
    } else {
      for (size_t k = 0; k < row.size(); ++k) {
        sum += row[k] * other[k];
      }
    }
    const bool cosine = query_.metric == Metric::cosine;
    return value_of(query_.metric, sum, cosine ? x().own_norm(i) : 0.0,
                    cosine ? y_.own_norm(position) : 0.0);
  }

  const NegativeQuery& query_;
  bool symmetric_;
  SearchMatrix y_;
  std::optional<SearchMatrix> own_x_;
  double scale_ = 1.0;
  std::vector<float> least_;
  std::vector<float> surely_;
  std::vector<float> twice_error_;
  std::vector<float> limits_;
  std::vector<int64_t> self_;
  std::vector<std::unique_ptr<OwnWindows>> windows_;
};

std::vector<int64_t> all_positions(int64_t rows) {
  std::vector<int64_t> positions(rows);
  std::iota(positions.begin(), positions.end(), 0);
  return positions;
}

}  // namespace

std::vector<int64_t> search_negatives(const NegativeQuery& query, double* best_value,
                                      int64_t* best_index) {
  const int64_t anchors = query.anchors.rows.rows();
  const int64_t references = query.references.rows.rows();
  if (references == 0 || anchors < kFewPairs / references || query.anchors.rows.columns() == 0 ||
      std::max(anchors, references) > std::numeric_limits<int32_t>::max()) {
    return all_positions(anchors);
  }
  NegativeSearch search(query);
  if (!search.applies()) {
    return all_positions(anchors);
  }
  return search.run(best_value, best_index);
}

}  // namespace dmlfast::cpu
