#include "neighbors_top.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>

#include "engine/isa.h"
#include "engine/matrix.h"
#include "engine/pack.h"
#include "metric_name.h"
#include "neighbors_search.h"
#include "operator_checks.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kGreatestK = 1024;

// Candidates of the anchors that the exact engine serves at a time.
constexpr int64_t kExactBytes = int64_t{1} << 26;

// With fewer references per neighbor there is little that a search could pass over.
constexpr int64_t kReferencesPerNeighbor = 8;

void make_room(const TopTask& task, int64_t position) {
  Neighbor* neighbors = task.neighbors + position * task.capacity;
  std::nth_element(neighbors, neighbors + task.k - 1, neighbors + task.counts[position],
                   IsNearer{});
  task.counts[position] = task.k;
  task.limits[position] = neighbors[task.k - 1].value;
}

// Compares the exact values of all pairs of anchors, some of them at a time.
class ExactTop {
 public:
  ExactTop(const TopProblem& problem, const TopResult& result)
      : problem_(problem),
        result_(result),
        references_(problem.references.rows, problem.references.labels, problem.references.order,
                    problem.references.rows.rows()) {}

  // Positions ascend.
  void run(const std::vector<int64_t>& positions) const {
    const int64_t anchor_bytes = problem_.capacity() * int64_t{sizeof(Neighbor)};
    const int64_t step = std::max<int64_t>(kExactBytes / anchor_bytes, 256);
    const int64_t count = static_cast<int64_t>(positions.size());
    for (int64_t begin = 0; begin < count; begin += step) {
      run_some(positions.data() + begin, std::min(step, count - begin));
    }
  }

 private:
  void run_some(const int64_t* positions, int64_t count) const {
    std::vector<int64_t> order(count);
    std::vector<int64_t> self(count, -1);
    for (int64_t i = 0; i < count; ++i) {
      order[i] = problem_.anchors.order[positions[i]];
      if (problem_.self_index != nullptr) {
        self[i] = problem_.self_index[order[i]];
      }
    }
    // All anchors of a batch that is its own reference set are packed already.
    std::optional<PackedMatrix> packed;
    if (!problem_.anchors.is(problem_.references) || count < problem_.anchors.rows.rows()) {
      packed.emplace(problem_.anchors.rows, problem_.anchors.labels, order.data(), count);
    }
    const int64_t capacity = problem_.capacity();
    std::vector<double> limits(count, kInfinity);
    std::vector<int64_t> counts(count, 0);
    const std::unique_ptr<Neighbor[]> neighbors(new Neighbor[count * capacity]);
    const TopTask task{packed ? packed->view() : references_.view(),
                       references_.view(),
                       problem_.metric,
                       problem_.rule,
                       self.data(),
                       problem_.k,
                       capacity,
                       limits.data(),
                       counts.data(),
                       neighbors.get(),
                       make_room};
    const TopFunction top = DMLFAST_OF_ISA(top);
    torch::stable::parallel_for(0, task.anchors.panel_count, 1, [&](int64_t begin, int64_t end) {
      top(task, begin, end);
      for (int64_t i = begin * kPanelRows; i < std::min(end * kPanelRows, count); ++i) {
        result_.write(positions[i], &neighbors[i * capacity], counts[i]);
      }
    });
  }

  const TopProblem& problem_;
  const TopResult& result_;
  PackedMatrix references_;
};

bool top_search_applies(const TopProblem& problem) {
  return problem.k <= problem.references.rows.rows() / kReferencesPerNeighbor &&
         search_pays(problem.anchors, problem.references, problem.rule == LabelRule::same_class);
}

LabelRule label_rule_of(const std::string& candidates) {
  if (candidates == "all") return LabelRule::all;
  if (candidates == "positives") return LabelRule::same_class;
  STD_TORCH_CHECK(candidates == "negatives",
                  "candidates: expected 'all', 'positives' or 'negatives', got '", candidates, "'");
  return LabelRule::other_class;
}

std::tuple<Tensor, Tensor> neighbors_top(Tensor x, Tensor labels, Tensor order, Tensor references,
                                         Tensor reference_labels, Tensor reference_order,
                                         std::optional<Tensor> self_index, int64_t k,
                                         std::string candidates, std::string metric) {
  check_labelled(x, labels, order, references, reference_labels, reference_order, self_index);
  STD_TORCH_CHECK(k >= 1 && k <= kGreatestK, "k: expected 1 to ", kGreatestK, ", got ", k);
  const TopProblem problem{
      {Matrix(x), labels.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>()},
      {Matrix(references), reference_labels.const_data_ptr<int64_t>(),
       reference_order.const_data_ptr<int64_t>()},
      metric_of(metric),
      label_rule_of(candidates),
      self_index ? self_index->const_data_ptr<int64_t>() : nullptr,
      k};
  Tensor distance = torch::stable::new_empty(x, {x.size(0), k}, distance_dtype(x.scalar_type()));
  Tensor index = torch::stable::new_empty(x, {x.size(0), k}, ScalarType::Long);
  const TopResult result(problem, distance, index);
  std::vector<int64_t> positions;
  if (top_search_applies(problem)) {
    positions = search_top(problem, result);
  } else {
    positions.resize(x.size(0));
    std::iota(positions.begin(), positions.end(), 0);
  }
  if (!positions.empty()) {
    ExactTop(problem, result).run(positions);
  }
  return {distance, index};
}

}  // namespace

int64_t TopProblem::capacity() const {
  return std::max<int64_t>(1, std::min(2 * k + 32, references.rows.rows()));
}

TopResult::TopResult(const TopProblem& problem, Tensor& distance, Tensor& index)
    : problem_(problem),
      returns_double_(distance.scalar_type() == ScalarType::Double),
      distances_(distance.mutable_data_ptr()),
      indices_(static_cast<int64_t*>(index.mutable_data_ptr())) {}

void TopResult::write(int64_t position, Neighbor* candidates, int64_t count) const {
  const int64_t k = problem_.k;
  const int64_t found = std::min(k, count);
  if (found < count) {
    std::nth_element(candidates, candidates + found, candidates + count, IsNearer{});
  }
  std::sort(candidates, candidates + found, IsNearer{});
  const int64_t anchor = problem_.anchors.order[position];
  // An anchor that is not finite and finds too few reports NaN: a loss must not lose it.
  const double missing = found == k || problem_.anchors.rows.is_finite(anchor)
                             ? kInfinity
                             : std::numeric_limits<double>::quiet_NaN();
  for (int64_t n = 0; n < k; ++n) {
    const bool exists = n < found;
    const double distance = exists ? distance_of(problem_.metric, candidates[n].value) : missing;
    if (returns_double_) {
      static_cast<double*>(distances_)[anchor * k + n] = distance;
    } else {
      static_cast<float*>(distances_)[anchor * k + n] = static_cast<float>(distance);
    }
    indices_[anchor * k + n] = exists ? candidates[n].index : -1;
  }
}

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("neighbors_top", TORCH_BOX(&dmlfast::cpu::neighbors_top));
}
