// Runs the CUDA kernels of the family `pairwise` on the CPU. Reads a case from the file that the
// first argument names and writes the results to the second; test_cuda_emulation_pairwise.py has
// the format.
#include "pairwise.cu"

#include <vector>

#include "case.h"
#include "engine/gradient_rows.cu"
#include "engine/pack.cu"
#include "pairwise_gradient.cu"
#include "pairwise_moments.cu"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

enum Operator { kDistance, kMoments, kDistanceBackward, kMomentsBackward };

struct Header {
  int64_t which, anchors, references, dimensions, within_batch, metric, fast, has_self;
  int64_t wanted_items, shared_bytes;
};

void run_distance(const PairwiseRows& rows, std::ofstream& out) {
  std::vector<float> distance(rows.x.rows * rows.references.rows);
  auto memory = memory_of(pairwise_distance_bytes(rows));
  launch_pairwise_distance(rows, distance.data(), memory.data(), nullptr);
  write(out, distance);
}

void run_moments(const Header& h, const PairwiseRows& rows, std::ifstream& in, std::ofstream& out) {
  const auto self = read<int64_t>(in, h.has_self ? h.anchors : 0);
  const auto centre = read<double>(in, 1);
  std::vector<double> first(h.anchors), second(h.anchors);
  auto memory = memory_of(pairwise_moments_bytes(rows));
  launch_pairwise_moments(
      rows, {h.has_self ? self.data() : nullptr, centre.data(), first.data(), second.data()},
      memory.data(), nullptr);
  write(out, first);
  write(out, second);
}

struct Gradients {
  explicit Gradients(const PairwiseRows& rows)
      : x(rows.x.rows * rows.x.columns, kUntouched),
        references(rows.within_batch ? 0 : rows.references.rows * rows.x.columns, kUntouched) {}

  PairwiseGradients view() { return {x.data(), references.data()}; }

  void write_to(std::ofstream& out) const {
    write(out, x);
    write(out, references);
  }

  std::vector<float> x;
  std::vector<float> references;
};

// The upstream gradient is handed over transposed, with the strides that make it whole.
void run_distance_backward(const PairwiseRows& rows, std::ifstream& in, std::ofstream& out) {
  const int64_t columns = rows.references.rows;
  const auto grad = read<float>(in, rows.x.rows * columns);
  const auto distance = read<float>(in, rows.x.rows * columns);
  Gradients gradients(rows);
  auto memory = memory_of(pairwise_distance_gradient_bytes(rows));
  launch_pairwise_distance_gradient(rows, {grad.data(), 1, rows.x.rows},
                                    {distance.data(), columns, 1}, gradients.view(), memory.data(),
                                    nullptr);
  gradients.write_to(out);
}

// The upstream gradients lie beside each other.
void run_moments_backward(const Header& h, const PairwiseRows& rows, std::ifstream& in,
                          std::ofstream& out) {
  const auto self = read<int64_t>(in, h.has_self ? h.anchors : 0);
  const auto centre = read<double>(in, 1);
  const auto grads = read<double>(in, 2 * h.anchors);
  Gradients gradients(rows);
  auto memory = memory_of(pairwise_moments_gradient_bytes(rows));
  launch_pairwise_moments_gradient(rows,
                                   {h.has_self ? self.data() : nullptr, centre.data(), grads.data(),
                                    grads.data() + 1, 2, 2, gradients.view()},
                                   memory.data(), nullptr);
  gradients.write_to(out);
}

void run(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto x = read<float>(in, h.anchors * h.dimensions);
  const auto references = read<float>(in, h.within_batch ? 0 : h.references * h.dimensions);
  PairwiseRows rows{};
  rows.x = any_rows_of(x, h.anchors, h.dimensions);
  rows.references = rows.x;
  if (!h.within_batch) {
    rows.references.data = references.data();
    rows.references.rows = h.references;
  }
  rows.within_batch = h.within_batch != 0;
  rows.metric = static_cast<Metric>(h.metric);
  rows.fast = h.fast != 0;
  rows.shared_bytes = static_cast<int>(h.shared_bytes);
  if (h.wanted_items > 0) {
    rows.wanted_items = static_cast<int>(h.wanted_items);
  }
  if (h.which == kDistance) {
    run_distance(rows, out);
  } else if (h.which == kMoments) {
    run_moments(h, rows, in, out);
  } else if (h.which == kDistanceBackward) {
    run_distance_backward(rows, in, out);
  } else {
    run_moments_backward(h, rows, in, out);
  }
}

}  // namespace

int main(int argc, char** argv) { return run_case<Header>(argc, argv, run); }
