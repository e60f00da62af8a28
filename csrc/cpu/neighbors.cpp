#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "engine/distance_gradient.h"
#include "engine/isa.h"
#include "engine/matrix.h"
#include "engine/pack.h"
#include "metric_name.h"
#include "neighbors_isa.h"
#include "operator_checks.h"
#include "threshold.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

SelectFunction select_function() {
  switch (active_isa()) {
#ifdef DMLFAST_X86
    case Isa::avx2:
      return avx2::select;
    case Isa::avx512:
      return avx512::select;
#endif
    default:
      return baseline::select;
  }
}

// Per anchor and threshold, in label order, what the search reads and writes.
struct SelectState {
  SelectState(const PackedRows& anchors, int64_t thresholds)
      : self_index(anchors.rows, -1),
        lower(anchors.rows * thresholds, -kInfinity),
        best_value(anchors.rows * thresholds, kInfinity),
        best_index(anchors.rows * thresholds, -1) {}

  std::vector<int64_t> self_index;
  std::vector<double> lower;
  std::vector<double> best_value;
  std::vector<int64_t> best_index;
};

void fill_lower(SelectState& state, const PackedRows& anchors, const Tensor& beyond, Metric metric,
                bool returns_double) {
  const double* thresholds = beyond.const_data_ptr<double>();
  const int64_t columns = beyond.size(1);
  torch::stable::parallel_for(0, anchors.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const double* from = thresholds + anchors.index[position] * columns;
      for (int64_t t = 0; t < columns; ++t) {
        state.lower[position * columns + t] = least_value_beyond(metric, from[t], returns_double);
      }
    }
  });
}

template <class T>
void write_selection(const SelectState& state, const PackedMatrix& anchors, Metric metric,
                     bool farthest, int64_t thresholds, Tensor& distance, Tensor& index) {
  T* distances = static_cast<T*>(distance.mutable_data_ptr());
  int64_t* indices = static_cast<int64_t*>(index.mutable_data_ptr());
  for (int64_t position = 0; position < anchors.view().rows; ++position) {
    const double missing =
        anchors.is_finite(position) ? kInfinity : std::numeric_limits<double>::quiet_NaN();
    for (int64_t t = 0; t < thresholds; ++t) {
      const int64_t from = position * thresholds + t;
      const int64_t to = anchors.view().index[position] * thresholds + t;
      const double best = state.best_value[from];
      indices[to] = state.best_index[from];
      distances[to] = static_cast<T>(
          state.best_index[from] < 0 ? missing : distance_of(metric, farthest ? -best : best));
    }
  }
}

std::tuple<Tensor, Tensor> neighbors_select(Tensor x, Tensor labels, Tensor order,
                                            Tensor references, Tensor reference_labels,
                                            Tensor reference_order,
                                            std::optional<Tensor> self_index,
                                            std::optional<Tensor> beyond, std::string metric_name,
                                            bool same_class, bool farthest) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  if (beyond) {
    STD_TORCH_CHECK(beyond->dim() == 2, "beyond: expected a 2-D tensor");
    check_array("beyond", *beyond, x.size(0) * beyond->size(1), ScalarType::Double, x);
  }
  const Metric metric = metric_of(metric_name);
  const int64_t thresholds = beyond ? beyond->size(1) : 1;
  const ScalarType dtype = distance_dtype(x.scalar_type());
  const bool returns_double = dtype == ScalarType::Double;
  Tensor distance = torch::stable::new_empty(x, {x.size(0), thresholds}, dtype);
  Tensor index = torch::stable::new_empty(x, {x.size(0), thresholds}, ScalarType::Long);
  if (x.size(0) == 0) {
    return {distance, index};
  }

  const PackedPair packed(x, labels, order, references, reference_labels, reference_order);
  const PackedMatrix& anchors = packed.anchors();
  SelectState state(anchors.view(), thresholds);
  if (self_index) {
    const int64_t* self = self_index->const_data_ptr<int64_t>();
    for (int64_t position = 0; position < anchors.view().rows; ++position) {
      state.self_index[position] = self[anchors.view().index[position]];
    }
  }
  if (beyond) {
    fill_lower(state, anchors.view(), *beyond, metric, returns_double);
  }
  const SelectTask task{anchors.view(),
                        packed.references().view(),
                        metric,
                        same_class,
                        farthest,
                        state.self_index.data(),
                        state.lower.data(),
                        thresholds,
                        state.best_value.data(),
                        state.best_index.data()};
  const SelectFunction select = select_function();
  torch::stable::parallel_for(0, anchors.view().panel_count, 1,
                              [&](int64_t begin, int64_t end) { select(task, begin, end); });
  if (returns_double) {
    write_selection<double>(state, anchors, metric, farthest, thresholds, distance, index);
  } else {
    write_selection<float>(state, anchors, metric, farthest, thresholds, distance, index);
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
