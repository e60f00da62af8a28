// Weights of the dimensions, an anchor's own. The squared distance of a pair is then a product of
// twice as many dimensions,
//   sum w_k (e_k - y_k)^2 = sum w_k e_k^2 - 2 <[-w / 2, w e], [y y, y]>,
// of rows less a common centre, so that the walks of plain distances serve it: of anchors packed as
// the first of these, whose norm is the sum before it, and references packed as the second, whose
// norm is 0.
#pragma once

#include "engine/pack.cuh"

namespace dmlfast::cuda {

// Exponents of powers of two: elements less the centre, and weights, are less. Packed elements are
// less than 2^kScaledExponent, each as w 2^-weights, w e 2^-(weights + rows), y y 2^-(2 rows) or
// y 2^-rows.
struct WeightedScale {
  int rows;
  int weights;      // even
  PackScale pairs;  // that of distances
};

struct DimensionWeights {
  AnyRows rows;         // by anchor, as given; without data all weights are 1
  bool are_of_columns;  // whether the anchors are the columns of the walk
  float least_square;   // pairs of smaller packed squares have lost their digits
  const double* centre;
  const WeightedScale* scale;

  __device__ bool exist() const { return rows.data != nullptr; }

  // The lane's part of a pair's squared distance.
  __device__ double squares(const AnyRows& x_rows, const AnyRows& y_rows, int64_t x, int64_t y,
                            int lane) const {
    double sum = 0.0;
#pragma unroll 1
    for (int64_t k = lane; k < x_rows.columns; k += 32) {
      const double difference = element(x_rows, x, k) - element(y_rows, y, k);
      sum += element(rows, are_of_columns ? y : x, k) * (difference * difference);
    }
    return sum;
  }

  // What a near pair, whose difference has the weight 1, adds to the gradients of its row x, which
  // take as many columns as a packed row: by the elements, then, of an anchor, by the weights.
  __device__ double near_gradient(const AnyRows& x_rows, const AnyRows& y_rows, int64_t x,
                                  int64_t y, int64_t column) const {
    const bool is_by_weight = column >= x_rows.columns;
    const int64_t k = is_by_weight ? column - x_rows.columns : column;
    const double difference = element(x_rows, x, k) - element(y_rows, y, k);
    if (is_by_weight) {
      return are_of_columns ? 0.0 : 0.5 * difference * difference;
    }
    return element(rows, are_of_columns ? y : x, k) * difference;
  }
};

}  // namespace dmlfast::cuda
