// What the k nearest references take, and how they are launched.
#pragma once

#include "label_rule.h"
#include "neighbors_pairs.h"

namespace dmlfast::cuda {

constexpr int kGreatestK = 1024;

// Results are (N, k).
struct TopArguments : LabelledPairs {
  LabelRule rule;
  int k;
  // Of entries: how many queries are served at a time.
  int64_t entry_bytes = int64_t{1} << 28;
};

// Bytes, at an address divisible by 16, that launch_top needs.
int64_t top_memory_bytes(const TopArguments& arguments);

// `shared_bytes` is what a block of the device may have of shared memory.
void launch_top(const TopArguments& arguments, void* memory, int shared_bytes, cudaStream_t stream);

}  // namespace dmlfast::cuda
