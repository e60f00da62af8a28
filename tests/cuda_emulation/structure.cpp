// Runs the CUDA kernels of the family `structure` on the CPU. Reads a case from the file that the
// first argument names and writes the results to the second; structure_emulation.py has the format.
#include "structure.cu"

#include <vector>

#include "case.h"
#include "engine/gradient_rows.cu"
#include "engine/pack.cu"
#include "pairwise.cu"
#include "pairwise_gradient.cu"
#include "pairwise_moments.cu"
#include "structure_clusters.cu"
#include "structure_clusters_gradient.cu"
#include "structure_gradient.cu"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

enum Operator { kDistance, kDistanceBackward, kClusters, kClustersBackward };

struct Header {
  int64_t which, anchors, references, dimensions, within_batch, squared;
  int64_t wanted_items, shared_bytes, clusters, ordered;
};

void run_distance(const StructureRows& rows, std::ofstream& out) {
  std::vector<float> distance(rows.e.rows * rows.references.rows);
  auto memory = memory_of(structure_distance_bytes(rows));
  launch_structure_distance(rows, distance.data(), memory.data(), nullptr);
  write(out, distance);
}

struct Results {
  explicit Results(const StructureRows& rows)
      : e(rows.e.rows * rows.e.columns, kUntouched),
        w(rows.e.rows * rows.e.columns, kUntouched),
        references(rows.within_batch ? 0 : rows.references.rows * rows.e.columns, kUntouched) {}

  StructureResults view() { return {e.data(), w.data(), references.data()}; }

  void write_to(std::ofstream& out) const {
    write(out, e);
    write(out, w);
    write(out, references);
  }

  std::vector<float> e;
  std::vector<float> w;
  std::vector<float> references;
};

// The upstream gradient is handed over transposed, with the strides that make it whole.
void run_distance_backward(const StructureRows& rows, std::ifstream& in, std::ofstream& out) {
  const int64_t columns = rows.references.rows;
  const auto grad = read<float>(in, rows.e.rows * columns);
  const auto distance = read<float>(in, rows.e.rows * columns);
  Results results(rows);
  auto memory = memory_of(structure_distance_gradient_bytes(rows));
  launch_structure_distance_gradient(rows, {grad.data(), 1, rows.e.rows},
                                     {distance.data(), columns, 1}, results.view(), memory.data(),
                                     nullptr);
  results.write_to(out);
}

struct ClusterCase {
  ClusterCase(const Header& h, std::ifstream& in)
      : targets(read<double>(in, h.clusters)),
        sharpness(read<double>(in, 1)[0]),
        view{targets.data(), static_cast<int>(h.clusters), sharpness, h.ordered != 0} {}

  std::vector<double> targets;
  double sharpness;
  Clusters view;
};

void run_clusters(const Header& h, const StructureRows& rows, std::ifstream& in,
                  std::ofstream& out) {
  const ClusterCase clusters(h, in);
  const int64_t sums = h.ordered ? h.anchors * h.clusters : 0;
  std::vector<double> loss(h.anchors), mass(sums), moment(sums);
  auto memory = memory_of(structure_clusters_bytes(rows, clusters.view));
  launch_structure_clusters(rows, clusters.view, {loss.data(), mass.data(), moment.data()},
                            memory.data(), nullptr);
  write(out, loss);
  write(out, mass);
  write(out, moment);
}

// The upstream gradients of the losses lie two apart, those by cluster are transposed.
void run_clusters_backward(const Header& h, const StructureRows& rows, std::ifstream& in,
                           std::ofstream& out) {
  const ClusterCase clusters(h, in);
  const int64_t sums = h.ordered ? h.anchors * h.clusters : 0;
  const auto loss = read<double>(in, 2 * h.anchors);
  const auto mass = read<double>(in, sums);
  const auto moment = read<double>(in, sums);
  Results results(rows);
  auto memory = memory_of(structure_clusters_gradient_bytes(rows, clusters.view));
  launch_structure_clusters_gradient(
      rows, clusters.view,
      {loss.data(), 2, mass.data(), {1, h.anchors}, moment.data(), {1, h.anchors}}, results.view(),
      memory.data(), nullptr);
  results.write_to(out);
}

void run(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto e = read<float>(in, h.anchors * h.dimensions);
  const auto w = read<float>(in, h.anchors * h.dimensions);
  const auto references = read<float>(in, h.within_batch ? 0 : h.references * h.dimensions);
  StructureRows rows{};
  rows.e = any_rows_of(e, h.anchors, h.dimensions);
  rows.w = any_rows_of(w, h.anchors, h.dimensions);
  rows.references = rows.e;
  if (!h.within_batch) {
    rows.references = any_rows_of(references, h.references, h.dimensions);
  }
  rows.within_batch = h.within_batch != 0;
  rows.squared = h.squared != 0;
  rows.shared_bytes = static_cast<int>(h.shared_bytes);
  if (h.wanted_items > 0) {
    rows.wanted_items = static_cast<int>(h.wanted_items);
  }
  if (h.which == kDistance) {
    run_distance(rows, out);
  } else if (h.which == kDistanceBackward) {
    run_distance_backward(rows, in, out);
  } else if (h.which == kClusters) {
    run_clusters(h, rows, in, out);
  } else {
    run_clusters_backward(h, rows, in, out);
  }
}

}  // namespace

int main(int argc, char** argv) { return run_case<Header>(argc, argv, run); }
