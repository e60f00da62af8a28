// Runs the CUDA kernels of the k nearest on the CPU. Reads a case from the file that the first
// argument names and writes the results to the second; test_cuda_emulation_top.py has the format.
#include "neighbors_top.cu"

#include "engine/class_ranges.cu"
#include "engine/collect.cu"
#include "engine/pack.cu"
#include "engine/window.cu"
#include "labelled_case.h"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

struct Header {
  LabelledHeader labelled;
  int64_t rule, k;
  int64_t entry_bytes;    // 0 for the usual
  int64_t searched_with;  // shared memory of a block in a search; 0 for the usual route
};

// By search, whatever the number of pairs; returns how many queries each step left undecided.
std::vector<int64_t> search(const TopArguments& top, int shared_bytes) {
  Workspace counting;
  TopSearchMemory::take(counting, top);
  auto memory = memory_of(counting.bytes());
  launch_pair_norms(top, nullptr);
  launch_search_top(top, memory.data(), shared_bytes, nullptr);
  Workspace workspace(memory.data());
  const int32_t* counts = TopSearchMemory::take(workspace, top).counts;
  return {counts, counts + kLists};
}

const auto run = [](auto type, const Header& h, std::ifstream& in, std::ofstream& out) {
  using T = decltype(type);
  LabelledCase<T> labelled(h.labelled, in);
  std::vector<T> distance(h.labelled.anchors * h.k);
  std::vector<int64_t> index(h.labelled.anchors * h.k);
  TopArguments top{};
  static_cast<LabelledPairs&>(top) = labelled.pairs(h.labelled);
  top.distance = distance.data();
  top.index = index.data();
  top.rule = static_cast<LabelRule>(h.rule);
  top.k = static_cast<int>(h.k);
  if (h.entry_bytes > 0) {
    top.entry_bytes = h.entry_bytes;
  }
  std::vector<int64_t> undecided(kLists);
  if (h.searched_with > 0) {
    undecided = search(top, static_cast<int>(h.searched_with));
  } else {
    auto memory = memory_of(top_memory_bytes(top));
    launch_top(top, memory.data(), 0, nullptr);
  }
  write(out, undecided);
  write(out, distance);
  write(out, index);
};

}  // namespace

int main(int argc, char** argv) { return run_labelled_case<Header>(argc, argv, run); }
