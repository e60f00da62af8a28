// The policy of a second look: the columns of all scores up to a limit that is known, of queries
// whose windows were too small.
#pragma once

#include "engine/window.cuh"

namespace dmlfast::cuda {

// Arrays are by place in the list of queries.
struct CollectArguments {
  const float* norms;  // by column
  const float* limits;
  const int32_t* self;  // by anchor: its own column, -1 for none; or null
  ClassRanges ranges;
  Partners partners;
  float factor;
  int32_t* counts;   // of columns: more than there is room for, where some are lost
  int32_t* columns;  // in any order
  int capacity;
};

class CollectPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 1;

  explicit CollectPolicy(const CollectArguments& arguments) : a_(arguments) {}

  __device__ const float* column_values(int) const { return a_.norms; }
  __device__ TileRange tiles(const BlockRows&) const { return {0, INT_MAX}; }

  struct State {
    float limit[Fragment::kRows];
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const {
    s.rows = &rows;
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int row = tile_row(slot);
      s.limit[slot] = rows.queries[row] < 0 ? NAN : a_.limits[rows.first_place + row];
    }
  }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      float least = INFINITY;
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        float& score = fragment.value[slot][j];
        score = multiply_add(a_.factor, score, tile.value(0, j));
        least = fminf(least, score);
      }
      if (least <= s.limit[slot]) {
        collect(s, slot, tile, fragment.value[slot]);
      }
    }
  }

  __device__ void finish(const State&, const BlockRows&, int) const {}

 private:
  __device__ void collect(State& s, int slot, const Tile& tile,
                          const float (&scores)[Fragment::kColumns]) const {
    const int anchor = s.rows->anchors[tile_row(slot)];
    const int64_t place = s.rows->first_place + tile_row(slot);
    const int self = a_.self == nullptr ? -1 : a_.self[anchor];
    const bool is_for_all = a_.partners == Partners::all;
    const int begin = is_for_all ? 0 : a_.ranges.begin[anchor];
    const int end = is_for_all ? 0 : a_.ranges.end[anchor];
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const int column = tile.column(j);
      const bool is_own = column >= begin && column < end;
      const bool is_partner = is_for_all || is_own == (a_.partners == Partners::same_class);
      if (scores[j] <= s.limit[slot] && is_partner && column != self) {
        const int number = atomicAdd(a_.counts + place, 1);
        if (number < a_.capacity) {
          a_.columns[place * a_.capacity + number] = column;
        } else {
          s.limit[slot] = NAN;
        }
      }
    }
  }

  CollectArguments a_;
};

// Compiled once, in collect.cu.
void launch_collect_walk(const WalkTask& task, const CollectArguments& arguments,
                         Precision precision, int shared_bytes, cudaStream_t stream);

}  // namespace dmlfast::cuda
