#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "engine/isa.h"
#include "ranking_checks.h"
#include "ranking_synthesis_isa.h"

namespace dmlfast::cpu {

namespace {

using torch::stable::Tensor;

constexpr int64_t kLeastRows = 128;  // of a chunk, and
constexpr int64_t kRowsPerStep = 4;  // so many, that its sums are smaller than its rows
constexpr int64_t kParallelSums = 4096;

bool is_ordinary(float square) { return square >= kLeastSquare && square <= kGreatestSquare; }

int64_t padded(int64_t columns) {
  return (columns + kSynthesisPadding - 1) / kSynthesisPadding * kSynthesisPadding;
}

// The rows of a float32 tensor of any strides, padded.
class Rows {
 public:
  explicit Rows(const Tensor& tensor)
      : data_(static_cast<const float*>(tensor.const_data_ptr())),
        columns_(tensor.size(1)),
        row_stride_(tensor.stride(0)),
        column_stride_(tensor.stride(1)) {}

  // A row as it lies there, if it needs no padding, or as it is copied to the buffer.
  const float* row(int64_t i, float* buffer) const {
    const float* from = data_ + i * row_stride_;
    if (column_stride_ == 1 && columns_ == padded(columns_)) {
      return from;
    }
    copy(i, buffer);
    return buffer;
  }

  void copy(int64_t i, float* to) const {
    const float* from = data_ + i * row_stride_;
    for (int64_t k = 0; k < columns_; ++k) {
      to[k] = from[k * column_stride_];
    }
    std::fill(to + columns_, to + padded(columns_), 0.0f);
  }

  float at(int64_t i, int64_t k) const { return data_[i * row_stride_ + k * column_stride_]; }

 private:
  const float* data_;
  int64_t columns_;
  int64_t row_stride_;
  int64_t column_stride_;
};

// What both operators are given.
struct Operands {
  Operands(const Tensor& projected_tensor, const Tensor& shifts_tensor,
           const std::optional<Tensor>& targets_tensor)
      : rows(projected_tensor.size(0)),
        columns(projected_tensor.size(1)),
        steps(shifts_tensor.size(0)),
        stride(padded(columns)),
        projected(projected_tensor),
        shifts(steps * stride) {
    if (targets_tensor) {
      targets.emplace(*targets_tensor);
    }
    const Rows from(shifts_tensor);
    for (int64_t j = 0; j < steps; ++j) {
      from.copy(j, shifts.data() + j * stride);
    }
  }

  int64_t rows;
  int64_t columns;
  int64_t steps;
  int64_t stride;
  Rows projected;
  std::optional<Rows> targets;
  std::vector<float> shifts;  // [steps][stride]
};

// One row after another, with what is known of each.
class Row {
 public:
  explicit Row(const Operands& operands)
      : operands_(operands),
        projected_buffer_(operands.stride),
        target_buffer_(operands.stride),
        squares_(operands.steps),
        products_(operands.steps),
        lengths_(operands.steps),
        similarities_(operands.steps) {}

  void read(int64_t i) {
    row_ = {operands_.projected.row(i, projected_buffer_.data()), nullptr, operands_.shifts.data(),
            operands_.steps, operands_.stride};
    float own_square = 1.0f;
    if (operands_.targets) {
      row_.targets = operands_.targets->row(i, target_buffer_.data());
    } else {
      const SynthesisReluFunction relu = DMLFAST_OF_ISA(synthesis_relu);
      own_square = relu(row_.projected, row_.stride, target_buffer_.data());
      row_.targets = target_buffer_.data();
    }
    const SynthesisSumFunction sum = DMLFAST_OF_ISA(synthesis_sums);
    sum(row_, squares_.data(), products_.data());
    is_ordinary_ = is_ordinary(own_square);
    for (int64_t j = 0; j < row_.steps; ++j) {
      is_ordinary_ = is_ordinary_ && is_ordinary(squares_[j]) && std::isfinite(products_[j]);
    }
    if (is_ordinary_) {
      own_length_ = operands_.targets ? 1.0 : std::sqrt(static_cast<double>(own_square));
      for (int64_t j = 0; j < row_.steps; ++j) {
        lengths_[j] = std::sqrt(static_cast<double>(squares_[j]));
        similarities_[j] = products_[j] / (lengths_[j] * own_length_);
      }
    } else {
      measure_carefully();
    }
  }

  const double* similarities() const { return similarities_.data(); }

  // Writes the gradients for the upstream ones, one for each step.
  void differentiate(const float* upstream, const SynthesisGradients& gradients,
                     std::vector<SynthesisWeight>& weights) const {
    if (!is_ordinary_) {
      differentiate_carefully(upstream, gradients);
      return;
    }
    double along = 0.0;
    for (int64_t j = 0; j < row_.steps; ++j) {
      const double factor = upstream[j] / lengths_[j];
      const double turned = upstream[j] * similarities_[j];
      along += turned;
      weights[j] = {static_cast<float>(factor / own_length_),
                    static_cast<float>(-turned / (lengths_[j] * lengths_[j])),
                    static_cast<float>(factor)};
    }
    SynthesisGradients to = gradients;
    to.own_factor = static_cast<float>(1.0 / own_length_);
    to.own_direction = static_cast<float>(along / (own_length_ * own_length_));
    const SynthesisGradientFunction add = DMLFAST_OF_ISA(synthesis_gradients);
    add(row_, weights.data(), to);
  }

 private:
  double value(int64_t j, int64_t k) const {
    return static_cast<double>(row_.projected[k]) + row_.shifts[j * row_.stride + k];
  }

  // In float64, where neither the square of a float32 nor its inverse leaves the range; NaN where
  // a length is not finite, and 0 where it is 0.
  void measure_carefully() {
    double own_square = operands_.targets ? 1.0 : 0.0;
    for (int64_t k = 0; k < row_.stride && !operands_.targets; ++k) {
      own_square += static_cast<double>(row_.projected[k]) * row_.projected[k];
    }
    own_length_ = length_of(own_square);
    for (int64_t j = 0; j < row_.steps; ++j) {
      double square = 0.0;
      double product = 0.0;
      for (int64_t k = 0; k < row_.stride; ++k) {
        const double v = value(j, k);
        square += v * v;
        product += (v > 0.0 ? v : 0.0) * row_.targets[k];
      }
      lengths_[j] = length_of(square);
      similarities_[j] = product / lengths_[j] / own_length_;
    }
  }

  // 1 for a row of 0, which the length divides.
  static double length_of(double square) {
    if (!std::isfinite(square)) {
      return std::numeric_limits<double>::quiet_NaN();
    }
    return square == 0.0 ? 1.0 : std::sqrt(square);
  }

  void differentiate_carefully(const float* upstream, const SynthesisGradients& gradients) const {
    std::fill_n(gradients.projected, row_.stride, 0.0f);
    if (gradients.targets != nullptr) {
      std::fill_n(gradients.targets, row_.stride, 0.0f);
    }
    double along = 0.0;
    bool is_used = false;
    for (int64_t j = 0; j < row_.steps; ++j) {
      is_used = is_used || upstream[j] != 0.0f;
      along += upstream[j] == 0.0f ? 0.0 : upstream[j] * similarities_[j];
    }
    for (int64_t k = 0; k < row_.stride && is_used; ++k) {
      double to_projected = 0.0;
      double to_target = 0.0;
      for (int64_t j = 0; j < row_.steps; ++j) {
        if (upstream[j] == 0.0f) {
          continue;
        }
        const double v = value(j, k);
        const double factor = upstream[j] / lengths_[j];
        const double target = v > 0.0 ? row_.targets[k] / own_length_ : 0.0;
        const double to_value = factor * (target - similarities_[j] * (v / lengths_[j]));
        to_projected += to_value;
        to_target += factor * (v > 0.0 ? v : 0.0);
        gradients.shifts[j * row_.stride + k] += static_cast<float>(to_value);
      }
      if (gradients.targets != nullptr) {
        gradients.targets[k] = static_cast<float>(to_target);
      } else {
        const double own = row_.projected[k];
        to_projected += ((own > 0.0 ? to_target : 0.0) - along * (own / own_length_)) / own_length_;
      }
      gradients.projected[k] = static_cast<float>(to_projected);
    }
  }

  const Operands& operands_;
  std::vector<float> projected_buffer_;
  std::vector<float> target_buffer_;
  std::vector<float> squares_;
  std::vector<float> products_;
  std::vector<double> lengths_;
  std::vector<double> similarities_;
  double own_length_ = 1.0;  // that the target is divided by
  bool is_ordinary_ = false;
  SynthesisRow row_ = {};
};

Tensor synthesis_similarity(Tensor projected, Tensor shifts, std::optional<Tensor> targets) {
  check_synthesis(projected, shifts, targets);
  const Operands operands(projected, shifts, targets);
  Tensor result = torch::stable::new_empty(projected, {operands.rows, operands.steps});
  float* similarities = static_cast<float*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, operands.rows, kLeastRows, [&](int64_t begin, int64_t end) {
    Row row(operands);
    for (int64_t i = begin; i < end; ++i) {
      row.read(i);
      for (int64_t j = 0; j < operands.steps; ++j) {
        similarities[i * operands.steps + j] = static_cast<float>(row.similarities()[j]);
      }
    }
  });
  return result;
}

// The gradients of all tensors. Those of shifts are summed by chunks of rows, whose number the
// sizes alone decide.
class Gradients {
 public:
  Gradients(const Operands& operands, const Tensor& grad, const Tensor& projected)
      : operands_(operands),
        upstream_(grad),
        chunk_rows_(std::max(kLeastRows, kRowsPerStep * operands.steps)),
        chunks_((operands.rows + chunk_rows_ - 1) / chunk_rows_),
        chunk_sums_(operands.steps * operands.stride),
        sums_(chunks_ * chunk_sums_, 0.0f),
        to_projected_(torch::stable::new_empty(projected, {operands.rows, operands.columns})),
        to_shifts_(torch::stable::new_empty(projected, {operands.steps, operands.columns})),
        to_targets_(torch::stable::new_empty(
            projected, {operands.targets ? operands.rows : 0, operands.columns})) {}

  std::tuple<Tensor, Tensor, Tensor> compute() {
    torch::stable::parallel_for(0, chunks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        add_chunk(chunk);
      }
    });
    float* to = static_cast<float*>(to_shifts_.mutable_data_ptr());
    torch::stable::parallel_for(
        0, operands_.steps * operands_.columns, kParallelSums, [&](int64_t begin, int64_t end) {
          for (int64_t at = begin; at < end; ++at) {
            to[at] = total(at / operands_.columns * operands_.stride + at % operands_.columns);
          }
        });
    return {to_projected_, to_shifts_, to_targets_};
  }

 private:
  void add_chunk(int64_t chunk) {
    Row row(operands_);
    std::vector<float> to_projected(operands_.stride);
    std::vector<float> to_targets(operands_.stride);
    std::vector<float> upstream(operands_.steps);
    std::vector<SynthesisWeight> weights(operands_.steps);
    const SynthesisGradients gradients{to_projected.data(),
                                       operands_.targets ? to_targets.data() : nullptr,
                                       sums_.data() + chunk * chunk_sums_, 0.0f, 0.0f};
    const int64_t end = std::min(operands_.rows, (chunk + 1) * chunk_rows_);
    for (int64_t i = chunk * chunk_rows_; i < end; ++i) {
      for (int64_t j = 0; j < operands_.steps; ++j) {
        upstream[j] = upstream_.at(i, j);
      }
      row.read(i);
      row.differentiate(upstream.data(), gradients, weights);
      write(to_projected, i, to_projected_);
      if (operands_.targets) {
        write(to_targets, i, to_targets_);
      }
    }
  }

  void write(const std::vector<float>& row, int64_t i, Tensor& to) const {
    std::copy_n(row.data(), operands_.columns,
                static_cast<float*>(to.mutable_data_ptr()) + i * operands_.columns);
  }

  float total(int64_t at) const {
    double sum = 0.0;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      sum += sums_[chunk * chunk_sums_ + at];
    }
    return static_cast<float>(sum);
  }

  const Operands& operands_;
  Rows upstream_;
  int64_t chunk_rows_;
  int64_t chunks_;
  int64_t chunk_sums_;
  std::vector<float> sums_;  // [chunk][steps][stride]
  Tensor to_projected_;
  Tensor to_shifts_;
  Tensor to_targets_;
};

std::tuple<Tensor, Tensor, Tensor> synthesis_similarity_backward(Tensor grad, Tensor projected,
                                                                 Tensor shifts,
                                                                 std::optional<Tensor> targets) {
  check_synthesis(projected, shifts, targets);
  check_synthesis_gradient(grad, projected, shifts);
  const Operands operands(projected, shifts, targets);
  return Gradients(operands, grad, projected).compute();
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("synthesis_similarity", TORCH_BOX(&dmlfast::cpu::synthesis_similarity));
  m.impl("synthesis_similarity_backward", TORCH_BOX(&dmlfast::cpu::synthesis_similarity_backward));
}
