// Runs the CUDA kernels of the weighted draws on the CPU. Reads a case from the file that the first
// argument names and writes the results to the second; test_cuda_emulation_sample.py has the
// format.
#include "neighbors_sample.cu"

#include "labelled_case.h"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

struct Header {
  LabelledHeader labelled;
  int64_t weighted;
};

const auto run = [](auto type, const Header& h, std::ifstream& in, std::ofstream& out) {
  using T = decltype(type);
  const int64_t anchors = h.labelled.anchors;
  LabelledCase<T> labelled(h.labelled, in);
  const auto uniform = read<double>(in, anchors);
  const auto fallback = read<int64_t>(in, anchors);
  const auto cutoffs = read<double>(in, 2);
  std::vector<T> distance(anchors);
  std::vector<int64_t> index(anchors);
  SampleArguments sample{};
  static_cast<LabelledPairs&>(sample) = labelled.pairs(h.labelled);
  sample.distance = distance.data();
  sample.index = index.data();
  sample.uniform = uniform.data();
  sample.fallback = fallback.data();
  sample.weighted = h.weighted != 0;
  sample.weight = weight_between(cutoffs[0], cutoffs[1], h.labelled.dimensions);
  auto memory = memory_of(sample_memory_bytes(sample));
  launch_sample(sample, memory.data(), nullptr);
  write(out, distance);
  write(out, index);
};

}  // namespace

int main(int argc, char** argv) { return run_labelled_case<Header>(argc, argv, run); }
