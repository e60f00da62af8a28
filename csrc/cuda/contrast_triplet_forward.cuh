// The losses of triplets, and how many triplets each positive is in.
#pragma once

#include "contrast_triplet_exact.cuh"

namespace dmlfast::cuda {

// Of one row, summed over some columns.
struct TripletPart {
  double loss;
  int64_t active;
};

struct TripletPolicyArguments {
  DistanceTask distances;
  ClassRanges ranges;
  TripletBounds bounds;
  TripletExactness exact;
};

// What walks over the negatives of anchors have in common. Read anew for each tile, ranges and
// bounds are in no register while products are summed.
template <bool kExact>
class NegativesPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 1;

  explicit NegativesPolicy(const TripletPolicyArguments& arguments) : a_(arguments) {}

  __device__ const float* column_values(int) const { return a_.distances.y.norm; }
  __device__ TileRange tiles(const BlockRows& rows) const {
    return {0, a_.bounds.places(rows.first_place / kTileRows) == 0 ? 0 : INT_MAX};
  }

 protected:
  // Whether a tile has negatives; then their distances, NaN for others.
  __device__ bool take_negatives(const BlockRows& rows, const Tile& tile,
                                 Fragment& fragment) const {
    const ClassSpans classes(a_.ranges, rows, a_.distances.x.rows);
    if (!classes.has_other(tile)) {
      return false;
    }
    hold_sums(fragment.value);
    const Distances distances(a_.distances, rows);
    distances.convert(a_.distances, tile, fragment);
    hold_sums(fragment.value);
    if (classes.has_own(tile)) {
      leave_out_own(rows, tile, fragment);
    }
    if constexpr (kExact) {
      make_exact(a_.distances, a_.exact, rows, tile, RowBounds(a_.bounds, rows, tile),
                 distances.unit(), fragment);
    }
    return true;
  }

  TripletPolicyArguments a_;

 private:
  __device__ void leave_out_own(const BlockRows& rows, const Tile& tile, Fragment& fragment) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const OwnColumns own(a_.ranges, rows, tile, slot);
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        float& value = fragment.value[slot][j];
        value = own.holds(j) ? NAN : value;
      }
    }
  }
};

// Adds to a sum and to what its rounding has lost.
__device__ inline void add_triplets(float& sum, float& lost, float term) {
  const float total = sum + term;
  const float added = total - sum;
  lost += (sum - (total - added)) + (term - added);
  sum = total;
}

// Sums the losses of each anchor.
template <bool kExact>
class TripletLossPolicy : public NegativesPolicy<kExact> {
  using Negatives = NegativesPolicy<kExact>;
  using Negatives::a_;

 public:
  // Parts of earlier passes are added to.
  TripletLossPolicy(const TripletPolicyArguments& arguments, TripletPart* parts)
      : Negatives(arguments), parts_(parts) {}

  // Sums are in shared memory, to be in no register while products are summed; the first lane of a
  // quad, whose lanes have parts of the same rows, adds to them.
  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const {
    s.rows = &rows;
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        part_of(tile_row(slot)) = {0.0, 0};
      }
    }
  }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
    if (!this->take_negatives(*s.rows, tile, fragment)) {
      return;
    }
    const RowBounds bounds(a_.bounds, *s.rows, tile);
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      add(bounds, slot, fragment.value[slot]);
      __syncwarp();
    }
  }

  __device__ void finish(const State&, const BlockRows&, int item) const {
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        TripletPart& part = parts_[int64_t{item} * kTileRows + tile_row(slot)];
        const TripletPart before = a_.bounds.first == 0 ? TripletPart{0.0, 0} : part;
        const TripletPart& own = part_of(tile_row(slot));
        part = {before.loss + own.loss, before.active + own.active};
      }
    }
  }

 private:
  __device__ static TripletPart& part_of(int row) {
    __shared__ TripletPart parts[kTileRows];
    return parts[row];
  }

  __device__ static void add(const RowBounds& bounds, int slot,
                             const float (&distances)[Fragment::kColumns]) {
    const float least = least_of(distances);
    float sum = 0.0f;
    float lost = 0.0f;  // of the sum, by rounding
    int active = 0;
#pragma unroll 1
    for (int place = 0; place < bounds.places(); ++place) {
      const float bound = bounds.value(place, slot, 0);
      if (__ballot_sync(kAllLanes, least < bound) == 0) {
        continue;
      }
      float sums[2] = {0.0f, 0.0f};
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        const float term = bound - distances[j];
        sums[j % 2] += fmaxf(term, 0.0f);
        active += term > 0.0f ? 1 : 0;
      }
      add_triplets(sum, lost, sums[0] + sums[1]);
    }
    const auto add = [](auto a, auto b) { return a + b; };
    const double loss = join_quad(static_cast<double>(sum) + static_cast<double>(lost), add);
    active = join_quad(active, add);
    if (threadIdx.x % 4 == 0) {
      TripletPart& part = part_of(tile_row(slot));
      part = {part.loss + loss, part.active + active};
    }
  }

  TripletPart* parts_;
};

// Counts the triplets of each positive.
template <bool kExact>
class TripletHitsPolicy : public NegativesPolicy<kExact> {
  using Negatives = NegativesPolicy<kExact>;
  using Negatives::a_;

 public:
  TripletHitsPolicy(const TripletPolicyArguments& arguments, int32_t* hits)
      : Negatives(arguments), hits_(hits) {}

  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const { s.rows = &rows; }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
    if (!this->take_negatives(*s.rows, tile, fragment)) {
      return;
    }
    const RowBounds bounds(a_.bounds, *s.rows, tile);
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      count(*s.rows, bounds, slot, fragment.value[slot]);
      __syncwarp();
    }
  }

  __device__ void finish(const State&, const BlockRows&, int) const {}

 private:
  __device__ void count(const BlockRows& rows, const RowBounds& bounds, int slot,
                        const float (&distances)[Fragment::kColumns]) const {
    const float least = least_of(distances);
#pragma unroll 1
    for (int place = 0; place < bounds.places(); ++place) {
      const float bound = bounds.value(place, slot, 0);
      if (__ballot_sync(kAllLanes, least < bound) == 0) {
        continue;
      }
      int hits = 0;
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        hits += distances[j] < bound ? 1 : 0;
      }
      hits = join_quad(hits, [](int a, int b) { return a + b; });
      if (threadIdx.x % 4 == 0 && hits > 0) {
        // Whole numbers: the same in any order.
        atomicAdd(hits_ + place * a_.bounds.anchors + rows.first_place + tile_row(slot), hits);
      }
    }
  }

  int32_t* hits_;
};

}  // namespace dmlfast::cuda
