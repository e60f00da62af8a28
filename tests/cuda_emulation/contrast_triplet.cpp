// Runs the CUDA kernels of contrast_triplet on the CPU. Reads a case from the file that the first
// argument names and writes the results to the second; test_cuda_emulation_triplet.py has the
// format.
#include "contrast_triplet.cu"

#include <vector>

#include "case.h"
#include "contrast_triplet_bounds.cu"
#include "contrast_triplet_gradient.cu"
#include "engine/class_ranges.cu"
#include "engine/gradient_rows.cu"
#include "engine/pack.cu"
#include "engine/window.cu"
#include "neighbors_select.cuh"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

struct Header {
  int64_t anchors, references, dimensions;
  int64_t metric, positives, has_self, is_fast, is_batch_itself, has_grad;
  // 0 for the usual numbers.
  int64_t most_bounds, wanted_items;
  int64_t shared_bytes;
};

void run(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto margin = read<double>(in, 1);
  const auto x = read<float>(in, h.anchors * h.dimensions);
  const auto references = read<float>(in, h.references * h.dimensions);
  const auto labels = read<int64_t>(in, h.anchors);
  const auto order = read<int64_t>(in, h.anchors);
  const auto reference_labels = read<int64_t>(in, h.references);
  const auto reference_order = read<int64_t>(in, h.references);
  const auto self_index = read<int64_t>(in, h.has_self ? h.anchors : 0);
  const auto upstream = read<float>(in, h.has_grad ? 2 * h.anchors : 0);

  TripletArguments a{};
  a.x = any_rows_of(x, h.anchors, h.dimensions);
  a.labels = labels.data();
  a.order = order.data();
  a.references = any_rows_of(references, h.references, h.dimensions);
  a.reference_labels = reference_labels.data();
  a.reference_order = reference_order.data();
  a.self_index = h.has_self ? self_index.data() : nullptr;
  a.is_fast = h.is_fast;
  a.metric = static_cast<Metric>(h.metric);
  a.positives = static_cast<TripletPositives>(h.positives);
  a.margin = margin[0];
  a.most_bounds = static_cast<int>(h.most_bounds);
  a.wanted_items = static_cast<int>(h.wanted_items);
  if (h.is_batch_itself) {
    a.references = a.x;
    a.reference_labels = a.labels;
    a.reference_order = a.order;
  }
  const int shared_bytes = static_cast<int>(h.shared_bytes);
  std::vector<float> loss(h.anchors, kUntouched);
  std::vector<int64_t> active(h.anchors, kUntouched);
  auto memory = memory_of(triplet_workspace_bytes(a));
  launch_triplet(a, {loss.data(), active.data()}, memory.data(), shared_bytes, nullptr);
  write(out, loss);
  write(out, active);
  if (h.has_grad) {
    std::vector<float> grad_x(h.anchors * h.dimensions, kUntouched);
    std::vector<float> grad_references(h.references * h.dimensions, kUntouched);
    memory = memory_of(triplet_gradient_workspace_bytes(a));
    launch_triplet_gradient(a,
                            {upstream.data(), 2, any_result_of(grad_x, h.dimensions),
                             any_result_of(grad_references, h.dimensions)},
                            memory.data(), shared_bytes, nullptr);
    write(out, grad_x);
    write(out, grad_references);
  }
}

}  // namespace

int main(int argc, char** argv) { return run_case<Header>(argc, argv, run); }
