// Rows of a matrix as the fast search reads them: float32, in label order, centred and scaled, in
// panels of sixteen rows whose elements alternate.
#pragma once

#include <cstdint>

namespace dmlfast::cpu {

constexpr int64_t kSearchPanelRows = 16;

// Terms that are added up before the sum joins the total: shorter chains round less.
constexpr int64_t kSearchChain = 16;

// A view without ownership and without standard library types. The key of a pair, smaller for
// closer, is addend[j] + factor * <x_i, y_j>; it differs from the value that selections compare
// by an amount that depends on i alone, and by rounding.
struct SearchRows {
  const float* panels;    // [panel][dimension][kSearchPanelRows]; 0 past the end
  const float* addends;   // [position]; NaN past the end, so that no key there compares
  const int64_t* labels;  // [position], ascending; past the end the last label again
  int64_t rows;
  int64_t panel_count;
  int64_t dimensions;
  // Instead of `panels`, rows packed as 16-bit integers, two dimensions in a number: those of a row
  // past the end, and the second of the last two where the dimensions are odd, are 0.
  const int32_t* integers = nullptr;  // [panel][half the dimensions][kSearchPanelRows]
};

static inline const float* search_panel_of(const SearchRows& rows, int64_t panel) {
  return rows.panels + panel * rows.dimensions * kSearchPanelRows;
}

static inline int64_t integer_pairs_of(const SearchRows& rows) { return (rows.dimensions + 1) / 2; }

static inline const int32_t* integer_panel_of(const SearchRows& rows, int64_t panel) {
  return rows.integers + panel * integer_pairs_of(rows) * kSearchPanelRows;
}

}  // namespace dmlfast::cpu
