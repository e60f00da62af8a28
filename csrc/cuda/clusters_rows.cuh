// Which rows belong to a cluster at all.
#pragma once

#include "engine/any_rows.cuh"

namespace dmlfast::cuda {

// Whether all elements of each row are finite; a warp a row.
static __global__ void finite_rows_kernel(AnyRows rows, uint8_t* is_finite) {
  for (int64_t row = int64_t{blockIdx.x} * kElementWarps + warp_number(); row < rows.rows;
       row += int64_t{gridDim.x} * kElementWarps) {
    const bool is = warp_row_is_finite(rows, static_cast<int>(row));
    if (lane_number() == 0) {
      is_finite[row] = is ? 1 : 0;
    }
  }
}

inline void launch_finite_rows(const AnyRows& rows, uint8_t* is_finite, cudaStream_t stream) {
  DMLFAST_LAUNCH(finite_rows_kernel, element_blocks(rows.rows * 32), kElementThreads, stream, rows,
                 is_finite);
}

}  // namespace dmlfast::cuda
