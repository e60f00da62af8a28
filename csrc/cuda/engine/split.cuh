// How all-pairs work is shared among blocks of threads: blocks of rows, and where these are too
// few to fill a device, each row block's columns in contiguous parts.
#pragma once

#include "engine/launch.cuh"

namespace dmlfast::cuda {

struct Split {
  int row_blocks;
  int parts;           // of the columns, for each row block
  int tiles_per_part;  // the last part may have fewer, or none

  __host__ __device__ int items() const { return row_blocks * parts; }
};

// The same on host and device, as the number of rows may be known on the device alone.
__host__ __device__ inline Split split_of(int rows, int rows_per_block, int column_tiles,
                                          int wanted_items) {
  Split split;
  split.row_blocks = (rows + rows_per_block - 1) / rows_per_block;
  const int wanted = wanted_items / (split.row_blocks > 0 ? split.row_blocks : 1);
  split.parts = wanted < 1 ? 1 : wanted > column_tiles ? column_tiles : wanted;
  split.parts = split.parts < 1 ? 1 : split.parts;
  split.tiles_per_part = (column_tiles + split.parts - 1) / split.parts;
  return split;
}

// An upper bound of items() over all numbers of rows up to `rows`.
__host__ __device__ inline int most_items(int rows, int rows_per_block, int wanted_items) {
  const int row_blocks = (rows + rows_per_block - 1) / rows_per_block;
  return row_blocks > wanted_items ? row_blocks : wanted_items;
}

}  // namespace dmlfast::cuda
