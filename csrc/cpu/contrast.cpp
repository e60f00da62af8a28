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

#include "contrast_isa.h"
#include "contrast_triplet.h"
#include "contrast_triplet_walk.h"
#include "engine/isa.h"
#include "engine/matrix.h"
#include "engine/pack.h"
#include "engine/pair_gradient.h"
#include "engine/upstream.h"
#include "operator_checks.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Values of one block of anchors: 32 MiB of float64, and never less than a panel of anchors.
constexpr int64_t kBlockValues = int64_t{1} << 22;

// Packed anchors and references of a triplet loss.
class TripletProblem {
 public:
  TripletProblem(const PackedPair& packed, const std::optional<Tensor>& self_index,
                 const TripletOptions& options)
      : packed_(packed), options_(options), value_rows_(DMLFAST_OF_ISA(value_rows)) {
    self_ = self_index ? self_index->const_data_ptr<int64_t>() : nullptr;
  }

  const PackedRows& anchors() const { return packed_.anchors().view(); }
  const PackedRows& references() const { return packed_.references().view(); }
  const TripletOptions& options() const { return options_; }
  bool is_finite(int64_t position) const { return packed_.anchors().is_finite(position); }
  int64_t stride() const { return references().panel_count * kPanelRows; }

  int64_t block_panels() const {
    const int64_t panel_values = std::max<int64_t>(1, stride() * kPanelRows);
    return std::max<int64_t>(1, kBlockValues / panel_values);
  }

  // Values of the anchors of these panels, the first of which begins the array.
  void fill(int64_t panel_begin, int64_t panel_end, double* values) const {
    value_rows_({anchors(), references(), options_.metric, panel_begin * kPanelRows, values},
                panel_begin, panel_end);
  }

  void compute(TripletRow& row, int64_t position, const double* values) const {
    const int64_t anchor = anchors().index[position];
    row.compute(values, anchors().labels[position], self_ == nullptr ? -1 : self_[anchor]);
  }

 private:
  const PackedPair& packed_;
  TripletOptions options_;
  ValueRowsFunction value_rows_;
  const int64_t* self_;
};

template <class T>
void write_losses(const TripletProblem& problem, Tensor& loss, Tensor& active) {
  T* losses = static_cast<T*>(loss.mutable_data_ptr());
  int64_t* counts = static_cast<int64_t*>(active.mutable_data_ptr());
  const PackedRows& anchors = problem.anchors();
  // Each task holds the values of one panel of anchors: 64 bytes a reference, not N x M.
  torch::stable::parallel_for(0, anchors.panel_count, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> values(problem.stride() * kPanelRows);
    TripletRow row(problem.options(), problem.references());
    for (int64_t panel = begin; panel < end; ++panel) {
      problem.fill(panel, panel + 1, values.data());
      const int64_t first = panel * kPanelRows;
      for (int64_t p = first; p < std::min(first + kPanelRows, anchors.rows); ++p) {
        const int64_t anchor = anchors.index[p];
        if (!problem.is_finite(p)) {
          losses[anchor] = std::numeric_limits<T>::quiet_NaN();
          counts[anchor] = 1;
          continue;
        }
        problem.compute(row, p, values.data() + (p - first) * problem.stride());
        losses[anchor] = static_cast<T>(row.loss());
        counts[anchor] = row.active();
      }
    }
  });
}

LabelledRows labelled_rows(const Tensor& rows, const Tensor& labels, const Tensor& order) {
  return {Matrix(rows), labels.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>()};
}

const int64_t* own_index(const std::optional<Tensor>& self_index) {
  return self_index ? self_index->const_data_ptr<int64_t>() : nullptr;
}

std::tuple<Tensor, Tensor> contrast_triplet(Tensor x, Tensor labels, Tensor order,
                                            Tensor references, Tensor reference_labels,
                                            Tensor reference_order,
                                            std::optional<Tensor> self_index, std::string metric,
                                            std::string positives, std::string negatives,
                                            double margin, bool) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  const ScalarType dtype = distance_dtype(x.scalar_type());
  const bool returns_double = dtype == ScalarType::Double;
  Tensor loss = torch::stable::new_empty(x, {x.size(0)}, dtype);
  Tensor active = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long);
  const TripletOptions options =
      triplet_options(metric, positives, negatives, margin, returns_double);
  const LabelledRows anchors = labelled_rows(x, labels, order);
  const LabelledRows others = labelled_rows(references, reference_labels, reference_order);
  if (const auto walk = TripletWalk::make(anchors, others, own_index(self_index), options, false)) {
    walk->write_losses(loss, active);
    return {loss, active};
  }
  const PackedPair packed(x, labels, order, references, reference_labels, reference_order);
  const TripletProblem problem(packed, self_index, options);
  if (returns_double) {
    write_losses<double>(problem, loss, active);
  } else {
    write_losses<float>(problem, loss, active);
  }
  return {loss, active};
}

std::tuple<Tensor, Tensor> contrast_triplet_backward(
    Tensor grad, Tensor x, Tensor labels, Tensor order, Tensor references, Tensor reference_labels,
    Tensor reference_order, std::optional<Tensor> self_index, std::string metric,
    std::string positives, std::string negatives, double margin, bool) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  STD_TORCH_CHECK(grad.dim() == 1 && grad.size(0) == x.size(0),
                  "grad: expected a value per anchor");
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_references =
      torch::stable::new_empty(references, {references.size(0), references.size(1)});
  const TripletOptions options = triplet_options(
      metric, positives, negatives, margin, distance_dtype(x.scalar_type()) == ScalarType::Double);
  const LabelledRows rows = labelled_rows(x, labels, order);
  const LabelledRows others = labelled_rows(references, reference_labels, reference_order);
  if (const auto walk = TripletWalk::make(rows, others, own_index(self_index), options, true)) {
    walk->write_gradients(read_column(grad), grad_x, grad_references);
    return {grad_x, grad_references};
  }
  const PackedPair packed(x, labels, order, references, reference_labels, reference_order);
  const TripletProblem problem(packed, self_index, options);
  const PackedRows& anchors = problem.anchors();
  const Matrix upstream(grad, Matrix::Column{});
  PairGradient gradient(problem.options().metric, anchors, problem.references());

  const int64_t step = problem.block_panels();
  std::vector<double> block(std::min(step, anchors.panel_count) * kPanelRows * problem.stride());
  for (int64_t begin = 0; begin < anchors.panel_count; begin += step) {
    const int64_t end = std::min(begin + step, anchors.panel_count);
    const int64_t first = begin * kPanelRows;
    const int64_t last = std::min(end * kPanelRows, anchors.rows);
    torch::stable::parallel_for(begin, end, 1, [&](int64_t from, int64_t to) {
      problem.fill(from, to, block.data() + (from - begin) * kPanelRows * problem.stride());
      TripletRow row(problem.options(), problem.references());
      std::vector<double> weights(problem.stride());
      for (int64_t p = from * kPanelRows; p < std::min(to * kPanelRows, anchors.rows); ++p) {
        double* values = block.data() + (p - first) * problem.stride();
        double scale;
        upstream.read_row(anchors.index[p], &scale);
        if (!problem.is_finite(p)) {
          std::fill(values, values + problem.stride(), 0.0);
          gradient.lose_anchor(p, scale);
          continue;
        }
        problem.compute(row, p, values);
        row.write_weights(weights.data());
        gradient.add_anchor(p, scale, weights.data(), values);
      }
    });
    gradient.add_references(first, last, block.data());
  }
  gradient.write(grad_x, grad_references);
  return {grad_x, grad_references};
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("contrast_triplet", TORCH_BOX(&dmlfast::cpu::contrast_triplet));
  m.impl("contrast_triplet_backward", TORCH_BOX(&dmlfast::cpu::contrast_triplet_backward));
}
