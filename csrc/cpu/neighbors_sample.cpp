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

#include "engine/exact_value.h"
#include "engine/isa.h"
#include "engine/matrix.h"
#include "engine/pack.h"
#include "metric_name.h"
#include "neighbors_sample_isa.h"
#include "operator_checks.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sums kept per anchor: a draw computes one in so many of its pairs again.
constexpr int64_t kBlocks = 64;

double norm_of(const std::vector<double>& row) {
  return std::sqrt(exact_sum(Metric::dot, row, row));
}

double value_between(Metric metric, const std::vector<double>& x, const std::vector<double>& y) {
  const bool is_cosine = metric == Metric::cosine;
  return value_of(metric, exact_sum(metric, x, y), is_cosine ? norm_of(x) : 0.0,
                  is_cosine ? norm_of(y) : 0.0);
}

// Draws in proportion to the weights; leaves the index of an anchor all of whose weights are 0.
void draw(const PackedPair& packed, const Tensor& order, const std::optional<Tensor>& self_index,
          const Tensor& uniform, Metric metric, const SampleWeight& weight, int64_t* indices) {
  const PackedRows anchors = packed.anchors().view();
  const PackedRows references = packed.references().view();
  const int64_t rows = anchors.rows;
  const int64_t block_panels =
      std::max<int64_t>(1, (references.panel_count + kBlocks - 1) / kBlocks);
  const int64_t blocks = (references.panel_count + block_panels - 1) / block_panels;
  std::vector<int64_t> self(rows, -1);
  std::vector<double> numbers(rows);
  std::vector<int64_t> chosen(rows, -1);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t anchor = order.const_data_ptr<int64_t>()[i];
    self[i] = self_index ? self_index->const_data_ptr<int64_t>()[anchor] : -1;
    numbers[i] = uniform.const_data_ptr<double>()[anchor];
  }
  std::vector<double> scales(rows * blocks, std::numeric_limits<double>::infinity());
  std::vector<double> sums(rows * blocks, 0.0);
  const SampleTask task{anchors,       references,     metric,       weight,
                        self.data(),   numbers.data(), block_panels, blocks,
                        scales.data(), sums.data(),    chosen.data()};
  const SampleFunction sample = DMLFAST_OF_ISA(sample);
  torch::stable::parallel_for(0, anchors.panel_count, 1,
                              [&](int64_t begin, int64_t end) { sample(task, begin, end); });
  for (int64_t i = 0; i < rows; ++i) {
    if (chosen[i] >= 0) {
      indices[order.const_data_ptr<int64_t>()[i]] = chosen[i];
    }
  }
}

template <class T>
void write_distances(const Matrix& x, const Matrix& references, Metric metric,
                     const int64_t* indices, T* distances) {
  torch::stable::parallel_for(0, x.rows(), 256, [&](int64_t begin, int64_t end) {
    std::vector<double> row(x.columns());
    std::vector<double> other(x.columns());
    for (int64_t i = begin; i < end; ++i) {
      double distance = x.is_finite(i) ? std::numeric_limits<double>::infinity()
                                       : std::numeric_limits<double>::quiet_NaN();
      if (indices[i] >= 0) {
        x.read_row(i, row.data());
        references.read_row(indices[i], other.data());
        distance = distance_of(metric, value_between(metric, row, other));
      }
      distances[i] = static_cast<T>(distance);
    }
  });
}

std::tuple<Tensor, Tensor> neighbors_sample(Tensor x, Tensor labels, Tensor order,
                                            Tensor references, Tensor reference_labels,
                                            Tensor reference_order,
                                            std::optional<Tensor> self_index, Tensor uniform,
                                            Tensor fallback, bool weighted, double cutoff,
                                            double nonzero_loss_cutoff, std::string metric_name) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  check_array("uniform", uniform, x.size(0), ScalarType::Double, x);
  check_array("fallback", fallback, x.size(0), ScalarType::Long, x);
  const Metric metric = metric_of(metric_name);
  const int64_t* drawn = fallback.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < x.size(0); ++i) {
    STD_TORCH_CHECK(drawn[i] < references.size(0), "fallback: expected rows of references");
  }
  const ScalarType dtype = distance_dtype(x.scalar_type());
  Tensor distance = torch::stable::new_empty(x, {x.size(0), 1}, dtype);
  Tensor index = torch::stable::new_empty(x, {x.size(0), 1}, ScalarType::Long);
  int64_t* indices = static_cast<int64_t*>(index.mutable_data_ptr());
  std::copy_n(drawn, x.size(0), indices);
  if (weighted && x.size(0) > 0 && references.size(0) > 0) {
    const PackedPair packed(x, labels, order, references, reference_labels, reference_order);
    const SampleWeight weight{cutoff * cutoff, nonzero_loss_cutoff * nonzero_loss_cutoff,
                              x.size(1) - 3};
    draw(packed, order, self_index, uniform, metric, weight, indices);
  }
  if (dtype == ScalarType::Double) {
    write_distances(Matrix(x), Matrix(references), metric, indices,
                    static_cast<double*>(distance.mutable_data_ptr()));
  } else {
    write_distances(Matrix(x), Matrix(references), metric, indices,
                    static_cast<float*>(distance.mutable_data_ptr()));
  }
  return {distance, index};
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("neighbors_sample", TORCH_BOX(&dmlfast::cpu::neighbors_sample));
}
