// Similarities to synthesised rows, compiled once per instruction set level: float32 loops over
// the dimensions of one row at a time.
#pragma once

#include <cstdint>

namespace dmlfast::cpu {

// Rows are padded with zeros to a multiple of so many numbers.
constexpr int64_t kSynthesisPadding = 32;

// With v_j = projected + shifts_j, a row of `stride` numbers.
struct SynthesisRow {
  const float* projected;
  const float* targets;
  const float* shifts;  // [steps][stride]
  int64_t steps;
  int64_t stride;
};

// Factors of one step's part of the gradients.
struct SynthesisWeight {
  float target;     // of the target where v is above 0, in the gradient of v
  float direction;  // of v, in the gradient of v
  float positive;   // of v where it is above 0, in the gradient of the target
};

struct SynthesisGradients {
  float* projected;  // [stride]
  float* targets;    // [stride]; none where the target is relu(projected) times a factor
  float* shifts;     // [steps][stride], added to
  // Where the target is relu(projected) times a factor: that factor, and what times -projected is
  // the rest of its gradient.
  float own_factor;
  float own_direction;
};

// Writes relu(row) and returns the sum of squares of the row.
using SynthesisReluFunction = float (*)(const float* row, int64_t stride, float* relu);

// Writes the sums of v_j^2 and of relu(v_j) * targets of each step.
using SynthesisSumFunction = void (*)(const SynthesisRow&, float* squares, float* products);

using SynthesisGradientFunction = void (*)(const SynthesisRow&, const SynthesisWeight* weights,
                                           const SynthesisGradients&);

namespace baseline {
float synthesis_relu(const float* row, int64_t stride, float* relu);
void synthesis_sums(const SynthesisRow&, float* squares, float* products);
void synthesis_gradients(const SynthesisRow&, const SynthesisWeight*, const SynthesisGradients&);
}  // namespace baseline
namespace avx2 {
float synthesis_relu(const float* row, int64_t stride, float* relu);
void synthesis_sums(const SynthesisRow&, float* squares, float* products);
void synthesis_gradients(const SynthesisRow&, const SynthesisWeight*, const SynthesisGradients&);
}  // namespace avx2
namespace avx512 {
float synthesis_relu(const float* row, int64_t stride, float* relu);
void synthesis_sums(const SynthesisRow&, float* squares, float* products);
void synthesis_gradients(const SynthesisRow&, const SynthesisWeight*, const SynthesisGradients&);
}  // namespace avx512

}  // namespace dmlfast::cpu
