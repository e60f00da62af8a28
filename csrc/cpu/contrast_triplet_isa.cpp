#include "contrast_triplet_isa.h"

#include "engine/block_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// What triplets have in common: negatives alone are looked at.
class NegativePolicy {
 public:
  static constexpr bool kNeedsDistances = true;

  explicit NegativePolicy(const TripletTask& task) : task_(task) {}

  bool wants(Span, Span) const { return true; }

 protected:
  // Leaves out the class, and makes the distances that decide exact.
  void prepare(Strip& strip, int64_t r) const {
    leave_out_class(strip, r);
    float* values = strip.values[r];
    const int64_t anchor = strip.first_row + r;
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      const Part value = load(values + c);
      MaskPart close = {};
      for (int64_t p = 0; p < task_.positives; ++p) {
        close |= is_close(value, all_lanes(*bounds_of(p, anchor)));
        if (task_.walk.is_symmetric) {
          close |= is_close(value, load(bounds_of(p, strip.first_column + c)));
        }
      }
      if (__builtin_expect(any(close), 0)) {
        for (uint32_t lanes = bits(close); lanes != 0; lanes &= lanes - 1) {
          const int64_t column = c + __builtin_ctz(lanes);
          values[column] = task_.exact_distance(task_.rows, anchor, strip.first_column + column);
        }
      }
    }
  }

  const float* bounds_of(int64_t positive, int64_t anchor) const {
    return task_.bounds + positive * task_.anchors + anchor;
  }

  const TripletTask& task_;

 private:
  MaskPart is_close(Part value, Part bound) const {
    const Part away = value - bound;
    const Part distance = away < 0.0f ? -away : away;
    return (task_.walk.distance.has_root ? distance * (value + bound) : distance) <= task_.error;
  }

  void leave_out_class(Strip& strip, int64_t r) const {
    const int64_t anchor = strip.first_row + r;
    const int64_t begin = task_.class_begin[anchor] - strip.first_column;
    const int64_t end = task_.class_end[anchor] - strip.first_column;
    for (int64_t c = begin < 0 ? 0 : begin; c < end && c < strip.columns; ++c) {
      strip.values[r][c] = __builtin_nanf("");
    }
  }
};

// Adds up losses and numbers of triplets.
class LossPolicy : public NegativePolicy {
 public:
  using NegativePolicy::NegativePolicy;

  void start(const Strip& strip) {
    for (int64_t c = 0; c < strip.columns; ++c) {
      losses_[c] = 0.0f;
      active_[c] = 0;
    }
  }

  void serve_row(Strip& strip, int64_t r) {
    prepare(strip, r);
    strip.columns_are_anchors ? add<true>(strip, r) : add<false>(strip, r);
  }

  void end(const Strip& strip) const {
    for (int64_t c = 0; c < strip.columns && strip.columns_are_anchors; ++c) {
      task_.losses[strip.first_column + c] += static_cast<double>(losses_[c]);
      task_.active[strip.first_column + c] += active_[c];
    }
  }

 private:
  template <bool kBoth>
  void add(const Strip& strip, int64_t r) {
    const int64_t anchor = strip.first_row + r;
    Part loss = {};
    MaskPart active = {};
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      const Part value = load(strip.values[r] + c);
      Part column_loss = load(losses_ + c);
      MaskPart column_active = *reinterpret_cast<const LooseInt*>(active_ + c);
      for (int64_t p = 0; p < task_.positives; ++p) {
        const Part bound = all_lanes(*bounds_of(p, anchor));
        const MaskPart mask = value < bound;
        loss += where(mask, bound - value);
        active -= mask;
        if (kBoth) {
          const Part column_bound = load(bounds_of(p, strip.first_column + c));
          const MaskPart column_mask = value < column_bound;
          column_loss += where(column_mask, column_bound - value);
          column_active -= column_mask;
        }
      }
      if (kBoth) {
        store(losses_ + c, column_loss);
        *reinterpret_cast<LooseInt*>(active_ + c) = column_active;
      }
    }
    task_.losses[anchor] += sum_of(loss);
    task_.active[anchor] += sum_of(active);
  }

  float losses_[kBlockColumns];
  int32_t active_[kBlockColumns];
};

// Replaces distances by weights, and counts each positive's triplets.
class WeightPolicy : public NegativePolicy {
 public:
  using NegativePolicy::NegativePolicy;

  void start(const Strip&) const {}

  void serve_row(Strip& strip, int64_t r) const {
    prepare(strip, r);
    const int64_t anchor = strip.first_row + r;
    for (int64_t p = 0; p < task_.positives; ++p) {
      count(strip, r, p);
    }
    const Part weight = all_lanes(task_.weights[anchor]);
    float* values = strip.values[r];
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      const Part value = load(values + c);
      Part slope = {};
      for (int64_t p = 0; p < task_.positives; ++p) {
        slope -= where(value < *bounds_of(p, anchor), weight);
        if (task_.walk.is_symmetric) {
          // Within a span every pair comes up twice, each time for the gradient of its row.
          slope -= where(value < load(bounds_of(p, strip.first_column + c)),
                         load(task_.weights + strip.first_column + c));
        }
      }
      store(values + c, weight_of(task_.walk.distance, slope, value));
    }
  }

  void end(const Strip&) const {}

 private:
  void count(const Strip& strip, int64_t r, int64_t p) const {
    const int64_t anchor = strip.first_row + r;
    const Part bound = all_lanes(*bounds_of(p, anchor));
    MaskPart hits = {};
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      hits -= load(strip.values[r] + c) < bound;
    }
    task_.hits[p * task_.anchors + anchor] += sum_of(hits);
    for (int64_t c = 0; c < strip.columns && strip.columns_are_anchors; c += kLanes) {
      const MaskPart mask = load(strip.values[r] + c) < load(bounds_of(p, strip.first_column + c));
      for (uint32_t lanes = bits(mask); lanes != 0; lanes &= lanes - 1) {
        ++task_.hits[p * task_.anchors + strip.first_column + c + __builtin_ctz(lanes)];
      }
    }
  }
};

}  // namespace

void triplets(const TripletTask& task, Span x, Span y) {
  if (task.walk.x_gradient == nullptr) {
    LossPolicy policy(task);
    BlockWalk<LossPolicy>(task.walk, policy).walk(x, y);
  } else {
    WeightPolicy policy(task);
    BlockWalk<WeightPolicy>(task.walk, policy).walk(x, y);
  }
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
