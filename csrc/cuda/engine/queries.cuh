// Queries are anchors with one of their thresholds each: query q is threshold q % thresholds of the
// anchor at position q / thresholds in the order of the anchors' labels.
#pragma once

#include "engine/split.cuh"

namespace dmlfast::cuda {

// Items of work that fill any device a few times over.
constexpr int kWantedItems = 1024;

// What is asked for, 0 standing for the usual number.
inline int wanted_or_usual(int wanted_items) {
  return wanted_items > 0 ? wanted_items : kWantedItems;
}

// Successive queries, or a list of some whose length the device knows.
struct Queries {
  const int32_t* list;   // or null: the queries first .. first + most - 1
  const int32_t* count;  // on the device: how many the list has; or null: `most`
  int most;
  int wanted_items = kWantedItems;
  int first = 0;

  __device__ int number() const { return count == nullptr || *count > most ? most : *count; }
  __device__ int query(int place) const { return list == nullptr ? first + place : list[place]; }
};

inline Queries all_queries(int64_t slots) { return {nullptr, nullptr, static_cast<int>(slots)}; }

// Blocks for so much work. Where the device knows how much of it there is, it is often little or
// nothing, and blocks that only find that out cost time.
inline unsigned blocks_for_items(const Queries& queries, int64_t items) {
  return grid_for(queries.count != nullptr && items > kWantedItems ? kWantedItems : items);
}

// The same where a block serves so many queries at once.
inline unsigned blocks_for(const Queries& queries, int queries_per_block) {
  const int64_t blocks = (int64_t{queries.most} + queries_per_block - 1) / queries_per_block;
  return blocks_for_items(queries, blocks);
}

}  // namespace dmlfast::cuda
