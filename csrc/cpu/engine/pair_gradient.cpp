#include "engine/pair_gradient.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/matrix.h"

namespace dmlfast::cpu {

PairGradient::Side::Side(const PackedRows& side)
    : packed(side), rows(side.rows * side.dimensions), sums(side.rows * side.dimensions, 0.0) {
  torch::stable::parallel_for(0, packed.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const double* from = panel_of(packed, position / kPanelRows) + position % kPanelRows;
      for (int64_t k = 0; k < packed.dimensions; ++k) {
        rows[position * packed.dimensions + k] = from[k * kPanelRows];
      }
    }
  });
}

PairGradient::PairGradient(Metric metric, const PackedRows& anchors, const PackedRows& references)
    : metric_(metric), anchors_(anchors), references_(references) {}

void PairGradient::add(Side& side, int64_t position, double factor, const double* partner) const {
  double* to = side.sum(position);
  const double* own = side.row(position);
  if (sums_differences(metric_)) {
    for (int64_t k = 0; k < side.packed.dimensions; ++k) {
      to[k] += factor * (partner[k] - own[k]);
    }
  } else {
    for (int64_t k = 0; k < side.packed.dimensions; ++k) {
      to[k] += factor * partner[k];
    }
  }
}

double PairGradient::factor_of(double weight, double value, double norm_x, double norm_y) const {
  if (weight == 0.0) {
    return 0.0;
  }
  switch (metric_) {
    case Metric::euclidean:
      return value == 0.0 ? 0.0 : -weight / std::sqrt(value);
    case Metric::sqeuclidean:
      return -2.0 * weight;
    case Metric::cosine:
      return norm_x * norm_y == 0.0 ? 0.0 : -weight / (norm_x * norm_y);
    default:
      return -weight;
  }
}

void PairGradient::add_anchor(int64_t position, double scale, const double* weights,
                              double* values) {
  const double norm = anchors_.packed.norms[position];
  for (int64_t j = 0; j < references_.packed.rows; ++j) {
    const double factor =
        factor_of(scale * weights[j], values[j], norm, references_.packed.norms[j]);
    values[j] = factor;
    if (factor != 0.0) {
      add(anchors_, position, factor, references_.row(j));
    }
  }
}

void PairGradient::lose_anchor(int64_t position, double scale) {
  if (scale != 0.0) {
    double* sum = anchors_.sum(position);
    std::fill(sum, sum + anchors_.packed.dimensions, std::numeric_limits<double>::quiet_NaN());
  }
}

void PairGradient::add_references(int64_t first, int64_t last, const double* factors) {
  const int64_t stride = references_.packed.panel_count * kPanelRows;
  torch::stable::parallel_for(0, references_.packed.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t position = first; position < last; ++position) {
      const double* row = factors + (position - first) * stride;
      for (int64_t j = begin; j < end; ++j) {
        if (row[j] != 0.0) {
          add(references_, j, row[j], anchors_.row(position));
        }
      }
    }
  });
}

void PairGradient::write(torch::stable::Tensor& grad_x, torch::stable::Tensor& grad_references) {
  write_side(anchors_, grad_x);
  write_side(references_, grad_references);
}

void PairGradient::write_side(Side& side, torch::stable::Tensor& gradient) const {
  torch::stable::parallel_for(0, side.packed.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      if (metric_ == Metric::cosine) {
        make_orthogonal(side, position);
      }
      write_row(gradient, side.packed.index[position], side.sum(position));
    }
  });
}

void PairGradient::make_orthogonal(Side& side, int64_t position) {
  const double* row = side.row(position);
  double* sum = side.sum(position);
  double along = 0.0;
  for (int64_t k = 0; k < side.packed.dimensions; ++k) {
    // A row without pairs may not be finite: it must stay 0.
    along += sum[k] == 0.0 ? 0.0 : sum[k] * row[k];
  }
  if (along != 0.0) {
    const double own = along / (side.packed.norms[position] * side.packed.norms[position]);
    for (int64_t k = 0; k < side.packed.dimensions; ++k) {
      sum[k] -= own * row[k];
    }
  }
}

}  // namespace dmlfast::cpu
