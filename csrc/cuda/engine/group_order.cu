#include "engine/group_order.cuh"
#include "engine/warp.cuh"

namespace dmlfast::cuda {

namespace {

static_assert(kDigits == kElementThreads, "a thread for every digit");
constexpr int kWarpRows = kOrderTile / kElementWarps;
constexpr int kSummed = 8;  // numbers of a thread at once

__device__ inline bool is_wanted(const int32_t* wanted) { return wanted == nullptr || *wanted > 0; }

__global__ void keys_kernel(const int64_t* index, GroupOrder order, const int32_t* wanted) {
  const int64_t rows = is_wanted(wanted) ? order.rows : 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * blockDim.x) {
    const bool has_group = index[i] >= 0 && index[i] < order.groups;
    order.keys[i] = has_group ? static_cast<int32_t>(index[i]) : order.groups;
  }
}

// The rows as the digits below have sorted them, and the digit of this pass.
struct Pass {
  const int32_t* from;  // null for the rows as they are
  int32_t* to;
  int shift;

  __device__ int row(int place) const { return from == nullptr ? place : from[place]; }
  __device__ int digit(const GroupOrder& order, int row) const {
    return order.keys[row] >> shift & (kDigits - 1);
  }
};

// How many rows of each tile have each digit.
__global__ void count_digits_kernel(GroupOrder order, Pass pass, const int32_t* wanted) {
  __shared__ int32_t counts[kDigits];
  const int tiles = is_wanted(wanted) ? order.tiles() : 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    counts[threadIdx.x] = 0;
    __syncthreads();
    const int end = min((tile + 1) * kOrderTile, order.rows);
    for (int place = tile * kOrderTile + threadIdx.x; place < end; place += kElementThreads) {
      atomicAdd(&counts[pass.digit(order, pass.row(place))], 1);
    }
    __syncthreads();
    order.places[int64_t{threadIdx.x} * tiles + tile] = counts[threadIdx.x];
    __syncthreads();
  }
}

// One block.
__global__ void exclusive_sums_kernel(int32_t* numbers, int64_t count, const int32_t* wanted) {
  __shared__ int32_t warp_sums[kElementWarps];
  const int lane = lane_number();
  const int warp = warp_number();
  int32_t before = 0;
  const int64_t last = is_wanted(wanted) ? count : 0;
  for (int64_t first = 0; first < last; first += kElementThreads * kSummed) {
    const int64_t at = first + int64_t{threadIdx.x} * kSummed;
    int32_t own[kSummed];
    int32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kSummed; ++i) {
      own[i] = at + i < last ? numbers[at + i] : 0;
      sum += own[i];
    }
    int32_t up_to = sum;  // including this thread's
    for (int bits = 1; bits < 32; bits *= 2) {
      const int32_t other = __shfl_sync(kAllLanes, up_to, lane < bits ? lane : lane - bits);
      up_to += lane < bits ? 0 : other;
    }
    if (lane == 31) {
      warp_sums[warp] = up_to;
    }
    __syncthreads();
    int32_t base = before + up_to - sum;
    for (int w = 0; w < kElementWarps; ++w) {
      base += w < warp ? warp_sums[w] : 0;
      before += warp_sums[w];
    }
#pragma unroll
    for (int i = 0; i < kSummed; ++i) {
      if (at + i < last) {
        numbers[at + i] = base;
      }
      base += own[i];
    }
    __syncthreads();
  }
}

// Rows of a warp in ascending order to where their digits' rows go.
__device__ inline void move_rows(const GroupOrder& order, const Pass& pass, int begin, int end,
                                 int32_t (&places)[kDigits]) {
  const int lane = lane_number();
  for (int first = begin; first < end; first += 32) {
    const bool exists = first + lane < end;
    const int row = exists ? pass.row(first + lane) : 0;
    const int digit = exists ? pass.digit(order, row) : 0;
    unsigned same = __ballot_sync(kAllLanes, exists);
    for (int bit = 0; bit < kDigitBits; ++bit) {
      const bool is_set = (digit >> bit & 1) != 0;
      const unsigned votes = __ballot_sync(kAllLanes, is_set);
      same &= is_set ? votes : ~votes;
    }
    const int before = __popc(same & ((1u << lane) - 1));
    if (exists) {
      pass.to[places[digit] + before] = row;
    }
    __syncwarp();
    if (exists && before == 0) {
      places[digit] += __popc(same);
    }
    __syncwarp();
  }
}

// A warp owns a contiguous part of a tile's rows, so that equal digits keep their order.
__global__ void move_rows_kernel(GroupOrder order, Pass pass, const int32_t* wanted) {
  __shared__ int32_t places[kElementWarps][kDigits];
  const int warp = warp_number();
  const int tiles = is_wanted(wanted) ? order.tiles() : 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    for (int w = 0; w < kElementWarps; ++w) {
      places[w][threadIdx.x] = 0;
    }
    __syncthreads();
    const int begin = tile * kOrderTile + warp * kWarpRows;
    const int end = min(begin + kWarpRows, order.rows);
    for (int place = begin + lane_number(); place < end; place += 32) {
      atomicAdd(&places[warp][pass.digit(order, pass.row(place))], 1);
    }
    __syncthreads();
    int32_t next = order.places[int64_t{threadIdx.x} * tiles + tile];
    for (int w = 0; w < kElementWarps; ++w) {
      const int32_t number = places[w][threadIdx.x];
      places[w][threadIdx.x] = next;
      next += number;
    }
    __syncthreads();
    move_rows(order, pass, begin, end, places[warp]);
    __syncthreads();
  }
}

// Each place writes the groups that begin there: those after the group of the place before it.
__global__ void group_begin_kernel(GroupOrder order, const int32_t* sorted, const int32_t* wanted) {
  const int64_t places = is_wanted(wanted) ? int64_t{order.rows} + 1 : 0;
  for (int64_t place = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; place < places;
       place += int64_t{gridDim.x} * blockDim.x) {
    const int before = place == 0 ? -1 : order.keys[sorted[place - 1]];
    const int own = place == order.rows ? order.groups : order.keys[sorted[place]];
    for (int group = before + 1; group <= own; ++group) {
      order.begin[group] = static_cast<int32_t>(place);
    }
  }
}

}  // namespace

void launch_exclusive_sums(int32_t* numbers, int64_t count, const int32_t* wanted,
                           cudaStream_t stream) {
  DMLFAST_LAUNCH(exclusive_sums_kernel, dim3{1}, kElementThreads, stream, numbers, count, wanted);
}

void launch_group_order(const int64_t* index, const GroupOrder& order, const int32_t* wanted,
                        cudaStream_t stream) {
  const dim3 tile_blocks{grid_for(order.tiles())};
  DMLFAST_LAUNCH(keys_kernel, element_blocks(order.rows), kElementThreads, stream, index, order,
                 wanted);
  const int32_t* from = nullptr;
  for (int p = 0; p < order.passes(); ++p) {
    const Pass pass{from, order.orders[p % 2], p * kDigitBits};
    DMLFAST_LAUNCH(count_digits_kernel, tile_blocks, kElementThreads, stream, order, pass, wanted);
    launch_exclusive_sums(order.places, int64_t{kDigits} * order.tiles(), wanted, stream);
    DMLFAST_LAUNCH(move_rows_kernel, tile_blocks, kElementThreads, stream, order, pass, wanted);
    from = pass.to;
  }
  DMLFAST_LAUNCH(group_begin_kernel, element_blocks(int64_t{order.rows} + 1), kElementThreads,
                 stream, order, from, wanted);
}

}  // namespace dmlfast::cuda
