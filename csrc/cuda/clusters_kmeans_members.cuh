// What becomes of an assignment: its inertia, the rows that clusters without any are handed, and
// whether anything has changed. Once nothing has, none of these kernels does anything.
#pragma once

#include "engine/launch.cuh"
#include "engine/warp.cuh"
#include "engine/workspace.cuh"

namespace dmlfast::cuda {

constexpr int kInertiaRows = kElementThreads;  // rows whose values a block adds up
constexpr int kFarRows = 4 * kElementThreads;  // rows among which a block finds the farthest

// What the device knows of the iterations.
struct KMeansState {
  int32_t active;   // rows to be assigned: all of them, or 0 once the means no longer move
  int32_t changed;  // whether the members of this iteration are not those of the one before
  int32_t empty;    // clusters without rows
};

// A row and its value; the farther is the greater value, then the lower row.
struct FarRow {
  double value;
  int row;  // -1 for none

  __device__ void offer(double other_value, int other_row) {
    const bool is_farther =
        other_value > value ||
        (other_value == value && static_cast<unsigned>(other_row) < static_cast<unsigned>(row));
    value = is_farther ? other_value : value;
    row = is_farther ? other_row : row;
  }

  __device__ void join_warp() {
    for (int bits = 16; bits > 0; bits /= 2) {
      const double other_value = __shfl_xor_sync(kAllLanes, value, bits);
      const int other_row = __shfl_xor_sync(kAllLanes, row, bits);
      offer(other_value, other_row);
    }
  }
};

struct MembersTask {
  int32_t rows;
  int32_t clusters;
  const uint8_t* is_finite;  // (rows,)
  int64_t* index;            // nearest centres; -1 for none, and in the end for a row not finite
  double* values;            // (rows,) squared distances to them
  int64_t* members;          // (rows,) clusters after empty ones are handed rows
  const int64_t* previous;   // (rows,) the members of the iteration before; null for the first
  KMeansState* state;
  double* sums;     // by block of kInertiaRows
  int32_t* counts;  // (clusters,) rows
  // (clusters,) of the row that stays in its cluster, whoever leaves: the complement of the bits of
  // the least value, and the highest row that has it.
  unsigned long long* nearest;
  int32_t* staying;
  FarRow* far;  // by block of kFarRows

  __device__ bool is_active() const { return state->active > 0; }
  __device__ bool is_filled() const { return state->active > 0 && state->empty > 0; }
  __device__ int far_blocks() const { return (rows + kFarRows - 1) / kFarRows; }

  static MembersTask take(Workspace& workspace, int64_t rows, int64_t clusters) {
    MembersTask task{};
    task.rows = static_cast<int32_t>(rows);
    task.clusters = static_cast<int32_t>(clusters);
    task.values = workspace.take<double>(rows);
    task.state = workspace.take<KMeansState>(1);
    task.sums = workspace.take<double>(rows / kInertiaRows + 1);
    task.counts = workspace.take<int32_t>(clusters);
    task.nearest = workspace.take<unsigned long long>(clusters);
    task.staying = workspace.take<int32_t>(clusters);
    task.far = workspace.take<FarRow>(rows / kFarRows + 1);
    return task;
  }
};

// Of values that are not negative: the nearer has the greater number.
__device__ inline unsigned long long nearness(double value) {
  return ~static_cast<unsigned long long>(__double_as_longlong(value));
}

// A sum over the threads of a block, in an order of its own, for thread 0.
__device__ inline double block_sum(double value, double (&sums)[kElementWarps]) {
  value = warp_sum(value);
  if (lane_number() == 0) {
    sums[warp_number()] = value;
  }
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < kElementWarps; ++w) {
    sum += sums[w];
  }
  __syncthreads();
  return sum;
}

// Nothing is counted yet; and where nothing has changed, nothing will be done.
static __global__ void begin_iteration_kernel(MembersTask task, bool is_first) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    task.state->active = is_first || task.state->changed != 0 ? task.rows : 0;
    task.state->changed = is_first ? 1 : 0;
    task.state->empty = 0;
  }
  for (int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; c < task.clusters;
       c += int64_t{gridDim.x} * blockDim.x) {
    task.counts[c] = 0;
    task.nearest[c] = 0;
    task.staying[c] = -1;
  }
}

// Takes the rows that are not finite from their clusters, counts those that are, and adds up the
// values of each block of rows.
static __global__ void __launch_bounds__(kElementThreads) count_members_kernel(MembersTask task) {
  __shared__ double warp_sums[kElementWarps];
  const int64_t rows = task.is_active() ? task.rows : 0;
  for (int64_t first = int64_t{blockIdx.x} * kInertiaRows; first < rows;
       first += int64_t{gridDim.x} * kInertiaRows) {
    const int64_t i = first + threadIdx.x;
    double value = 0.0;
    if (i < rows) {
      const int64_t cluster = task.is_finite[i] != 0 ? task.index[i] : -1;
      task.index[i] = cluster;
      task.members[i] = cluster;
      if (cluster >= 0) {
        value = task.values[i];
        atomicAdd(task.counts + cluster, 1);
      } else {
        task.values[i] = 0.0;
      }
    }
    const double sum = block_sum(value, warp_sums);
    if (threadIdx.x == 0) {
      task.sums[first / kInertiaRows] = sum;
    }
  }
}

// One block: the sum of all values, and the number of clusters without rows.
static __global__ void __launch_bounds__(kElementThreads)
    inertia_kernel(MembersTask task, double* history, int64_t step) {
  __shared__ double warp_sums[kElementWarps];
  if (!task.is_active()) {
    if (threadIdx.x == 0) {
      history[step] = step > 0 ? history[step - 1] : 0.0;
    }
    return;
  }
  double value = 0.0;
  for (int64_t b = threadIdx.x; b * kInertiaRows < task.rows; b += blockDim.x) {
    value += task.sums[b];
  }
  value = block_sum(value, warp_sums);
  int empty = 0;
  for (int64_t c = threadIdx.x; c < task.clusters; c += blockDim.x) {
    empty += task.counts[c] == 0 ? 1 : 0;
  }
  empty = warp_sum(empty);
  if (lane_number() == 0 && empty > 0) {
    atomicAdd(&task.state->empty, empty);
  }
  if (threadIdx.x == 0) {
    history[step] = value;
  }
}

static __global__ void nearest_rows_kernel(MembersTask task) {
  const int64_t rows = task.is_filled() ? task.rows : 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * blockDim.x) {
    if (task.index[i] >= 0) {
      atomicMax(task.nearest + task.index[i], nearness(task.values[i]));
    }
  }
}

static __global__ void staying_rows_kernel(MembersTask task) {
  const int64_t rows = task.is_filled() ? task.rows : 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t cluster = task.index[i];
    if (cluster >= 0 && nearness(task.values[i]) == task.nearest[cluster]) {
      atomicMax(task.staying + cluster, static_cast<int32_t>(i));
    }
  }
}

// The farthest of what the threads of a block found; the same for all of them.
__device__ inline FarRow join_block(FarRow best, FarRow (&shared)[kElementWarps]) {
  best.join_warp();
  if (lane_number() == 0) {
    shared[warp_number()] = best;
  }
  __syncthreads();
  for (int w = 0; w < kElementWarps; ++w) {
    best.offer(shared[w].value, shared[w].row);
  }
  __syncthreads();
  return best;
}

// The farthest row of a block of them that may leave its cluster and has not, for all threads. A
// cluster hands out its rows from the farthest on, and keeps the last.
__device__ inline FarRow farthest_of(const MembersTask& task, int block,
                                     FarRow (&shared)[kElementWarps]) {
  FarRow best{0.0, -1};
  const int end = min((block + 1) * kFarRows, task.rows);
  for (int i = block * kFarRows + threadIdx.x; i < end; i += kElementThreads) {
    const int64_t cluster = task.index[i];
    const double value = task.values[i];
    if (cluster >= 0 && value > 0.0 && task.members[i] == cluster && task.staying[cluster] != i) {
      best.offer(value, i);
    }
  }
  return join_block(best, shared);
}

static __global__ void __launch_bounds__(kElementThreads) far_rows_kernel(MembersTask task) {
  __shared__ FarRow shared[kElementWarps];
  const int blocks = task.is_filled() ? task.far_blocks() : 0;
  for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
    const FarRow best = farthest_of(task, block, shared);
    if (threadIdx.x == 0) {
      task.far[block] = best;
    }
  }
}

// The farthest of all rows; the same for all threads.
__device__ inline FarRow farthest_of_all(const MembersTask& task, FarRow (&shared)[kElementWarps]) {
  FarRow best{0.0, -1};
  for (int block = threadIdx.x; block < task.far_blocks(); block += kElementThreads) {
    best.offer(task.far[block].value, task.far[block].row);
  }
  return join_block(best, shared);
}

// One block: hands the farthest rows to the clusters without rows, the lowest of them first.
static __global__ void __launch_bounds__(kElementThreads) fill_empty_kernel(MembersTask task) {
  __shared__ FarRow shared[kElementWarps];
  int left = task.is_filled() ? task.state->empty : 0;
  for (int cluster = 0; left > 0; ++cluster) {
    if (task.counts[cluster] > 0) {
      continue;
    }
    --left;
    const FarRow best = farthest_of_all(task, shared);
    if (best.row < 0) {
      return;
    }
    if (threadIdx.x == 0) {
      task.members[best.row] = cluster;
    }
    __syncthreads();
    const int block = best.row / kFarRows;
    const FarRow next = farthest_of(task, block, shared);
    if (threadIdx.x == 0) {
      task.far[block] = next;
    }
    __syncthreads();
  }
}

static __global__ void compare_members_kernel(MembersTask task) {
  const int64_t rows = task.is_active() ? task.rows : 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * blockDim.x) {
    if (task.members[i] != task.previous[i]) {
      task.state->changed = 1;
    }
  }
}

inline void launch_begin_iteration(const MembersTask& task, bool is_first, cudaStream_t stream) {
  DMLFAST_LAUNCH(begin_iteration_kernel, element_blocks(task.clusters), kElementThreads, stream,
                 task, is_first);
}

inline void launch_inertia(const MembersTask& task, double* history, int64_t step,
                           cudaStream_t stream) {
  DMLFAST_LAUNCH(count_members_kernel, element_blocks(task.rows), kElementThreads, stream, task);
  DMLFAST_LAUNCH(inertia_kernel, dim3{1}, kElementThreads, stream, task, history, step);
}

// The members of the clusters, and whether they are those of the iteration before.
inline void launch_members(const MembersTask& task, cudaStream_t stream) {
  const dim3 blocks = element_blocks(task.rows);
  DMLFAST_LAUNCH(nearest_rows_kernel, blocks, kElementThreads, stream, task);
  DMLFAST_LAUNCH(staying_rows_kernel, blocks, kElementThreads, stream, task);
  DMLFAST_LAUNCH(far_rows_kernel, dim3{grid_for(task.rows / kFarRows + 1)}, kElementThreads, stream,
                 task);
  DMLFAST_LAUNCH(fill_empty_kernel, dim3{1}, kElementThreads, stream, task);
  if (task.previous != nullptr) {
    DMLFAST_LAUNCH(compare_members_kernel, blocks, kElementThreads, stream, task);
  }
}

}  // namespace dmlfast::cuda
