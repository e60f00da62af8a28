// Blocks of pairs: their distances, a strip of one panel of anchors at a time, and the sums of rows
// that their weights select. Included only by sources that are compiled once per instruction set
// level.
#pragma once

#include <cstdint>

#include "engine/near_pairs.h"
#include "engine/search_rows.h"
#include "engine/vector_math.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// A block's weights stay in the second cache, a strip and its panels in the first.
constexpr int64_t kBlockRows = 128;
constexpr int64_t kBlockColumns = 256;
constexpr int64_t kStripRows = kSearchPanelRows;

// Distances of one panel of x to a range of panels of y, [row][column], as kBlockColumns columns.
// A pair that is not there, one with itself, with a row past the end or with one that is not
// finite, has NaN.
struct Strip {
  int64_t first_row;  // positions
  int64_t first_column;
  int64_t columns;  // a multiple of kSearchPanelRows
  float (*values)[kBlockColumns];
  // Pairs whose distance was computed again, [row][number].
  int32_t near_counts[kStripRows];
  int32_t near[kStripRows][kBlockColumns];
};

inline void strip_products(const SearchRows& x, int64_t panel, const SearchRows& y,
                           int64_t first_panel, int64_t panels, Strip& strip) {
  for (int64_t p = 0; p < panels; p += kTilePanels) {
    const float* columns[kTilePanels];
    for (int64_t q = 0; q < kTilePanels; ++q) {
      columns[q] = search_panel_of(y, first_panel + (p + q < panels ? p + q : panels - 1));
    }
    const int64_t whole = panels - p < kTilePanels ? panels - p : kTilePanels;
    for (int64_t row = 0; row < kStripRows; row += kTileRows) {
      Part products[kTileRows][kParts];
      multiply(search_panel_of(x, panel) + row, columns, x.dimensions, products);
      for (int64_t r = 0; r < kTileRows; ++r) {
        for (int64_t q = 0; q < whole * kPanelParts; ++q) {
          store(&strip.values[row + r][p * kSearchPanelRows + q * kLanes], products[r][q]);
        }
      }
    }
  }
}

// Replaces a position's value by the one computed again.
inline void measure_again(const PairDistance& distance, Strip& strip, int64_t row, int64_t column) {
  strip.values[row][column] = static_cast<float>(
      distance.squares(distance.rows, strip.first_row + row, strip.first_column + column));
  strip.near[row][strip.near_counts[row]++] = static_cast<int32_t>(column);
}

// `self` is the column that is the row itself, or none of them.
inline void row_distances(const SearchRows& x, const SearchRows& y, const PairDistance& distance,
                          Strip& strip, int64_t row, int64_t self) {
  float* values = strip.values[row];
  const float own = x.addends[strip.first_row + row] + distance.constant;
  const float* addends = y.addends + strip.first_column;
  strip.near_counts[row] = 0;
  if (self >= 0 && self < strip.columns) {
    values[self] = __builtin_nanf("");
  }
  if (!distance.sums_differences) {
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      store(values + c, own + load(addends + c) - distance.factor * load(values + c));
    }
    return;
  }
  for (int64_t c = 0; c < strip.columns; c += kLanes) {
    const Part sum = own + load(addends + c);
    const Part squares = sum - distance.factor * load(values + c);
    const MaskPart near = squares < kNearShare * sum;
    store(values + c, squares);
    if (__builtin_expect(any(near), 0)) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (near[lane]) {
          measure_again(distance, strip, row, c + lane);
        }
      }
    }
  }
  if (distance.has_root) {
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      store(values + c, square_root(load(values + c)));
    }
  }
}

// A matrix whose rows and depth lie any number of elements apart.
struct Weights {
  const float* data;
  int64_t row_step;
  int64_t depth_step;
};

template <int64_t kColumns>
inline void add_tile(const Weights& weights, int64_t depth, const float* rows, int64_t stride,
                     float* sums) {
  Part tile[kTileRows][kColumns] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Part columns[kColumns];
#pragma GCC unroll 8
    for (int64_t p = 0; p < kColumns; ++p) {
      columns[p] = load(rows + k * stride + p * kLanes);
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < kTileRows; ++r) {
      const float weight = weights.data[r * weights.row_step + k * weights.depth_step];
#pragma GCC unroll 8
      for (int64_t p = 0; p < kColumns; ++p) {
        tile[r][p] += weight * columns[p];
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int64_t p = 0; p < kColumns; ++p) {
      float* to = sums + r * stride + p * kLanes;
      store(to, load(to) + tile[r][p]);
    }
  }
}

// sums[r] += sum over k of weights(r, k) * rows[k]; `count` is a multiple of kTileRows, the stride
// of kSearchPanelRows.
inline void add_rows(Weights weights, int64_t count, int64_t depth, const float* rows,
                     int64_t stride, float* sums) {
  const float* first = weights.data;
  for (int64_t begin = 0; begin < stride; begin += kParts * kLanes) {
    for (int64_t r = 0; r < count; r += kTileRows) {
      weights.data = first + r * weights.row_step;
      float* to = sums + r * stride + begin;
      if (stride - begin >= kParts * kLanes) {
        add_tile<kParts>(weights, depth, rows + begin, stride, to);
      } else {
        add_tile<kPanelParts>(weights, depth, rows + begin, stride, to);
      }
    }
  }
}

}  // namespace

}  // namespace dmlfast::cpu::DMLFAST_ISA
