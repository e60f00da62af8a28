// The operator contrast_sums.
#pragma once

#include "contrast_sums_walk.cuh"

namespace dmlfast::cuda {

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
