#include "pairwise_isa.h"

#include "engine/block_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Stores the distances of a strip, and those of its columns where they are anchors.
class StorePolicy {
 public:
  static constexpr bool kNeedsDistances = true;

  explicit StorePolicy(const DistanceTask& task) : task_(task) {}

  bool wants(Span, Span) const { return true; }

  void start(const Strip&) const {}

  void serve_row(const Strip& strip, int64_t r) const {
    const int64_t row = strip.first_row + r;
    if (row >= task_.walk.x.rows) {
      return;
    }
    float* values = strip.values[r];
    float near[kBlockColumns];
    for (int32_t n = 0; n < strip.near_counts[r]; ++n) {
      near[n] = values[strip.near[r][n]];
    }
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      store(values + c, load(values + c) * task_.unit_high * task_.unit_low);
    }
    for (int32_t n = 0; n < strip.near_counts[r]; ++n) {
      values[strip.near[r][n]] = near[n];
    }
    float* to = task_.distances + row * task_.columns + strip.first_column;
    const int64_t columns = columns_of(strip);
    for (int64_t c = 0; c < columns; ++c) {
      to[c] = values[c];
    }
  }

  void end(const Strip& strip) const {
    if (!strip.columns_are_anchors) {
      return;
    }
    const int64_t left = task_.walk.x.rows - strip.first_row;
    const int64_t rows = left < kStripRows ? left : kStripRows;
    const int64_t columns = columns_of(strip);
    for (int64_t c = 0; c < columns; ++c) {
      float* to = task_.distances + (strip.first_column + c) * task_.columns + strip.first_row;
      for (int64_t r = 0; r < rows; ++r) {
        to[r] = strip.values[r][c];
      }
    }
  }

 private:
  int64_t columns_of(const Strip& strip) const {
    const int64_t left = task_.columns - strip.first_column;
    return left < strip.columns ? left : strip.columns;
  }

  const DistanceTask& task_;
};

// Turns upstream gradients and distances into weights.
class WeighPolicy {
 public:
  static constexpr bool kNeedsDistances = false;

  explicit WeighPolicy(const DistanceTask& task) : task_(task) {}

  bool wants(Span, Span) const { return true; }

  // A panel of upstream columns at a time: those of the other direction lie across its rows.
  void start(Strip& strip) const {
    const int64_t rows = rows_of(strip);
    const int64_t columns = columns_of(strip);
    for (int64_t r = 0; r < kStripRows; ++r) {
      float* to = strip.values[r];
      const float* from = task_.upstream + (strip.first_row + r) * task_.row_step +
                          strip.first_column * task_.column_step;
      const int64_t whole = r < rows ? columns : 0;
      for (int64_t c = 0; c < whole; ++c) {
        to[c] = from[c * task_.column_step];
      }
      for (int64_t c = whole; c < strip.columns; ++c) {
        to[c] = 0.0f;
      }
    }
    if (task_.walk.is_symmetric) {
      for (int64_t c = 0; c < columns; ++c) {
        const float* from = task_.upstream + (strip.first_column + c) * task_.row_step +
                            strip.first_row * task_.column_step;
        for (int64_t r = 0; r < rows; ++r) {
          strip.values[r][c] += from[r * task_.column_step];
        }
      }
    }
  }

  void serve_row(Strip& strip, int64_t r) const {
    strip.near_counts[r] = 0;
    const int64_t row = strip.first_row + r;
    if (row >= task_.walk.x.rows) {
      return;
    }
    const PairDistance& distance = task_.walk.distance;
    const int64_t columns = columns_of(strip);
    float* values = strip.values[r];
    const float* given = task_.distances + row * task_.columns + strip.first_column;
    alignas(kVectorBytes) float rest[kLanes] = {};
    for (int64_t c = 0; c < columns; c += kLanes) {
      const float* from = given + c;
      if (columns - c < kLanes) {
        for (int64_t lane = 0; lane < columns - c; ++lane) {
          rest[lane] = from[lane];
        }
        from = rest;
      }
      const Part value = load(from) * task_.packed_high * task_.packed_low;
      // A distance of NaN makes the gradients of its rows NaN, unless nothing comes from it.
      const Part derivative = load(values + c);
      const Part weight = weight_of(distance, derivative, value);
      store(values + c, where((value != value) & (derivative != 0.0f), value, weight));
      if (distance.sums_differences) {
        find_near(strip, r, c, value);
      }
    }
  }

  void end(const Strip&) const {}

 private:
  void find_near(Strip& strip, int64_t r, int64_t c, Part value) const {
    const PairDistance& distance = task_.walk.distance;
    const Part squares = distance.has_root ? value * value : value;
    const Part sum = task_.walk.x.addends[strip.first_row + r] +
                     load(task_.walk.y.addends + strip.first_column + c);
    const MaskPart near = (squares < kNearShare * sum) | (sum < distance.least_sum);
    if (__builtin_expect(any(near), 0)) {
      note_near(strip, r, c, near);
    }
  }

  int64_t rows_of(const Strip& strip) const {
    const int64_t left = task_.walk.x.rows - strip.first_row;
    return left < kStripRows ? left : kStripRows;
  }

  int64_t columns_of(const Strip& strip) const {
    const int64_t left = task_.columns - strip.first_column;
    return left < strip.columns ? left : strip.columns;
  }

  const DistanceTask& task_;
};

// Sums of distances less the centre, and of their squares.
class MomentPolicy {
 public:
  static constexpr bool kNeedsDistances = true;

  explicit MomentPolicy(const MomentTask& task) : task_(task) {}

  bool wants(Span, Span) const { return true; }

  void start(const Strip& strip) {
    for (int64_t c = 0; c < strip.columns; ++c) {
      first_[c] = 0.0f;
      second_[c] = 0.0f;
    }
  }

  void serve_row(const Strip& strip, int64_t r) {
    if (task_.walk.x_gradient != nullptr) {
      weigh_row(strip, r);
      return;
    }
    const int64_t anchor = strip.first_row + r;
    Part first = {};
    Part second = {};
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      const Part value = load(strip.values[r] + c);
      const Part away = where(value == value, value - task_.centre);
      first += away;
      second += away * away;
      store(first_ + c, load(first_ + c) + away);
      store(second_ + c, load(second_ + c) + away * away);
    }
    task_.first[anchor] += sum_of(first);
    task_.second[anchor] += sum_of(second);
  }

  void end(const Strip& strip) const {
    for (int64_t c = 0; c < strip.columns && strip.columns_are_anchors; ++c) {
      task_.first[strip.first_column + c] += static_cast<double>(first_[c]);
      task_.second[strip.first_column + c] += static_cast<double>(second_[c]);
    }
  }

 private:
  void weigh_row(const Strip& strip, int64_t r) const {
    const int64_t anchor = strip.first_row + r;
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      const Part value = load(strip.values[r] + c);
      Part first = all_lanes(task_.first_weights[anchor]);
      Part second = all_lanes(task_.second_weights[anchor]);
      if (task_.walk.is_symmetric) {
        // Within a span every pair comes up twice, each time for the gradient of its row.
        first += load(task_.first_weights + strip.first_column + c);
        second += load(task_.second_weights + strip.first_column + c);
      }
      const Part derivative = where(value == value, first + 2.0f * second * (value - task_.centre));
      store(strip.values[r] + c, weight_of(task_.walk.distance, derivative, value));
    }
  }

  const MomentTask& task_;
  float first_[kBlockColumns];
  float second_[kBlockColumns];
};

}  // namespace

void pairwise_distances(const DistanceTask& task, Span x, Span y) {
  if (task.walk.x_gradient == nullptr) {
    StorePolicy policy(task);
    BlockWalk<StorePolicy>(task.walk, policy).walk(x, y);
  } else {
    WeighPolicy policy(task);
    BlockWalk<WeighPolicy>(task.walk, policy).walk(x, y);
  }
}

void pairwise_moments(const MomentTask& task, Span x, Span y) {
  MomentPolicy policy(task);
  BlockWalk<MomentPolicy>(task.walk, policy).walk(x, y);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
