#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "contrast_sums_isa.h"
#include "engine/block_schedule.h"
#include "engine/gradient_matrix.h"
#include "engine/isa.h"
#include "engine/matrix.h"
#include "engine/upstream.h"
#include "engine/walk_pair.h"
#include "metric_name.h"
#include "operator_checks.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();

// With exponents in [-60, 60] around one shift neither they nor sums of 2^32 of them, nor their
// inverses, leave the range of float32.
constexpr double kGreatestExponent = 60.0;

SumForm form_of(const std::string& name) {
  if (name == "none") {
    return SumForm::none;
  }
  if (name == "logsumexp") {
    return SumForm::logsumexp;
  }
  if (name == "hinge") {
    return SumForm::hinge;
  }
  if (name == "softplus") {
    return SumForm::softplus;
  }
  STD_TORCH_CHECK(name == "sum",
                  "form: expected 'none', 'logsumexp', 'hinge', 'sum' or 'softplus', got '", name,
                  "'");
  return SumForm::sum;
}

// One side of the operator: what the loops read, and what they add up, by anchor position.
class Side {
 public:
  Side(const WalkPair& pair, double sign, const std::string& form, double scale,
       const std::optional<Tensor>& bound, const Tensor& x)
      : pair_(pair),
        sign_(sign),
        form_(form_of(form)),
        scale_(scale * pair.unit()),
        bounds_(pair.padded_anchors(), kFloatInfinity),
        shifts_(pair.padded_anchors(), 0.0f),
        weights_(pair.padded_anchors(), 0.0f),
        sums_(pair.padded_anchors(), 0.0),
        counts_(pair.padded_anchors(), 0) {
    STD_TORCH_CHECK(bound || (form_ != SumForm::hinge && form_ != SumForm::softplus),
                    "bound: expected one for the form '", form, "'");
    if (bound) {
      check_array("bound", *bound, pair.anchors().rows.rows(), ScalarType::Float, x);
      given_bounds_ = read_column(*bound);
      for (int64_t i = 0; i < pair.anchors().rows.rows(); ++i) {
        const double given = given_bounds_[pair.anchors().order[i]];
        if (form_ == SumForm::softplus) {
          shifts_[i] = static_cast<float>(given);
        } else {
          bounds_[i] = static_cast<float>(sign * given / pair.unit());
        }
      }
    }
    const Range range = pair.distance_range();
    has_one_shift_ = std::abs(scale_) * (range.greatest - range.least) / 2 <= kGreatestExponent;
    // Rounded once: the loops subtract the float32 number.
    shift_ =
        has_one_shift_ ? static_cast<float>(scale_ * (range.greatest + range.least) / 2) : 0.0f;
  }

  SumForm form() const { return form_; }

  // Exponents around their own greatest need that first.
  bool needs_greatest() const { return form_ == SumForm::logsumexp && !has_one_shift_; }

  SumSide view(SumForm form) {
    return {form,
            static_cast<float>(sign_),
            static_cast<float>(sign_ * scale_),
            has_one_shift_,
            shift_,
            bounds_.data(),
            shifts_.data(),
            sums_.data(),
            counts_.data(),
            weights_.data()};
  }

  void start_greatest() {
    std::fill(sums_.begin(), sums_.end(), -std::numeric_limits<double>::infinity());
  }

  void take_greatest() {
    for (size_t i = 0; i < sums_.size(); ++i) {
      shifts_[i] = std::isfinite(sums_[i]) ? static_cast<float>(sums_[i]) : 0.0f;
    }
    greatest_ = sums_;
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(counts_.begin(), counts_.end(), 0);
  }

  // Whether an anchor's sum is NaN: that of one that is not finite, or whose bound is NaN.
  bool is_lost(int64_t i) const {
    return form_ != SumForm::none &&
           (!pair_.x().is_finite(i) ||
            (!given_bounds_.empty() && std::isnan(given_bounds_[pair_.anchors().order[i]])));
  }

  void write(Tensor& result, Tensor& count) const {
    float* results = static_cast<float*>(result.mutable_data_ptr());
    int64_t* counts = static_cast<int64_t*>(count.mutable_data_ptr());
    for (int64_t i = 0; i < pair_.anchors().rows.rows(); ++i) {
      const int64_t anchor = pair_.anchors().order[i];
      counts[anchor] = is_lost(i) ? 1 : counts_[i];
      results[anchor] =
          is_lost(i) ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(result_of(i));
    }
  }

  // The factors of the pairs' derivatives, from upstream gradients and the results of the sums.
  std::vector<double> weigh(const std::vector<double>& upstream,
                            const std::vector<double>& result) {
    std::vector<double> weights(upstream.size());
    for (int64_t i = 0; i < pair_.anchors().rows.rows(); ++i) {
      const int64_t anchor = pair_.anchors().order[i];
      double factor = 1.0;
      if (form_ == SumForm::hinge) {
        factor = pair_.unit();
      } else if (form_ == SumForm::sum) {
        factor = sign_ * pair_.unit();
      } else if (form_ == SumForm::logsumexp) {
        const bool has_partner = std::isfinite(result[anchor]);
        // Around their own greatest, exponentials are divided by the very sum that they made: the
        // rounded result would be off by too much where it is large.
        const double sum =
            has_one_shift_ ? std::exp(has_partner ? result[anchor] - shift_ : 0.0) : sums_[i];
        factor = has_partner && sum > 0.0 ? sign_ * scale_ / sum : 0.0;
      }
      weights[i] = is_lost(i) ? 0.0 : upstream[anchor] * factor;
    }
    std::fill(sums_.begin(), sums_.end(), 0.0);
    return weights;
  }

  void set_weights(const std::vector<double>& weights, double divisor) {
    for (size_t i = 0; i < weights.size(); ++i) {
      weights_[i] = static_cast<float>(weights[i] / divisor);
    }
  }

  void write_bound_gradient(const std::vector<double>& upstream, Tensor& gradient) const {
    float* to = static_cast<float*>(gradient.mutable_data_ptr());
    const bool has_gradient = form_ == SumForm::hinge || form_ == SumForm::softplus;
    for (int64_t i = 0; i < gradient.size(0); ++i) {
      const int64_t anchor = pair_.anchors().order[i];
      const double sign = form_ == SumForm::softplus ? 1.0 : sign_;
      const double slope =
          is_lost(i) && has_gradient ? std::numeric_limits<double>::quiet_NaN() : sums_[i];
      const double grad = upstream[anchor];
      to[anchor] = static_cast<float>(grad == 0.0 ? 0.0 : sign * grad * slope);
    }
  }

 private:
  double result_of(int64_t i) const {
    switch (form_) {
      case SumForm::logsumexp:
        if (counts_[i] == 0) {
          return -std::numeric_limits<double>::infinity();
        }
        if (!has_one_shift_ && std::isinf(greatest_[i])) {
          return greatest_[i];
        }
        return std::log(sums_[i]) + (has_one_shift_ ? shift_ : shifts_[i]);
      case SumForm::hinge:
        return sums_[i] * pair_.unit();
      case SumForm::sum:
        return sign_ * sums_[i] * pair_.unit();
      default:
        return sums_[i];
    }
  }

  const WalkPair& pair_;
  double sign_;
  SumForm form_;
  double scale_;  // of a distance in the unit of the packed rows
  bool has_one_shift_ = true;
  float shift_ = 0.0f;
  std::vector<double> given_bounds_;
  std::vector<float> bounds_;
  std::vector<float> shifts_;
  std::vector<float> weights_;
  std::vector<double> sums_;
  std::vector<int64_t> counts_;
  std::vector<double> greatest_;  // exponents, where shifts are the anchors' own
};

// The arguments that both operators take.
struct SumArguments {
  Tensor x;
  Tensor labels;
  Tensor order;
  std::optional<Tensor> references;
  Tensor reference_labels;
  Tensor reference_order;
  std::optional<Tensor> self_index;
  std::optional<Tensor> positive_bound;
  std::optional<Tensor> negative_bound;
  std::string metric;
  std::string positive_form;
  double positive_scale;
  std::string negative_form;
  double negative_scale;

  const Tensor& others() const { return references ? *references : x; }

  void check() const {
    check_labelled(x, labels, order, others(), reference_labels, reference_order, self_index);
    STD_TORCH_CHECK(references || !self_index, "self_index: expected none without references");
    check_served("x", x);
  }

  LabelledRows anchors() const {
    return {Matrix(x), labels.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>()};
  }

  LabelledRows partners() const {
    return {Matrix(others()), reference_labels.const_data_ptr<int64_t>(),
            reference_order.const_data_ptr<int64_t>()};
  }
};

// Both sides over the pairs of one packed problem.
class Sums {
 public:
  explicit Sums(const SumArguments& arguments)
      : pair_(arguments.anchors(), arguments.partners(), !arguments.references,
              arguments.self_index ? arguments.self_index->const_data_ptr<int64_t>() : nullptr,
              metric_of(arguments.metric)),
        positive_(pair_, -1.0, arguments.positive_form, arguments.positive_scale,
                  arguments.positive_bound, arguments.x),
        negative_(pair_, 1.0, arguments.negative_form, arguments.negative_scale,
                  arguments.negative_bound, arguments.x) {}

  void sum() {
    find_greatest(positive_, SumForm::greatest, SumForm::none);
    find_greatest(negative_, SumForm::none, SumForm::greatest);
    run(positive_.form(), negative_.form(), nullptr, nullptr);
  }

  // Adds up the gradients of the packed rows, and returns what they are to be multiplied by.
  double add_gradients(const std::vector<double>& grad_positive,
                       const std::vector<double>& grad_negative,
                       const std::vector<double>& positive, const std::vector<double>& negative,
                       const GradientRows* x, const GradientRows* y) {
    if (positive_.needs_greatest() || negative_.needs_greatest()) {
      sum();
    }
    const std::vector<double> to_positive = positive_.weigh(grad_positive, positive);
    const std::vector<double> to_negative = negative_.weigh(grad_negative, negative);
    const double divisor = common_divisor(to_positive, to_negative);
    positive_.set_weights(to_positive, divisor);
    negative_.set_weights(to_negative, divisor);
    run(positive_.form(), negative_.form(), x, y);
    return divisor * pair_.scale();
  }

  const WalkPair& pair() const { return pair_; }
  Side& positive() { return positive_; }
  Side& negative() { return negative_; }

 private:
  void find_greatest(Side& side, SumForm positive, SumForm negative) {
    if (side.needs_greatest()) {
      side.start_greatest();
      run(positive, negative, nullptr, nullptr);
      side.take_greatest();
    }
  }

  void run(SumForm positive, SumForm negative, const GradientRows* x, const GradientRows* y) {
    if (positive == SumForm::none && negative == SumForm::none) {
      return;
    }
    const SumTask task{pair_.task(x, y), pair_.class_begin(), pair_.class_end(),
                       positive_.view(positive), negative_.view(negative)};
    const SumFunction add = DMLFAST_OF_ISA(contrast_sums);
    meet_all(task.walk, [&](Span rows, Span columns) { add(task, rows, columns); });
  }

  WalkPair pair_;
  Side positive_;
  Side negative_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> contrast_sums(
    Tensor x, Tensor labels, Tensor order, std::optional<Tensor> references,
    Tensor reference_labels, Tensor reference_order, std::optional<Tensor> self_index,
    std::optional<Tensor> positive_bound, std::optional<Tensor> negative_bound, std::string metric,
    std::string positive_form, double positive_scale, std::string negative_form,
    double negative_scale, bool) {
  const SumArguments arguments{x,
                               labels,
                               order,
                               references,
                               reference_labels,
                               reference_order,
                               self_index,
                               positive_bound,
                               negative_bound,
                               metric,
                               positive_form,
                               positive_scale,
                               negative_form,
                               negative_scale};
  arguments.check();
  Tensor positive = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Float);
  Tensor negative = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Float);
  Tensor positive_count = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  Tensor negative_count = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  Sums sums(arguments);
  sums.sum();
  sums.positive().write(positive, positive_count);
  sums.negative().write(negative, negative_count);
  return {positive, negative, positive_count, negative_count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> contrast_sums_backward(
    Tensor grad_positive, Tensor grad_negative, Tensor positive, Tensor negative, Tensor x,
    Tensor labels, Tensor order, std::optional<Tensor> references, Tensor reference_labels,
    Tensor reference_order, std::optional<Tensor> self_index, std::optional<Tensor> positive_bound,
    std::optional<Tensor> negative_bound, std::string metric, std::string positive_form,
    double positive_scale, std::string negative_form, double negative_scale, bool) {
  const SumArguments arguments{x,
                               labels,
                               order,
                               references,
                               reference_labels,
                               reference_order,
                               self_index,
                               positive_bound,
                               negative_bound,
                               metric,
                               positive_form,
                               positive_scale,
                               negative_form,
                               negative_scale};
  arguments.check();
  for (const Tensor* values : {&grad_positive, &grad_negative, &positive, &negative}) {
    STD_TORCH_CHECK(values->dim() == 1 && values->size(0) == x.size(0),
                    "grad: expected a value per anchor");
  }
  const int64_t rows = x.size(0);
  Tensor grad_x = torch::stable::new_empty(x, {rows, x.size(1)});
  Tensor grad_references =
      torch::stable::new_empty(x, {references ? references->size(0) : 0, x.size(1)});
  Tensor grad_positive_bound = torch::stable::new_empty(x, {rows}, ScalarType::Float);
  Tensor grad_negative_bound = torch::stable::new_empty(x, {rows}, ScalarType::Float);

  Sums sums(arguments);
  const std::vector<double> to_positive = read_column(grad_positive);
  const std::vector<double> to_negative = read_column(grad_negative);
  GradientMatrix x_gradient(sums.pair().x());
  std::optional<GradientMatrix> y_gradient;
  if (references) {
    y_gradient.emplace(sums.pair().y());
  }
  const double factor =
      sums.add_gradients(to_positive, to_negative, read_column(positive), read_column(negative),
                         &x_gradient.view(), y_gradient ? &y_gradient->view() : nullptr);
  const auto is_lost = [&](int64_t position) {
    const int64_t anchor = sums.pair().anchors().order[position];
    return (sums.positive().is_lost(position) && to_positive[anchor] != 0.0) ||
           (sums.negative().is_lost(position) && to_negative[anchor] != 0.0);
  };
  x_gradient.write(sums.pair().anchors(), sums.pair().metric(), factor, is_lost, grad_x);
  if (y_gradient) {
    y_gradient->write(
        sums.pair().references(), sums.pair().metric(), factor, [](int64_t) { return false; },
        grad_references);
  }
  sums.positive().write_bound_gradient(to_positive, grad_positive_bound);
  sums.negative().write_bound_gradient(to_negative, grad_negative_bound);
  return {grad_x, grad_references, grad_positive_bound, grad_negative_bound};
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("contrast_sums", TORCH_BOX(&dmlfast::cpu::contrast_sums));
  m.impl("contrast_sums_backward", TORCH_BOX(&dmlfast::cpu::contrast_sums_backward));
}
