#include "contrast_sums_isa.h"

#include "engine/block_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// A form as the loops see it: the exponential has two, one that both rows of a pair share.
enum class Term { shared_exponential, own_exponential, exponent, hinge, sum, softplus };

Term term_of(const SumSide& side) {
  switch (side.form) {
    case SumForm::logsumexp:
      return side.has_one_shift ? Term::shared_exponential : Term::own_exponential;
    case SumForm::greatest:
      return Term::exponent;
    case SumForm::hinge:
      return Term::hinge;
    case SumForm::softplus:
      return Term::softplus;
    default:
      return Term::sum;
  }
}

// What a partner at e adds to the sum of an anchor.
template <Term kTerm>
inline Part term(const SumSide& side, Part e, Part bound, Part shift) {
  switch (kTerm) {
    case Term::shared_exponential:
    case Term::own_exponential:
      return exponential(side.scale * e - shift);
    case Term::exponent:
      return side.scale * e;
    case Term::hinge:
      return bound - e;
    case Term::softplus:
      return softplus(side.scale * e + shift);
    default:
      return e;
  }
}

template <Term kTerm>
inline Part joined(Part sum, MaskPart mask, Part values) {
  if (kTerm == Term::exponent) {
    const Part candidates = where(mask, values, all_lanes(-__builtin_inff()));
    return candidates > sum ? candidates : sum;
  }
  return sum + where(mask, values);
}

// The derivative of a term by e, but for the anchor's weight; `slope` is that by bound or shift.
template <Term kTerm>
inline Part derivative(const SumSide& side, Part e, Part shift, Part& slope) {
  switch (kTerm) {
    case Term::shared_exponential:
    case Term::own_exponential:
      return exponential(side.scale * e - shift);
    case Term::hinge:
      slope = all_lanes(1.0f);
      return all_lanes(-1.0f);
    case Term::softplus:
      slope = sigmoid(side.scale * e + shift);
      return side.scale * slope;
    default:
      return all_lanes(1.0f);
  }
}

template <Term kTerm>
constexpr bool has_own_shift = kTerm == Term::own_exponential || kTerm == Term::softplus;

template <Term kTerm>
constexpr bool has_slope = kTerm == Term::hinge || kTerm == Term::softplus;

// One row of a strip on one side: `e` are the columns that may be partners, NaN for the others.
struct Row {
  int64_t anchor;  // position
  float* e;
  int64_t columns;
  // Where columns are anchors too: the position of the first, and what it adds up in this strip.
  int64_t column_anchor;
  float* column_sums;
  int32_t* column_counts;
};

template <Term kTerm, bool kBoth>
void sum_row(const SumSide& side, const Row& row) {
  const Part bound = all_lanes(side.bounds[row.anchor]);
  const Part shift = all_lanes(has_own_shift<kTerm> ? side.shifts[row.anchor] : side.shift);
  Part sum = all_lanes(kTerm == Term::exponent ? -__builtin_inff() : 0.0f);
  MaskPart count = {};
  for (int64_t c = 0; c < row.columns; c += kLanes) {
    const Part e = load(row.e + c);
    const MaskPart mask = e < bound;
    Part values = term<kTerm>(side, e, bound, shift);
    sum = joined<kTerm>(sum, mask, values);
    count -= mask;
    if (kBoth) {
      const Part bounds = load(side.bounds + row.column_anchor + c);
      const MaskPart column_mask = e < bounds;
      if (kTerm == Term::hinge || has_own_shift<kTerm>) {
        const Part own = has_own_shift<kTerm> ? load(side.shifts + row.column_anchor + c) : shift;
        values = term<kTerm>(side, e, bounds, own);
      }
      float* sums = row.column_sums + c;
      store(sums, joined<kTerm>(load(sums), column_mask, values));
      *reinterpret_cast<LooseInt*>(row.column_counts + c) -= column_mask;
    }
  }
  side.counts[row.anchor] += sum_of(count);
  double& total = side.sums[row.anchor];
  if (kTerm == Term::exponent) {
    const double greatest = greatest_of(sum);
    total = greatest > total ? greatest : total;
  } else {
    total += sum_of(sum);
  }
}

// Replaces e by the weight of the pair's difference y - x (or of y) in the gradient of x.
template <Term kTerm, bool kBoth>
void weigh_row(const SumSide& side, const PairDistance& distance, const Row& row) {
  const Part bound = all_lanes(side.bounds[row.anchor]);
  const Part shift = all_lanes(has_own_shift<kTerm> ? side.shifts[row.anchor] : side.shift);
  const Part weight = all_lanes(side.weights[row.anchor]);
  const float factor = distance.sums_differences ? -2.0f * side.sign : -side.sign;
  Part sum = {};
  for (int64_t c = 0; c < row.columns; c += kLanes) {
    const Part e = load(row.e + c);
    const MaskPart mask = e < bound;
    Part slope = {};
    Part change = derivative<kTerm>(side, e, shift, slope);
    Part total = where(mask, change * weight);
    if (has_slope<kTerm>) {
      sum += where(mask, slope);
    }
    if (kBoth) {
      const MaskPart column_mask = e < load(side.bounds + row.column_anchor + c);
      if (has_own_shift<kTerm>) {
        change = derivative<kTerm>(side, e, load(side.shifts + row.column_anchor + c), slope);
      }
      total += where(column_mask, change * load(side.weights + row.column_anchor + c));
      if (has_slope<kTerm>) {
        float* sums = row.column_sums + c;
        store(sums, load(sums) + where(column_mask, slope));
      }
    }
    if (distance.has_root) {
      // Nothing where the distance is 0, or there is no pair.
      total = where((e < 0.0f) | (e > 0.0f), -total / e);
    } else {
      total *= factor;
    }
    store(row.e + c, total);
  }
  if (has_slope<kTerm>) {
    side.sums[row.anchor] += sum_of(sum);
  }
}

template <bool kBoth>
void sum_row(const SumSide& side, const Row& row) {
  switch (term_of(side)) {
    case Term::shared_exponential:
      return sum_row<Term::shared_exponential, kBoth>(side, row);
    case Term::own_exponential:
      return sum_row<Term::own_exponential, kBoth>(side, row);
    case Term::exponent:
      return sum_row<Term::exponent, kBoth>(side, row);
    case Term::hinge:
      return sum_row<Term::hinge, kBoth>(side, row);
    case Term::softplus:
      return sum_row<Term::softplus, kBoth>(side, row);
    case Term::sum:
      return sum_row<Term::sum, kBoth>(side, row);
  }
}

template <bool kBoth>
void weigh_row(const SumSide& side, const PairDistance& distance, const Row& row) {
  switch (term_of(side)) {
    case Term::shared_exponential:
      return weigh_row<Term::shared_exponential, kBoth>(side, distance, row);
    case Term::own_exponential:
      return weigh_row<Term::own_exponential, kBoth>(side, distance, row);
    case Term::hinge:
      return weigh_row<Term::hinge, kBoth>(side, distance, row);
    case Term::softplus:
      return weigh_row<Term::softplus, kBoth>(side, distance, row);
    default:
      return weigh_row<Term::sum, kBoth>(side, distance, row);
  }
}

// Sums, or replaces by weights, both sides of a strip.
class SumPolicy {
 public:
  static constexpr bool kNeedsDistances = true;

  explicit SumPolicy(const SumTask& task)
      : task_(task), wants_gradient_(task.walk.x_gradient != nullptr) {}

  bool wants(Span rows, Span columns) const {
    const bool shares_class = task_.class_begin[rows.begin] < columns.end &&
                              columns.begin < task_.class_end[rows.end - 1];
    return task_.negative.form != SumForm::none || shares_class;
  }

  void start(const Strip& strip) {
    start(strip, task_.negative, negative_);
    start(strip, task_.positive, positive_);
  }

  void serve_row(Strip& strip, int64_t r) {
    const int64_t anchor = strip.first_row + r;
    float* values = strip.values[r];
    int64_t begin = task_.class_begin[anchor] - strip.first_column;
    int64_t end = task_.class_end[anchor] - strip.first_column;
    begin = begin < 0 ? 0 : begin;
    end = end > strip.columns ? strip.columns : end;
    float own[kBlockColumns];
    const int64_t first = begin / kLanes * kLanes;  // whole vectors that hold the class
    const int64_t last = (end + kLanes - 1) / kLanes * kLanes;
    for (int64_t c = first; c < last && begin < end; ++c) {
      const bool is_own = c >= begin && c < end;
      own[c - first] = is_own ? -values[c] : __builtin_nanf("");
      values[c] = is_own ? __builtin_nanf("") : values[c];
    }
    serve_side(
        strip, task_.negative,
        {anchor, values, strip.columns, strip.first_column, negative_.sums, negative_.counts});
    if (begin < end) {
      serve_side(strip, task_.positive,
                 {anchor, own, last - first, strip.first_column + first, positive_.sums + first,
                  positive_.counts + first});
      for (int64_t c = begin; c < end; ++c) {
        values[c] = own[c - first];
      }
    }
  }

  void end(const Strip& strip) const {
    if (strip.columns_are_anchors) {
      join(strip, task_.negative, negative_);
      join(strip, task_.positive, positive_);
    }
  }

 private:
  // What the columns of a strip add up on one side; few rows enter before float64 takes over.
  struct ColumnSums {
    float sums[kBlockColumns];
    int32_t counts[kBlockColumns];
  };

  void serve_side(const Strip& strip, const SumSide& side, const Row& row) const {
    if (side.form == SumForm::none) {
      for (int64_t c = 0; c < row.columns; c += kLanes) {
        store(row.e + c, Part{});
      }
    } else if (!wants_gradient_) {
      strip.columns_are_anchors ? sum_row<true>(side, row) : sum_row<false>(side, row);
    } else {
      // Within a span every pair comes up twice, each time for the gradient of its row.
      task_.walk.is_symmetric ? weigh_row<true>(side, task_.walk.distance, row)
                              : weigh_row<false>(side, task_.walk.distance, row);
    }
  }

  static void start(const Strip& strip, const SumSide& side, ColumnSums& columns) {
    const float none = side.form == SumForm::greatest ? -__builtin_inff() : 0.0f;
    for (int64_t c = 0; c < strip.columns; ++c) {
      columns.sums[c] = none;
      columns.counts[c] = 0;
    }
  }

  static void join(const Strip& strip, const SumSide& side, const ColumnSums& columns) {
    for (int64_t c = 0; c < strip.columns && side.form != SumForm::none; ++c) {
      double& total = side.sums[strip.first_column + c];
      const double sum = columns.sums[c];
      total = side.form != SumForm::greatest ? total + sum : sum > total ? sum : total;
      side.counts[strip.first_column + c] += columns.counts[c];
    }
  }

  const SumTask& task_;
  const bool wants_gradient_;
  ColumnSums negative_;
  ColumnSums positive_;
};

}  // namespace

void contrast_sums(const SumTask& task, Span x, Span y) {
  SumPolicy policy(task);
  BlockWalk<SumPolicy>(task.walk, policy).walk(x, y);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
