// Runs the CUDA kernels of the family `neighbors` on the CPU. Reads a case from the file that the
// first argument names and writes the results to the second; test_cuda_emulation.py has the format.
#include <utility>
#include <vector>

#include "case.h"
#include "engine/class_ranges.cu"
#include "engine/pack.cu"
#include "engine/window.cu"
#include "neighbors_gradient.cuh"
#include "neighbors_select.cuh"

namespace {

using namespace dmlfast;
using namespace dmlfast::cuda;

struct Header {
  int64_t anchors, references, dimensions, thresholds;
  int64_t is_double, metric, same_class, farthest, has_self, has_beyond;
  // Items of work to divide into, 0 for the usual number; the length of a list of queries to be
  // decided alone, -1 for all queries; how many of the list count.
  int64_t wanted_items, listed, counted;
  int64_t is_batch_itself, has_grad;
  // Shared memory of a block in a search; 0 where none is asked for.
  int64_t searched_with;
};

// By search, whatever the number of pairs; returns how many queries each level left undecided.
template <class T>
std::vector<int64_t> search(const Header& h, const SelectArguments<T>& arguments) {
  const bool within_batch = is_within_batch(arguments);
  const Queries queries = all_queries(arguments.slots());
  const int shared_bytes = static_cast<int>(h.searched_with);
  const auto take = [&](void* memory) {
    Workspace workspace(memory);
    const int32_t* counts =
        h.same_class ? ClassSelectMemory::take(workspace, arguments, queries, true).search.counts
                     : SearchSelectMemory::take(workspace, arguments, within_batch).search.counts;
    return std::pair(counts, workspace.bytes());
  };
  auto memory = memory_of(take(nullptr).second);
  if (arguments.metric == Metric::cosine) {
    launch_norms(arguments.x, arguments.norms_x, nullptr);
    launch_norms(arguments.references, arguments.norms_references, nullptr);
  }
  if (h.same_class) {
    launch_same_class<T, T>(arguments, queries, true, memory.data(), shared_bytes, nullptr);
  } else {
    launch_search_select<T, T>(arguments, within_batch, memory.data(), shared_bytes, nullptr);
  }
  const int32_t* counts = take(memory.data()).first;
  return {counts[0], counts[1]};
}

template <class T>
void select_queries(const Header& h, const SelectArguments<T>& arguments,
                    const std::vector<int32_t>& list) {
  const int32_t count = static_cast<int32_t>(h.counted);
  Queries queries = all_queries(arguments.slots());
  if (h.listed >= 0) {
    queries = {list.data(), &count, static_cast<int>(h.listed)};
  }
  if (h.wanted_items > 0) {
    queries.wanted_items = static_cast<int>(h.wanted_items);
  }
  const bool by_class = h.same_class && h.listed < 0;
  Workspace counting;
  if (by_class) {
    ClassSelectMemory::take(counting, arguments, queries, false);
  } else {
    counting.take<unsigned char>(exact_workspace_bytes(queries));
  }
  auto workspace = memory_of(counting.bytes());
  if (h.wanted_items == 0 && h.listed < 0) {
    launch_select(arguments, workspace.data(), 0, nullptr);
    return;
  }
  if (arguments.metric == Metric::cosine) {
    launch_norms(arguments.x, arguments.norms_x, nullptr);
    launch_norms(arguments.references, arguments.norms_references, nullptr);
  }
  if (by_class) {
    launch_same_class<T, T>(arguments, queries, false, workspace.data(), 0, nullptr);
  } else {
    launch_exact_select<T, T>(arguments, queries, workspace.data(), nullptr);
  }
}

template <class T>
void differentiate(const Header& h, const SelectArguments<T>& select, std::ifstream& in,
                   std::ofstream& out) {
  const int64_t slots = h.anchors * h.thresholds;
  const auto grad = read<T>(in, slots);
  const auto chosen = read<int64_t>(in, slots);
  const auto slot_order = read<int64_t>(in, slots);
  std::vector<double> factors(slots), own_x(slots), own_other(slots);
  std::vector<int64_t> starts(h.references + 1);
  std::vector<T> grad_x(h.anchors * h.dimensions), grad_references(h.references * h.dimensions);
  GradientArguments<T> gradient{};
  gradient.x = select.x;
  gradient.references = select.references;
  if constexpr (sizeof(T) == sizeof(double)) {
    gradient.grad_double = rows_of(grad, h.anchors, h.thresholds);
  } else {
    gradient.grad_float = rows_of(grad, h.anchors, h.thresholds);
  }
  gradient.index = chosen.data();
  gradient.slot_order = slot_order.data();
  gradient.thresholds = static_cast<int>(h.thresholds);
  gradient.metric = select.metric;
  gradient.starts = starts.data();
  gradient.factors = factors.data();
  gradient.own_x = own_x.data();
  gradient.own_other = own_other.data();
  gradient.grad_x = grad_x.data();
  gradient.grad_references = grad_references.data();
  launch_select_gradient(gradient, nullptr);
  write(out, grad_x);
  write(out, grad_references);
}

template <class T>
void run_of(const Header& h, std::ifstream& in, std::ofstream& out) {
  const int64_t slots = h.anchors * h.thresholds;
  const auto x = read<T>(in, h.anchors * h.dimensions);
  const auto references = read<T>(in, h.references * h.dimensions);
  const auto labels = read<int64_t>(in, h.anchors);
  const auto order = read<int64_t>(in, h.anchors);
  const auto reference_labels = read<int64_t>(in, h.references);
  const auto reference_order = read<int64_t>(in, h.references);
  const auto self_index = read<int64_t>(in, h.has_self ? h.anchors : 0);
  const auto beyond = read<double>(in, h.has_beyond ? slots : 0);
  const auto list = read<int32_t>(in, h.listed > 0 ? h.listed : 0);

  std::vector<T> distance(slots, kUntouched);
  std::vector<int64_t> index(slots, kUntouched);
  std::vector<double> norms_x(h.anchors), norms_references(h.references);
  SelectArguments<T> select{};
  select.x = rows_of(x, h.anchors, h.dimensions);
  select.references = rows_of(references, h.references, h.dimensions);
  select.labels = labels.data();
  select.order = order.data();
  select.reference_labels = reference_labels.data();
  select.reference_order = reference_order.data();
  select.self_index = h.has_self ? self_index.data() : nullptr;
  select.beyond = h.has_beyond ? beyond.data() : nullptr;
  select.thresholds = h.thresholds;
  select.metric = static_cast<Metric>(h.metric);
  select.same_class = h.same_class;
  select.farthest = h.farthest;
  select.norms_x = norms_x.data();
  select.norms_references = norms_references.data();
  select.distance = distance.data();
  select.index = index.data();
  if (h.is_batch_itself) {
    select.references = select.x;
    select.reference_labels = select.labels;
    select.reference_order = select.order;
  }
  if (h.searched_with > 0) {
    write(out, search(h, select));
  } else {
    select_queries(h, select, list);
  }
  write(out, distance);
  write(out, index);
  if (h.has_grad) {
    differentiate(h, select, in, out);
  }
}

void run(const Header& h, std::ifstream& in, std::ofstream& out) {
  run_with_type(h.is_double, [&](auto type) { run_of<decltype(type)>(h, in, out); });
}

}  // namespace

int main(int argc, char** argv) { return run_case<Header>(argc, argv, run); }
