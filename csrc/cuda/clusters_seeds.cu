// k-means++: in turns one block draws a row by the rows' weights, and all blocks bring the weights
// up to date. Sums are those of the CPU, bit by bit: see seed_section.h.
#include "clusters_rows.cuh"
#include "clusters_seeds.h"
#include "engine/group_order.cuh"
#include "engine/slab.cuh"
#include "engine/workspace.cuh"
#include "seed_section.h"

namespace dmlfast::cuda {

namespace {

constexpr int kSection = static_cast<int>(kSeedSection);
constexpr int kSeedWidth = 16;  // dimensions in shared memory at once
static_assert(kSection == kSlabThreads, "a thread a row");

struct SeedsTask {
  AnyRows x;
  const double* uniform;
  int64_t* index;
  uint8_t* is_finite;      // (rows,)
  double* weights;         // (rows,)
  double* sums;            // (sections,) of weights
  double* before;          // (sections,) sums over the sections before
  int32_t* finite_before;  // (sections + 1,) finite rows in the sections before

  static SeedsTask take(Workspace& workspace, const Seeds& a) {
    SeedsTask task{a.x, a.uniform, a.index};
    task.is_finite = workspace.take<uint8_t>(a.x.rows);
    task.weights = workspace.take<double>(a.x.rows);
    task.sums = workspace.take<double>(task.sections());
    task.before = workspace.take<double>(task.sections());
    task.finite_before = workspace.take<int32_t>(task.sections() + 1);
    return task;
  }

  __host__ __device__ int sections() const {
    return static_cast<int>((x.rows + kSection - 1) / kSection);
  }
  __device__ int rows_of(int section) const {
    const int64_t left = x.rows - int64_t{section} * kSection;
    return static_cast<int>(left < kSection ? left : kSection);
  }
};

// Finite rows of each section, and none after the last; a thread a section.
__global__ void count_finite_kernel(SeedsTask task) {
  for (int64_t s = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; s <= task.sections();
       s += int64_t{gridDim.x} * blockDim.x) {
    int count = 0;
    const int rows = s < task.sections() ? task.rows_of(static_cast<int>(s)) : 0;
    for (int i = 0; i < rows; ++i) {
      count += task.is_finite[s * kSection + i];
    }
    task.finite_before[s] = count;
  }
}

// The weights and sums of the sections after a row was drawn: squared distances to the nearest of
// those drawn, 0 for a row that is not finite.
__global__ void __launch_bounds__(kSlabThreads, 2) approach_kernel(SeedsTask task, int64_t draw) {
  __shared__ double rows[kSection * (kSeedWidth + 1)];
  __shared__ double seed[kSeedWidth];
  __shared__ double weights[kSection];
  const int64_t drawn = task.index[draw];
  const int sections = drawn < 0 ? 0 : task.sections();
  const int thread = static_cast<int>(threadIdx.x);
  for (int section = blockIdx.x; section < sections; section += gridDim.x) {
    const int64_t first_row = int64_t{section} * kSection;
    const int count = task.rows_of(section);
    double value = 0.0;
    for (int first = 0; first < task.x.columns; first += kSeedWidth) {
      const Slab slab = slab_at(first, task.x.columns, kSeedWidth);
      stage_slab(task.x, count, [&](int r) { return first_row + r; }, slab, rows);
      if (thread < slab.columns) {
        seed[thread] = element(task.x, drawn, first + thread);
      }
      __syncthreads();
      for (int k = 0; thread < count && k < slab.columns; ++k) {
        value += share_of<true>(rows[thread * slab.stride() + k], seed[k]);
      }
      __syncthreads();
    }
    if (thread < count) {
      const int64_t row = first_row + thread;
      double weight = value - value == 0.0 ? value : 0.0;
      if (draw > 0 && task.weights[row] < weight) {
        weight = task.weights[row];
      }
      task.weights[row] = weight;
      weights[thread] = weight;
    }
    __syncthreads();
    if (thread == 0) {
      double sum = 0.0;
      for (int i = 0; i < count; ++i) {
        sum += weights[i];
      }
      task.sums[section] = sum;
    }
    __syncthreads();
  }
}

// Writes the sums before each section and returns the whole; for a block, the same in all threads.
__device__ inline double sum_before(const SeedsTask& task, double (&staged)[kElementThreads],
                                    double& total) {
  if (threadIdx.x == 0) {
    total = 0.0;
  }
  for (int first = 0; first < task.sections(); first += kElementThreads) {
    const int count = min(kElementThreads, task.sections() - first);
    const int s = first + static_cast<int>(threadIdx.x);
    if (s < task.sections()) {
      staged[threadIdx.x] = task.sums[s];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      double sum = total;
      for (int i = 0; i < count; ++i) {
        const double own = staged[i];
        staged[i] = sum;
        sum += own;
      }
      total = sum;
    }
    __syncthreads();
    if (s < task.sections()) {
      task.before[s] = staged[threadIdx.x];
    }
    __syncthreads();
  }
  return total;
}

// The first section for which `holds`, or the last one, by `is_last`; -1 for none. For a block.
template <class Holds>
__device__ inline int find_section(const SeedsTask& task, bool is_last, int& found,
                                   const Holds& holds) {
  __syncthreads();
  if (threadIdx.x == 0) {
    found = -1;
  }
  __syncthreads();
  // The numbers of the first are turned round, so that it has the greatest.
  int best = -1;
  for (int s = threadIdx.x; s < task.sections(); s += kElementThreads) {
    if (holds(s)) {
      best = max(best, is_last ? s : task.sections() - 1 - s);
    }
  }
  best = warp_greatest(best);
  if (lane_number() == 0) {
    atomicMax(&found, best);
  }
  __syncthreads();
  return found < 0 || is_last ? found : task.sections() - 1 - found;
}

// The row of a section where the sum of the weights passes the target, or else its last row that
// has a weight; for thread 0.
__device__ inline int64_t weighted_row(const SeedsTask& task, int section, double target,
                                       const double (&weights)[kElementThreads]) {
  const int rows = task.rows_of(section);
  const double before = task.before[section];
  double sum = 0.0;
  int last = -1;
  for (int i = 0; i < rows; ++i) {
    sum += weights[i];
    last = weights[i] > 0.0 ? i : last;
    if (before + sum > target) {
      return int64_t{section} * kSection + i;
    }
  }
  return int64_t{section} * kSection + last;
}

// One block: a row in proportion to the weights, or any finite one where these do not say.
__global__ void __launch_bounds__(kElementThreads) draw_kernel(SeedsTask task, int64_t draw) {
  __shared__ double staged[kElementThreads];
  __shared__ double whole;
  __shared__ int found;
  const double number = task.uniform[draw];
  const int finite = task.finite_before[task.sections()];
  if (finite == 0) {
    if (threadIdx.x == 0) {
      task.index[draw] = -1;
    }
    return;
  }
  const double total = draw == 0 ? 0.0 : sum_before(task, staged, whole);
  if (total > 0.0 && total < INFINITY) {
    const double target = number * total;
    int section = find_section(task, false, found,
                               [&](int s) { return task.before[s] + task.sums[s] > target; });
    if (section < 0) {
      // Rounding left the number at the end.
      section = find_section(task, true, found, [&](int s) { return task.sums[s] > 0.0; });
    }
    if (static_cast<int>(threadIdx.x) < task.rows_of(section)) {
      staged[threadIdx.x] = task.weights[int64_t{section} * kSection + threadIdx.x];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      task.index[draw] = weighted_row(task, section, target, staged);
    }
    return;
  }
  const int position = static_cast<int>(
      min(static_cast<int64_t>(number * finite), static_cast<int64_t>(finite) - 1));
  const int section =
      find_section(task, false, found, [&](int s) { return task.finite_before[s + 1] > position; });
  if (threadIdx.x == 0) {
    int64_t row = int64_t{section} * kSection;
    for (int left = position - task.finite_before[section]; left > 0 || task.is_finite[row] == 0;
         ++row) {
      left -= task.is_finite[row];
    }
    task.index[draw] = row;
  }
}

}  // namespace

int64_t seeds_bytes(const Seeds& a) {
  Workspace workspace;
  SeedsTask::take(workspace, a);
  return workspace.bytes();
}

void launch_seeds(const Seeds& a, void* workspace_address, cudaStream_t stream) {
  Workspace workspace(workspace_address);
  const SeedsTask task = SeedsTask::take(workspace, a);
  launch_finite_rows(task.x, task.is_finite, stream);
  DMLFAST_LAUNCH(count_finite_kernel, element_blocks(task.sections() + 1), kElementThreads, stream,
                 task);
  launch_exclusive_sums(task.finite_before, int64_t{task.sections()} + 1, nullptr, stream);
  for (int64_t draw = 0; draw < a.draws; ++draw) {
    DMLFAST_LAUNCH(draw_kernel, dim3{1}, kElementThreads, stream, task, draw);
    if (draw + 1 < a.draws) {
      DMLFAST_LAUNCH(approach_kernel, dim3{grid_for(task.sections())}, kSlabThreads, stream, task,
                     draw);
    }
  }
}

}  // namespace dmlfast::cuda
