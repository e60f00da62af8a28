// Queries are anchors with one of their thresholds each: query q is threshold q % thresholds of the
// anchor at position q / thresholds in the order of the anchors' labels.
#pragma once

#include "engine/split.cuh"

namespace dmlfast::cuda {

// Items of work that fill any device a few times over.
constexpr int kWantedItems = 1024;

// All queries, or a list of some whose length the device knows.
struct Queries {
  const int32_t* list;   // or null: the queries 0 .. most - 1
  const int32_t* count;  // on the device: how many the list has; or null: `most`
  int most;
  int wanted_items = kWantedItems;

  __device__ int number() const { return count == nullptr || *count > most ? most : *count; }
  __device__ int query(int place) const { return list == nullptr ? place : list[place]; }
};

}  // namespace dmlfast::cuda
