// Sums over parts of the columns: what the walk over all pairs leaves behind, for the sums
// themselves and for gradients that need them again.
#pragma once

#include "contrast_sums_pairs.cuh"

namespace dmlfast::cuda {

// A side's sum of a row over some columns: of powers of 2 divided by 2^greatest, or of terms.
struct SumPart {
  double sum;
  float greatest;
  int32_t count;
};

struct SumPolicyArguments {
  DistanceTask distances;
  ClassRanges ranges;
  SumSide side[kSides];
  const int32_t* is_wanted;  // or null: on the device, whether there is anything to do at all
  SumPart* parts;            // by item, row of the tile and side
};

inline int64_t sum_part_elements(const SumArguments& a) {
  const int wanted = wanted_or_usual(a.wanted_items);
  return int64_t{most_items(static_cast<int>(a.x.rows), kTileRows, wanted)} * kTileRows * kSides;
}

// One side of an anchor, from all parts of the columns in their order.
__device__ inline SumPart join_parts(const SumPart* parts, const Split& split, int position,
                                     int side) {
  const int64_t first = first_part_of(split, position);
  const auto at = [&](int part) {
    return parts[(first + int64_t{part} * kTileRows) * kSides + side];
  };
  SumPart joined{0.0, -INFINITY, 0};
  for (int part = 0; part < split.parts; ++part) {
    joined.greatest = fmaxf(joined.greatest, at(part).greatest);
  }
  for (int part = 0; part < split.parts; ++part) {
    const SumPart one = at(part);
    // Sums of terms have no greatest.
    const bool is_scaled = one.greatest != joined.greatest;
    joined.sum +=
        is_scaled ? one.sum * exp2(static_cast<double>(one.greatest) - joined.greatest) : one.sum;
    joined.count += one.count;
  }
  return joined;
}

// Sums of all pairs, in parts.
void launch_sum_walk(const WalkTask& task, const SumPolicyArguments& arguments, bool is_split,
                     int shared_bytes, cudaStream_t stream);

}  // namespace dmlfast::cuda
