#include "ranking_synthesis_isa.h"

#include "engine/vector_math.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Sums whose chains of additions do not wait for each other.
constexpr int64_t kChains = 2;
static_assert(kSynthesisPadding % (kChains * kLanes) == 0);

// The sum of both chains, halves upon halves.
inline float total_of(const Part (&chains)[kChains]) {
  float lanes[kLanes];
  store(lanes, chains[0] + chains[1]);
#pragma GCC unroll 4
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

}  // namespace

float synthesis_relu(const float* row, int64_t stride, float* relu) {
  Part squares[kChains] = {};
  for (int64_t k = 0; k < stride; k += kChains * kLanes) {
    for (int64_t chain = 0; chain < kChains; ++chain) {
      const int64_t at = k + chain * kLanes;
      const Part value = load(row + at);
      squares[chain] += value * value;
      store(relu + at, where(value > 0.0f, value));
    }
  }
  return total_of(squares);
}

void synthesis_sums(const SynthesisRow& row, float* squares, float* products) {
  for (int64_t j = 0; j < row.steps; ++j) {
    const float* shift = row.shifts + j * row.stride;
    Part square[kChains] = {};
    Part product[kChains] = {};
    for (int64_t k = 0; k < row.stride; k += kChains * kLanes) {
      for (int64_t chain = 0; chain < kChains; ++chain) {
        const int64_t at = k + chain * kLanes;
        const Part value = load(row.projected + at) + load(shift + at);
        square[chain] += value * value;
        product[chain] += where(value > 0.0f, value) * load(row.targets + at);
      }
    }
    squares[j] = total_of(square);
    products[j] = total_of(product);
  }
}

void synthesis_gradients(const SynthesisRow& row, const SynthesisWeight* weights,
                         const SynthesisGradients& gradients) {
  for (int64_t k = 0; k < row.stride; k += kLanes) {
    const Part projected = load(row.projected + k);
    const Part target = load(row.targets + k);
    Part to_projected = {};
    Part to_target = {};
    for (int64_t j = 0; j < row.steps; ++j) {
      const Part value = projected + load(row.shifts + j * row.stride + k);
      const MaskPart is_positive = value > 0.0f;
      const Part to_value =
          weights[j].target * where(is_positive, target) + weights[j].direction * value;
      to_projected += to_value;
      to_target += weights[j].positive * where(is_positive, value);
      float* to_shift = gradients.shifts + j * row.stride + k;
      store(to_shift, load(to_shift) + to_value);
    }
    if (gradients.targets != nullptr) {
      store(gradients.targets + k, to_target);
    } else {
      to_projected += gradients.own_factor * where(projected > 0.0f, to_target) -
                      gradients.own_direction * projected;
    }
    store(gradients.projected + k, to_projected);
  }
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
