#include "engine/pair_gradient.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/matrix.h"

namespace dmlfast::cpu {

PairGradient::Side::Side(const PackedRows& side)
    : packed(side),
      rows(side.rows * side.dimensions),
      sums(side.rows * side.dimensions, 0.0),
      factors(side.rows, 0.0) {
  torch::stable::parallel_for(0, packed.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const double* from = panel_of(packed, position / kPanelRows) + position % kPanelRows;
      for (int64_t k = 0; k < packed.dimensions; ++k) {
        rows[position * packed.dimensions + k] = from[k * kPanelRows];
      }
    }
  });
}

void PairGradient::Side::add(int64_t position, double factor, const double* partner) {
  double* to = sum(position);
  for (int64_t k = 0; k < packed.dimensions; ++k) {
    to[k] += factor * partner[k];
  }
  factors[position] += factor;
}

PairGradient::PairGradient(Metric metric, const PackedRows& anchors, const PackedRows& references)
    : metric_(metric), anchors_(anchors), references_(references) {}

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
      anchors_.add(position, factor, references_.row(j));
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
          references_.add(j, row[j], anchors_.row(position));
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
  const int64_t dimensions = side.packed.dimensions;
  torch::stable::parallel_for(0, side.packed.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const double* row = side.row(position);
      double* sum = side.sum(position);
      // A row without pairs may not be finite: its own multiple must not touch it.
      if (side.factors[position] != 0.0 || metric_ == Metric::cosine) {
        double own = -side.factors[position];
        if (metric_ == Metric::dot) {
          own = 0.0;
        } else if (metric_ == Metric::cosine) {
          double along = 0.0;
          for (int64_t k = 0; k < dimensions; ++k) {
            along += sum[k] == 0.0 ? 0.0 : sum[k] * row[k];
          }
          const double norm = side.packed.norms[position];
          own = along == 0.0 ? 0.0 : -along / (norm * norm);
        }
        for (int64_t k = 0; own != 0.0 && k < dimensions; ++k) {
          sum[k] += own * row[k];
        }
      }
      write_row(gradient, side.packed.index[position], sum);
    }
  });
}

}  // namespace dmlfast::cpu
