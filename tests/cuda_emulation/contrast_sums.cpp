// Runs the CUDA kernels of the sums of the family `contrast` and of their gradients on the CPU.
// Reads a case from the file that the first argument names and writes the results to the second;
// contrast_sums_emulation.py has the format.
#include <vector>

#include "case.h"
#include "contrast_sums_forward.cuh"
#include "contrast_sums_gradient.cuh"
#include "engine/class_ranges.cu"
#include "engine/gradient_rows.cu"
#include "engine/pack.cu"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

struct Header {
  int64_t anchors, references, dimensions;
  int64_t metric, within_batch, has_self, is_fast, wanted_items, grad_stride;
  int64_t form[2], has_bound[2];
  double scale[2];
};

constexpr int kSharedBytes = 99 * 1024;

void run(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto x = read<float>(in, h.anchors * h.dimensions);
  const auto labels = read<int64_t>(in, h.anchors);
  const auto order = read<int64_t>(in, h.anchors);
  const int64_t others = h.within_batch ? 0 : h.references;
  const auto y = read<float>(in, others * h.dimensions);
  const auto y_labels = read<int64_t>(in, others);
  const auto y_order = read<int64_t>(in, others);
  const auto self_index = read<int64_t>(in, h.has_self ? h.anchors : 0);
  const std::vector<float> bound[2] = {read<float>(in, h.has_bound[0] ? h.anchors : 0),
                                       read<float>(in, h.has_bound[1] ? h.anchors : 0)};
  const std::vector<float> grad[2] = {read<float>(in, h.anchors * h.grad_stride),
                                      read<float>(in, h.anchors * h.grad_stride)};

  SumArguments a{};
  a.x = any_rows_of(x, h.anchors, h.dimensions);
  a.labels = labels.data();
  a.order = order.data();
  a.within_batch = h.within_batch != 0;
  a.references = a.within_batch ? a.x : any_rows_of(y, h.references, h.dimensions);
  a.reference_labels = a.within_batch ? a.labels : y_labels.data();
  a.reference_order = a.within_batch ? a.order : y_order.data();
  a.self_index = h.has_self ? self_index.data() : nullptr;
  a.is_fast = h.is_fast != 0;
  a.metric = static_cast<Metric>(h.metric);
  a.wanted_items = static_cast<int>(h.wanted_items);
  for (int side = 0; side < 2; ++side) {
    a.form[side] = static_cast<SumForm>(h.form[side]);
    a.scale[side] = h.scale[side];
    a.bound[side] = h.has_bound[side] ? bound[side].data() : nullptr;
  }

  std::vector<float> sum[2] = {std::vector<float>(h.anchors), std::vector<float>(h.anchors)};
  std::vector<int64_t> count[2] = {std::vector<int64_t>(h.anchors),
                                   std::vector<int64_t>(h.anchors)};
  std::vector<double> workspace = memory_of(sums_workspace_bytes(a));
  launch_sums(a, {{sum[0].data(), sum[1].data()}, {count[0].data(), count[1].data()}},
              workspace.data(), kSharedBytes, nullptr);
  SumGradientArguments g{};
  g.pairs = a;
  std::vector<float> grad_x(h.anchors * h.dimensions, kUntouched);
  std::vector<float> grad_y(others * h.dimensions, kUntouched);
  std::vector<float> grad_bound[2] = {std::vector<float>(h.anchors), std::vector<float>(h.anchors)};
  g.grad_x = any_result_of(grad_x, h.dimensions);
  g.grad_references = any_result_of(grad_y, h.dimensions);
  for (int side = 0; side < 2; ++side) {
    g.grad[side] = {grad[side].data(), h.grad_stride};
    g.result[side] = sum[side].data();
    g.grad_bound[side] = grad_bound[side].data();
  }
  std::vector<double> gradient_workspace = memory_of(sums_gradient_workspace_bytes(a));
  launch_sums_gradient(g, gradient_workspace.data(), kSharedBytes, nullptr);

  for (int side = 0; side < 2; ++side) {
    write(out, sum[side]);
    write(out, count[side]);
    write(out, grad_bound[side]);
  }
  write(out, grad_x);
  write(out, grad_y);
}

}  // namespace

int main(int argc, char** argv) { return run_case<Header>(argc, argv, run); }
