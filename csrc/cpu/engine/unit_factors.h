// The unit of packed distances as float32 loops multiply by it.
#pragma once

#include <algorithm>
#include <cmath>

namespace dmlfast::cpu {

// A power of two, and its inverse, as products of two that are closer to 1: they may lie outside
// the range of float32.
struct UnitFactors {
  // Beyond, every distance but 0 is infinite.
  static constexpr double kGreatestExponent = 250.0;

  explicit UnitFactors(double unit)
      : UnitFactors(unit, std::min(kGreatestExponent, std::log2(unit)) / 2) {}

  float unit_high;
  float unit_low;
  float packed_high;
  float packed_low;

 private:
  UnitFactors(double, double half_exponent)
      : unit_high(static_cast<float>(std::exp2(std::ceil(half_exponent)))),
        unit_low(static_cast<float>(std::exp2(std::floor(half_exponent)))),
        packed_high(1.0f / unit_high),
        packed_low(1.0f / unit_low) {}
};

}  // namespace dmlfast::cpu
