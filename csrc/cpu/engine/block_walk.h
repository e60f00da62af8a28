// Blocks of pairs: their distances, a strip of one panel of anchors at a time, and the sums of rows
// that their weights select. Included only by sources that are compiled once per instruction set
// level.
#pragma once

#include <cstdint>

#include "engine/span.h"
#include "engine/vector_math.h"
#include "engine/walk_task.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// A block's weights stay in the second cache, a strip and its panels in the first.
constexpr int64_t kBlockRows = 128;
constexpr int64_t kBlockColumns = 256;
constexpr int64_t kStripRows = kSearchPanelRows;

// Distances of one panel of x to a range of panels of y, [row][column]; a pair that is not there,
// one with itself, with a row past the end or with one that is not finite, has NaN. Where a
// gradient is wanted the policy replaces them by weights.
struct Strip {
  int64_t first_row;  // positions
  int64_t first_column;
  int64_t columns;           // a multiple of kSearchPanelRows
  bool columns_are_anchors;  // this strip alone serves the columns as anchors
  float (*values)[kBlockColumns];
  // Columns whose distance was computed again, or whose gradient is to be, [row][number].
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

inline void note_near(Strip& strip, int64_t row, int64_t column, MaskPart near) {
  for (uint32_t lanes = bits(near); lanes != 0; lanes &= lanes - 1) {
    strip.near[row][strip.near_counts[row]++] = static_cast<int32_t>(column + __builtin_ctz(lanes));
  }
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
      const Part value = own + load(addends + c) - distance.factor * load(values + c);
      // Rounding takes no cosine distance below 0.
      store(values + c, distance.constant > 0.0f ? where(value < 0.0f, Part{}, value) : value);
    }
    return;
  }
  for (int64_t c = 0; c < strip.columns; c += kLanes) {
    const Part sum = own + load(addends + c);
    const Part squares = sum - distance.factor * load(values + c);
    const MaskPart near = (squares < kNearShare * sum) | (sum < distance.least_sum);
    store(values + c, squares);
    if (__builtin_expect(any(near), 0)) {
      note_near(strip, row, c, near);
    }
  }
  if (distance.has_root) {
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      store(values + c, square_root(load(values + c)));
    }
  }
  if (strip.near_counts[row] > 0) {
    distance.distances(distance.rows, distance.near_unit, strip.first_row + row, strip.first_column,
                       strip.near[row], strip.near_counts[row], values);
  }
}

// Replaces the derivative of a loss by a distance with the weight of the difference y - x (or of
// y) in the gradient of x.
inline Part weight_of(const PairDistance& distance, Part derivative, Part value) {
  if (distance.has_root) {
    // Nothing where the distance is 0.
    return where(value > 0.0f, -derivative / value);
  }
  return where(value == value, derivative * (distance.sums_differences ? -2.0f : -1.0f));
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

// The pairs of two spans of panels, block by block. A policy has
//   kNeedsDistances         whether strips are to be filled,
//   wants(rows, columns)    whether a block has pairs for it,
//   start(strip), serve_row(strip, row), end(strip).
template <class Policy>
class BlockWalk {
 public:
  BlockWalk(const WalkTask& task, Policy& policy)
      : task_(task), policy_(policy), wants_gradient_(task.x_gradient != nullptr) {}

  void walk(Span x, Span y) {
    strip_.columns_are_anchors = task_.is_symmetric && x.begin != y.begin;
    const int64_t step = wants_gradient_ ? kBlockRows : kStripRows;
    float (*values)[kBlockColumns] = new float[step][kBlockColumns];
    for (int64_t column = y.begin; column < y.end; column += kBlockColumns) {
      const Span columns{column, y.end - column < kBlockColumns ? y.end : column + kBlockColumns};
      for (int64_t row = x.begin; row < x.end; row += step) {
        const Span rows{row, x.end - row < step ? x.end : row + step};
        if (policy_.wants(rows, columns)) {
          serve(rows, columns, values);
        }
      }
    }
    delete[] values;
  }

 private:
  void serve(Span rows, Span columns, float (*values)[kBlockColumns]) {
    const int64_t strips = (rows.end - rows.begin + kStripRows - 1) / kStripRows;
    bool has_weights = false;
    strip_.first_column = columns.begin;
    strip_.columns =
        (columns.end - columns.begin + kSearchPanelRows - 1) / kSearchPanelRows * kSearchPanelRows;
    for (int64_t s = 0; s < strips; ++s) {
      strip_.first_row = rows.begin + s * kStripRows;
      strip_.values = values + s * kStripRows;
      fill();
      policy_.start(strip_);
      for (int64_t r = 0; r < kStripRows; ++r) {
        policy_.serve_row(strip_, r);
      }
      policy_.end(strip_);
      if (wants_gradient_ && add_to_rows()) {
        has_weights = true;
      }
    }
    if (has_weights && has_column_gradient()) {
      const GradientRows& from = *task_.x_gradient;
      const GradientRows& to = column_gradient();
      add_rows({values[0], 1, kBlockColumns}, strip_.columns, strips * kStripRows,
               from.rows + rows.begin * from.stride, from.stride,
               to.sums + columns.begin * to.stride);
    }
  }

  void fill() {
    if (Policy::kNeedsDistances) {
      strip_products(task_.x, strip_.first_row / kSearchPanelRows, task_.y,
                     strip_.first_column / kSearchPanelRows, strip_.columns / kSearchPanelRows,
                     strip_);
      for (int64_t r = 0; r < kStripRows; ++r) {
        const int64_t self = task_.self[strip_.first_row + r];
        row_distances(task_.x, task_.y, task_.distance, strip_, r,
                      self < 0 ? -1 : self - strip_.first_column);
      }
    }
  }

  bool has_column_gradient() const { return strip_.columns_are_anchors || !task_.is_symmetric; }

  const GradientRows& column_gradient() const {
    return task_.is_symmetric ? *task_.x_gradient : *task_.y_gradient;
  }

  // The strip's weights go to the gradient of its rows; says whether there are any.
  bool add_to_rows() {
    if (task_.distance.sums_differences) {
      float column_weights[kBlockColumns] = {};
      for (int64_t r = 0; r < kStripRows; ++r) {
        take_near(r);
        add_own(r, column_weights);
      }
      for (int64_t c = 0; c < strip_.columns && has_column_gradient(); ++c) {
        column_gradient().own[strip_.first_column + c] += static_cast<double>(column_weights[c]);
      }
    }
    MaskPart weighty = {};
    for (int64_t r = 0; r < kStripRows; ++r) {
      for (int64_t c = 0; c < strip_.columns; c += kLanes) {
        weighty |= load(strip_.values[r] + c) != 0.0f;
      }
    }
    if (!any(weighty)) {
      return false;
    }
    const GradientRows& to = *task_.x_gradient;
    const GradientRows& from = task_.is_symmetric ? to : *task_.y_gradient;
    add_rows({strip_.values[0], kBlockColumns, 1}, kStripRows, strip_.columns,
             from.rows + strip_.first_column * from.stride, to.stride,
             to.sums + strip_.first_row * to.stride);
    return true;
  }

  // Near pairs go to the gradient by themselves: in the sums of rows they would lose their digits.
  void take_near(int64_t r) {
    if (strip_.near_counts[r] == 0) {
      return;
    }
    const int64_t anchor = strip_.first_row + r;
    const GradientRows& to = *task_.x_gradient;
    const GradientRows& others = column_gradient();
    float* partners =
        has_column_gradient() ? others.sums + strip_.first_column * others.stride : nullptr;
    task_.distance.add_differences(task_.distance.rows, anchor, strip_.first_column, strip_.near[r],
                                   strip_.near_counts[r], strip_.values[r],
                                   to.sums + anchor * to.stride, partners, to.stride);
    for (int32_t n = 0; n < strip_.near_counts[r]; ++n) {
      strip_.values[r][strip_.near[r][n]] = 0.0f;
    }
  }

  void add_own(int64_t r, float* column_weights) {
    Part own = {};
    for (int64_t c = 0; c < strip_.columns; c += kLanes) {
      const Part weights = load(strip_.values[r] + c);
      own += weights;
      store(column_weights + c, load(column_weights + c) + weights);
    }
    task_.x_gradient->own[strip_.first_row + r] += sum_of(own);
  }

  const WalkTask& task_;
  Policy& policy_;
  const bool wants_gradient_;
  Strip strip_;
};

}  // namespace

}  // namespace dmlfast::cpu::DMLFAST_ISA
