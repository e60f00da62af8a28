#include <utility>

#include "contrast_triplet_bounds.cuh"
#include "engine/exact_walk.cuh"
#include "neighbors.h"
#include "neighbors_choice.cuh"

namespace dmlfast::cuda {

namespace {

// The least float32 number that is not less: a float32 distance is below it just where it is below
// the bound itself. Distances under the Euclidean metrics are not below 0, nor below bounds that
// are not greater. Nothing is below -inf, which stands for no bound at all.
__device__ float bound_of(Metric metric, double distance, double margin) {
  const double bound = static_cast<double>(static_cast<float>(distance)) + margin;
  if (!(distance - distance == 0.0) || !(bound > (sums_differences(metric) ? 0.0 : -FLT_MAX))) {
    return -INFINITY;
  }
  const float nearest = static_cast<float>(bound);
  return static_cast<double>(nearest) < bound ? nextafterf(nearest, INFINITY) : nearest;
}

template <class T>
struct BoundArguments {
  const double* x_norms;
  const double* y_norms;
  const int64_t* self_index;
  Metric metric;
  double margin;
  ClassRanges ranges;
  int anchor_count;
  int first;  // place among the class, of this pass
  int limit;
  int64_t anchors;  // padded
  float* bound;

  // In the order of the labels the classes of the first and of the last anchor enclose all others.
  __device__ ColumnRange columns(int row_block) const {
    const int first_anchor = row_block * kExactTile;
    const int last_anchor = min(first_anchor + kExactTile, anchor_count) - 1;
    return {ranges.begin[first_anchor] + first,
            min(ranges.end[last_anchor], ranges.begin[last_anchor] + first + limit)};
  }
};

// Writes the bounds of the positives.
template <class T>
class BoundPolicy {
 public:
  using Arguments = BoundArguments<T>;
  struct Shared {};

  __device__ BoundPolicy(const Arguments& arguments, Shared&) : a_(arguments) {}

  __device__ void begin(const ExactItem&) {}
  __device__ void finish(const ExactItem&) {}

  __device__ __forceinline__ void take(const ExactItem& item, const ExactColumns& tile,
                                       const ExactSums& sums) {
#pragma unroll
    for (int i = 0; i < kExactPairs; ++i) {
      if (row_of(i) >= item.rows) {
        continue;
      }
      const int position = item.row_block * kExactTile + row_of(i);
      const int64_t anchor = item.anchors[row_of(i)];
      const int first = a_.ranges.begin[position] + a_.first;
      const int end = min(a_.ranges.end[position], first + a_.limit);
      const int64_t self = a_.self_index == nullptr ? -1 : a_.self_index[anchor];
      const double norm = a_.metric == Metric::cosine ? a_.x_norms[anchor] : 0.0;
#pragma unroll
      for (int j = 0; j < kExactPairs; ++j) {
        const int column = tile.first + column_of(j);
        if (column_of(j) >= tile.count || column < first || column >= end) {
          continue;
        }
        const int reference = tile.references[column_of(j)];
        if (reference == self) {
          continue;
        }
        const double other = a_.metric == Metric::cosine ? a_.y_norms[reference] : 0.0;
        const double value = value_of(a_.metric, sums[i][j], norm, other);
        a_.bound[int64_t{column - first} * a_.anchors + position] =
            bound_of(a_.metric, distance_of(a_.metric, value), a_.margin);
      }
    }
  }

 private:
  const Arguments& a_;
};

// The greatest numbers of the rows of each tile; a warp a tile.
__global__ void tile_numbers_kernel(PackedRows rows, RowNumbers* numbers) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int tile = blockIdx.x * kElementWarps + threadIdx.x / 32; tile < rows.tiles();
       tile += gridDim.x * kElementWarps) {
    RowNumbers greatest = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (int row = lane; row < kTileRows; row += 32) {
      raise(greatest, rows.numbers[int64_t{tile} * kTileRows + row]);
    }
    greatest.length = warp_greatest(greatest.length);
    greatest.low_length = warp_greatest(greatest.low_length);
    greatest.low_residual = warp_greatest(greatest.low_residual);
    greatest.steps = warp_greatest(greatest.steps);
    if (lane == 0) {
      numbers[tile] = greatest;
    }
  }
}

// How many references the classes of a tile's anchors have, at most `limit`; a warp a tile.
__global__ void most_kernel(ClassRanges ranges, int anchors, int limit, int32_t* most) {
  const int tiles = (anchors + kTileRows - 1) / kTileRows;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int tile = blockIdx.x * kElementWarps + threadIdx.x / 32; tile < tiles;
       tile += gridDim.x * kElementWarps) {
    const int end = min((tile + 1) * kTileRows, anchors);
    int greatest = 0;
    for (int i = tile * kTileRows + lane; i < end; i += 32) {
      greatest = max(greatest, ranges.end[i] - ranges.begin[i]);
    }
    greatest = warp_greatest(greatest);
    if (lane == 0) {
      most[tile] = min(greatest, limit);
    }
  }
}

// Passes beyond the greatest class serve nobody, but for the first, which is to leave its results.
__global__ void passes_kernel(const int32_t* most, int anchors, int references, int limit,
                              int passes, int32_t* pass_anchors, int32_t* pass_references) {
  const int tiles = (anchors + kTileRows - 1) / kTileRows;
  int greatest = 0;
  for (int tile = threadIdx.x % 32; tile < tiles; tile += 32) {
    greatest = max(greatest, most[tile]);
  }
  greatest = warp_greatest(greatest);
  for (int pass = threadIdx.x; pass < passes; pass += kElementThreads) {
    const bool serves = pass == 0 || int64_t{pass} * limit < greatest;
    pass_anchors[pass] = serves ? anchors : 0;
    pass_references[pass] = serves ? references : 0;
  }
}

// No bound and no hit, at all places of a pass that some anchor of a tile has.
__global__ void clear_bounds_kernel(TripletBounds bounds, const int32_t* anchors, float* bound,
                                    int32_t* hits) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < bounds.anchors;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int places = *anchors == 0 ? 0 : bounds.places(static_cast<int>(i / kTileRows));
    for (int place = 0; place < places; ++place) {
      bound[place * bounds.anchors + i] = -INFINITY;
      if (hits != nullptr) {
        hits[place * bounds.anchors + i] = 0;
      }
    }
  }
}

// The bounds of chosen positives, and their columns.
__global__ void chosen_bounds_kernel(TripletArguments a, TripletMemory memory) {
  const Labels references = labels_of_references(a);
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < a.x.rows;
       p += int64_t{gridDim.x} * blockDim.x) {
    const int64_t anchor = a.order[p];
    const int64_t index = memory.chosen_index[anchor];
    memory.chosen_column[p] = position_of(references, index);
    memory.bound[p] =
        index < 0 ? -INFINITY : bound_of(a.metric, memory.chosen_distance[anchor], a.margin);
  }
}

template <class T>
SelectArguments<T> selection_of(const TripletArguments& a, const TripletMemory& memory) {
  SelectArguments<T> select{};
  select.x = a.x.as<T>();
  select.references = a.references.as<T>();
  select.labels = a.labels;
  select.order = a.order;
  select.reference_labels = a.reference_labels;
  select.reference_order = a.reference_order;
  select.self_index = a.self_index;
  select.thresholds = 1;
  select.metric = a.metric;
  select.same_class = true;
  select.farthest = a.positives == TripletPositives::farthest;
  select.norms_x = memory.x_norms;
  select.norms_references = memory.y_norms;
  select.distance = memory.chosen_distance;
  select.index = memory.chosen_index;
  return select;
}

}  // namespace

TripletMemory TripletMemory::take(Workspace& workspace, const TripletArguments& a) {
  const bool chooses = a.positives != TripletPositives::all;
  const bool has_norms = a.metric == Metric::cosine;
  TripletMemory memory{};
  memory.packed = PackPairMemory::take(workspace, a.x.rows, a.references.rows, a.references.columns,
                                       is_within_batch(a));
  memory.ranges.begin = workspace.take<int32_t>(a.x.rows);
  memory.ranges.end = workspace.take<int32_t>(a.x.rows);
  memory.self = workspace.take<int32_t>(a.self_index == nullptr ? 0 : a.x.rows);
  memory.x_norms = workspace.take<double>(has_norms ? a.x.rows : 0);
  memory.y_norms = workspace.take<double>(has_norms ? a.references.rows : 0);
  memory.x_numbers = workspace.take<RowNumbers>(padded_rows(a.x.rows) / kTileRows);
  memory.y_numbers = workspace.take<RowNumbers>(padded_rows(a.references.rows) / kTileRows);
  memory.most = workspace.take<int32_t>(padded_rows(a.x.rows) / kTileRows);
  memory.anchors = workspace.take<int32_t>(triplet_passes(a));
  memory.references = workspace.take<int32_t>(triplet_passes(a));
  memory.bound = workspace.take<float>(bounds_of_pass(a) * padded_rows(a.x.rows));
  memory.chosen_distance = workspace.take<float>(chooses ? a.x.rows : 0);
  memory.chosen_index = workspace.take<int64_t>(chooses ? a.x.rows : 0);
  memory.chosen_column = workspace.take<int32_t>(chooses ? a.x.rows : 0);
  if (chooses) {
    with_narrow_type_of(a.x, [&](auto type) {
      using T = decltype(type);
      memory.selection =
          workspace.take<unsigned char>(select_memory_bytes(selection_of<T>(a, memory)));
    });
  }
  return memory;
}

PackedPair launch_triplet_preparation(const TripletArguments& a, const TripletMemory& memory,
                                      int shared_bytes, cudaStream_t stream) {
  const ClassPlaces places{memory.ranges, a.self_index == nullptr ? nullptr : memory.self};
  launch_class_places(labels_of_anchors(a), labels_of_references(a), a.self_index, nullptr, places,
                      stream);
  const bool is_all = a.positives == TripletPositives::all;
  const int64_t tiles = padded_rows(a.x.rows) / kTileRows;
  DMLFAST_LAUNCH(most_kernel, element_blocks(tiles * 32), kElementThreads, stream, memory.ranges,
                 static_cast<int>(a.x.rows), is_all ? INT_MAX : 1, memory.most);
  DMLFAST_LAUNCH(passes_kernel, dim3{1}, kElementThreads, stream, memory.most,
                 static_cast<int>(a.x.rows), static_cast<int>(a.references.rows),
                 static_cast<int>(bounds_of_pass(a)), static_cast<int>(triplet_passes(a)),
                 memory.anchors, memory.references);
  const PackedPair pair =
      as_multiplied(launch_pack_rows(a.x, a.order, a.references, a.reference_order,
                                     is_within_batch(a), a.metric, memory.packed, stream),
                    is_split(a));
  for (const auto& [rows, numbers] :
       {std::pair{pair.x, memory.x_numbers}, std::pair{pair.y, memory.y_numbers}}) {
    DMLFAST_LAUNCH(tile_numbers_kernel, element_blocks(int64_t{rows.tiles()} * 32), kElementThreads,
                   stream, rows, numbers);
  }
  with_narrow_type_of(a.x, [&](auto type) {
    using T = decltype(type);
    if (a.metric == Metric::cosine) {
      launch_norms(a.x.as<T>(), memory.x_norms, stream);
      launch_norms(a.references.as<T>(), memory.y_norms, stream);
    }
    if (!is_all) {
      launch_select(selection_of<T>(a, memory), memory.selection, shared_bytes, stream);
    }
  });
  return pair;
}

TripletBounds launch_triplet_bounds(const TripletArguments& a, const TripletMemory& memory,
                                    int pass, int32_t* hits, cudaStream_t stream) {
  const int limit = static_cast<int>(bounds_of_pass(a));
  const bool is_all = a.positives == TripletPositives::all;
  const TripletBounds bounds{
      memory.bound,          memory.most,  is_all ? memory.ranges.begin : memory.chosen_column,
      padded_rows(a.x.rows), pass * limit, limit};
  const int32_t* const anchors = memory.anchors + pass;
  DMLFAST_LAUNCH(clear_bounds_kernel, element_blocks(bounds.anchors), kElementThreads, stream,
                 bounds, anchors, memory.bound, hits);
  if (!is_all) {
    DMLFAST_LAUNCH(chosen_bounds_kernel, element_blocks(a.x.rows), kElementThreads, stream, a,
                   memory);
    return bounds;
  }
  with_narrow_type_of(a.x, [&](auto type) {
    using T = decltype(type);
    const ExactOperands<T> operands{a.x.as<T>(), a.references.as<T>(),
                                    a.order,     a.reference_order,
                                    1,           sums_differences(a.metric)};
    const BoundArguments<T> arguments{memory.x_norms,
                                      memory.y_norms,
                                      a.self_index,
                                      a.metric,
                                      a.margin,
                                      memory.ranges,
                                      static_cast<int>(a.x.rows),
                                      bounds.first,
                                      limit,
                                      bounds.anchors,
                                      memory.bound};
    const Queries queries{nullptr, anchors, static_cast<int>(a.x.rows)};
    launch_exact_walk<T, BoundPolicy<T>>(operands, queries, arguments, stream);
  });
  return bounds;
}

}  // namespace dmlfast::cuda
