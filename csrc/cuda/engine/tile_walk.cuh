// The walk over all pairs: tiles of products of packed rows, each handed to a policy that says
// what becomes of it. A block owns 128 queries and meets the columns in ascending order.
//
// A policy has
//   kMultiplies                      whether it wants products at all
//   kColumnValues, column_values(i)  float arrays by column, padded to whole tiles, for each tile
//   tiles(rows)                      the column tiles that a block of queries wants
//   State                            what a thread keeps from tile to tile, for its two rows
//   start(state, rows)               once per block of queries and part of the columns
//   take(state, tile, fragment)      a tile of products, of which it may make what it likes
//   finish(state, rows, item)        what there is after the last tile
#pragma once

#include "engine/queries.cuh"
#include "engine/tile.cuh"

namespace dmlfast::cuda {

struct TileRange {
  int begin;
  int end;
};

// Slabs of y that follow the products of a tile.
struct FurtherSlabs {
  int count;
  int first;
};

struct WalkTask {
  PackedRows x;
  PackedRows y;
  Queries queries;
  int thresholds;    // of an anchor
  int stages;        // slabs in flight
  bool is_resident;  // whether all slabs of a block's rows stay in shared memory
};

// The rows of a block, by their place in the tile.
struct BlockRows {
  int first_place;     // in the list of queries
  const int* queries;  // -1 past the end
  const int* anchors;  // positions
};

// A tile that is handed to a policy. What the calling thread's columns begin with is found anew for
// each tile, and added last are constants: else the compiler keeps a register for each column.
class Tile {
 public:
  __device__ Tile(int first, const float* values)
      : first_column(first), own_column_(first_own_column()), own_values_(values + own_column_) {}

  __device__ float value(int which, int j) const {
    return own_values_[which * kTileColumns + column_offset(j)];
  }
  __device__ int column(int j) const { return first_column + own_column_ + column_offset(j); }

  const int first_column;

 private:
  const int own_column_;
  const float* const own_values_;  // kTileColumns of each
};

// Where things are in dynamic shared memory: resident slabs of x, then stages.
template <class Policy>
struct Stages {
  static constexpr int kValueBytes = Policy::kColumnValues * kTileColumns * 4;

  unsigned char* memory;
  int resident_slabs;
  bool is_resident;

  __host__ __device__ static int stage_bytes(bool is_resident) {
    return (is_resident ? 1 : 2) * kSlabBytes + (kValueBytes + 1023) / 1024 * 1024;
  }
  __device__ unsigned char* stage(int number) const {
    return memory + (is_resident ? resident_slabs * kSlabBytes : 0) +
           number * stage_bytes(is_resident);
  }
  __device__ unsigned char* y(int number) const { return stage(number); }
  __device__ float* values(int number) const {
    return reinterpret_cast<float*>(stage(number) + kSlabBytes);
  }
  __device__ unsigned char* x(int number, int slab) const {
    return is_resident ? memory + slab * kSlabBytes
                       : stage(number) + stage_bytes(false) - kSlabBytes;
  }
};

__device__ inline void wait_all_but(int groups) {
  if (groups <= 0) {
    wait_copies<0>();
  } else if (groups == 1) {
    wait_copies<1>();
  } else {
    wait_copies<2>();
  }
}

// Whether a policy's rows and columns are another's exchanged, whose products it shall have to the
// bit.
template <class Policy>
constexpr bool kIsExchanged = false;

// The steps of one block's walk over its part of the columns: the slabs of each tile one after the
// other, and after them further slabs of y, where the policy has use for these.
template <class Policy, Precision kPrecision>
class SlabWalk {
 public:
  __device__ SlabWalk(const WalkTask& task, const Policy& policy, const BlockRows& rows,
                      unsigned char* memory, TileRange range, FurtherSlabs further = {0, 0})
      : task_(task),
        policy_(policy),
        rows_(rows),
        slabs_(Policy::kMultiplies ? slabs_of<kPrecision>(task.x) : 0),
        further_(further),
        stages_{memory, slabs_, task.is_resident},
        first_tile_(range.begin),
        tiles_(range.end > range.begin ? range.end - range.begin : 0) {}

  __device__ int tiles() const { return tiles_; }

  // Starts the first copies.
  __device__ void start() {
    if (task_.is_resident) {
      for (int slab = 0; slab < slabs_; ++slab) {
        load_slab<kPrecision>(stages_.x(0, slab), task_.x, slab, Anchors{rows_.anchors});
      }
    }
    for (int stage = 0; stage < task_.stages - 1; ++stage) {
      load(stage);
    }
  }

  // Waits for what is left, and for all threads: the next walk writes where others still read.
  __device__ void end() const {
    wait_copies<0>();
    __syncthreads();
  }

  // The products of the next tile, after which its column values are at hand.
  __device__ void multiply(Fragment& fragment) {
    clear(fragment);
    for (int slab = 0; slab < slabs_; ++slab) {
      const int stage = arrive();
      multiply_slabs<kPrecision, kIsExchanged<Policy>>(fragment, stages_.x(stage, slab),
                                                       stages_.y(stage));
    }
  }

  // The next of the further slabs of a tile.
  __device__ unsigned char* further() { return stages_.y(arrive()); }

  // To be asked for after the last product, or where there are none after the first further slab:
  // the column values came with it.
  __device__ Tile tile(int number) const {
    return {(first_tile_ + number) * kTileColumns, stages_.values(before(stage_))};
  }

 private:
  struct Anchors {
    const int* positions;
    __device__ int operator()(int row) const { return positions[row]; }
  };
  struct Columns {
    int first;
    __device__ int operator()(int row) const { return first + row; }
  };

  __device__ static void clear(Fragment& tile) {
#pragma unroll
    for (int slot = 0; slot < Fragment::kRows; ++slot) {
#pragma unroll
      for (int j = 0; j < Fragment::kColumns; ++j) {
        tile.value[slot][j] = 0.0f;
      }
    }
  }

  __device__ int before(int stage) const { return (stage == 0 ? task_.stages : stage) - 1; }

  // Makes the next step's slabs visible to all threads, starts the copies of a later one, and
  // returns the stage of the step.
  __device__ int arrive() {
    const int stage = stage_;
    if (task_.stages == 1) {
      __syncthreads();
      load(0);
      wait_copies<0>();
      publish();
      __syncthreads();
    } else {
      wait_all_but(task_.stages - 2);
      publish();
      __syncthreads();
      load(before(stage));
      stage_ = stage + 1 == task_.stages ? 0 : stage + 1;
    }
    return stage;
  }

  __device__ static void publish() {
    if constexpr (kHasGroupProducts) {
      publish_copies();
    }
  }

  // Starts the copies of the next step, none past the last; one group in either case.
  __device__ void load(int stage) {
    if (next_tile_ < tiles_) {
      const int slab = next_slab_;
      const int first_column = (first_tile_ + next_tile_) * kTileColumns;
      const bool is_further = slab >= slabs_;
      load_slab<kPrecision>(stages_.y(stage), task_.y,
                            is_further ? further_.first + slab - slabs_ : slab,
                            Columns{first_column});
      if (!task_.is_resident && !is_further) {
        load_slab<kPrecision>(stages_.x(stage, slab), task_.x, slab, Anchors{rows_.anchors});
      }
      if (slab == (slabs_ > 0 ? slabs_ - 1 : 0)) {
        load_values(stages_.values(stage), first_column);
      }
      const bool is_last = slab + 1 == slabs_ + further_.count;
      next_slab_ = is_last ? 0 : slab + 1;
      next_tile_ += is_last ? 1 : 0;
    }
    commit_copies();
  }

  __device__ void load_values(float* to, int first_column) const {
    constexpr int kCopies = Policy::kColumnValues * (kTileColumns / 4);
    constexpr int kRounds = (kCopies + kTileThreads - 1) / kTileThreads;
    const int thread = static_cast<int>(thread_anew());
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int i = round * kTileThreads + thread;
      const int which = i / (kTileColumns / 4);
      const int place = i % (kTileColumns / 4) * 4;
      if (i < kCopies) {
        copy_async(to + 4 * i, policy_.column_values(which) + first_column + place, true);
      }
    }
  }

  const WalkTask& task_;
  const Policy& policy_;
  const BlockRows& rows_;
  const int slabs_;
  const FurtherSlabs further_;
  const Stages<Policy> stages_;
  const int first_tile_;
  const int tiles_;
  int stage_ = 0;      // of the next step
  int next_tile_ = 0;  // to start the copies of
  int next_slab_ = 0;
};

// How a walk of all of so many rows over so many columns is divided.
inline Split walk_split(int64_t rows, int64_t columns, int wanted_items) {
  const int tiles = static_cast<int>((columns + kTileColumns - 1) / kTileColumns);
  return split_of(static_cast<int>(rows), kTileRows, tiles, wanted_or_usual(wanted_items));
}

// A walk of all rows of x over those of y, divided into so many items; 0: the usual number.
inline WalkTask walk_of(const PackedRows& x, const PackedRows& y, int wanted_items) {
  WalkTask task{};
  task.x = x;
  task.y = y;
  task.queries = {nullptr, nullptr, x.rows, wanted_or_usual(wanted_items)};
  task.thresholds = 1;
  return task;
}

// An item of work: a block of queries, and a part of the columns.
struct WalkItem {
  BlockRows rows;
  int begin;  // column tiles
  int end;
};

// How the queries of a walk are shared out; how many there are may be known on the device alone.
struct WalkPlan {
  int queries;
  Split split;
};

__device__ inline WalkPlan walk_plan(const WalkTask& task) {
  const int number = task.queries.number();
  return {number, split_of(number, kTileRows, task.y.tiles(), task.queries.wanted_items)};
}

// The rows of an item, written to shared memory by all threads.
__device__ inline WalkItem walk_item(const WalkTask& task, const WalkPlan& plan, int item,
                                     int (&queries)[kTileRows], int (&anchors)[kTileRows]) {
  const int first = item / plan.split.parts * kTileRows;
  if (const int i = static_cast<int>(threadIdx.x); i < kTileRows) {
    const int query = first + i < plan.queries ? task.queries.query(first + i) : -1;
    queries[i] = query;
    anchors[i] = query < 0 ? -1 : query / task.thresholds;
  }
  __syncthreads();
  const int begin = item % plan.split.parts * plan.split.tiles_per_part;
  return {{first, queries, anchors}, begin, min(begin + plan.split.tiles_per_part, task.y.tiles())};
}

// Whether two blocks of a walk shall share a multiprocessor where they multiply in groups: one
// multiplies while the other is at its policy. Few policies have the registers for that.
template <class Policy, Precision kPrecision>
constexpr bool kWalksInPairs = false;

// Without the 1 the compiler would rather spill a few registers than need more than two blocks can
// have.
template <class Policy, Precision kPrecision>
__global__ void __launch_bounds__(kTileThreads,
                                  (kHasGroupProducts && kWalksInPairs<Policy, kPrecision> ? 2 : 1))
    walk_kernel(WalkTask task, Policy policy) {
  DMLFAST_SHARED_MEMORY(memory);
  __shared__ int queries[kTileRows];
  __shared__ int anchors[kTileRows];
  const WalkPlan plan = walk_plan(task);
  for (int number = blockIdx.x; number < plan.split.items(); number += gridDim.x) {
    const WalkItem item = walk_item(task, plan, number, queries, anchors);
    const TileRange wanted = policy.tiles(item.rows);
    const TileRange range{max(wanted.begin, item.begin), min(wanted.end, item.end)};
    typename Policy::State state;
    policy.start(state, item.rows);
    SlabWalk<Policy, kPrecision> walk(task, policy, item.rows, memory, range);
    walk.start();
    for (int tile = 0; tile < walk.tiles(); ++tile) {
      Fragment fragment;
      walk.multiply(fragment);
      policy.take(state, walk.tile(tile), fragment);
    }
    walk.end();
    policy.finish(state, item.rows, number);
    __syncthreads();
  }
}

// Chooses where slabs are kept for the shared memory that a block may have; returns the bytes.
template <class Policy, Precision kPrecision>
int choose_stages(WalkTask& task, int shared_bytes) {
  constexpr int kMostStages = 4;
  const int resident = Policy::kMultiplies ? slabs_of<kPrecision>(task.x) * kSlabBytes : 0;
  task.is_resident = resident + 2 * Stages<Policy>::stage_bytes(true) <= shared_bytes;
  const int stage = Stages<Policy>::stage_bytes(task.is_resident);
  const int fixed = task.is_resident ? resident : 0;
  // Half of it, where that is enough for two stages.
  const int half = shared_bytes / 2 - 4096;
  const bool in_pairs = kWalksInPairs<Policy, kPrecision> && fixed + 2 * stage <= half;
  const int fitting = ((in_pairs ? half : shared_bytes) - fixed) / stage;
  task.stages = fitting < 1 ? 1 : fitting > kMostStages ? kMostStages : fitting;
  return fixed + task.stages * stage;
}

template <class Policy, Precision kPrecision>
void launch_walk(WalkTask task, const Policy& policy, int shared_bytes, cudaStream_t stream) {
  const int bytes = choose_stages<Policy, kPrecision>(task, shared_bytes);
  const int items = most_items(task.queries.most, kTileRows, task.queries.wanted_items);
  const unsigned blocks = blocks_for_items(task.queries, items);
  DMLFAST_LAUNCH_SHARED((walk_kernel<Policy, kPrecision>), dim3{blocks}, kTileThreads, bytes,
                        stream, task, policy);
}

}  // namespace dmlfast::cuda
