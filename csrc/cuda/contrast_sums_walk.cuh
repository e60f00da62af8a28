// The sums: one walk over all pairs, both sides of a tile at once, and a kernel that joins what the
// parts of the columns have added up.
#pragma once

#include "contrast_sums_parts.cuh"

namespace dmlfast::cuda {

// Adds to a part what the columns of a tile make of its row.
__device__ inline void add_terms(SumPart& part, float sum, int count) {
  part.sum += sum;
  part.count += count;
}

// The same of powers of 2 divided by 2^greatest.
__device__ inline void add_powers(SumPart& part, float sum, float greatest, int count) {
  if (count == 0) {
    return;
  }
  const float shift = fmaxf(part.greatest, greatest);
  // Infinite exponents have no difference.
  const float change = part.greatest == shift ? 1.0f : exponential2(part.greatest - shift);
  const float scale = greatest == shift ? 1.0f : exponential2(greatest - shift);
  part.sum = part.sum * change + static_cast<double>(sum) * scale;
  part.greatest = shift;
  part.count += count;
}

class SumPolicy {
 public:
  static constexpr bool kMultiplies = true;
  static constexpr int kColumnValues = 1;

  explicit SumPolicy(const SumPolicyArguments& arguments) : a_(arguments) {}

  __device__ const float* column_values(int) const { return a_.distances.y.norm; }

  __device__ TileRange tiles(const BlockRows& rows) const {
    if (a_.is_wanted != nullptr && *a_.is_wanted == 0) {
      return {0, 0};
    }
    if (a_.side[kNegative].form != SumForm::none) {
      return {0, INT_MAX};
    }
    return spans_of(rows).tiles();
  }

  // Sums are in shared memory, to be in no register meanwhile; each belongs to one thread.
  struct State {
    const BlockRows* rows;
  };

  __device__ void start(State& s, const BlockRows& rows) const {
    s.rows = &rows;
    for_each_own([](SumPart& part, int, int) { part = {0.0, -INFINITY, 0}; });
  }

  __device__ void take(State& s, const Tile& tile, Fragment& fragment) const {
    // Made anew for each tile, as ranges and bounds are read anew, for the same reason.
    Distances(a_.distances, *s.rows).convert(a_.distances, tile, fragment);
    const ClassSpans spans = spans_of(*s.rows);
    if (spans.has_own(tile)) {
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        const OwnColumns own_columns(a_.ranges, *s.rows, tile, slot);
        const float bound = side_bound(kPositive, *s.rows, slot);
#pragma unroll
        for (int first = 0; first < Fragment::kColumns; first += kOwnColumns) {
          float own[kOwnColumns];
#pragma unroll
          for (int j = 0; j < kOwnColumns; ++j) {
            float& distance = fragment.value[slot][first + j];
            const bool is_own = own_columns.holds(first + j);
            own[j] = is_own ? distance : NAN;
            distance = is_own ? NAN : distance;
          }
          add_side<kPositive>(slot, bound, own);
        }
      }
    }
    if (spans.has_other(tile)) {
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
        add_side<kNegative>(slot, side_bound(kNegative, *s.rows, slot), fragment.value[slot]);
      }
    }
  }

  __device__ void finish(const State&, const BlockRows&, int item) const {
    for_each_own([&](const SumPart& part, int row, int side) {
      a_.parts[(int64_t{item} * kTileRows + row) * kSides + side] = part;
    });
  }

 private:
  // Columns of a row that are copied at once, where some are of its own class.
  static constexpr int kOwnColumns = 16;

  __device__ float side_bound(int side, const BlockRows& rows, int slot) const {
    const int anchor = rows.anchors[tile_row(slot)];
    return anchor < 0 ? NAN : a_.side[side].bound[anchor];
  }

  __device__ ClassSpans spans_of(const BlockRows& rows) const {
    return {a_.ranges, rows, a_.distances.x.rows};
  }

  __device__ static SumPart& part_of(int row, int side) {
    __shared__ SumPart parts[kTileRows][kSides];
    return parts[row][side];
  }

  // The parts that belong to the calling thread: of a quad's lanes, which have parts of the same
  // rows, to the first.
  template <class F>
  __device__ static void for_each_own(const F& f) {
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int slot = 0; slot < Fragment::kRows; ++slot) {
#pragma unroll
        for (int side = 0; side < kSides; ++side) {
          f(part_of(tile_row(slot), side), tile_row(slot), side);
        }
      }
    }
  }

  // Distances are NaN where there is no partner.
  template <int kSide, int kColumns>
  __device__ void add_side(int slot, float bound, float (&distances)[kColumns]) const {
    switch (a_.side[kSide].form) {
      case SumForm::none:
        return;
      case SumForm::logsumexp:
        return add_exponents<kSide>(slot, bound, distances);
      case SumForm::hinge:
        return add_each<kSide>(slot, distances, [&](float distance, float& sum) {
          const float term = bound - kSign<kSide> * distance;
          sum += term > 0.0f ? term : 0.0f;
          return term > 0.0f;
        });
      case SumForm::sum:
        return add_each<kSide>(slot, distances, [](float distance, float& sum) {
          sum += distance == distance ? distance : 0.0f;
          return distance == distance;
        });
      case SumForm::softplus:
        return add_each<kSide>(slot, distances, [&](float distance, float& sum) {
          const float exponent = multiply_add(a_.side[kSide].scale, distance, bound);
          const float rest = log1pf(exponential2(-fabsf(exponent)));
          const float term = multiply_add(kLogOfTwo, fmaxf(exponent, 0.0f), rest);
          sum += distance == distance ? term : 0.0f;
          return distance == distance;
        });
    }
  }

  // Powers of 2 relative to the greatest one of the row's columns here.
  template <int kSide, int kColumns>
  __device__ void add_exponents(int slot, float limit, float (&values)[kColumns]) const {
    const float scale = a_.side[kSide].scale;
    float greatest = -INFINITY;
    int count = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const bool counts = kSign<kSide> * values[j] <= limit;
      count += counts ? 1 : 0;
      values[j] = counts ? scale * values[j] : -INFINITY;
      greatest = fmaxf(greatest, values[j]);
    }
    greatest = join_quad(greatest, [](float a, float b) { return fmaxf(a, b); });
    const float shift = greatest == -INFINITY ? 0.0f : greatest;
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      sums[j % 2] += exponential2(values[j] - shift);
    }
    const float sum = join_quad(sums[0] + sums[1], add<float>);
    count = join_quad(count, add<int>);
    if (threadIdx.x % 4 == 0) {
      add_powers(part_of(tile_row(slot), kSide), sum, greatest, count);
    }
  }

  // `take` adds what a distance is worth, and returns whether it counts.
  template <int kSide, int kColumns, class Take>
  __device__ static void add_each(int slot, const float (&distances)[kColumns], const Take& take) {
    float sums[2] = {0.0f, 0.0f};
    int count = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      count += take(distances[j], sums[j % 2]) ? 1 : 0;
    }
    const float sum = join_quad(sums[0] + sums[1], add<float>);
    count = join_quad(count, add<int>);
    if (threadIdx.x % 4 == 0) {
      add_terms(part_of(tile_row(slot), kSide), sum, count);
    }
  }

  template <class T>
  __device__ static T add(T a, T b) {
    return a + b;
  }

  SumPolicyArguments a_;
};

struct JoinArguments {
  SumForm form[kSides];
  const float* bound[kSides];  // as given
  PackedRows x;
  const int64_t* order;
  Split split;
  const SumPart* parts;
  SumResults results;
};

__device__ inline float sum_result(SumForm form, const SumPart& part) {
  if (form != SumForm::logsumexp) {
    return static_cast<float>(part.sum);
  }
  if (part.count == 0 || part.greatest - part.greatest != 0.0f) {
    return part.count == 0 ? -INFINITY : part.greatest;
  }
  return static_cast<float>(log(part.sum) + part.greatest * 0.6931471805599453);
}

// A thread an anchor.
static __global__ void join_sums_kernel(JoinArguments a) {
  for (int position = blockIdx.x * blockDim.x + threadIdx.x; position < a.x.rows;
       position += gridDim.x * blockDim.x) {
    const int64_t anchor = a.order[position];
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      const SumForm form = a.form[side];
      float result = 0.0f;
      int64_t count = 0;
      if (is_lost(form, a.bound[side], a.x.norm[position], anchor)) {
        result = NAN;
        count = 1;
      } else if (form != SumForm::none) {
        const SumPart part = join_parts(a.parts, a.split, position, side);
        result = sum_result(form, part);
        count = part.count;
      }
      a.results.sum[side][anchor] = result;
      a.results.count[side][anchor] = count;
    }
  }
}

}  // namespace dmlfast::cuda
