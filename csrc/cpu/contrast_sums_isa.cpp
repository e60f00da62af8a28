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

// The pairs of two spans of panels.
class Block {
 public:
  explicit Block(const SumTask& task) : task_(task), wants_gradient_(task.x_gradient != nullptr) {}

  void walk(Span x, Span y) {
    columns_are_anchors_ = task_.is_symmetric && x.begin != y.begin;
    const int64_t step = wants_gradient_ ? kBlockRows : kStripRows;
    float (*values)[kBlockColumns] = new float[step][kBlockColumns];
    for (int64_t column = y.begin; column < y.end; column += kBlockColumns) {
      const Span columns{column, y.end - column < kBlockColumns ? y.end : column + kBlockColumns};
      for (int64_t row = x.begin; row < x.end; row += step) {
        const Span rows{row, x.end - row < step ? x.end : row + step};
        if (task_.negative.form != SumForm::none || shares_class(rows, columns)) {
          serve(rows, columns, values);
        }
      }
    }
    delete[] values;
  }

 private:
  // What the columns of a strip add up on one side; few rows enter before float64 takes over.
  struct ColumnSums {
    float sums[kBlockColumns];
    int32_t counts[kBlockColumns];
  };

  bool shares_class(Span rows, Span columns) const {
    return task_.class_begin[rows.begin] < columns.end &&
           columns.begin < task_.class_end[rows.end - 1];
  }

  void serve(Span rows, Span columns, float (*values)[kBlockColumns]) {
    const int64_t strips = (rows.end - rows.begin + kStripRows - 1) / kStripRows;
    const int64_t panels = (columns.end - columns.begin + kSearchPanelRows - 1) / kSearchPanelRows;
    bool has_weights = false;
    strip_.first_column = columns.begin;
    strip_.columns = panels * kSearchPanelRows;
    for (int64_t s = 0; s < strips; ++s) {
      strip_.first_row = rows.begin + s * kStripRows;
      strip_.values = values + s * kStripRows;
      strip_products(task_.x, strip_.first_row / kSearchPanelRows, task_.y,
                     columns.begin / kSearchPanelRows, panels, strip_);
      start_columns(task_.negative, negative_);
      start_columns(task_.positive, positive_);
      for (int64_t r = 0; r < kStripRows; ++r) {
        serve_row(r);
      }
      join_columns(task_.negative, negative_);
      join_columns(task_.positive, positive_);
      if (wants_gradient_ && has_weight()) {
        has_weights = true;
        const GradientRows& to = *task_.x_gradient;
        const GradientRows& from = task_.is_symmetric ? to : *task_.y_gradient;
        add_rows({strip_.values[0], kBlockColumns, 1}, kStripRows, strip_.columns,
                 from.rows + columns.begin * from.stride, to.stride,
                 to.sums + strip_.first_row * to.stride);
      }
    }
    if (has_weights && has_column_gradient()) {
      const GradientRows& from = *task_.x_gradient;
      const GradientRows& to = column_gradient();
      add_rows({values[0], 1, kBlockColumns}, strip_.columns, strips * kStripRows,
               from.rows + rows.begin * from.stride, from.stride,
               to.sums + columns.begin * to.stride);
    }
  }

  bool has_column_gradient() const { return columns_are_anchors_ || !task_.is_symmetric; }

  const GradientRows& column_gradient() const {
    return task_.is_symmetric ? *task_.x_gradient : *task_.y_gradient;
  }

  void serve_row(int64_t r) {
    const int64_t anchor = strip_.first_row + r;
    float* values = strip_.values[r];
    const int64_t self = task_.self[anchor];
    row_distances(task_.x, task_.y, task_.distance, strip_, r,
                  self < 0 ? -1 : self - strip_.first_column);
    int64_t begin = task_.class_begin[anchor] - strip_.first_column;
    int64_t end = task_.class_end[anchor] - strip_.first_column;
    begin = begin < 0 ? 0 : begin;
    end = end > strip_.columns ? strip_.columns : end;
    float own[kBlockColumns];
    const int64_t first = begin / kLanes * kLanes;  // whole vectors that hold the class
    const int64_t last = (end + kLanes - 1) / kLanes * kLanes;
    for (int64_t c = first; c < last && begin < end; ++c) {
      const bool is_own = c >= begin && c < end;
      own[c - first] = is_own ? -values[c] : __builtin_nanf("");
      values[c] = is_own ? __builtin_nanf("") : values[c];
    }
    serve_side(task_.negative, {anchor, values, strip_.columns, strip_.first_column, negative_.sums,
                                negative_.counts});
    if (begin < end) {
      serve_side(task_.positive, {anchor, own, last - first, strip_.first_column + first,
                                  positive_.sums + first, positive_.counts + first});
    }
    if (wants_gradient_) {
      for (int64_t c = begin; c < end; ++c) {
        values[c] = own[c - first];
      }
      finish_weights(r);
    }
  }

  void serve_side(const SumSide& side, const Row& row) const {
    if (side.form == SumForm::none) {
      for (int64_t c = 0; c < row.columns; c += kLanes) {
        store(row.e + c, Part{});
      }
    } else if (!wants_gradient_) {
      columns_are_anchors_ ? sum_row<true>(side, row) : sum_row<false>(side, row);
    } else {
      // Within a span every pair comes up twice, each time for the gradient of its row.
      task_.is_symmetric ? weigh_row<true>(side, task_.distance, row)
                         : weigh_row<false>(side, task_.distance, row);
    }
  }

  // Near pairs go to the gradient by themselves: in the sums of rows they would lose their digits.
  void finish_weights(int64_t r) {
    if (!task_.distance.sums_differences) {
      return;
    }
    const int64_t anchor = strip_.first_row + r;
    float* values = strip_.values[r];
    const GradientRows& to = *task_.x_gradient;
    for (int32_t n = 0; n < strip_.near_counts[r]; ++n) {
      const int64_t column = strip_.near[r][n];
      const float weight = values[column];
      values[column] = 0.0f;
      if (weight != 0.0f) {
        const int64_t partner = strip_.first_column + column;
        float* partner_sums = has_column_gradient()
                                  ? column_gradient().sums + partner * column_gradient().stride
                                  : nullptr;
        task_.distance.add_difference(task_.distance.rows, anchor, partner, weight,
                                      to.sums + anchor * to.stride, partner_sums);
      }
    }
    Part own = {};
    for (int64_t c = 0; c < strip_.columns; c += kLanes) {
      const Part weights = load(values + c);
      own += weights;
      store(column_weights_ + c, load(column_weights_ + c) + weights);
    }
    to.own[anchor] += sum_of(own);
  }

  void start_columns(const SumSide& side, ColumnSums& columns) {
    const float start = side.form == SumForm::greatest ? -__builtin_inff() : 0.0f;
    for (int64_t c = 0; c < strip_.columns; ++c) {
      columns.sums[c] = start;
      columns.counts[c] = 0;
      column_weights_[c] = 0.0f;
    }
  }

  void join_columns(const SumSide& side, const ColumnSums& columns) const {
    if (columns_are_anchors_ && side.form != SumForm::none) {
      for (int64_t c = 0; c < strip_.columns; ++c) {
        double& total = side.sums[strip_.first_column + c];
        const double sum = columns.sums[c];
        total = side.form != SumForm::greatest ? total + sum : sum > total ? sum : total;
        side.counts[strip_.first_column + c] += columns.counts[c];
      }
    }
  }

  // Adds the weights of the strip's columns to their own, and says whether there are any.
  bool has_weight() {
    bool result = false;
    for (int64_t r = 0; r < kStripRows && !result; ++r) {
      for (int64_t c = 0; c < strip_.columns && !result; c += kLanes) {
        result = any(load(strip_.values[r] + c) != 0.0f);
      }
    }
    if (has_column_gradient() && task_.distance.sums_differences) {
      for (int64_t c = 0; c < strip_.columns; ++c) {
        column_gradient().own[strip_.first_column + c] += column_weights_[c];
      }
    }
    return result;
  }

  const SumTask& task_;
  const bool wants_gradient_;
  bool columns_are_anchors_ = false;
  Strip strip_;
  ColumnSums negative_;
  ColumnSums positive_;
  float column_weights_[kBlockColumns];
};

}  // namespace

void contrast_sums(const SumTask& task, Span x, Span y) { Block(task).walk(x, y); }

}  // namespace dmlfast::cpu::DMLFAST_ISA
