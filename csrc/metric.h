// What a distance is, on every device. The value that selections compare is a float64 sum over
// the dimensions in ascending order; `distance_of` turns it into the distance that is returned.
#pragma once

#include <cmath>

// Internal linkage: sources compiled for different instruction sets must not share a copy.
#ifdef __CUDACC__
#define DMLFAST_INLINE __host__ __device__ static inline
#else
#define DMLFAST_INLINE static inline
#endif

namespace dmlfast {

enum class Metric { euclidean, sqeuclidean, cosine, dot };

DMLFAST_INLINE constexpr bool sums_differences(Metric metric) {
  return metric == Metric::euclidean || metric == Metric::sqeuclidean;
}

// `sum` is the sum of squared differences or of products; norms are used by cosine alone.
DMLFAST_INLINE double value_of(Metric metric, double sum, double norm_x, double norm_y) {
  if (metric == Metric::cosine) {
    const double norms = norm_x * norm_y;
    // A zero vector has distance 1; 0 * sum keeps the NaN of a vector that is not finite.
    return norms == 0.0 ? 1.0 + 0.0 * sum : 1.0 - sum / norms;
  }
  return metric == Metric::dot ? -sum : sum;
}

DMLFAST_INLINE double distance_of(Metric metric, double value) {
  return metric == Metric::euclidean ? sqrt(value) : value;
}

}  // namespace dmlfast
