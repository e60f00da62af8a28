#include "structure_clusters_isa.h"

#include "engine/block_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Beyond, an exponential is 0.
constexpr float kGreatestExponent = 88.0f;

inline Part magnitude(Part values) {
  return reinterpret_cast<Part>(reinterpret_cast<MaskPart>(values) & 0x7fffffff);
}

// 1, -1, or 0 for 0.
inline Part sign_of(Part values) {
  return where(values > 0.0f, all_lanes(1.0f)) - where(values < 0.0f, all_lanes(1.0f));
}

inline Part smaller(Part a, Part b) { return a < b ? a : b; }

// How distances are shared among clusters. With gap_k = |D - target_k|, the least of them, excess_k
// = gap_k - least and power_k = exp(-sharpness excess_k), the shares are power_k / total. What is
// summed is relative to the least: then nothing cancels that is large, and the total is at least 1.
struct Shares {
  Part least;
  Part inverse;  // of the total
  Part excess;   // sum of share * excess
  Part sign;     // sum of share * sign(D - target)
  Part slant;    // sum of share * sign * sharpness * excess
};

inline Part power_of(const ClusterTask& task, Part gap, Part least, Part& exponent) {
  exponent = smaller(task.sharpness * (gap - least), all_lanes(kGreatestExponent));
  return exponential(-exponent);
}

template <bool kWantsGradient>
inline Shares shares_of(const ClusterTask& task, Part distance) {
  Shares shares{magnitude(distance - task.targets[0]), {}, {}, {}, {}};
  for (int64_t k = 1; k < task.clusters; ++k) {
    shares.least = smaller(shares.least, magnitude(distance - task.targets[k]));
  }
  Part total = {};
  for (int64_t k = 0; k < task.clusters; ++k) {
    const Part away = distance - task.targets[k];
    const Part gap = magnitude(away);
    Part exponent;
    const Part power = power_of(task, gap, shares.least, exponent);
    total += power;
    shares.excess += power * (gap - shares.least);
    if (kWantsGradient) {
      const Part signed_power = power * sign_of(away);
      shares.sign += signed_power;
      shares.slant += signed_power * exponent;
    }
  }
  shares.inverse = 1.0f / total;
  shares.excess *= shares.inverse;
  if (kWantsGradient) {
    shares.sign *= shares.inverse;
    shares.slant *= shares.inverse;
  }
  return shares;
}

// The power of a cluster whose target is that far away: its share but for the total.
inline Part power_at(const ClusterTask& task, Part away, Part least) {
  Part exponent;
  return power_of(task, magnitude(away), least, exponent);
}

class ClusterPolicy {
 public:
  static constexpr bool kNeedsDistances = true;

  explicit ClusterPolicy(const ClusterTask& task) : task_(task) {}

  bool wants(Span, Span) const { return true; }

  void start(const Strip&) const {}

  void serve_row(const Strip& strip, int64_t r) {
    const int64_t anchor = strip.first_row + r;
    if (task_.walk.x_gradient != nullptr) {
      weigh_row(strip, r, anchor);
      return;
    }
    Part sum = {};
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      const Part distance = load(strip.values[r] + c);
      const Shares shares = shares_of<false>(task_, distance);
      sum += where(distance == distance, shares.least + shares.excess);
      store(least_ + c, shares.least);
      store(inverse_ + c, shares.inverse);
    }
    task_.losses[anchor] += sum_of(sum);
    for (int64_t k = 0; k < task_.clusters && task_.masses != nullptr; ++k) {
      sum_cluster(strip, r, anchor, k);
    }
  }

  void end(const Strip&) const {}

 private:
  void sum_cluster(const Strip& strip, int64_t r, int64_t anchor, int64_t k) const {
    Part mass = {};
    Part moment = {};
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      const Part distance = load(strip.values[r] + c);
      const Part share =
          power_at(task_, distance - task_.targets[k], load(least_ + c)) * load(inverse_ + c);
      mass += where(distance == distance, share);
      moment += where(distance == distance, share * distance);
    }
    task_.masses[anchor * task_.clusters + k] += sum_of(mass);
    task_.moments[anchor * task_.clusters + k] += sum_of(moment);
  }

  // Replaces distances by weights in the gradient.
  void weigh_row(const Strip& strip, int64_t r, int64_t anchor) const {
    const float weight = task_.loss_weights[anchor];
    for (int64_t c = 0; c < strip.columns; c += kLanes) {
      const Part distance = load(strip.values[r] + c);
      const Shares shares = shares_of<true>(task_, distance);
      // sum c_k s_k (1 - a (gap_k - mean gap)), without what all gaps share.
      const Part slope =
          shares.sign - (shares.slant - task_.sharpness * shares.excess * shares.sign);
      Part derivative = weight * slope;
      if (task_.mass_weights != nullptr) {
        derivative += cluster_derivative(shares, distance, anchor);
      }
      store(strip.values[r] + c, weight_of(task_.walk.distance, derivative, distance));
    }
  }

  // That of the weighted masses and moments.
  Part cluster_derivative(const Shares& shares, Part distance, int64_t anchor) const {
    const float* mass_weights = task_.mass_weights + anchor * task_.clusters;
    const float* moment_weights = task_.moment_weights + anchor * task_.clusters;
    Part derivative = {};
    for (int64_t k = 0; k < task_.clusters; ++k) {
      const Part away = distance - task_.targets[k];
      const Part share = power_at(task_, away, shares.least) * shares.inverse;
      const Part change = -task_.sharpness * share * (sign_of(away) - shares.sign);
      derivative += mass_weights[k] * change + moment_weights[k] * (share + distance * change);
    }
    return derivative;
  }

  const ClusterTask& task_;
  // Of the shares of a row.
  float least_[kBlockColumns];
  float inverse_[kBlockColumns];
};

}  // namespace

void structure_clusters(const ClusterTask& task, Span x, Span y) {
  ClusterPolicy policy(task);
  BlockWalk<ClusterPolicy>(task.walk, policy).walk(x, y);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
