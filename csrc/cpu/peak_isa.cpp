#include "peak_isa.h"

#include "engine/vector_math.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Enough chains to hide the latency of an addition, few enough for the registers.
constexpr int64_t kChains = 12;

}  // namespace

int64_t multiply_add(int64_t steps, float& result) {
  Part chains[kChains];
  for (int64_t c = 0; c < kChains; ++c) {
    chains[c] = all_lanes(static_cast<float>(c));
  }
  const Part factor = all_lanes(0.5f);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int64_t c = 0; c < kChains; ++c) {
      chains[c] = chains[c] * factor + factor;
    }
  }
  double sum = 0.0;
  for (int64_t c = 0; c < kChains; ++c) {
    sum += sum_of(chains[c]);
  }
  result = static_cast<float>(sum);
  return kChains * kLanes;
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
