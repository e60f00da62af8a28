#include "pairwise_gradient.cuh"

namespace dmlfast::cuda {

namespace {

// The same rows, divided into as many items as have room for sums.
PairwiseRows in_gradient_items(PairwiseRows rows) {
  const int most = wanted_gradient_items(rows.x.columns, 0);
  rows.wanted_items = rows.wanted_items < most ? rows.wanted_items : most;
  return rows;
}

// One walk after the other uses the sums.
struct GradientMemory {
  PairwiseMemory pairs;
  GradientSums sums;
  uint8_t* lost_x;
  uint8_t* lost_references;

  static GradientMemory take(Workspace& workspace, const PairwiseRows& rows) {
    const int64_t x = rows.x.rows;
    const int64_t references = rows.references.rows;
    const int of_x = walk_split(x, references, rows.wanted_items).items();
    const int of_references = walk_split(references, x, rows.wanted_items).items();
    const int64_t sums = int64_t{of_x > of_references ? of_x : of_references} * kTileRows;
    GradientMemory memory{};
    memory.pairs = PairwiseMemory::take(workspace, rows);
    memory.sums.rows = workspace.take<float>(sums * padded_columns(rows.x.columns));
    memory.sums.weights = workspace.take<float>(sums);
    memory.lost_x = workspace.take<uint8_t>(x);
    memory.lost_references = workspace.take<uint8_t>(references);
    return memory;
  }
};

struct MomentGradientMemory {
  GradientMemory gradient;
  MomentWeights weights;
  MomentWeights none;
  int32_t* own;
  int32_t* own_lost;
  int32_t* counts;

  static MomentGradientMemory take(Workspace& workspace, const PairwiseRows& rows) {
    const int64_t x = rows.x.rows;
    const int64_t references = rows.references.rows;
    MomentGradientMemory memory{};
    memory.gradient = GradientMemory::take(workspace, rows);
    memory.weights = MomentWeights::take(workspace, x);
    memory.none = MomentWeights::take(workspace, references);
    memory.own = workspace.take<int32_t>(references);
    memory.own_lost = workspace.take<int32_t>(references);
    memory.counts = workspace.take<int32_t>(3);
    return memory;
  }
};

void launch_rows(const PairwiseWalk& pairs, const GradientSums& sums, const uint8_t* lost,
                 void* gradient, cudaStream_t stream) {
  const AnyRows& rows = pairs.distances.x_rows;
  launch_gradient_rows(
      {gradient_task(pairs, sums), lost, AnyResult{gradient, rows.type, rows.columns}}, stream);
}

// The gradient of the rows of a walk, by the distances and upstream gradients of its pairs.
void launch_of_distances(const PairwiseRows& rows, const PairwiseWalk& pairs,
                         const DistanceGradient& of, const GradientSums& sums, void* gradient,
                         cudaStream_t stream) {
  if (pairs.walk.x.rows > 0) {
    launch_distance_gradient_walk(pairs, of, !rows.fast, sums, rows.shared_bytes, stream);
    launch_rows(pairs, sums, of.lost, gradient, stream);
  }
}

void launch_of_moments(const PairwiseRows& rows, const PairwiseWalk& pairs, const double* centre,
                       const MomentWeights& row_weights, const MomentWeights& column_weights,
                       const GradientMemory& memory, const uint8_t* lost, void* gradient,
                       cudaStream_t stream) {
  if (pairs.walk.x.rows == 0) {
    return;
  }
  const MomentGradientPolicy policy(pairs.distances, centre, row_weights, column_weights);
  with_precision(!rows.fast, [&](auto precision) {
    launch_gradient_walk<MomentGradientPolicy, decltype(precision)::value>(
        gradient_task(pairs, memory.sums), policy, rows.shared_bytes, stream);
  });
  launch_rows(pairs, memory.sums, lost, gradient, stream);
}

// Weights, selves and what is lost.
void launch_moment_weights(const PairwiseRows& rows, const PairwiseWalk& pairs,
                           const MomentGradientArguments& moments,
                           const MomentGradientMemory& memory, cudaStream_t stream) {
  const int64_t anchors = rows.x.rows;
  const int64_t references = rows.references.rows;
  const int64_t padded = padded_rows(anchors);
  DMLFAST_LAUNCH(moment_weights_kernel, element_blocks(padded), kElementThreads, stream, moments,
                 rows.metric, pairs.distances.scale, anchors, padded, memory.weights);
  launch_own_columns(rows, moments.self_index, padded, memory.weights.self, stream);
  DMLFAST_LAUNCH(no_weights_kernel, element_blocks(padded_rows(references)), kElementThreads,
                 stream, padded_rows(references), memory.none);
  const LostPairs lost{
      pairs.walk.x.norm,     pairs.walk.y.norm, memory.weights.self, memory.weights.first,
      memory.weights.second, pairs.walk.x.rows, pairs.walk.y.rows,   memory.counts,
      memory.counts + 1,     memory.counts + 2, memory.own,          memory.own_lost};
  launch_count_lost(lost, stream);
  DMLFAST_LAUNCH(lost_gradients_kernel, element_blocks(anchors > references ? anchors : references),
                 kElementThreads, stream, lost, rows.within_batch, memory.gradient.lost_x,
                 memory.gradient.lost_references);
}

}  // namespace

void launch_distance_gradient_walk(const PairwiseWalk& pairs, const DistanceGradient& gradient,
                                   bool is_split, const GradientSums& sums, int shared_bytes,
                                   cudaStream_t stream) {
  DMLFAST_LAUNCH(clear_lost_rows_kernel, element_blocks(pairs.walk.x.rows), kElementThreads, stream,
                 gradient.lost, pairs.walk.x.rows);
  const DistanceGradientPolicy policy(pairs.distances, gradient);
  with_precision(is_split, [&](auto precision) {
    launch_gradient_walk<DistanceGradientPolicy, decltype(precision)::value>(
        gradient_task(pairs, sums), policy, shared_bytes, stream);
  });
}

int64_t pairwise_distance_gradient_bytes(const PairwiseRows& rows) {
  Workspace workspace;
  GradientMemory::take(workspace, in_gradient_items(rows));
  return workspace.bytes();
}

void launch_pairwise_distance_gradient(const PairwiseRows& given, const PairMatrix& grad,
                                       const PairMatrix& distance,
                                       const PairwiseGradients& gradients, void* workspace,
                                       cudaStream_t stream) {
  const PairwiseRows rows = in_gradient_items(given);
  Workspace parts(workspace);
  const GradientMemory memory = GradientMemory::take(parts, rows);
  const PairwiseWalk pairs = launch_pairwise_pack(rows, memory.pairs, stream);
  const DistanceGradient of{distance, grad, rows.within_batch, memory.lost_x};
  launch_of_distances(rows, pairs, of, memory.sums, gradients.x, stream);
  if (!rows.within_batch) {
    launch_of_distances(rows, exchanged(pairs), exchanged(of, memory.lost_references), memory.sums,
                        gradients.references, stream);
  }
}

int64_t pairwise_moments_gradient_bytes(const PairwiseRows& rows) {
  Workspace workspace;
  MomentGradientMemory::take(workspace, in_gradient_items(rows));
  return workspace.bytes();
}

void launch_pairwise_moments_gradient(const PairwiseRows& given,
                                      const MomentGradientArguments& moments, void* workspace,
                                      cudaStream_t stream) {
  const PairwiseRows rows = in_gradient_items(given);
  Workspace parts(workspace);
  const MomentGradientMemory memory = MomentGradientMemory::take(parts, rows);
  PairwiseWalk pairs = launch_pairwise_pack(rows, memory.gradient.pairs, stream);
  launch_moment_weights(rows, pairs, moments, memory, stream);
  const PairwiseWalk of_references = exchanged(pairs);
  pairs.distances.self = memory.weights.self;
  launch_of_moments(rows, pairs, moments.centre, memory.weights,
                    rows.within_batch ? memory.weights : memory.none, memory.gradient,
                    memory.gradient.lost_x, moments.gradients.x, stream);
  if (!rows.within_batch) {
    launch_of_moments(rows, of_references, moments.centre, memory.none, memory.weights,
                      memory.gradient, memory.gradient.lost_references,
                      moments.gradients.references, stream);
  }
}

}  // namespace dmlfast::cuda
