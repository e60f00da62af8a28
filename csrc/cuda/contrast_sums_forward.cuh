// The operator contrast_sums.
#pragma once

#include "contrast_sums_walk.cuh"

namespace dmlfast::cuda {

namespace {

// By anchor position, up to whole tiles.
__global__ void side_bounds_kernel(SumArguments a, float* positive, float* negative,
                                   int64_t padded) {
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < padded;
       p += int64_t{gridDim.x} * blockDim.x) {
    const bool exists = p < a.x.rows;
    const int64_t anchor = exists ? a.order[p] : -1;
    positive[p] =
        exists ? side_bound(a.form[kPositive], kSign<kPositive>, a.bound[kPositive], anchor) : NAN;
    negative[p] =
        exists ? side_bound(a.form[kNegative], kSign<kNegative>, a.bound[kNegative], anchor) : NAN;
  }
}

// A row is its own self within a batch.
__global__ void own_positions_kernel(int64_t rows, int32_t* self) {
  for (int64_t p = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; p < rows;
       p += int64_t{gridDim.x} * blockDim.x) {
    self[p] = static_cast<int32_t>(p);
  }
}

}  // namespace

PackedPair launch_pack_sums(const SumArguments& a, const SumPairMemory& memory,
                            cudaStream_t stream) {
  const PackedPair pair = launch_pack_rows(a.x, a.order, a.references, a.reference_order,
                                           a.within_batch, a.metric, memory.packed, stream);
  return as_multiplied(pair, is_split(a));
}

DistanceTask launch_sum_preparation(const SumArguments& a, const PackedPair& pair,
                                    const SumPairMemory& memory, cudaStream_t stream) {
  const ClassPlaces places{memory.ranges, a.within_batch ? nullptr : memory.self};
  launch_class_places(labels_of_anchors(a), labels_of_references(a), a.self_index, nullptr, places,
                      stream);
  const int64_t padded = padded_rows(a.x.rows);
  DMLFAST_LAUNCH(side_bounds_kernel, element_blocks(padded), kElementThreads, stream, a,
                 memory.bound[kPositive], memory.bound[kNegative], padded);
  if (a.within_batch) {
    DMLFAST_LAUNCH(own_positions_kernel, element_blocks(a.x.rows), kElementThreads, stream,
                   a.x.rows, memory.self);
  }
  const bool has_self = a.within_batch || a.self_index != nullptr;
  return distance_task(a, pair, has_self ? memory.self : nullptr);
}

void launch_sum_walk(const WalkTask& task, const SumPolicyArguments& arguments, bool is_split,
                     int shared_bytes, cudaStream_t stream) {
  const SumPolicy policy(arguments);
  if (is_split) {
    launch_walk<SumPolicy, Precision::split>(task, policy, shared_bytes, stream);
  } else {
    launch_walk<SumPolicy, Precision::half>(task, policy, shared_bytes, stream);
  }
}

struct SumsMemory {
  SumPairMemory pairs;
  SumPart* parts;

  static SumsMemory take(Workspace& workspace, const SumArguments& a) {
    SumsMemory memory{};
    memory.pairs = SumPairMemory::take(workspace, a);
    memory.parts = workspace.take<SumPart>(sum_part_elements(a));
    return memory;
  }
};

int64_t sums_workspace_bytes(const SumArguments& a) {
  Workspace workspace;
  SumsMemory::take(workspace, a);
  return workspace.bytes();
}

void launch_sums(const SumArguments& a, const SumResults& results, void* memory_address,
                 int shared_bytes, cudaStream_t stream) {
  Workspace workspace(memory_address);
  const SumsMemory memory = SumsMemory::take(workspace, a);
  const PackedPair pair = launch_pack_sums(a, memory.pairs, stream);
  const DistanceTask distances = launch_sum_preparation(a, pair, memory.pairs, stream);
  const WalkTask task = walk_of(pair.x, pair.y, a.wanted_items);
  const SumSide positive = side_of(a, memory.pairs, kPositive);
  const SumSide negative = side_of(a, memory.pairs, kNegative);
  if (positive.form != SumForm::none || negative.form != SumForm::none) {
    const SumPolicyArguments arguments{
        distances, memory.pairs.ranges, {positive, negative}, nullptr, memory.parts};
    launch_sum_walk(task, arguments, is_split(a), shared_bytes, stream);
  }
  const Split split = split_of(pair.x.rows, kTileRows, pair.y.tiles(), task.queries.wanted_items);
  const JoinArguments join{{positive.form, negative.form},
                           {a.bound[kPositive], a.bound[kNegative]},
                           pair.x,
                           a.order,
                           split,
                           memory.parts,
                           results};
  DMLFAST_LAUNCH(join_sums_kernel, element_blocks(a.x.rows), kElementThreads, stream, join);
}

}  // namespace dmlfast::cuda
