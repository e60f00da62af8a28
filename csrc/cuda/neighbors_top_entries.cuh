// Entries: references with the values that decide about them, and how a warp or a block orders
// them. Of equal values the lowest index comes first.
#pragma once

#include <climits>

#include "neighbors_choice.cuh"

namespace dmlfast::cuda {

// One that exists has a value that is a number; what stands for none comes after all of them.
struct Entry {
  double value = INFINITY;
  int index = INT_MAX;

  __device__ bool exists() const { return index != INT_MAX; }
  __device__ bool is_before(const Entry& other) const {
    return value < other.value || (value == other.value && index < other.index);
  }
  // Member by member, so that entries stay in registers.
  __device__ __forceinline__ void replace_if(bool replaces, const Entry& other) {
    value = replaces ? other.value : value;
    index = replaces ? other.index : index;
  }
};

__device__ __forceinline__ Entry entry_of_lane(const Entry& entry, int lane) {
  return {__shfl_sync(kAllLanes, entry.value, lane), __shfl_sync(kAllLanes, entry.index, lane)};
}

// The 32 first of the entries that a warp was offered: lane i has the i-th.
class WarpEntries {
 public:
  __device__ const Entry& mine() const { return mine_; }

  // Of every lane one, or none.
  __device__ __forceinline__ void offer(Entry entry) {
    if (__ballot_sync(kAllLanes, entry.is_before(entry_of_lane(mine_, 31))) == 0) {
      return;
    }
    for (int size = 2; size <= 32; size *= 2) {
      for (int step = size / 2; step > 0; step /= 2) {
        exchange(entry, step, (lane() & size) == 0);
      }
    }
    // The first of both in a sequence that rises and falls.
    const Entry other = entry_of_lane(entry, 31 - lane());
    mine_.replace_if(other.is_before(mine_), other);
    for (int step = 16; step > 0; step /= 2) {
      exchange(mine_, step, true);
    }
  }

  __device__ __forceinline__ Entry at(int place) const { return entry_of_lane(mine_, place); }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  // Of two lanes, the lower one takes the first of their entries where they ascend.
  __device__ __forceinline__ static void exchange(Entry& entry, int step, bool ascends) {
    const Entry other = entry_of_lane(entry, lane() ^ step);
    const bool takes_first = ((lane() & step) == 0) == ascends;
    entry.replace_if(takes_first ? other.is_before(entry) : entry.is_before(other), other);
  }

  Entry mine_;
};

// Arrays of entries in memory, of the parts of one query's columns.
struct KeptEntries {
  double* values;
  int* indices;
  const int* counts;  // of each part
  int parts;
  int64_t stride;        // between the arrays of two parts
  int64_t count_stride;  // between their counts

  // Calls f, in all lanes together, with an entry that the calling lane has, or none.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    for (int part = 0; part < parts; ++part) {
      const int count = counts[part * count_stride];
      for (int first = 0; first < count; first += 32) {
        const int i = first + static_cast<int>(threadIdx.x) % 32;
        Entry entry;
        if (i < count) {
          entry.value = values[part * stride + i];
          entry.index = indices[part * stride + i];
        }
        f(entry);
      }
    }
  }

  // How many entries hold.
  template <class Holds>
  __device__ __forceinline__ int count(const Holds& holds) const {
    int count = 0;
    for_each([&](const Entry& entry) { count += entry.exists() && holds(entry) ? 1 : 0; });
    return warp_sum(count);
  }
};

// As integers that ascend with the values; 0 and -0 are the same.
__device__ __forceinline__ int64_t ordinal_of(const Entry& entry) {
  return dmlfast::ordinal_of(entry.value + 0.0);
}

// The k-th of the values of more entries than that, by bisection: whatever their order.
__device__ __forceinline__ double kth_value(const KeptEntries& kept, int k) {
  int64_t low = INT64_MAX;
  int64_t high = INT64_MIN;
  kept.for_each([&](const Entry& entry) {
    if (entry.exists()) {
      low = min(low, ordinal_of(entry));
      high = max(high, ordinal_of(entry));
    }
  });
  low = warp_least(low);
  high = warp_greatest(high);
  while (low < high) {
    // Unsigned: their distance may not fit an int64.
    const uint64_t gap = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    const int64_t middle = low + static_cast<int64_t>(gap / 2);
    if (kept.count([&](const Entry& entry) { return ordinal_of(entry) <= middle; }) >= k) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return of_ordinal(low);
}

// The k-th of more entries than that. A warp calls it.
__device__ __forceinline__ Entry kth_entry(const KeptEntries& kept, int k) {
  Entry kth;
  kth.value = kth_value(kept, k);
  const double value = kth.value;
  const int wanted = k - kept.count([&](const Entry& entry) { return entry.value < value; });
  // Of those that tie for the last places the lowest indices stay, by bisection again.
  int first = 0;
  int last = INT_MAX;
  if (kept.count([&](const Entry& entry) { return entry.value == value; }) == wanted) {
    first = last;
  }
  while (first < last) {
    const int middle = first + (last - first) / 2;
    const int count = kept.count(
        [&](const Entry& entry) { return entry.value == value && entry.index <= middle; });
    if (count >= wanted) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  kth.index = last;
  return kth;
}

// Moves the entries up to the k-th, or all of fewer, to the front of the first part, in the order
// in which they are; returns how many, and which the last is. A warp calls it.
__device__ __forceinline__ int keep_first(const KeptEntries& kept, int k, Entry& last) {
  const bool is_cut = kept.count([](const Entry&) { return true; }) > k;
  last = is_cut ? kth_entry(kept, k) : Entry{};
  int number = 0;
  kept.for_each([&](const Entry& entry) {
    const bool stays = entry.exists() && !last.is_before(entry);
    // All lanes have read before one writes: never past what was read.
    const unsigned staying = __ballot_sync(kAllLanes, stays);
    if (stays) {
      const int to = number + __popc(staying & ((1u << (threadIdx.x % 32)) - 1));
      kept.values[to] = entry.value;
      kept.indices[to] = entry.index;
    }
    number += __popc(staying);
  });
  __syncwarp();
  return number;
}

}  // namespace dmlfast::cuda
