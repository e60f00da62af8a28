#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "engine/distance_gradient.h"
#include "engine/isa.h"
#include "engine/matrix.h"
#include "engine/pack.h"
#include "engine/span.h"
#include "metric_name.h"
#include "neighbors_isa.h"
#include "neighbors_search.h"
#include "neighbors_select.h"
#include "operator_checks.h"
#include "threshold.h"

namespace dmlfast::cpu {

void select_exactly(const SelectProblem& problem, const int64_t* positions, int64_t count,
                    Span references, SelectState& state) {
  const int64_t columns = problem.thresholds;
  std::vector<int64_t> order(count);
  std::vector<int64_t> self(count, -1);
  SelectState own(count, columns);
  for (int64_t i = 0; i < count; ++i) {
    order[i] = problem.anchors.order[positions[i]];
    if (problem.self_index != nullptr) {
      self[i] = problem.self_index[order[i]];
    }
    std::copy_n(&state.lower[positions[i] * columns], columns, &own.lower[i * columns]);
  }
  const PackedMatrix packed_references(problem.references.rows, problem.references.labels,
                                       problem.references.order + references.begin,
                                       references.end - references.begin);
  // Anchors that are these references, every one of them, are packed already.
  const bool are_references =
      problem.anchors.is(problem.references) && count > 0 && positions[0] == references.begin &&
      positions[count - 1] == references.end - 1 && count == references.end - references.begin;
  std::optional<PackedMatrix> packed;
  if (!are_references) {
    packed.emplace(problem.anchors.rows, problem.anchors.labels, order.data(), count);
  }
  const PackedRows anchors = packed ? packed->view() : packed_references.view();
  const SelectTask task{anchors,
                        packed_references.view(),
                        problem.metric,
                        problem.same_class,
                        problem.farthest,
                        self.data(),
                        own.lower.data(),
                        columns,
                        own.best_value.data(),
                        own.best_index.data()};
  const SelectFunction select = DMLFAST_OF_ISA(select);
  torch::stable::parallel_for(0, anchors.panel_count, 1,
                              [&](int64_t begin, int64_t end) { select(task, begin, end); });
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(&own.best_value[i * columns], columns, &state.best_value[positions[i] * columns]);
    std::copy_n(&own.best_index[i * columns], columns, &state.best_index[positions[i] * columns]);
  }
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void fill_lower(SelectState& state, const SelectProblem& problem, const Tensor& beyond,
                bool returns_double) {
  const double* thresholds = beyond.const_data_ptr<double>();
  const int64_t columns = problem.thresholds;
  torch::stable::parallel_for(0, problem.anchors.rows.rows(), 256, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const double* from = thresholds + problem.anchors.order[position] * columns;
      for (int64_t t = 0; t < columns; ++t) {
        state.lower[position * columns + t] =
            least_value_beyond(problem.metric, from[t], returns_double);
      }
    }
  });
}

// Anchors compared at once with the references of their classes: few enough to stay in the cache.
constexpr int64_t kClassRows = 256;

// First position in label order whose label is not less than `label`.
int64_t first_position(const LabelledRows& rows, int64_t label) {
  const int64_t* end = rows.order + rows.rows.rows();
  return std::lower_bound(rows.order, end, label,
                          [&](int64_t row, int64_t wanted) { return rows.labels[row] < wanted; }) -
         rows.order;
}

// Takes a few whole classes at a time, so that nothing of the size of the matrices is packed.
void select_by_class(const SelectProblem& problem, SelectState& state) {
  const LabelledRows& anchors = problem.anchors;
  const int64_t rows = anchors.rows.rows();
  const auto label = [&](int64_t position) { return anchors.labels[anchors.order[position]]; };
  std::vector<int64_t> cuts{0};
  for (int64_t i = 1; i < rows; ++i) {
    if (i - cuts.back() >= kClassRows && label(i) != label(i - 1)) {
      cuts.push_back(i);
    }
  }
  cuts.push_back(rows);
  torch::stable::parallel_for(0, cuts.size() - 1, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> positions;
    for (int64_t cut = begin; cut < end && rows > 0; ++cut) {
      positions.resize(cuts[cut + 1] - cuts[cut]);
      std::iota(positions.begin(), positions.end(), cuts[cut]);
      const int64_t last = label(positions.back());
      const Span references{first_position(problem.references, label(positions.front())),
                            last == std::numeric_limits<int64_t>::max()
                                ? problem.references.rows.rows()
                                : first_position(problem.references, last + 1)};
      if (references.begin < references.end) {
        select_exactly(problem, positions.data(), positions.size(), references, state);
      }
    }
  });
}

void select_all(const SelectProblem& problem, SelectState& state) {
  const Span references{0, problem.references.rows.rows()};
  std::vector<int64_t> positions;
  if (search_applies(problem)) {
    positions = search(problem, state);
  } else if (problem.same_class) {
    return select_by_class(problem, state);
  } else {
    positions.resize(problem.anchors.rows.rows());
    std::iota(positions.begin(), positions.end(), 0);
  }
  if (!positions.empty()) {
    select_exactly(problem, positions.data(), positions.size(), references, state);
  }
}

template <class T>
void write_selection(const SelectProblem& problem, const SelectState& state, Tensor& distance,
                     Tensor& index) {
  T* distances = static_cast<T*>(distance.mutable_data_ptr());
  int64_t* indices = static_cast<int64_t*>(index.mutable_data_ptr());
  const int64_t columns = problem.thresholds;
  for (int64_t position = 0; position < problem.anchors.rows.rows(); ++position) {
    const int64_t anchor = problem.anchors.order[position];
    for (int64_t t = 0; t < columns; ++t) {
      const double best = state.best_value[position * columns + t];
      const int64_t found = state.best_index[position * columns + t];
      double result = distance_of(problem.metric, problem.farthest ? -best : best);
      if (found < 0) {
        // An anchor that is not finite and finds nothing reports NaN: a loss must not lose it.
        result = problem.anchors.rows.is_finite(anchor) ? kInfinity
                                                        : std::numeric_limits<double>::quiet_NaN();
      }
      distances[anchor * columns + t] = static_cast<T>(result);
      indices[anchor * columns + t] = found;
    }
  }
}

std::tuple<Tensor, Tensor> neighbors_select(Tensor x, Tensor labels, Tensor order,
                                            Tensor references, Tensor reference_labels,
                                            Tensor reference_order,
                                            std::optional<Tensor> self_index,
                                            std::optional<Tensor> beyond, std::string metric,
                                            bool same_class, bool farthest) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  if (beyond) {
    STD_TORCH_CHECK(beyond->dim() == 2, "beyond: expected a 2-D tensor");
    check_array("beyond", *beyond, x.size(0) * beyond->size(1), ScalarType::Double, x);
  }
  const SelectProblem problem{
      {Matrix(x), labels.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>()},
      {Matrix(references), reference_labels.const_data_ptr<int64_t>(),
       reference_order.const_data_ptr<int64_t>()},
      metric_of(metric),
      same_class,
      farthest,
      self_index ? self_index->const_data_ptr<int64_t>() : nullptr,
      beyond ? beyond->size(1) : 1};
  const ScalarType dtype = distance_dtype(x.scalar_type());
  const bool returns_double = dtype == ScalarType::Double;
  Tensor distance = torch::stable::new_empty(x, {x.size(0), problem.thresholds}, dtype);
  Tensor index = torch::stable::new_empty(x, {x.size(0), problem.thresholds}, ScalarType::Long);
  SelectState state(x.size(0), problem.thresholds);
  if (beyond) {
    fill_lower(state, problem, *beyond, returns_double);
  }
  select_all(problem, state);
  if (returns_double) {
    write_selection<double>(problem, state, distance, index);
  } else {
    write_selection<float>(problem, state, distance, index);
  }
  return {distance, index};
}

std::tuple<Tensor, Tensor> neighbors_select_backward(Tensor grad, Tensor x, Tensor references,
                                                     Tensor index, Tensor slot_order,
                                                     std::string metric_name) {
  check_selected(grad, x, references, index, slot_order);
  const Metric metric = metric_of(metric_name);
  Tensor grad_x = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor grad_references =
      torch::stable::new_empty(references, {references.size(0), references.size(1)});
  const Matrix anchor_rows(x);
  const Matrix reference_rows(references);
  const Matrix upstream(grad);
  const int64_t thresholds = index.size(1);
  const int64_t* chosen = index.const_data_ptr<int64_t>();
  std::vector<double> weights(index.size(0) * thresholds);
  for (int64_t i = 0; i < index.size(0); ++i) {
    upstream.read_row(i, weights.data() + i * thresholds);
  }

  torch::stable::parallel_for(0, x.size(0), 64, [&](int64_t begin, int64_t end) {
    RowGradient gradient(metric, anchor_rows, reference_rows);
    for (int64_t i = begin; i < end; ++i) {
      gradient.start(i);
      for (int64_t slot = i * thresholds; slot < (i + 1) * thresholds; ++slot) {
        gradient.add(chosen[slot], weights[slot]);
      }
      gradient.write(grad_x);
    }
  });

  // Slots in the order of the references they chose, ascending within each: every reference adds
  // up its own, whatever the number of threads.
  const int64_t* slots = slot_order.const_data_ptr<int64_t>();
  const int64_t* slots_end = slots + index.size(0) * thresholds;
  torch::stable::parallel_for(0, references.size(0), 64, [&](int64_t begin, int64_t end) {
    RowGradient gradient(metric, reference_rows, anchor_rows);
    const int64_t* slot =
        std::lower_bound(slots, slots_end, begin,
                         [&](int64_t at, int64_t reference) { return chosen[at] < reference; });
    for (int64_t j = begin; j < end; ++j) {
      gradient.start(j);
      for (; slot < slots_end && chosen[*slot] == j; ++slot) {
        gradient.add(*slot / thresholds, weights[*slot]);
      }
      gradient.write(grad_references);
    }
  });
  return {grad_x, grad_references};
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("neighbors_select", TORCH_BOX(&dmlfast::cpu::neighbors_select));
  m.impl("neighbors_select_backward", TORCH_BOX(&dmlfast::cpu::neighbors_select_backward));
}
