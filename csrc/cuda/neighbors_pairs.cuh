// What kernels do with pairs of a dtype that they learn when they run. What differs by dtype is
// compiled with the selections, in neighbors_select.cu.
#pragma once

#include "neighbors_pairs.h"
#include "neighbors_search.cuh"

namespace dmlfast::cuda {

#ifndef DMLFAST_EMULATION
extern template void launch_search_numbers<float>(const SelectArguments<float>&, const PackedPair&,
                                                  const PackGroups&, const PreparedMemory&,
                                                  const int32_t*, cudaStream_t);
#endif

// As a selection of another class; of another dtype, good for all but the elements.
template <class T>
SelectArguments<T> selection_of(const LabelledPairs& pairs) {
  SelectArguments<T> a{};
  a.x = pairs.x.as<T>();
  a.references = pairs.references.as<T>();
  a.labels = pairs.labels;
  a.order = pairs.order;
  a.reference_labels = pairs.reference_labels;
  a.reference_order = pairs.reference_order;
  a.self_index = pairs.self_index;
  a.thresholds = 1;
  a.metric = pairs.metric;
  return a;
}

// The norms that cosine needs.
inline void launch_pair_norms(const LabelledPairs& pairs, cudaStream_t stream) {
  if (pairs.metric == Metric::cosine) {
    with_type_of(pairs.x, [&](auto type) {
      using T = decltype(type);
      launch_norms(pairs.x.as<T>(), pairs.norms_x, stream);
      launch_norms(pairs.references.as<T>(), pairs.norms_references, stream);
    });
  }
}

inline ExactOperands<AnyElement> operands_of(const LabelledPairs& pairs) {
  return {pairs.x,     pairs.references,
          pairs.order, pairs.reference_order,
          1,           sums_differences(pairs.metric)};
}

__device__ __forceinline__ double anchor_norm(const LabelledPairs& pairs, int anchor) {
  return pairs.metric == Metric::cosine ? pairs.norms_x[anchor] : 0.0;
}

// The reference that is the anchor itself, -1 for none.
__device__ __forceinline__ int self_of(const LabelledPairs& pairs, int anchor) {
  const int64_t self = pairs.self_index == nullptr ? -1 : pairs.self_index[anchor];
  return self >= 0 && self < pairs.references.rows ? static_cast<int>(self) : -1;
}

// The positions of the references of an anchor's class.
__device__ inline ColumnRange own_class(const LabelledPairs& pairs, int anchor) {
  const Labels references{pairs.reference_labels, pairs.reference_order, pairs.references.rows};
  const ClassSpan own = class_of(references, pairs.labels[anchor]);
  return {own.begin, own.end};
}

// The value of a pair whose sum is known.
__device__ __forceinline__ double value_of_sum(const LabelledPairs& pairs, double sum, double norm,
                                               int reference) {
  const bool has_norms = pairs.metric == Metric::cosine;
  return value_of(pairs.metric, sum, norm, has_norms ? pairs.norms_references[reference] : 0.0);
}

// Rows of the same dtype as others.
template <class T>
__device__ __forceinline__ Rows<T> rows_like(const Rows<T>&, const AnyRows& rows) {
  return rows.as<T>();
}

// The value of a pair, by one thread.
__device__ __forceinline__ double pair_value(const LabelledPairs& pairs, int anchor, double norm,
                                             int reference) {
  const bool differences = sums_differences(pairs.metric);
  double sum = 0.0;
  with_rows(pairs.x, [&](const auto& x) {
    const auto y = rows_like(x, pairs.references);
    for (int64_t k = 0; k < x.columns; ++k) {
      const double a = element(x, anchor, k);
      const double b = element(y, reference, k);
      sum += differences ? share_of<true>(a, b) : share_of<false>(a, b);
    }
  });
  return value_of_sum(pairs, sum, norm, reference);
}

__device__ __forceinline__ void write_distance(const LabelledPairs& pairs, int64_t at,
                                               double distance) {
  if (pairs.x.type == ElementType::float64) {
    static_cast<double*>(pairs.distance)[at] = distance;
  } else {
    static_cast<float*>(pairs.distance)[at] = static_cast<float>(distance);
  }
}

}  // namespace dmlfast::cuda
