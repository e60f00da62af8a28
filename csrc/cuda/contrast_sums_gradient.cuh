// The operator contrast_sums_backward: one walk over all pairs within a batch, where each row is an
// anchor and a partner; else one for the anchors and one for the references.
#pragma once

#include "contrast_sums_weights.cuh"

namespace dmlfast::cuda {

struct GradientSide {
  SumForm form;
  float scale;
  SideWeights weights;
};

struct SumGradientPolicyArguments {
  DistanceTask distances;
  ClassRanges ranges;  // of the rows' classes among the columns
  GradientSide side[kSides];
  bool rows_are_anchors;
  bool columns_are_anchors;
  const int32_t* column_self;  // the row that is not an anchor's partner, -1 for none; or null
  double* slopes;              // by item, row of the tile and side, for the gradients of the bounds
};

class SumGradientPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 2 + kSides * kSideWeights;

  explicit SumGradientPolicy(const SumGradientPolicyArguments& arguments) : a_(arguments) {}

  __device__ const float* column_values(int i) const {
    const bool is_needed = i == kSelf ? a_.column_self != nullptr : a_.columns_are_anchors;
    if (i == 0 || !is_needed) {
      return a_.distances.y.norm;
    }
    if (i == kSelf) {
      return reinterpret_cast<const float*>(a_.column_self);
    }
    const SideWeights& weights = side_of((i - kFirst) / kSideWeights).weights;
    const int which = (i - kFirst) % kSideWeights;
    return which == 0 ? weights.limit : which == 1 ? weights.shift : weights.factor;
  }

  __device__ TileRange tiles(const BlockRows& rows) const {
    if (a_.side[kNegative].form != SumForm::none) {
      return {0, INT_MAX};
    }
    return a_.side[kPositive].form != SumForm::none ? spans_of(rows).tiles() : TileRange{0, 0};
  }

  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const {
    s.rows = &rows;
    for_each_own([](double& slope, int, int) { slope = 0.0; });
  }

  __device__ void weigh(State& s, const Tile& tile, Fragment& fragment) const {
    if (a_.column_self != nullptr) {
      leave_out_self(*s.rows, tile, fragment);
    }
    const float inverse_unit = inverse_unit_of(a_.distances);
    const ClassSpans spans = spans_of(*s.rows);
    const bool has_positive = spans.has_own(tile) && a_.side[kPositive].form != SumForm::none;
    const bool has_negative = spans.has_other(tile) && a_.side[kNegative].form != SumForm::none;
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      // Rows that are absent have distance NaN to all.
      const int row = max(s.rows->anchors[tile_row(slot)], 0);
      const OwnColumns own(a_.ranges, *s.rows, tile, slot);
      float slopes[kSides] = {0.0f, 0.0f};
#pragma unroll
      for (int first = 0; first < Fragment::kColumns; first += kColumns) {
        Part part{tile, first, row};
        part.take(own, fragment.value[slot]);
        // One body for both sides: it is long.
#pragma unroll 1
        for (int side = has_positive ? kPositive : kNegative; side < kSides; ++side) {
          if (side == kPositive || has_negative) {
            const float slope = add_side(part, side);
            slopes[kPositive] += side == kPositive ? slope : 0.0f;
            slopes[kNegative] += side == kPositive ? 0.0f : slope;
          }
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          float& value = fragment.value[slot][first + j];
          value = weight_of(a_.distances.metric, part.derivative[j], value, inverse_unit);
        }
        // Keeps the compiler from having what it computes of all columns in registers at once.
        __syncwarp();
      }
      add_slope<kPositive>(slot, slopes[kPositive]);
      add_slope<kNegative>(slot, slopes[kNegative]);
    }
  }

  __device__ void finish(const State&, const BlockRows&, int item, bool leads) const {
    if (leads) {
      for_each_own([&](double slope, int row, int side) {
        a_.slopes[(int64_t{item} * kTileRows + row) * kSides + side] = slope;
      });
    }
  }

 private:
  // Columns of a row that are weighed at once.
  static constexpr int kColumns = 8;

  // Places of the column values.
  static constexpr int kSelf = 1;
  static constexpr int kFirst = 2;  // of the positives' weights, then of the negatives'

  // Some columns of one of the thread's rows.
  struct Part {
    const Tile& tile;
    int first;
    int row;
    float distance[kColumns];
    bool is_own[kColumns];
    float derivative[kColumns];

    __device__ void take(const OwnColumns& own, const float (&distances)[Fragment::kColumns]) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        distance[j] = distances[first + j];
        is_own[j] = own.holds(first + j);
        derivative[j] = 0.0f;
      }
    }
  };

  __device__ ClassSpans spans_of(const BlockRows& rows) const {
    return {a_.ranges, rows, a_.distances.x.rows};
  }

  __device__ static void leave_out_self(const BlockRows& rows, const Tile& tile,
                                        Fragment& fragment) {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
      const int row = rows.anchors[tile_row(slot)];
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        float& distance = fragment.value[slot][j];
        distance = __float_as_int(tile.value(kSelf, j)) == row ? NAN : distance;
      }
    }
  }

  // The slopes that belong to the calling thread: of a quad's lanes, which have parts of the same
  // rows, to the first.
  __device__ static double& slope_of(int row, int side) {
    __shared__ double slopes[kTileRows][kSides];
    return slopes[row][side];
  }

  template <class F>
  __device__ static void for_each_own(const F& f) {
    if (thread_anew() % 4 == 0) {
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
#pragma unroll
        for (int side = 0; side < kSides; ++side) {
          f(slope_of(tile_row(slot), side), tile_row(slot), side);
        }
      }
    }
  }

  template <int kSide>
  __device__ void add_slope(int slot, float slope) const {
    if (a_.rows_are_anchors && has_bound_gradient(a_.side[kSide].form)) {
      slope = join_quad(slope, [](float a, float b) { return a + b; });
      if (thread_anew() % 4 == 0) {
        slope_of(tile_row(slot), kSide) += slope;
      }
    }
  }

  // Chosen by comparison: a place that is computed would be read from local memory.
  __device__ const GradientSide& side_of(int side) const {
    return side == kPositive ? a_.side[kPositive] : a_.side[kNegative];
  }

  // Adds what a side makes of the distances to the derivatives. Returns what it adds to the slope
  // of the row.
  __device__ float add_side(Part& part, int side) const {
    const float scale = side_of(side).scale;
    switch (side_of(side).form) {
      case SumForm::none:
        return 0.0f;
      case SumForm::logsumexp:
        return add_roles(part, side, [=](float distance, float shift) {
          // Rounded as the exponents of the sum were.
          return exponential2(scale * distance - shift);
        });
      case SumForm::softplus:
        return add_roles(part, side, [=](float distance, float shift) {
          const float exponent = multiply_add(scale, distance, shift);
          return divide(1.0f, 1.0f + exponential2(-exponent));
        });
      default:
        return add_roles(part, side, [](float, float) { return 1.0f; });
    }
  }

  // The row's role as the anchor of the pair, and the column's.
  template <class Slope>
  __device__ float add_roles(Part& part, int side, const Slope& slope_at) const {
    const SideWeights& weights = side_of(side).weights;
    float sum = 0.0f;
    if (a_.rows_are_anchors) {
      const float limit = weights.limit[part.row];
      const float shift = weights.shift[part.row];
      const float factor = weights.factor[part.row];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const bool counts = is_term(part, j, side, limit);
        const float slope = slope_at(part.distance[j], shift);
        sum += counts ? slope : 0.0f;
        part.derivative[j] += counts ? factor * slope : 0.0f;
      }
    }
    if (a_.columns_are_anchors) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const auto value = [&](int which) {
          return part.tile.value(kFirst + side * kSideWeights + which, part.first + j);
        };
        const bool counts = is_term(part, j, side, value(0));
        part.derivative[j] += counts ? value(2) * slope_at(part.distance[j], value(1)) : 0.0f;
      }
    }
    return sum;
  }

  __device__ static bool is_term(const Part& part, int j, int side, float limit) {
    const float sign = side == kPositive ? kSign<kPositive> : kSign<kNegative>;
    return part.is_own[j] == (side == kPositive) && sign * part.distance[j] <= limit;
  }

  SumGradientPolicyArguments a_;
};

inline int wanted_gradient_items(const SumArguments& a) {
  return wanted_gradient_items(a.x.columns, a.wanted_items);
}

inline Split gradient_split(const SumArguments& a, int64_t rows, int64_t columns) {
  return walk_split(rows, columns, wanted_gradient_items(a));
}

inline bool has_exponents(const SumArguments& a) {
  return a.form[kPositive] == SumForm::logsumexp || a.form[kNegative] == SumForm::logsumexp;
}

struct SumGradientMemory {
  SumPairMemory pairs;
  SumPart* parts;
  int32_t* is_wanted;
  SideWeights weights[kSides];
  uint8_t* lost;
  double* slopes;
  ClassRanges reference_ranges;  // of the references' classes among the anchors
  GradientSums sums;             // of one walk after the other

  static SumGradientMemory take(Workspace& workspace, const SumArguments& a) {
    const int64_t anchors = a.x.rows;
    const int64_t references = a.within_batch ? 0 : a.references.rows;
    const int of_x = gradient_split(a, anchors, a.references.rows).items();
    const int of_references = gradient_split(a, references, anchors).items();
    const int64_t rows = int64_t{of_x > of_references ? of_x : of_references} * kTileRows;
    SumGradientMemory memory{};
    memory.pairs = SumPairMemory::take(workspace, a);
    memory.parts = workspace.take<SumPart>(has_exponents(a) ? sum_part_elements(a) : 0);
    memory.is_wanted = workspace.take<int32_t>(1);
    for (SideWeights& weights : memory.weights) {
      weights = SideWeights::take(workspace, anchors);
    }
    memory.lost = workspace.take<uint8_t>(anchors);
    memory.slopes = workspace.take<double>(rows * kSides);
    memory.reference_ranges.begin = workspace.take<int32_t>(references);
    memory.reference_ranges.end = workspace.take<int32_t>(references);
    memory.sums.rows = workspace.take<float>(rows * padded_columns(a.x.columns));
    memory.sums.weights = workspace.take<float>(rows);
    return memory;
  }
};

int64_t sums_gradient_workspace_bytes(const SumArguments& a) {
  Workspace workspace;
  SumGradientMemory::take(workspace, a);
  return workspace.bytes();
}

namespace {

// What all anchors weigh, after their sums where the results say these too coarsely.
WeightArguments launch_side_weights(const SumGradientArguments& arguments,
                                    const SumGradientMemory& memory, const DistanceTask& distances,
                                    int shared_bytes, cudaStream_t stream) {
  const SumArguments& a = arguments.pairs;
  const WalkTask task = walk_of(distances.x, distances.y, a.wanted_items);
  const Split split =
      split_of(distances.x.rows, kTileRows, distances.y.tiles(), task.queries.wanted_items);
  WeightArguments weights{};
  weights.x = distances.x;
  weights.order = a.order;
  weights.split = split;
  weights.parts = memory.parts;
  weights.is_wanted = memory.is_wanted;
  weights.lost = memory.lost;
  SumPolicyArguments sums{distances, memory.pairs.ranges, {}, memory.is_wanted, memory.parts};
  for (int side = 0; side < kSides; ++side) {
    weights.form[side] = a.form[side];
    weights.scale[side] = a.scale[side];
    weights.bound[side] = a.bound[side];
    weights.grad[side] = arguments.grad[side];
    weights.result[side] = arguments.result[side];
    weights.weights[side] = memory.weights[side];
    sums.side[side] = side_of(a, memory.pairs, side);
    if (a.form[side] != SumForm::logsumexp) {
      sums.side[side].form = SumForm::none;
    }
  }
  const dim3 blocks = element_blocks(a.x.rows);
  if (has_exponents(a)) {
    DMLFAST_LAUNCH(want_nothing_kernel, dim3{1}, 1, stream, memory.is_wanted);
    DMLFAST_LAUNCH(want_sums_kernel, blocks, kElementThreads, stream, weights);
    launch_sum_walk(task, sums, is_split(a), shared_bytes, stream);
  }
  DMLFAST_LAUNCH(side_weights_kernel, blocks, kElementThreads, stream, weights,
                 static_cast<int>(padded_rows(a.x.rows)));
  return weights;
}

// The gradient of the rows of a walk.
void launch_gradient(const SumArguments& a, const SumGradientPolicyArguments& policy_arguments,
                     const GradientSums& sums, const uint8_t* lost, const AnyResult& gradient,
                     int shared_bytes, cudaStream_t stream) {
  const DistanceTask& distances = policy_arguments.distances;
  if (distances.x.rows == 0) {
    return;
  }
  const GradientTask task{walk_of(distances.x, distances.y, wanted_gradient_items(a)), distances,
                          sums};
  const SumGradientPolicy policy(policy_arguments);
  if (a.is_fast) {
    launch_gradient_walk<SumGradientPolicy, Precision::half>(task, policy, shared_bytes, stream);
  } else {
    launch_gradient_walk<SumGradientPolicy, Precision::split>(task, policy, shared_bytes, stream);
  }
  launch_gradient_rows({task, lost, gradient}, stream);
}

// The same pairs with anchors and references exchanged.
SumGradientPolicyArguments launch_exchange(const SumArguments& a,
                                           const SumGradientPolicyArguments& of_x,
                                           const ClassRanges& ranges, cudaStream_t stream) {
  launch_class_places(labels_of_references(a), labels_of_anchors(a), nullptr, nullptr,
                      {ranges, nullptr}, stream);
  SumGradientPolicyArguments of_y = of_x;
  of_y.distances = exchanged(of_x.distances);
  of_y.ranges = ranges;
  of_y.rows_are_anchors = false;
  of_y.columns_are_anchors = true;
  of_y.column_self = of_x.distances.self;
  return of_y;
}

}  // namespace

void launch_sums_gradient(const SumGradientArguments& arguments, void* memory_address,
                          int shared_bytes, cudaStream_t stream) {
  const SumArguments& a = arguments.pairs;
  Workspace workspace(memory_address);
  const SumGradientMemory memory = SumGradientMemory::take(workspace, a);
  const PackedPair pair = launch_pack_sums(a, memory.pairs, stream);
  const DistanceTask distances = launch_sum_preparation(a, pair, memory.pairs, stream);
  const WeightArguments weights =
      launch_side_weights(arguments, memory, distances, shared_bytes, stream);
  const auto side = [&](int which) {
    return GradientSide{a.form[which], side_of(a, memory.pairs, which).scale,
                        memory.weights[which]};
  };
  const SumGradientPolicyArguments of_x{
      distances, memory.pairs.ranges, {side(kPositive), side(kNegative)}, true, a.within_batch,
      nullptr,   memory.slopes};
  launch_gradient(a, of_x, memory.sums, memory.lost, arguments.grad_x, shared_bytes, stream);
  const Split split = gradient_split(a, a.x.rows, a.references.rows);
  const BoundArguments bounds{weights,
                              split,
                              memory.slopes,
                              {arguments.grad_bound[kPositive], arguments.grad_bound[kNegative]}};
  DMLFAST_LAUNCH(bound_gradients_kernel, element_blocks(a.x.rows), kElementThreads, stream, bounds);
  if (!a.within_batch) {
    const SumGradientPolicyArguments of_y =
        launch_exchange(a, of_x, memory.reference_ranges, stream);
    launch_gradient(a, of_y, memory.sums, nullptr, arguments.grad_references, shared_bytes, stream);
  }
}

}  // namespace dmlfast::cuda
