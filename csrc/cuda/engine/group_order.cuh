// The stable order that sorts rows by a group of theirs, and where each group begins: by the digits
// of the groups' numbers, the lowest first. Nothing is random or atomic but counts of rows.
#pragma once

#include "engine/launch.cuh"
#include "engine/workspace.cuh"

namespace dmlfast::cuda {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kOrderTile = 4096;  // rows of a block

// What stays of it is order() and `begin`.
struct GroupOrder {
  int32_t rows;
  int32_t groups;
  int32_t* keys;       // (rows,) groups, `groups` for a row in none
  int32_t* orders[2];  // (rows,), written in turns
  int32_t* places;     // (kDigits, tiles) where a tile's rows with a digit go
  int32_t* begin;      // (groups + 1,) by group, and the end of the last

  static GroupOrder take(Workspace& workspace, int64_t rows, int64_t groups) {
    GroupOrder order{};
    order.rows = static_cast<int32_t>(rows);
    order.groups = static_cast<int32_t>(groups);
    order.keys = workspace.take<int32_t>(rows);
    order.orders[0] = workspace.take<int32_t>(rows);
    order.orders[1] = workspace.take<int32_t>(rows);
    order.places = workspace.take<int32_t>(int64_t{kDigits} * order.tiles());
    order.begin = workspace.take<int32_t>(groups + 1);
    return order;
  }

  __host__ __device__ int tiles() const { return (rows + kOrderTile - 1) / kOrderTile; }

  // As many digits as the number of the groups has.
  int passes() const {
    int passes = 1;
    for (int32_t rest = groups >> kDigitBits; rest > 0; rest >>= kDigitBits) {
      ++passes;
    }
    return passes;
  }

  // The rows of groups, each group's in ascending order; after them those in none.
  const int32_t* order() const { return orders[(passes() - 1) % 2]; }
};

// `index` are the groups of the rows; other numbers stand for none. With 0 for `wanted`, a number
// on the device or null, nothing is done.
void launch_group_order(const int64_t* index, const GroupOrder& order, const int32_t* wanted,
                        cudaStream_t stream);

// Replaces each number by the sum of those before it.
void launch_exclusive_sums(int32_t* numbers, int64_t count, const int32_t* wanted,
                           cudaStream_t stream);

}  // namespace dmlfast::cuda
