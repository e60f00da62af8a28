// The policy of searches: every lane keeps the four smallest scores among its columns, so that each
// row has sixteen candidates, and whoever reads them knows that no other column has a score below
// the greatest of a lane that is full.
#pragma once

#include "engine/class_ranges.cuh"
#include "engine/tile_walk.cuh"

namespace dmlfast::cuda {

constexpr int kWindow = 4;
constexpr int kLanesPerRow = 4;
constexpr int kCandidates = kWindow * kLanesPerRow;  // of a row in one part of the columns

// Score +inf: none.
struct Candidate {
  float score;
  int32_t column;
};

// Whose partners a search looks for.
enum class Partners { all, same_class, other_class };

// A score is what the true value is, but for its row's constant and an error up to `bounds`:
// norm of the column + factor * product, negated for the farthest.
struct WindowArguments {
  const float* norms;   // by column
  const float* bounds;  // by query
  const float* lower;   // by query: scores below are passed over, but for the error; or null
  const int32_t* self;  // by anchor: its own column, -1 for none; or null
  ClassRanges ranges;
  Partners partners;
  float factor;
  Candidate* windows;  // by item, row of the tile and lane of its quad
};

// Several: whoever reads the windows wants more than the best, so that all are kept as they are.
template <bool kFarthest, bool kHasLower, bool kSeveral = false>
class WindowPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 1;

  explicit WindowPolicy(const WindowArguments& arguments) : a_(arguments) {}

  __device__ const float* column_values(int) const { return a_.norms; }

  __device__ TileRange tiles(const BlockRows& rows) const {
    if (a_.partners != Partners::same_class) {
      return {0, INT_MAX};
    }
    const ClassSpan span = span_of(rows);
    return {span.begin / kTileColumns, (span.end + kTileColumns - 1) / kTileColumns};
  }

  struct State {
    float score[Fragment::kRows][kWindow];  // ascending
    int column[Fragment::kRows][kWindow];
    float limit[Fragment::kRows];  // greater scores are of no use
    ClassSpan classes;             // of all rows of the block
    const BlockRows* rows;         // what is seldom needed is read again
  };

  __device__ void start(State& s, const BlockRows& rows) const {
    s.rows = &rows;
    s.classes = a_.partners == Partners::all ? ClassSpan{0, 0} : span_of(rows);
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int query = rows.queries[tile_row(slot)];
#pragma unroll
      for (int k = 0; k < kWindow; ++k) {
        s.score[slot][k] = INFINITY;
        s.column[slot][k] = -1;
      }
      s.limit[slot] = query < 0 ? -INFINITY : INFINITY;
    }
  }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
    // Read anew, to be in no register while products are summed.
    float least[Fragment::kRows];
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      least[slot] = least_of(s.rows->queries[tile_row(slot)]);
    }
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const float norm = tile.value(0, j);
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        float& score = fragment.value[slot][j];
        score = multiply_add(a_.factor, score, norm);
        if (kFarthest) {
          score = norm == INFINITY ? INFINITY : -score;
        }
        if (kHasLower) {
          // None where it is NaN.
          score = score >= least[slot] ? score : INFINITY;
        }
      }
      keep_column_order(j);
    }
    if (tile.first_column < s.classes.end && s.classes.begin < tile.first_column + kTileColumns) {
      mask_classes(s, tile, fragment);
    } else if (a_.partners == Partners::same_class) {
      return;
    }
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      float best = fragment.value[slot][0];
#pragma unroll
      for (int j = 1; j < Fragment::kColumns; ++j) {
        best = fminf(best, fragment.value[slot][j]);
      }
      // All lanes vote, as all exchange their limits.
      if (__ballot_sync(kAllLanes, best <= s.limit[slot]) != 0) {
        keep(s, slot, tile, fragment.value[slot]);
      }
    }
  }

  __device__ void finish(const State& s, const BlockRows&, int item) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int64_t row = int64_t{item} * kTileRows + tile_row(slot);
      Candidate* to = a_.windows + row * kCandidates + threadIdx.x % kLanesPerRow * kWindow;
#pragma unroll
      for (int k = 0; k < kWindow; ++k) {
        to[k] = {s.score[slot][k], s.column[slot][k]};
      }
    }
  }

 private:
  // Smaller scores are not admissible, by more than their error.
  __device__ float least_of(int query) const {
    return kHasLower && query >= 0 ? a_.lower[query] - a_.bounds[query] : -INFINITY;
  }

  __device__ ClassSpan span_of(const BlockRows& rows) const {
    return class_span(a_.ranges, rows.anchors);
  }

  __device__ void mask_classes(const State& s, const Tile& tile, Fragment& fragment) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int anchor = s.rows->anchors[tile_row(slot)];
      const int begin = anchor < 0 ? 0 : a_.ranges.begin[anchor];
      const int end = anchor < 0 ? 0 : a_.ranges.end[anchor];
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        const bool is_own = tile.column(j) >= begin && tile.column(j) < end;
        if (is_own != (a_.partners == Partners::same_class)) {
          fragment.value[slot][j] = INFINITY;
        }
      }
    }
  }

  __device__ void keep(State& s, int slot, const Tile& tile,
                       const float (&scores)[Fragment::kColumns]) const {
    const int query = s.rows->queries[tile_row(slot)];
    const int anchor = s.rows->anchors[tile_row(slot)];
    const int self = query < 0 || a_.self == nullptr ? -1 : a_.self[anchor];
    const float bound = query < 0 ? 0.0f : a_.bounds[query];
#pragma unroll
    for (int j = 0; j < Fragment::kColumns; ++j) {
      const bool is_useful = scores[j] <= s.limit[slot] && scores[j] < s.score[slot][kWindow - 1];
      if (is_useful && tile.column(j) != self) {
        insert(s.score[slot], s.column[slot], scores[j], tile.column(j));
      }
    }
    if constexpr (kSeveral) {
      s.limit[slot] = fminf(s.limit[slot], s.score[slot][kWindow - 1]);
      return;
    }
    // A score that is surely admissible bounds what the best can be.
    float certain = INFINITY;
    const float admissible = least_of(query) + 2.0f * bound;
#pragma unroll
    for (int k = kWindow - 1; k >= 0; --k) {
      if (!kHasLower || s.score[slot][k] >= admissible) {
        certain = s.score[slot][k];
      }
    }
    certain = join_quad(certain, [](float a, float b) { return fminf(a, b); });
    const float limit = certain + 2.0f * bound;
    s.limit[slot] = limit < s.limit[slot] ? limit : s.limit[slot];
  }

  __device__ static void insert(float (&scores)[kWindow], int (&columns)[kWindow], float score,
                                int column) {
    scores[kWindow - 1] = score;
    columns[kWindow - 1] = column;
#pragma unroll
    for (int k = kWindow - 1; k > 0; --k) {
      const bool swaps = scores[k] < scores[k - 1];
      const float low_score = swaps ? scores[k] : scores[k - 1];
      const float high_score = swaps ? scores[k - 1] : scores[k];
      const int low_column = swaps ? columns[k] : columns[k - 1];
      const int high_column = swaps ? columns[k - 1] : columns[k];
      scores[k - 1] = low_score;
      columns[k - 1] = low_column;
      scores[k] = high_score;
      columns[k] = high_column;
    }
  }

  WindowArguments a_;
};

template <bool kFarthest, bool kHasLower, bool kSeveral>
constexpr bool kWalksInPairs<WindowPolicy<kFarthest, kHasLower, kSeveral>, Precision::half> =
    !kSeveral;

// Which candidates are wanted: the nearest, the nearest beyond a threshold, the farthest, or
// several of the nearest.
enum class WindowKind { nearest, beyond, farthest, several };

// Compiled once, in window.cu: the walk knows no dtype.
void launch_window_walk(const WalkTask& task, const WindowArguments& arguments, WindowKind kind,
                        Precision precision, int shared_bytes, cudaStream_t stream);

}  // namespace dmlfast::cuda
