// Runs the CUDA kernels of the family `clusters` on the CPU. Reads a case from the file that the
// first argument names and writes the results to the second; clusters_emulation.py has the format.
#include <vector>

#include "case.h"
#include "clusters_kmeans.cu"
#include "clusters_means.cu"
#include "clusters_seeds.cu"
#include "engine/class_ranges.cu"
#include "engine/group_order.cu"
#include "engine/pack.cu"
#include "engine/window.cu"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

enum Operator { kMeans, kSeeds, kKMeans };

struct Header {
  int64_t which, is_double, rows, clusters, dimensions, iterations, shared_bytes;
};

// Rows are handed over transposed, with the strides that make them whole.
template <class T>
AnyRows transposed(const std::vector<T>& data, int64_t rows, int64_t columns) {
  return {data.data(), kElementType<T>, rows, columns, 1, rows};
}

template <class T>
void run_means(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto x = read<T>(in, h.rows * h.dimensions);
  const auto index = read<int64_t>(in, h.rows);
  std::vector<T> means(h.clusters * h.dimensions, kUntouched);
  std::vector<int64_t> count(h.clusters, kUntouched);
  ClusterMeans arguments{};
  arguments.x = transposed(x, h.rows, h.dimensions);
  arguments.index = index.data();
  arguments.clusters = h.clusters;
  arguments.means = any_result_of(means, h.dimensions);
  arguments.count = count.data();
  auto memory = memory_of(cluster_means_bytes(arguments));
  launch_cluster_means(arguments, memory.data(), nullptr);
  write(out, means);
  write(out, count);
}

// As many draws as there are clusters.
template <class T>
void run_seeds(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto x = read<T>(in, h.rows * h.dimensions);
  const auto uniform = read<double>(in, h.clusters);
  std::vector<int64_t> index(h.clusters, kUntouched);
  const Seeds arguments{transposed(x, h.rows, h.dimensions), uniform.data(), h.clusters,
                        index.data()};
  auto memory = memory_of(seeds_bytes(arguments));
  launch_seeds(arguments, memory.data(), nullptr);
  write(out, index);
}

template <class T>
void run_kmeans(const Header& h, std::ifstream& in, std::ofstream& out) {
  const auto x = read<T>(in, h.rows * h.dimensions);
  auto centers = read<T>(in, h.clusters * h.dimensions);
  std::vector<int64_t> index(h.rows, kUntouched);
  std::vector<double> history(h.iterations + 1, kUntouched);
  KMeans arguments{};
  arguments.x = transposed(x, h.rows, h.dimensions);
  arguments.clusters = h.clusters;
  arguments.centers = centers.data();
  arguments.iterations = h.iterations;
  arguments.index = index.data();
  arguments.history = history.data();
  arguments.shared_bytes = static_cast<int>(h.shared_bytes);
  auto memory = memory_of(kmeans_bytes(arguments));
  launch_kmeans(arguments, memory.data(), nullptr);
  write(out, centers);
  write(out, index);
  write(out, history);
}

void run(const Header& h, std::ifstream& in, std::ofstream& out) {
  run_with_type(h.is_double != 0, [&](auto type) {
    using T = decltype(type);
    if (h.which == kMeans) {
      run_means<T>(h, in, out);
    } else if (h.which == kSeeds) {
      run_seeds<T>(h, in, out);
    } else {
      run_kmeans<T>(h, in, out);
    }
  });
}

}  // namespace

int main(int argc, char** argv) { return run_case<Header>(argc, argv, run); }
