#include "ranking_isa.h"

#include "engine/tile_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

inline Part part_of(const double* from) { return *reinterpret_cast<const LoosePart*>(from); }

inline void store(double* to, Part values) { *reinterpret_cast<LoosePart*>(to) = values; }

// e^x within 2 units in the last place for x at most 0, and 0 where it is no normal number; 1 for
// what rounding has left above 0.
inline Part exponential(Part x) {
  const Part zero = {};
  const Part least = zero - 708.0;
  x = x < zero ? x : zero;
  // Adding 1.5 * 2^52 rounds to an integer, which the low bits then hold.
  const double magic = 0x1.8p52;
  const Part rounded = x * 0x1.71547652b82fep0 + magic;
  const Part n = rounded - magic;
  const Part r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  // The series to the 13th power: |r| is at most log(2) / 2.
  Part p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  const Bits exponent = (reinterpret_cast<Bits>(rounded) << 52) + 0x3ff0000000000000;
  return x >= least ? p * reinterpret_cast<Part>(exponent) : zero;
}

// A sum of exp(scale * (value - best)) over some columns, the greatest value being the best.
struct RunningSum {
  Part best;
  Part sum;

  // Adds a column whose value is above the best by `excess`.
  void add(Part value, Part excess, double scale) {
    const Part zero = {};
    const Part power = exponential(scale * (excess > zero ? -excess : excess));
    sum = excess > zero ? sum * power + 1.0 : sum + power;
    best = excess > zero ? value : best;
  }

  void restart(Part value) {
    best = value;
    sum = Part{} + 1.0;
  }
};

// The values of the rows of one vector, column by column, with the sign of a side.
struct Columns {
  const double* values;
  double sign;

  Part operator[](int64_t k) const { return sign * part_of(values + k * kPanelRows); }
};

Part greatest_difference(const RankingSide& side, const Columns& y) {
  Part least = y[0];
  Part greatest = Part{} - __builtin_inf();
  for (int64_t k = 1; k < side.columns; ++k) {
    const Part value = y[k];
    const Part difference = (value - least) + side.shifts[k];
    greatest = difference > greatest ? difference : greatest;
    if (side.is_adjacent) {
      least = value;
    } else {
      least = value < least ? value : least;
    }
  }
  return greatest;
}

}  // namespace

void ranking_sums(const RankingSide& side, const double* values, double* greatest, double* sums,
                  double* terms) {
  for (int64_t lane = 0; lane < kPanelRows; lane += kLanes) {
    const Columns y{values + lane, side.sign};
    const Part most = greatest_difference(side, y);
    Part total = {};
    RunningSum before{-y[0], Part{} + 1.0};  // of the negative values
    store(terms + lane, total);
    for (int64_t k = 1; k < side.columns; ++k) {
      const Part value = y[k];
      // In the order of greatest_difference: a rounding more would leave it.
      const Part difference = (value + before.best) + side.shifts[k];
      const Part term = exponential(side.scale * (difference - most)) * before.sum;
      store(terms + k * kPanelRows + lane, term);
      total += term;
      if (side.is_adjacent) {
        before.restart(-value);
      } else {
        before.add(-value, -value - before.best, side.scale);
      }
    }
    store(greatest + lane, most);
    store(sums + lane, total);
  }
}

void ranking_gradients(const RankingSide& side, const double* values, const double* greatest,
                       const double* terms, const double* weights, double* gradients) {
  for (int64_t lane = 0; lane < kPanelRows; lane += kLanes) {
    const Columns y{values + lane, side.sign};
    const Part most = part_of(greatest + lane);
    const Part weight = side.sign * part_of(weights + lane);
    RunningSum after{Part{}, Part{}};  // of the values with their shifts
    Part shift = {};                   // of the best
    for (int64_t k = side.columns - 1; k >= 0; --k) {
      const Part value = y[k];
      const Part difference = (after.best - value) + shift;
      const Part as_first = exponential(side.scale * (difference - most)) * after.sum;
      double* gradient = gradients + k * kPanelRows + lane;
      const Part as_second = part_of(terms + k * kPanelRows + lane);
      store(gradient, part_of(gradient) + weight * (as_second - as_first));
      const Part own_shift = Part{} + side.shifts[k];
      if (side.is_adjacent || k == side.columns - 1) {
        after.restart(value);
        shift = own_shift;
      } else {
        const Part excess = (value - after.best) + (own_shift - shift);
        shift = excess > Part{} ? own_shift : shift;
        after.add(value, excess, side.scale);
      }
    }
  }
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
