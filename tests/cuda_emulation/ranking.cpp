// Runs the CUDA kernels of the family `ranking` on the CPU. Reads a case from the file that the
// first argument names and writes the results to the second; test_cuda_emulation_ranking.py has the
// format.
#include "ranking.cu"

#include <vector>

#include "case.h"
#include "ranking_synthesis.cu"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

enum Operator { kLoss, kLossBackward, kSynthesis, kSynthesisBackward };

struct Header {
  int64_t which, rows, steps, dimensions, pairs, has_targets;
  double margin, scale;
};

// The similarities come transposed, the upstream gradients beside zeros: the strides make them
// whole.
void run_loss(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto data = read<float>(in, h.rows * h.steps);
  const AnyRows similarities{data.data(), ElementType::float32, h.rows, h.steps, 1, h.rows};
  const RankingForm form{h.margin, h.scale, static_cast<RankingPairs>(h.pairs)};
  if (h.which == kLoss) {
    std::vector<float> losses(h.rows, kUntouched);
    launch_ranking_loss(similarities, form, losses.data(), nullptr);
    write(out, losses);
    return;
  }
  const auto grad = read<float>(in, 2 * h.rows);
  std::vector<float> gradient(h.rows * h.steps, kUntouched);
  auto memory = memory_of(ranking_gradient_bytes(similarities, form));
  launch_ranking_gradient(similarities, form, {grad.data(), ElementType::float32, h.rows, 1, 2, 1},
                          any_result_of(gradient, h.steps), memory.data(), nullptr);
  write(out, gradient);
}

// The upstream gradients come transposed.
void run_synthesis(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto projected = read<float>(in, h.rows * h.dimensions);
  const auto shifts = read<float>(in, h.steps * h.dimensions);
  const auto targets = read<float>(in, h.has_targets ? h.rows * h.dimensions : 0);
  SynthesisRows rows{};
  rows.projected = rows_of(projected, h.rows, h.dimensions);
  rows.shifts = rows_of(shifts, h.steps, h.dimensions);
  if (h.has_targets) {
    rows.targets = rows_of(targets, h.rows, h.dimensions);
  }
  if (h.which == kSynthesis) {
    std::vector<float> similarities(h.rows * h.steps, kUntouched);
    launch_synthesis(rows, similarities.data(), nullptr);
    write(out, similarities);
    return;
  }
  const auto grad = read<float>(in, h.rows * h.steps);
  std::vector<float> to_projected(projected.size(), kUntouched);
  std::vector<float> to_shifts(shifts.size(), kUntouched);
  std::vector<float> to_targets(targets.size(), kUntouched);
  auto memory = memory_of(synthesis_gradient_bytes(rows));
  launch_synthesis_gradient(rows, {grad.data(), h.rows, h.steps, 1, h.rows},
                            {to_projected.data(), to_shifts.data(), to_targets.data()},
                            memory.data(), nullptr);
  write(out, to_projected);
  write(out, to_shifts);
  write(out, to_targets);
}

void run(const Header& h, std::ifstream& in, std::ofstream& out) {
  if (h.which == kLoss || h.which == kLossBackward) {
    run_loss(h, in, out);
  } else {
    run_synthesis(h, in, out);
  }
}

}  // namespace

int main(int argc, char** argv) { return run_case<Header>(argc, argv, run); }
