// Which columns of a tile are of the class of its rows.
#pragma once

#include "engine/class_ranges.cuh"
#include "engine/tile_walk.cuh"

namespace dmlfast::cuda {

// Where the rows of a block may meet their own classes. Rows are all anchors in the order of their
// labels: what belongs to the first and to the last row of a block bounds what is between.
struct ClassSpans {
  ClassSpan any;           // columns outside are of other classes than all rows
  ClassSpan all = {0, 0};  // columns inside are of the class of all rows

  __device__ ClassSpans(const ClassRanges& ranges, const BlockRows& rows, int anchors) {
    const int first = rows.anchors[0];
    const int last = min(first + kTileRows, anchors) - 1;
    any = {ranges.begin[first], ranges.end[last]};
    if (ranges.begin[last] == any.begin && ranges.end[first] == any.end) {
      all = any;
    }
  }

  __device__ bool has_own(const Tile& tile) const {
    return tile.first_column < any.end && any.begin < tile.first_column + kTileColumns;
  }
  __device__ bool has_other(const Tile& tile) const {
    return tile.first_column < all.begin || all.end < tile.first_column + kTileColumns;
  }
  __device__ TileRange tiles() const {
    return {any.begin / kTileColumns, (any.end + kTileColumns - 1) / kTileColumns};
  }
};

// Which of a thread's columns of a tile are of a row's class.
class OwnColumns {
 public:
  OwnColumns() = default;  // none

  __device__ OwnColumns(const ClassRanges& ranges, const BlockRows& rows, const Tile& tile,
                        int slot) {
    const int anchor = rows.anchors[tile_row(slot)];
    if (anchor >= 0) {
      begin_ = ranges.begin[anchor] - tile.column(0);
      length_ = static_cast<unsigned>(ranges.end[anchor] - ranges.begin[anchor]);
    }
  }

  __device__ bool holds(int j) const {
    return static_cast<unsigned>(column_offset(j) - begin_) < length_;
  }

 private:
  int begin_ = 0;  // from the thread's first column
  unsigned length_ = 0;
};

}  // namespace dmlfast::cuda
