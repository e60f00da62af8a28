// The gradients of the triplets' losses. The derivative by the distance to a negative is minus the
// upstream gradient of the anchor for each of its triplets, by that to a positive the same with a
// plus for each of its hits. The rows of a walk are the anchors or, for the gradient of the
// references, the columns are.
#pragma once

#include "contrast_triplet_forward.cuh"
#include "engine/gradient_walk.cuh"

namespace dmlfast::cuda {

struct TripletWeightArguments {
  DistanceTask distances;
  ClassRanges ranges;  // by row, of its class among the columns
  TripletBounds bounds;
  TripletExactness exact;  // of rows and columns
  const int32_t* hits;     // [place][padded anchor position]
  const float* upstream;   // by anchor position, up to whole tiles
  const int32_t* self;     // where the columns are the anchors: the row that is no partner; or null
};

template <class Bounds, bool kExact>
class TripletWeightPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr bool kByColumn = Bounds::kByColumn;
  static constexpr int kColumnValues = kByColumn ? 2 : 1;

  explicit TripletWeightPolicy(const TripletWeightArguments& arguments) : a_(arguments) {}

  __device__ const float* column_values(int which) const {
    return which == 0 ? a_.distances.y.norm : a_.upstream;
  }
  __device__ TileRange tiles(const BlockRows&) const { return {0, INT_MAX}; }

  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const { s.rows = &rows; }
  __device__ void finish(const State&, const BlockRows&, int, bool) const {}

  __device__ void weigh(const State& s, const Tile& tile, Fragment& fragment) const {
    const BlockRows& rows = *s.rows;
    const ClassSpans classes(a_.ranges, rows, a_.distances.x.rows);
    const Bounds bounds(a_.bounds, rows, tile);
    if (kByColumn && a_.self != nullptr) {
      leave_out_selves(rows, tile, fragment);
    }
    if (classes.has_other(tile)) {
      if constexpr (kExact) {
        make_exact(a_.distances, a_.exact, rows, tile, bounds, Distances(a_.distances, rows).unit(),
                   fragment);
      }
    }
    const bool has_own = classes.has_own(tile);
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const OwnColumns own = has_own ? OwnColumns(a_.ranges, rows, tile, slot) : OwnColumns();
#pragma unroll
      for (int first = 0; first < Fragment::kColumns; first += kColumns) {
        weigh_columns(rows, tile, bounds, own, slot, first, fragment.value[slot]);
        __syncwarp();
      }
    }
  }

 private:
  static constexpr int kColumns = kByColumn ? 4 : 8;  // of a row, counted at once

  __device__ void leave_out_selves(const BlockRows& rows, const Tile& tile,
                                   Fragment& fragment) const {
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const int column = tile.column(j);
      const int self = column < a_.distances.y.rows ? a_.self[column] : -1;
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        float& value = fragment.value[slot][j];
        value = self == rows.first_place + tile_row(slot) ? NAN : value;
      }
      keep_column_order(j);
    }
  }

  __device__ void weigh_columns(const BlockRows& rows, const Tile& tile, const Bounds& bounds,
                                const OwnColumns& own, int slot, int first,
                                float (&distances)[Fragment::kColumns]) const {
    float triplets[kColumns] = {};
#pragma unroll 1
    for (int place = 0; place < bounds.places(); ++place) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float bound = bounds.value(place, slot, first + j);
        triplets[j] += distances[first + j] < bound ? 1.0f : 0.0f;
      }
    }
    const int row = rows.first_place + tile_row(slot);
    const float inverse_unit = inverse_unit_of(a_.distances);
    const float row_upstream = kByColumn ? 0.0f : a_.upstream[row];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int column = tile.column(first + j);
      const float upstream = kByColumn ? tile.value(1, first + j) : row_upstream;
      float slope = -upstream * triplets[j];
      if (own.holds(first + j)) {
        slope = upstream *
                static_cast<float>(hits_of(kByColumn ? column : row, kByColumn ? row : column));
      }
      float& value = distances[first + j];
      value = weight_of(a_.distances.metric, slope, value, inverse_unit);
    }
  }

  // Of a reference of the anchor's class.
  __device__ int hits_of(int anchor, int reference) const {
    const unsigned place = a_.bounds.place(anchor, reference);
    return place < static_cast<unsigned>(a_.bounds.limit)
               ? a_.hits[place * a_.bounds.anchors + anchor]
               : 0;
  }

  TripletWeightArguments a_;
};

}  // namespace dmlfast::cuda
