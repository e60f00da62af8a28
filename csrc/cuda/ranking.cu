// A thread a row goes over the columns: first for the greatest difference, then with a running sum
// of exponentials of the columns so far, and for the gradient back again.
#include "engine/any_rows.cuh"
#include "engine/workspace.cuh"
#include "ranking.h"

namespace dmlfast::cuda {

namespace {

constexpr int kRowThreads = 128;
// Rows of which the gradient has sums of every column in memory: more than threads of a device run
// at once.
constexpr int64_t kMostRowsAtOnce = 1 << 17;

// One log-sum-exp over the pairs of columns j < k of a row, of scale * (difference + common), where
// difference = sign * (value[k] - value[j]) + shift(k).
struct Side {
  double sign;  // 1 or -1
  double scale;
  double common;
  double step;
  bool is_adjacent;  // pairs k = j + 1 alone

  __device__ double shift(int64_t k) const {
    // Far beyond any float32, and no infinity whose difference with another would be NaN.
    return fmin(fmax(-static_cast<double>(k) * step, -1e300), 1e300);
  }
};

// The loss of a row is the sum over its sides of log(1 + sum exp(...)) / scale.
__host__ __device__ inline int number_of_sides(const RankingForm& form) {
  return form.pairs == RankingPairs::band ? 2 : 1;
}

__device__ inline Side side_of(const RankingForm& form, int number) {
  return number == 0 ? Side{1.0, form.scale, form.margin, 0.0, form.pairs == RankingPairs::adjacent}
                     : Side{-1.0, form.scale, 0.0, form.margin, false};
}

// A row of similarities; of zeros where it is not finite.
struct RankedRow {
  __device__ RankedRow(const AnyRows& similarities, int64_t row)
      : rows(similarities), index(row), is_finite(any_row_is_finite(similarities, row)) {}

  __device__ double operator[](int64_t k) const {
    return is_finite ? element(rows, index, k) : 0.0;
  }

  const AnyRows& rows;
  int64_t index;
  bool is_finite;
};

// e^x for x at most 0; 1 for what rounding has left above 0.
__device__ inline double exponential(double x) { return exp(fmin(x, 0.0)); }

// A sum of exp(scale * (value - best)) over some columns, the greatest value being the best.
struct RunningSum {
  double best;
  double sum;

  // Adds a column whose value is above the best by `excess`.
  __device__ void add(double value, double excess, double scale) {
    const double power = exponential(-scale * fabs(excess));
    sum = excess > 0.0 ? sum * power + 1.0 : sum + power;
    best = excess > 0.0 ? value : best;
  }
};

// Of the pairs of a side: the greatest difference, -inf without a pair, and the sum of
// exp(scale * (difference - greatest)).
struct SideSum {
  double greatest;
  double sum;

  // log(1 + sum exp(scale * (difference + common))) / scale. No exponent is above 0.
  __device__ double logarithm(const Side& side) const {
    const double most = greatest + side.common;
    return most > 0.0 ? most + log1p(sum + expm1(-side.scale * most)) / side.scale
                      : log1p(sum * exp(side.scale * most)) / side.scale;
  }

  // Its derivative by the sum.
  __device__ double weight(const Side& side) const {
    const double most = greatest + side.common;
    if (most > 0.0) {
      return 1.0 / (sum + exp(-side.scale * most));
    }
    const double power = exp(side.scale * most);
    return power / (1.0 + sum * power);
  }
};

__device__ inline double greatest_difference(const Side& side, const RankedRow& row) {
  double greatest = -INFINITY;
  double least = row.rows.columns > 0 ? side.sign * row[0] : 0.0;
  for (int64_t k = 1; k < row.rows.columns; ++k) {
    const double value = side.sign * row[k];
    greatest = fmax(greatest, (value - least) + side.shift(k));
    least = side.is_adjacent ? value : fmin(value, least);
  }
  return greatest;
}

// Calls take(k, the part of the sum that has column k as k) for k in ascending order.
template <class Take>
__device__ inline SideSum sum_side(const Side& side, const RankedRow& row, const Take& take) {
  SideSum result{greatest_difference(side, row), 0.0};
  RunningSum before{0.0, 0.0};  // of the negative values
  for (int64_t k = 0; k < row.rows.columns; ++k) {
    const double value = side.sign * row[k];
    double term = 0.0;
    if (k > 0) {
      // In the order of greatest_difference: a rounding more would leave it.
      const double difference = (value + before.best) + side.shift(k);
      term = exponential(side.scale * (difference - result.greatest)) * before.sum;
    }
    take(k, term);
    result.sum += term;
    if (side.is_adjacent || k == 0) {
      before = {-value, 1.0};
    } else {
      before.add(-value, -value - before.best, side.scale);
    }
  }
  return result;
}

__global__ void __launch_bounds__(kRowThreads)
    ranking_loss_kernel(AnyRows similarities, RankingForm form, float* losses) {
  for (int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x; i < similarities.rows;
       i += int64_t{gridDim.x} * kRowThreads) {
    const RankedRow row(similarities, i);
    double loss = 0.0;
#pragma unroll 1
    for (int s = 0; s < number_of_sides(form); ++s) {
      const Side side = side_of(form, s);
      loss += sum_side(side, row, [](int64_t, double) {}).logarithm(side);
    }
    losses[i] = row.is_finite ? static_cast<float>(loss) : NAN;
  }
}

// Numbers of each column, of as many rows as threads there are.
struct ColumnSums {
  double* data;
  int64_t threads;

  __device__ double& operator[](int64_t k) const {
    return data[k * threads + int64_t{blockIdx.x} * kRowThreads + threadIdx.x];
  }
};

struct GradientTask {
  AnyRows similarities;
  RankingForm form;
  AnyRows upstream;
  AnyResult gradient;
  ColumnSums terms;
  ColumnSums first;  // the derivatives by the first side, where there are two
};

// Calls take(k, the derivative of the loss by column k as far as a side has it).
template <class Take>
__device__ inline void differentiate_side(const Side& side, const RankedRow& row,
                                          const ColumnSums& terms, const Take& take) {
  const SideSum total = sum_side(side, row, [&](int64_t k, double term) { terms[k] = term; });
  const double weight = side.sign * total.weight(side);
  RunningSum after{0.0, 0.0};  // of the values with their shifts
  double shift = 0.0;          // of the best
  const int64_t last = row.rows.columns - 1;
  for (int64_t k = last; k >= 0; --k) {
    const double value = side.sign * row[k];
    double as_first = 0.0;
    if (k < last) {
      const double difference = (after.best - value) + shift;
      as_first = exponential(side.scale * (difference - total.greatest)) * after.sum;
    }
    take(k, weight * (terms[k] - as_first));
    const double own_shift = side.shift(k);
    const double excess = (value - after.best) + (own_shift - shift);
    if (side.is_adjacent || k == last) {
      after = {value, 1.0};
      shift = own_shift;
    } else {
      shift = excess > 0.0 ? own_shift : shift;
      after.add(value, excess, side.scale);
    }
  }
}

__global__ void __launch_bounds__(kRowThreads) ranking_gradient_kernel(GradientTask task) {
  const int last = number_of_sides(task.form) - 1;
  for (int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x; i < task.similarities.rows;
       i += task.terms.threads) {
    const RankedRow row(task.similarities, i);
    const double factor = element(task.upstream, i, 0);
#pragma unroll 1
    for (int s = 0; s <= last; ++s) {
      differentiate_side(side_of(task.form, s), row, task.terms, [&](int64_t k, double value) {
        if (s < last) {
          task.first[k] = value;
          return;
        }
        const double sum = s > 0 ? task.first[k] + value : value;
        const double derivative = row.is_finite ? sum : NAN;
        // 0 * NaN: neither a similarity without a pair nor a row that nobody asks for counts.
        const bool is_unused = derivative == 0.0 || factor == 0.0;
        store_element(task.gradient, i, k, is_unused ? 0.0 : derivative * factor);
      });
    }
  }
}

unsigned gradient_blocks(const AnyRows& similarities) {
  const int64_t rows =
      similarities.rows < kMostRowsAtOnce ? similarities.rows : int64_t{kMostRowsAtOnce};
  return grid_for((rows + kRowThreads - 1) / kRowThreads);
}

// The sums of the gradient.
struct GradientMemory {
  ColumnSums terms;
  ColumnSums first;

  static GradientMemory take(Workspace& workspace, const AnyRows& similarities,
                             const RankingForm& form) {
    const int64_t threads = int64_t{gradient_blocks(similarities)} * kRowThreads;
    const int64_t count = similarities.columns * threads;
    const bool has_first = form.pairs == RankingPairs::band;
    GradientMemory memory{};
    memory.terms = {workspace.take<double>(count), threads};
    memory.first = {workspace.take<double>(has_first ? count : 0), threads};
    return memory;
  }
};

}  // namespace

void launch_ranking_loss(const AnyRows& similarities, const RankingForm& form, float* losses,
                         cudaStream_t stream) {
  if (similarities.rows > 0) {
    DMLFAST_LAUNCH(ranking_loss_kernel,
                   dim3{grid_for((similarities.rows + kRowThreads - 1) / kRowThreads)}, kRowThreads,
                   stream, similarities, form, losses);
  }
}

int64_t ranking_gradient_bytes(const AnyRows& similarities, const RankingForm& form) {
  Workspace workspace;
  GradientMemory::take(workspace, similarities, form);
  return workspace.bytes();
}

void launch_ranking_gradient(const AnyRows& similarities, const RankingForm& form,
                             const AnyRows& upstream, const AnyResult& gradient, void* workspace,
                             cudaStream_t stream) {
  Workspace memory_of(workspace);
  const GradientMemory memory = GradientMemory::take(memory_of, similarities, form);
  if (similarities.rows > 0 && similarities.columns > 0) {
    DMLFAST_LAUNCH(
        ranking_gradient_kernel, dim3{gradient_blocks(similarities)}, kRowThreads, stream,
        GradientTask{similarities, form, upstream, gradient, memory.terms, memory.first});
  }
}

}  // namespace dmlfast::cuda
