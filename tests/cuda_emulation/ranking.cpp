// Runs the CUDA kernels of the family `ranking` on the CPU. Reads a case from the file that the
// first argument names and writes the results to the second; test_cuda_emulation_ranking.py has the
// format.
#include "ranking.cu"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <vector>

#include "ranking_synthesis.cu"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

enum Operator { kLoss, kLossBackward, kSynthesis, kSynthesisBackward };

struct Header {
  int64_t which, rows, steps, dimensions, pairs, has_targets;
  double margin, scale;
};

// Results that nobody wrote shall not be zeros.
constexpr float kUntouched = -7.0f;

template <class T>
std::vector<T> read(std::ifstream& file, int64_t count) {
  // Exactly as long as needed, so that the address sanitizer sees the first element too many.
  std::vector<T> data(count);
  file.read(reinterpret_cast<char*>(data.data()), count * sizeof(T));
  if (!file) {
    std::fprintf(stderr, "the case file is too short\n");
    std::exit(1);
  }
  return data;
}

void write(std::ofstream& file, const std::vector<float>& data) {
  file.write(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float));
}

// Doubles, to be aligned; not a number wherever not written.
std::vector<double> workspace(int64_t bytes) { return std::vector<double>((bytes + 7) / 8, NAN); }

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
  auto memory = workspace(ranking_gradient_bytes(similarities, form));
  launch_ranking_gradient(similarities, form, {grad.data(), ElementType::float32, h.rows, 1, 2, 1},
                          {gradient.data(), ElementType::float32, h.steps}, memory.data(), nullptr);
  write(out, gradient);
}

// The upstream gradients come transposed.
void run_synthesis(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto matrix_of = [&](const std::vector<float>& data, int64_t rows) {
    return Rows<float>{data.data(), rows, h.dimensions, h.dimensions, 1};
  };
  const auto projected = read<float>(in, h.rows * h.dimensions);
  const auto shifts = read<float>(in, h.steps * h.dimensions);
  const auto targets = read<float>(in, h.has_targets ? h.rows * h.dimensions : 0);
  SynthesisRows rows{};
  rows.projected = matrix_of(projected, h.rows);
  rows.shifts = matrix_of(shifts, h.steps);
  if (h.has_targets) {
    rows.targets = matrix_of(targets, h.rows);
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
  auto memory = workspace(synthesis_gradient_bytes(rows));
  launch_synthesis_gradient(rows, {grad.data(), h.rows, h.steps, 1, h.rows},
                            {to_projected.data(), to_shifts.data(), to_targets.data()},
                            memory.data(), nullptr);
  write(out, to_projected);
  write(out, to_shifts);
  write(out, to_targets);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CASE RESULT\n", argv[0]);
    return 1;
  }
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  const Header h = read<Header>(in, 1)[0];
  if (h.which == kLoss || h.which == kLossBackward) {
    run_loss(h, in, out);
  } else {
    run_synthesis(h, in, out);
  }
  return 0;
}
