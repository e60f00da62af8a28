#include "neighbors_sample_isa.h"

#include "engine/class_panels.h"
#include "engine/tile_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

constexpr double kLeastRest = 1e-8;

template <class T>
inline T power_of(T base, int64_t exponent) {
  T result = T{} + 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) {
      result *= base;
    }
    base *= base;
  }
  return result;
}

inline Vector square_root(Vector values) {
  double roots[kPanelRows];
  for (int64_t lane = 0; lane < kPanelRows; ++lane) {
    roots[lane] = __builtin_sqrt(values[lane]);
  }
  return load(roots);
}

// In the same order at every level.
inline double sum_of(Vector v) {
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

// The factors of the weights of a panel's pairs.
struct Factors {
  Mask positive;  // where a weight is not 0
  Vector squares;
  Vector products;  // q * (1 - q / 4)
};

// Adds up the weights of each anchor's negatives, block by block. A block's sum is relative to the
// least product it has met: no weight overflows, and the greatest does not vanish.
class SamplePolicy {
 public:
  explicit SamplePolicy(const SampleTask& task) : task_(task) {}

  bool is_class_bound() const { return false; }

  PanelRange panels(int64_t, int64_t) const { return {0, task_.references.panel_count}; }

  bool skips(int64_t first, int64_t last, int64_t panel) const {
    return is_one_class(task_.anchors, first, last, task_.references, panel);
  }

  void take(int64_t position, int64_t panel, Vector values) const {
    const Factors factors = factors_of(position, panel, values);
    if (!any(factors.positive)) {
      return;
    }
    const int64_t slot = position * task_.blocks + panel / task_.block_panels;
    double& scale = task_.scales[slot];
    double& sum = task_.sums[slot];
    if (any(factors.positive & (factors.products < scale))) {
      double least = scale;
      for (int64_t lane = 0; lane < kPanelRows; ++lane) {
        if (factors.positive[lane] && factors.products[lane] < least) {
          least = factors.products[lane];
        }
      }
      sum *= ratio(least, scale);
      scale = least;
    }
    sum += sum_of(weights(factors, scale));
  }

  // Draws the reference of an anchor all of whose sums are there.
  void draw(int64_t position) const {
    const double* sums = task_.sums + position * task_.blocks;
    const double* scales = task_.scales + position * task_.blocks;
    double scale = __builtin_inf();
    for (int64_t block = 0; block < task_.blocks; ++block) {
      scale = scales[block] < scale ? scales[block] : scale;
    }
    double total = 0.0;
    for (int64_t block = 0; block < task_.blocks; ++block) {
      total += sums[block] == 0.0 ? 0.0 : sums[block] * ratio(scale, scales[block]);
    }
    task_.chosen[position] = -1;
    if (!(total > 0.0)) {
      return;
    }
    double target = task_.uniform[position] * total;
    int64_t last = -1;
    for (int64_t block = 0; block < task_.blocks; ++block) {
      const double factor = sums[block] == 0.0 ? 0.0 : ratio(scale, scales[block]);
      const double sum = factor * sums[block];
      if (sum > target) {
        task_.chosen[position] = draw_in(position, block, target / factor);
        return;
      }
      last = sum > 0.0 ? block : last;
      target -= sum;
    }
    // Rounding may leave a rest after the last block: its last reference is drawn.
    task_.chosen[position] = draw_in(position, last, __builtin_inf());
  }

 private:
  Factors factors_of(int64_t position, int64_t panel, Vector values) const {
    Vector squares = values;
    if (task_.metric == Metric::cosine) {
      squares = 2.0 * values;
    } else if (task_.metric == Metric::dot) {
      squares = 2.0 + 2.0 * values;
    }
    const PackedRows& references = task_.references;
    const Mask positive =
        (squares < task_.weight.end) & (squares > -__builtin_inf()) &
        (load(references.labels + panel * kPanelRows) != task_.anchors.labels[position]) &
        (load(references.index + panel * kPanelRows) != task_.self_index[position]);
    const Vector least = Vector{} + task_.weight.least;
    squares = positive & (squares >= task_.weight.least) ? squares : least;
    Vector rest = 1.0 - 0.25 * squares;
    rest = rest < kLeastRest ? Vector{} + kLeastRest : rest;
    return {positive, squares, squares * rest};
  }

  Vector weights(const Factors& factors, double scale) const {
    const int64_t power = task_.weight.power;
    const Vector powers =
        power > 0 ? power_of(scale / factors.products, power) : power_of(factors.products, -power);
    const Vector zero = {};
    return factors.positive ? square_root(powers / factors.squares) : zero;
  }

  // What the weights of one scale are multiplied by for another, lower one.
  double ratio(double lower, double scale) const {
    const int64_t power = task_.weight.power;
    if (power <= 0 || lower == scale) {
      return 1.0;
    }
    return scale == __builtin_inf() ? 0.0 : __builtin_sqrt(power_of(lower / scale, power));
  }

  // The first reference of a block at which the sum of the weights is greater than the target.
  int64_t draw_in(int64_t position, int64_t block, double target) const {
    const PackedRows& references = task_.references;
    const int64_t first = block * task_.block_panels;
    const int64_t end = first + task_.block_panels < references.panel_count
                            ? first + task_.block_panels
                            : references.panel_count;
    double sum = 0.0;
    int64_t last = -1;
    for (int64_t panel = first; panel < end; ++panel) {
      if (skips(position, position, panel)) {
        continue;
      }
      const Factors factors = factors_of(position, panel, values_of(position, panel));
      const Vector weight = weights(factors, task_.scales[position * task_.blocks + block]);
      for (int64_t lane = 0; lane < kPanelRows; ++lane) {
        if (weight[lane] > 0.0) {
          last = references.index[panel * kPanelRows + lane];
          sum += weight[lane];
          if (sum > target) {
            return last;
          }
        }
      }
    }
    return last;
  }

  Vector values_of(int64_t position, int64_t panel) const {
    const double* x = panel_of(task_.anchors, position / kPanelRows) + position % kPanelRows;
    const double* y = panel_of(task_.references, panel);
    const int64_t dimensions = task_.references.dimensions;
    Vector sums = {};
    if (sums_differences(task_.metric)) {
      for (int64_t k = 0; k < dimensions; ++k) {
        const Vector difference = x[k * kPanelRows] - load(y + k * kPanelRows);
        sums += difference * difference;
      }
      return sums;
    }
    for (int64_t k = 0; k < dimensions; ++k) {
      sums += x[k * kPanelRows] * load(y + k * kPanelRows);
    }
    if (task_.metric == Metric::dot) {
      return -sums;
    }
    return values<Metric::cosine>(sums, task_.anchors.norms[position],
                                  task_.references.norms + panel * kPanelRows);
  }

  const SampleTask& task_;
};

}  // namespace

void sample(const SampleTask& task, int64_t panel_begin, int64_t panel_end) {
  SamplePolicy policy(task);
  walk(task.metric, task.anchors, task.references, {panel_begin, panel_end}, policy);
  const int64_t end_row =
      panel_end * kPanelRows < task.anchors.rows ? panel_end * kPanelRows : task.anchors.rows;
  for (int64_t position = panel_begin * kPanelRows; position < end_row; ++position) {
    policy.draw(position);
  }
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
