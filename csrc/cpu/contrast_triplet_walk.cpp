#include "contrast_triplet_walk.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/block_schedule.h"
#include "engine/class_ranges.h"
#include "engine/gradient_matrix.h"
#include "engine/isa.h"
#include "engine/upstream.h"
#include "threshold.h"

namespace dmlfast::cpu {

namespace {

// With more positives sorting an anchor's negatives is faster than comparing them with each.
constexpr int64_t kMostPositives = 32;

// The positives of the anchor that has the most.
int64_t most_positives(const LabelledRows& anchors, const LabelledRows& references,
                       const int64_t* self_index) {
  int64_t most = 0;
  for_class_ranges(anchors, references, [&](int64_t i, int64_t begin, int64_t end) {
    const int64_t anchor = anchors.order[i];
    const int64_t self = self_index == nullptr ? -1 : self_index[anchor];
    const bool is_own = self >= 0 && self < references.rows.rows() &&
                        references.labels[self] == anchors.labels[anchor];
    most = std::max(most, end - begin - (is_own ? 1 : 0));
  });
  return most;
}

bool is_own_index(const int64_t* self_index, int64_t rows) {
  for (int64_t i = 0; self_index != nullptr && i < rows; ++i) {
    if (self_index[i] != i) {
      return false;
    }
  }
  return self_index != nullptr;
}

}  // namespace

std::unique_ptr<TripletWalk> TripletWalk::make(const LabelledRows& anchors,
                                               const LabelledRows& references,
                                               const int64_t* self_index,
                                               const TripletOptions& options, bool wants_gradient) {
  if (options.returns_double || options.negatives != Negatives::all || anchors.rows.rows() == 0 ||
      references.rows.rows() == 0 || anchors.rows.columns() == 0) {
    return nullptr;
  }
  const int64_t positives =
      options.positives == Positives::all ? most_positives(anchors, references, self_index) : 1;
  if (positives > kMostPositives) {
    return nullptr;
  }
  const bool is_symmetric =
      !wants_gradient && anchors.is(references) && is_own_index(self_index, anchors.rows.rows());
  std::unique_ptr<TripletWalk> walk(
      new TripletWalk(anchors, references, is_symmetric, self_index, options, positives));
  if (walk->pair_.x().has_infinite() || walk->pair_.y().has_infinite()) {
    return nullptr;
  }
  walk->set_bounds();
  return walk;
}

TripletWalk::TripletWalk(const LabelledRows& anchors, const LabelledRows& references,
                         bool is_symmetric, const int64_t* self_index,
                         const TripletOptions& options, int64_t positives)
    : options_(options),
      pair_(anchors, references, is_symmetric, self_index, options.metric),
      positives_(positives) {}

void TripletWalk::find_positives(int64_t position, std::vector<Positive>& positives) const {
  const auto nearer = [&](const Positive& a, const Positive& b) {
    if (a.value != b.value) {
      return options_.positives == Positives::farthest ? a.value > b.value : a.value < b.value;
    }
    return pair_.references().order[a.position] < pair_.references().order[b.position];
  };
  positives.clear();
  if (!pair_.x().is_finite(position)) {
    return;
  }
  for (int64_t j = pair_.class_begin()[position]; j < pair_.class_end()[position]; ++j) {
    if (j == pair_.self()[position] || !pair_.y().is_finite(j)) {
      continue;
    }
    const double value = pair_.exact_value(position, j);
    const Positive found{j, value, returned_distance(options_.metric, value, false)};
    if (options_.positives == Positives::all || positives.empty()) {
      positives.push_back(found);
    } else if (nearer(found, positives.front())) {
      positives.front() = found;
    }
  }
}

void TripletWalk::set_bounds() {
  bounds_.assign(positives_ * pair_.padded_anchors(), -std::numeric_limits<float>::infinity());
  torch::stable::parallel_for(0, pair_.x().rows(), 64, [&](int64_t begin, int64_t end) {
    std::vector<Positive> positives;
    for (int64_t i = begin; i < end; ++i) {
      find_positives(i, positives);
      for (size_t p = 0; p < positives.size(); ++p) {
        const double bound = positives[p].distance + options_.margin;
        // Rounded up: a float32 distance is below it just where it is below the bound itself.
        bounds_of(p)[i] = rounded_up(bound / pair_.unit());
      }
    }
  });
}

// More than a packed distance, or its square, can be off, with what the root rounds.
double TripletWalk::error() const {
  const double norm = std::max(pair_.x().greatest_packed_norm(), pair_.y().greatest_packed_norm());
  const double greatest = options_.metric == Metric::cosine ? 2.0 : 4.0 * norm * norm;
  return 2.0 * pair_.greatest_key_error() + 0x1p-21 * greatest;
}

float TripletWalk::exact_distance(const void* walk, int64_t x, int64_t y) {
  const auto& self = *static_cast<const TripletWalk*>(walk);
  const double value = self.pair_.exact_value(x, y);
  return static_cast<float>(returned_distance(self.options_.metric, value, false) /
                            self.pair_.unit());
}

void TripletWalk::run(const GradientRows* x, const GradientRows* y) {
  losses_.assign(pair_.padded_anchors(), 0.0);
  active_.assign(pair_.padded_anchors(), 0);
  weights_.resize(pair_.padded_anchors(), 0.0f);
  hits_.assign(x == nullptr ? 0 : bounds_.size(), 0);
  const TripletTask task{pair_.task(x, y),
                         pair_.class_begin(),
                         pair_.class_end(),
                         pair_.padded_anchors(),
                         positives_,
                         bounds_.data(),
                         rounded_up(error()),
                         this,
                         &TripletWalk::exact_distance,
                         losses_.data(),
                         active_.data(),
                         weights_.data(),
                         hits_.data()};
  const TripletFunction add = DMLFAST_OF_ISA(triplets);
  meet_all(task.walk, [&](Span a, Span b) { add(task, a, b); });
}

void TripletWalk::write_losses(torch::stable::Tensor& loss, torch::stable::Tensor& active) {
  run(nullptr, nullptr);
  float* losses = static_cast<float*>(loss.mutable_data_ptr());
  int64_t* counts = static_cast<int64_t*>(active.mutable_data_ptr());
  for (int64_t i = 0; i < pair_.x().rows(); ++i) {
    const int64_t anchor = pair_.anchors().order[i];
    const bool is_lost = !pair_.x().is_finite(i);
    losses[anchor] = is_lost ? std::numeric_limits<float>::quiet_NaN()
                             : static_cast<float>(losses_[i] * pair_.unit());
    counts[anchor] = is_lost ? 1 : active_[i];
  }
}

void TripletWalk::write_gradients(const std::vector<double>& upstream,
                                  torch::stable::Tensor& grad_x,
                                  torch::stable::Tensor& grad_references) {
  const double divisor = common_divisor(upstream, {}) * pair_.unit();
  weights_.assign(pair_.padded_anchors(), 0.0f);
  for (int64_t i = 0; i < pair_.x().rows(); ++i) {
    const double grad = upstream[pair_.anchors().order[i]];
    weights_[i] = pair_.x().is_finite(i) ? static_cast<float>(grad / divisor * pair_.unit()) : 0.0f;
  }
  GradientMatrix x(pair_.x());
  GradientMatrix y(pair_.y());
  run(&x.view(), &y.view());
  add_positives(divisor, upstream, x.view(), y.view());
  const double factor = divisor * pair_.scale();
  x.write(
      pair_.anchors(), pair_.metric(), factor,
      [&](int64_t i) {
        return !pair_.x().is_finite(i) && upstream[pair_.anchors().order[i]] != 0.0;
      },
      grad_x);
  y.write(
      pair_.references(), pair_.metric(), factor, [](int64_t) { return false; }, grad_references);
}

void TripletWalk::add_positives(double divisor, const std::vector<double>& upstream,
                                const GradientRows& x, const GradientRows& y) const {
  // Whole classes at a time: their anchors and references are nobody else's.
  share(pair_.x().rows(), [&](int64_t first) {
    if (first > 0 && pair_.class_begin()[first] == pair_.class_begin()[first - 1]) {
      return;
    }
    std::vector<Positive> positives;
    for (int64_t i = first;
         i < pair_.x().rows() && pair_.class_begin()[i] == pair_.class_begin()[first]; ++i) {
      find_positives(i, positives);
      for (size_t p = 0; p < positives.size(); ++p) {
        const auto hits = static_cast<double>(hits_[p * pair_.padded_anchors() + i]);
        const double grad = hits * upstream[pair_.anchors().order[i]] / divisor * pair_.unit();
        if (grad != 0.0) {
          pair_.add_pair(i, positives[p].position, grad, positives[p].distance / pair_.unit(), x,
                         y);
        }
      }
    }
  });
}

}  // namespace dmlfast::cpu
