// Gradients of similarities to synthesised rows. A thread has a column and goes down a chunk of
// rows, with some shifts and the sums of their gradients in registers; the sums of the chunks are
// added in their order.
#pragma once

#include "engine/workspace.cuh"
#include "ranking_synthesis_measure.cuh"

namespace dmlfast::cuda {

constexpr int kGradientThreads = 128;
constexpr int kGradientSteps = 16;  // shifts of a thread at a time
constexpr int kRowsAtOnce = 4;      // that are read together
constexpr int kStagedRows = 64;     // whose weights are in shared memory
constexpr int64_t kLeastChunkRows = 64;
constexpr int64_t kRowsPerStep = 2;  // so many, that a chunk's sums are smaller than its rows
constexpr int64_t kMostChunks = 1024;
constexpr int kJoinWarps = 16;

// Of a pair: the gradient of v is target * t where v > 0, plus direction * v. That of the target is
// target * v where v > 0, where the target has a length of its own divided by it.
struct SynthesisWeight {
  double target;
  double direction;
};

// Of a row without targets: what times the row is subtracted for its length as the target.
struct OwnWeight {
  double direction;
  bool needs_care;  // float32 does not hold the weights of the row
};

struct SynthesisGradientMemory {
  SynthesisWeight* weights;  // [row][shift]
  OwnWeight* own;            // [row]
  float* sums;               // [chunk][shift][column]
  int64_t chunk_rows;
  int64_t chunks;

  static SynthesisGradientMemory take(Workspace& workspace, const SynthesisRows& rows) {
    const int64_t count = rows.projected.rows;
    const int64_t steps = rows.shifts.rows;
    SynthesisGradientMemory memory{};
    memory.chunk_rows = (count + kMostChunks - 1) / kMostChunks;
    for (const int64_t least : {kLeastChunkRows, kRowsPerStep * steps}) {
      memory.chunk_rows = memory.chunk_rows < least ? least : memory.chunk_rows;
    }
    memory.chunks = (count + memory.chunk_rows - 1) / memory.chunk_rows;
    memory.weights = workspace.take<SynthesisWeight>(count * steps);
    memory.own = workspace.take<OwnWeight>(count);
    memory.sums = workspace.take<float>(memory.chunks * steps * rows.shifts.columns);
    return memory;
  }
};

// Makes weights of measures. A pair whose upstream gradient is 0 has weights of 0, whatever it is.
struct WeightTaker {
  Rows<float> upstream;
  SynthesisGradientMemory memory;
  double along = 0.0;  // a lane's part of the row's sum of upstream * similarity
  double own_length = 1.0;

  __device__ bool take(int64_t i, int64_t j, const SynthesisMeasure& measure) {
    const double factor = element(upstream, i, j);
    SynthesisWeight weight{0.0, 0.0};
    if (factor != 0.0) {
      const double turned = factor * measure.similarity;
      along += turned;
      weight.target = factor / (measure.length * measure.own_length);
      weight.direction = -turned / (measure.length * measure.length);
    }
    own_length = measure.own_length;
    memory.weights[i * upstream.columns + j] = weight;
    return fits(weight.target) && fits(weight.direction);
  }

  __device__ void finish(int64_t i, bool writes, bool needs_care) {
    for (int bits = kGroupRows; bits < 32; bits *= 2) {
      along += __shfl_xor_sync(kAllLanes, along, bits);
    }
    const double direction = along == 0.0 ? 0.0 : along / (own_length * own_length);
    if (writes) {
      memory.own[i] = {direction, needs_care || !fits(direction)};
    }
  }

 private:
  // Whether float32 holds a factor with all its digits, and its products with what is ordinary.
  __device__ static bool fits(double factor) {
    return factor == 0.0 || (fabs(factor) >= 1e-25 && fabs(factor) <= 1e25);
  }
};

struct SynthesisGradientTask {
  SynthesisRows rows;
  SynthesisGradientMemory memory;
  SynthesisGradients gradients;

  __device__ int64_t column_blocks() const {
    return (rows.projected.columns + kGradientThreads - 1) / kGradientThreads;
  }
};

// Weights of some rows and shifts; 0 for rows that need care, and past the last row.
struct StagedWeights {
  float2 pair[kStagedRows][kGradientSteps];  // for the target, and for the direction
  float own[kStagedRows];
  bool needs_care[kStagedRows];

  __device__ void read(const SynthesisGradientMemory& memory, int64_t begin, int count,
                       int64_t steps, int64_t first, int step_count) {
    for (int r = threadIdx.x; r < kStagedRows; r += kGradientThreads) {
      const OwnWeight weight = r < count ? memory.own[begin + r] : OwnWeight{0.0, false};
      needs_care[r] = weight.needs_care;
      own[r] = needs_care[r] || first > 0 ? 0.0f : static_cast<float>(weight.direction);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < kStagedRows * step_count; at += kGradientThreads) {
      const int r = at / step_count;
      const int j = at % step_count;
      SynthesisWeight weight{0.0, 0.0};
      if (r < count && !needs_care[r]) {
        weight = memory.weights[(begin + r) * steps + first + j];
      }
      pair[r][j] = {static_cast<float>(weight.target), static_cast<float>(weight.direction)};
    }
    __syncthreads();
  }
};

// A thread's column, and some of the shifts.
class ColumnGradient {
 public:
  __device__ __forceinline__ ColumnGradient(const SynthesisGradientTask& task, int64_t column,
                                            int64_t first)
      : task_(task), column_(column), first_(first) {
    const int64_t left = task.rows.shifts.rows - first;
    count_ = static_cast<int>(left < kGradientSteps ? left : kGradientSteps);
#pragma unroll
    for (int j = 0; j < kGradientSteps; ++j) {
      shifts_[j] = j < count_ && exists() ? value_at(task.rows.shifts, first + j, column) : 0.0f;
      sums_[j] = 0.0f;
    }
  }

  __device__ int count() const { return count_; }

  // Rows [begin + r, begin + r + kRowsAtOnce) by the staged weights of [begin, end).
  __device__ __forceinline__ void add_rows(const StagedWeights& staged, int64_t begin, int r,
                                           int64_t end) {
    float projected[kRowsAtOnce];
    float target[kRowsAtOnce];
    float to_projected[kRowsAtOnce] = {};
    float to_target[kRowsAtOnce] = {};
    bool has_any = false;
#pragma unroll
    for (int n = 0; n < kRowsAtOnce; ++n) {
      const int64_t i = begin + r + n;
      const bool is_own = i < end && !staged.needs_care[r + n];
      has_any = has_any || is_own;
      const bool is_read = is_own && exists();
      projected[n] = is_read ? value_at(task_.rows.projected, i, column_) : 0.0f;
      target[n] = !task_.rows.has_targets() ? fmaxf(projected[n], 0.0f)
                  : is_read                 ? value_at(task_.rows.targets, i, column_)
                                            : 0.0f;
    }
    if (!has_any) {
      return;  // a shift that is not finite has no other rows, and would not be 0 times 0
    }
#pragma unroll
    for (int j = 0; j < kGradientSteps; ++j) {
      if (j < count_) {
#pragma unroll
        for (int n = 0; n < kRowsAtOnce; ++n) {
          const float2 weight = staged.pair[r + n][j];
          const float value = projected[n] + shifts_[j];
          const float towards = value > 0.0f ? target[n] : 0.0f;
          const float to_value = multiply_add(weight.x, towards, weight.y * value);
          to_projected[n] += to_value;
          to_target[n] = multiply_add(weight.x, fmaxf(value, 0.0f), to_target[n]);
          sums_[j] += to_value;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kRowsAtOnce; ++n) {
      if (begin + r + n < end && !staged.needs_care[r + n]) {
        write(begin + r + n, projected[n], staged.own[r + n], to_projected[n], to_target[n]);
      }
    }
  }

  // A row that needs care, in float64.
  __device__ __forceinline__ void add_carefully(int64_t i) {
    const double projected = exists() ? value_at(task_.rows.projected, i, column_) : 0.0f;
    double target = fmax(projected, 0.0);
    if (task_.rows.has_targets()) {
      target = exists() ? value_at(task_.rows.targets, i, column_) : 0.0f;
    }
    double to_projected = 0.0;
    double to_target = 0.0;
    const SynthesisWeight* const weights =
        task_.memory.weights + i * task_.rows.shifts.rows + first_;
#pragma unroll
    for (int j = 0; j < kGradientSteps; ++j) {
      if (j < count_ && weights[j].target != 0.0) {
        const double value = projected + shifts_[j];
        const double towards = value > 0.0 ? target : 0.0;
        const double to_value = weights[j].target * towards + weights[j].direction * value;
        to_projected += to_value;
        to_target += weights[j].target * fmax(value, 0.0);
        sums_[j] += static_cast<float>(to_value);
      }
    }
    const double own = first_ == 0 ? task_.memory.own[i].direction : 0.0;
    write(i, projected, own, to_projected, to_target);
  }

  __device__ __forceinline__ void write_sums(int64_t chunk) const {
    const int64_t columns = task_.rows.shifts.columns;
    float* const to =
        task_.memory.sums + (chunk * task_.rows.shifts.rows + first_) * columns + column_;
#pragma unroll
    for (int j = 0; j < kGradientSteps; ++j) {
      if (j < count_ && exists()) {
        to[j * columns] = sums_[j];
      }
    }
  }

 private:
  __device__ bool exists() const { return column_ < task_.rows.projected.columns; }

  // Adds to what the shifts before these have given.
  template <class T>
  __device__ __forceinline__ void write(int64_t i, T projected, T own, T to_projected,
                                        T to_target) const {
    if (!exists()) {
      return;
    }
    const int64_t at = i * task_.rows.projected.columns + column_;
    if (task_.rows.has_targets()) {
      float& target = task_.gradients.targets[at];
      target = static_cast<float>(first_ == 0 ? to_target : target + to_target);
    } else {
      to_projected += projected > T{0} ? to_target : T{0};
      // 0 * NaN: a row that nobody asks for gets nothing.
      to_projected -= own == T{0} ? T{0} : own * projected;
    }
    float& result = task_.gradients.projected[at];
    result = static_cast<float>(first_ == 0 ? to_projected : result + to_projected);
  }

  const SynthesisGradientTask& task_;
  int64_t column_;
  int64_t first_;
  int count_;
  float shifts_[kGradientSteps];
  float sums_[kGradientSteps];
};

static __global__ void __launch_bounds__(kGradientThreads, 6)
    synthesis_gradient_kernel(SynthesisGradientTask task) {
  __shared__ StagedWeights staged;
  const int64_t steps = task.rows.shifts.rows;
  const int64_t items = task.memory.chunks * task.column_blocks();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t chunk = item / task.column_blocks();
    const int64_t column = item % task.column_blocks() * kGradientThreads + threadIdx.x;
    const int64_t begin = chunk * task.memory.chunk_rows;
    const int64_t left = task.rows.projected.rows - begin;
    const int64_t end = begin + (left < task.memory.chunk_rows ? left : task.memory.chunk_rows);
    // Once also without a shift: then gradients are 0.
    for (int64_t first = 0; first == 0 || first < steps; first += kGradientSteps) {
      ColumnGradient gradient(task, column, first);
      for (int64_t row = begin; row < end; row += kStagedRows) {
        const int count = static_cast<int>(end - row < kStagedRows ? end - row : kStagedRows);
        __syncthreads();
        staged.read(task.memory, row, count, steps, first, gradient.count());
        for (int r = 0; r < count; r += kRowsAtOnce) {
          gradient.add_rows(staged, row, r, end);
        }
        for (int r = 0; r < count; ++r) {
          if (staged.needs_care[r]) {
            gradient.add_carefully(row + r);
          }
        }
      }
      gradient.write_sums(chunk);
    }
  }
}

// Adds up the chunks' sums: 32 elements a block, of each of which a warp adds contiguous chunks.
static __global__ void __launch_bounds__(kJoinWarps * 32)
    join_shift_gradients_kernel(SynthesisGradientMemory memory, int64_t elements, float* gradient) {
  __shared__ double parts[kJoinWarps][32];
  const int warp = warp_number();
  for (int64_t first = int64_t{blockIdx.x} * 32; first < elements;
       first += int64_t{gridDim.x} * 32) {
    const int64_t at = first + lane_number();
    double sum = 0.0;
    const int64_t end = memory.chunks * (warp + 1) / kJoinWarps;
#pragma unroll 8
    for (int64_t chunk = memory.chunks * warp / kJoinWarps; chunk < end; ++chunk) {
      sum += at < elements ? memory.sums[chunk * elements + at] : 0.0f;
    }
    parts[warp][lane_number()] = sum;
    __syncthreads();
    if (warp == 0 && at < elements) {
      double total = 0.0;
      for (int part = 0; part < kJoinWarps; ++part) {
        total += parts[part][lane_number()];
      }
      gradient[at] = static_cast<float>(total);
    }
    __syncthreads();
  }
}

}  // namespace dmlfast::cuda
