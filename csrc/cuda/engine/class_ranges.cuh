// Where the class of each anchor lies among the references in the order of their labels.
#pragma once

#include <climits>

#include "engine/rows.cuh"
#include "engine/tile.cuh"

namespace dmlfast::cuda {

// By anchor position; null arrays where labels do not matter.
struct ClassRanges {
  int32_t* begin;
  int32_t* end;
};

// The positions from the first to the last class of a block of rows.
struct ClassSpan {
  int begin;
  int end;
};

// The positions of a class.
template <class T>
__device__ inline ClassSpan class_of(const LabelledRows<T>& references, int64_t label) {
  const int64_t rows = references.rows.rows;
  return {static_cast<int>(class_bound(references.labels, references.order, rows, label, false)),
          static_cast<int>(class_bound(references.labels, references.order, rows, label, true))};
}

// The position of a reference, -1 for one that does not exist. Equal labels are in the order of
// their rows, as their sort is stable.
template <class T>
__device__ inline int position_of(const LabelledRows<T>& references, int64_t row) {
  if (row < 0 || row >= references.rows.rows) {
    return -1;
  }
  const ClassSpan own = class_of(references, references.labels[row]);
  int low = own.begin;
  int high = own.end;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (references.order[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T>
__global__ void class_ranges_kernel(LabelledRows<T> x, LabelledRows<T> references,
                                    ClassRanges ranges) {
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < x.rows.rows;
       p += int64_t{gridDim.x} * blockDim.x) {
    const ClassSpan own = class_of(references, x.label(p));
    ranges.begin[p] = own.begin;
    ranges.end[p] = own.end;
  }
}

// Of anchors by their place in a tile, -1 past the last; the same in every lane.
__device__ inline ClassSpan class_span(const ClassRanges& ranges, const int* anchors) {
  ClassSpan span{INT_MAX, 0};
  for (int i = threadIdx.x % 32; i < kTileRows; i += 32) {
    if (anchors[i] >= 0) {
      span.begin = min(span.begin, ranges.begin[anchors[i]]);
      span.end = max(span.end, ranges.end[anchors[i]]);
    }
  }
  span.begin = warp_least(span.begin);
  span.end = warp_greatest(span.end);
  return span;
}

// Place of each row in an order.
static __global__ void inverse_kernel(const int64_t* order, int64_t rows, int32_t* position) {
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < rows;
       p += int64_t{gridDim.x} * blockDim.x) {
    position[order[p]] = static_cast<int32_t>(p);
  }
}

// Where each anchor itself lies among the references, -1 for nowhere.
static __global__ void self_kernel(const int64_t* self_index, const int64_t* order, int64_t rows,
                                   const int32_t* position, int64_t references, int32_t* self) {
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < rows;
       p += int64_t{gridDim.x} * blockDim.x) {
    const int64_t index = self_index[order[p]];
    self[p] = index >= 0 && index < references ? position[index] : -1;
  }
}

}  // namespace dmlfast::cuda
