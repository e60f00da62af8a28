// Rows of a matrix as the tile walk reads them: float64, in label order, in panels of eight rows
// whose elements alternate, so that one vector load takes the same dimension of all eight.
#pragma once

#include <cstdint>

namespace dmlfast::cpu {

constexpr int64_t kPanelRows = 8;

// A view without ownership and without standard library types: the sources that are compiled at
// several instruction set levels include it.
struct PackedRows {
  const double* panels;   // [panel][dimension][kPanelRows]; rows past the end are NaN
  const int64_t* labels;  // [position], ascending; past the end the last label again
  const int64_t* index;   // [position] -> row of the matrix; -1 past the end
  const double* norms;    // [position] Euclidean norm; NaN past the end
  int64_t rows;
  int64_t panel_count;
  int64_t dimensions;
};

static inline const double* panel_of(const PackedRows& rows, int64_t panel) {
  return rows.panels + panel * rows.dimensions * kPanelRows;
}

}  // namespace dmlfast::cpu
