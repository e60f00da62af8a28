#include "clusters_soft_isa.h"

#include "engine/block_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

class SoftPolicy {
 public:
  static constexpr bool kNeedsDistances = true;

  explicit SoftPolicy(const SoftTask& task) : task_(task) {}

  bool wants(Span rows, Span columns) const {
    return task_.class_begin[rows.begin] < columns.end &&
           columns.begin < task_.class_end[rows.end - 1];
  }

  void start(const Strip&) const {}

  void serve_row(const Strip& strip, int64_t r) const {
    const int64_t anchor = strip.first_row + r;
    float* values = strip.values[r];
    int64_t begin = task_.class_begin[anchor] - strip.first_column;
    int64_t end = task_.class_end[anchor] - strip.first_column;
    begin = begin < 0 ? 0 : begin;
    end = end > strip.columns ? strip.columns : end;
    end = end < begin ? begin : end;
    Span own{begin / kLanes * kLanes, (end + kLanes - 1) / kLanes * kLanes};
    if (begin == end) {
      own.end = own.begin;
    }
    // Other classes in the vectors that hold the class.
    for (int64_t c = own.begin; c < begin && begin < end; ++c) {
      values[c] = __builtin_nanf("");
    }
    for (int64_t c = end; c < own.end; ++c) {
      values[c] = __builtin_nanf("");
    }
    if (task_.walk.x_gradient == nullptr) {
      sum_row(values, own, anchor);
    } else {
      weigh_row(values, own, anchor, strip.columns);
    }
  }

  void end(const Strip&) const {}

 private:
  void sum_row(const float* values, Span own, int64_t anchor) const {
    Part leasts = all_lanes(__builtin_inff());
    for (int64_t c = own.begin; c < own.end; c += kLanes) {
      const Part distance = load(values + c);
      leasts = distance < leasts ? distance : leasts;
    }
    float least = -greatest_of(-leasts);
    if (!(least < __builtin_inff())) {
      return;
    }
    double& mass_sum = task_.masses[anchor];
    double& moment_sum = task_.moments[anchor];
    const float before = task_.least[anchor];
    if (least < before) {
      // Sums so far, from the least distance so far: none, where that is infinite.
      const float fall = mass_sum > 0.0 ? before - least : 0.0f;
      const float power = exponential(all_lanes(-task_.sharpness * fall))[0];
      lower_least(fall, power, &mass_sum, &moment_sum);
      task_.least[anchor] = least;
    } else {
      least = before;
    }
    Part mass = {};
    Part moment = {};
    for (int64_t c = own.begin; c < own.end; c += kLanes) {
      const Part excess = load(values + c) - least;
      const Part power = exponential(-task_.sharpness * excess);
      const MaskPart exists = power > 0.0f;
      mass += where(exists, power);
      moment += where(exists, power * excess);
    }
    mass_sum += sum_of(mass);
    moment_sum += sum_of(moment);
  }

  // Replaces distances by weights in the gradient.
  void weigh_row(float* values, Span own, int64_t anchor, int64_t columns) const {
    const float least = task_.leasts[anchor];
    const float log_mass = task_.log_masses[anchor];
    const float mean = task_.means[anchor];
    const float low_mean = task_.low_means[anchor];
    const float minimum_weight = task_.minimum_weights[anchor];
    const float mean_weight = task_.mean_weights[anchor];
    for (int64_t c = 0; c < own.begin; c += kLanes) {
      store(values + c, Part{});
    }
    for (int64_t c = own.begin; c < own.end; c += kLanes) {
      const Part distance = load(values + c);
      const Part power = exponential(task_.sharpness * (least - distance) - log_mass);
      const Part slope = 1.0f - task_.sharpness * (distance - mean - low_mean);
      const Part derivative = where(power > 0.0f, power * (minimum_weight + mean_weight * slope));
      store(values + c, weight_of(task_.walk.distance, derivative, distance));
    }
    for (int64_t c = own.end; c < columns; c += kLanes) {
      store(values + c, Part{});
    }
  }

  const SoftTask& task_;
};

}  // namespace

void clusters_soft(const SoftTask& task, Span x, Span y) {
  SoftPolicy policy(task);
  BlockWalk<SoftPolicy>(task.walk, policy).walk(x, y);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
