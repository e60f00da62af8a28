// Where the class of each anchor lies among the references in the order of their labels.
#pragma once

#include <climits>

#include "engine/rows.cuh"
#include "engine/tile.cuh"

namespace dmlfast::cuda {

// The labels of rows, and the stable order that sorts them: position p is that of row order[p].
struct Labels {
  const int64_t* labels;
  const int64_t* order;
  int64_t rows;

  __device__ int64_t label(int64_t position) const { return labels[order[position]]; }
};

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
__device__ inline ClassSpan class_of(const Labels& references, int64_t label) {
  const auto bound = [&](bool after) {
    return static_cast<int>(
        class_bound(references.labels, references.order, references.rows, label, after));
  };
  return {bound(false), bound(true)};
}

// The position of a reference, -1 for one that does not exist. Equal labels are in the order of
// their rows, as their sort is stable.
__device__ inline int position_of(const Labels& references, int64_t row) {
  if (row < 0 || row >= references.rows) {
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

// Where each anchor's class lies among the references, and the anchor itself, -1 for nowhere.
struct ClassPlaces {
  ClassRanges ranges;
  int32_t* self;  // or null: not asked for
};

// `self_index` is by anchor, or null; `wanted` a number on the device, or null: with 0 there is
// nothing to do.
void launch_class_places(const Labels& x, const Labels& references, const int64_t* self_index,
                         const int32_t* wanted, const ClassPlaces& places, cudaStream_t stream);

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

}  // namespace dmlfast::cuda
