// What the walks over triplets have in common: packed rows, the ranges of the classes, and the
// bounds. A negative at distance D makes a triplet with every positive whose bound, its distance
// plus the margin, is greater than D. An anchor may have as many positives as there are references:
// a pass serves some of them, and passes beyond the greatest class find nothing to do.
#pragma once

#include "contrast_triplet.h"
#include "engine/class_columns.cuh"
#include "engine/distances.cuh"
#include "engine/queries.cuh"

namespace dmlfast::cuda {

// The bounds of one pass.
struct TripletBounds {
  const float* bound;   // [place][padded anchor position]; -inf for none
  const int32_t* most;  // by tile of anchors: the bounds of the anchor with most, all passes
  const int32_t* first_column;  // by anchor position: the column whose bound is the first
  int64_t anchors;              // padded
  int first;                    // bounds of an anchor that earlier passes served
  int limit;                    // of a pass

  // Places that a tile of anchors has in this pass.
  __device__ int places(int tile) const { return min(max(most[tile] - first, 0), limit); }

  // The place of a column of the anchor's class; none of this pass where it is not below `limit`.
  __device__ unsigned place(int anchor, int column) const {
    return static_cast<unsigned>(column - first_column[anchor] - first);
  }
};

// What computes a pair again from the rows as given, and says when.
struct TripletExactness {
  const double* x_norms;  // by row; under cosine alone
  const double* y_norms;
  const RowNumbers* x_numbers;  // by tile, the greatest of its rows
  const RowNumbers* y_numbers;
  float rounded_sums;  // of the sum over the steps, against both rows' lengths
};

struct TripletMemory {
  PackPairMemory packed;
  ClassRanges ranges;  // by anchor position, of its class among the references
  int32_t* self;       // by anchor position
  double* x_norms;     // by row
  double* y_norms;
  RowNumbers* x_numbers;  // by tile
  RowNumbers* y_numbers;
  int32_t* most;           // by tile of anchors
  int32_t* anchors;        // by pass: how many it serves, all or none
  int32_t* references;     // by pass, likewise
  float* bound;            // [place][padded anchor position]
  float* chosen_distance;  // by anchor, where one positive is chosen
  int64_t* chosen_index;
  int32_t* chosen_column;  // by anchor position
  unsigned char* selection;

  static TripletMemory take(Workspace& workspace, const TripletArguments& a);
};

// Anchors and references that are the same rows in the same order are packed once.
inline bool is_within_batch(const TripletArguments& a) {
  return are_same_rows(a.x, a.references) && a.order == a.reference_order;
}

DMLFAST_HOST_DEVICE inline Labels labels_of_anchors(const TripletArguments& a) {
  return {a.labels, a.order, a.x.rows};
}

DMLFAST_HOST_DEVICE inline Labels labels_of_references(const TripletArguments& a) {
  return {a.reference_labels, a.reference_order, a.references.rows};
}

// Triplets are exact, and gradients have weights, whatever the rows are.
inline bool is_split(const TripletArguments& a) { return !a.is_fast; }

// Bounds of a pass: a few times the memory of the rows, or of 4 Mi numbers.
inline int64_t bounds_of_pass(const TripletArguments& a) {
  constexpr int64_t kFewest = 64;
  constexpr int64_t kElements = int64_t{1} << 22;
  const int64_t most = a.references.rows < 1 ? 1 : a.references.rows;
  if (a.positives != TripletPositives::all) {
    return 1;
  }
  int64_t bounds = a.most_bounds;
  if (bounds <= 0) {
    const int64_t affordable = kElements / padded_rows(a.x.rows);
    bounds = 4 * a.x.columns > affordable ? 4 * a.x.columns : affordable;
    bounds = bounds < kFewest ? kFewest : bounds;
  }
  return bounds < most ? bounds : most;
}

inline int64_t triplet_passes(const TripletArguments& a) {
  if (a.positives != TripletPositives::all || a.references.rows < 1) {
    return 1;
  }
  return (a.references.rows + bounds_of_pass(a) - 1) / bounds_of_pass(a);
}

inline float rounded_sums(const TripletArguments& a) {
  return static_cast<float>(padded_columns(a.x.columns) / kStepColumns + 1) * 0x1p-23f;
}

// Packed rows, ranges, selves, norms: what all passes need.
PackedPair launch_triplet_preparation(const TripletArguments& a, const TripletMemory& memory,
                                      int shared_bytes, cudaStream_t stream);

// The bounds of a pass. `hits`, where it is not null, is cleared beside them.
TripletBounds launch_triplet_bounds(const TripletArguments& a, const TripletMemory& memory,
                                    int pass, int32_t* hits, cudaStream_t stream);

inline DistanceTask triplet_distances(const TripletArguments& a, const PackedPair& pair,
                                      const TripletMemory& memory) {
  return distance_task(a, pair, a.self_index == nullptr ? nullptr : memory.self);
}

}  // namespace dmlfast::cuda
