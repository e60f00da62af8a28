// Runs the CUDA kernels of soft assignment and of its gradients on the CPU. Reads a case from the
// file that the first argument names and writes the results to the second;
// test_cuda_emulation_clusters_soft.py has the format.
#include "clusters_soft.cu"

#include <vector>

#include "case.h"
#include "clusters_soft_gradient.cu"
#include "engine/class_ranges.cu"
#include "engine/gradient_rows.cu"
#include "engine/pack.cu"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

struct Header {
  int64_t rows, centers, dimensions, metric, is_fast, wanted_items, grad_stride;
  double temperature;
};

void run(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto x = read<float>(in, h.rows * h.dimensions);
  const auto labels = read<int64_t>(in, h.rows);
  const auto order = read<int64_t>(in, h.rows);
  const auto centers = read<float>(in, h.centers * h.dimensions);
  const auto center_labels = read<int64_t>(in, h.centers);
  const auto center_order = read<int64_t>(in, h.centers);
  const auto grad_minimum = read<double>(in, h.rows * h.grad_stride);
  const auto grad_mean = read<double>(in, h.rows * h.grad_stride);

  SoftArguments a{};
  a.x = any_rows_of(x, h.rows, h.dimensions);
  a.labels = labels.data();
  a.order = order.data();
  a.references = any_rows_of(centers, h.centers, h.dimensions);
  a.reference_labels = center_labels.data();
  a.reference_order = center_order.data();
  a.metric = static_cast<Metric>(h.metric);
  a.temperature = h.temperature;
  a.is_fast = h.is_fast != 0;
  a.shared_bytes = 99 * 1024;
  a.wanted_items = static_cast<int>(h.wanted_items);

  std::vector<double> minimum(h.rows, kUntouched);
  std::vector<double> mean(h.rows, kUntouched);
  std::vector<double> mass(h.rows, kUntouched);
  if (h.rows > 0) {
    std::vector<double> workspace = memory_of(clusters_soft_bytes(a));
    launch_clusters_soft(a, {minimum.data(), mean.data(), mass.data()}, workspace.data(), nullptr);
  }
  std::vector<float> grad_x(h.rows * h.dimensions, kUntouched);
  std::vector<float> grad_centers(h.centers * h.dimensions, kUntouched);
  std::vector<double> workspace = memory_of(clusters_soft_gradient_bytes(a));
  launch_clusters_soft_gradient({a,
                                 {grad_minimum.data(), h.grad_stride},
                                 {grad_mean.data(), h.grad_stride},
                                 {minimum.data(), mean.data(), mass.data()},
                                 any_result_of(grad_x, h.dimensions),
                                 any_result_of(grad_centers, h.dimensions)},
                                workspace.data(), nullptr);
  write(out, minimum);
  write(out, mean);
  write(out, mass);
  write(out, grad_x);
  write(out, grad_centers);
}

}  // namespace

int main(int argc, char** argv) { return run_case<Header>(argc, argv, run); }
