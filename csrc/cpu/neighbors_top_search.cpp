#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "engine/block_schedule.h"
#include "engine/isa.h"
#include "engine/search_pair.h"
#include "engine/self_positions.h"
#include "neighbors_top.h"
#include "neighbors_top_search_isa.h"

namespace dmlfast::cpu {

namespace {

constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();

// Candidates of an anchor whose exact values are summed side by side.
constexpr int64_t kTogether = 4;

// An anchor whose full array keeps all but fewer candidates than this is left to the exact engine.
constexpr int64_t kLeastRoom = 16;

// Lowers the limit of an anchor to what its keys so far allow, and drops the keys above it.
void tighten(const TopSearchTask& task, int64_t position) {
  NearKey* begin = task.near + position * task.capacity;
  NearKey* end = begin + task.counts[position];
  if (task.counts[position] <= task.k) {
    return;
  }
  NearKey* kth = begin + task.k - 1;
  std::nth_element(begin, kth, end,
                   [](const NearKey& a, const NearKey& b) { return a.key < b.key; });
  const float limit = kth->key + task.twice_error[position];
  end = std::partition(kth + 1, end, [limit](const NearKey& near) { return near.key <= limit; });
  task.limits[position] = limit;
  task.counts[position] = end - begin;
}

void make_room(const TopSearchTask& task, int64_t position) {
  tighten(task, position);
  if (task.counts[position] > task.capacity - kLeastRoom) {
    task.limits[position] = -kFloatInfinity;
    task.counts[position] = task.capacity;
  }
}

// Sums of terms of a row and others, each over the dimensions in ascending order: independent of
// each other, they hide the latency of an addition.
template <class F>
void add_up(const double* row, const double* others, int64_t dimensions, double (&sums)[kTogether],
            const F& term) {
  static_assert(kTogether == 4, "as many sums as are written out");
  double first = 0.0;
  double second = 0.0;
  double third = 0.0;
  double fourth = 0.0;
  for (int64_t k = 0; k < dimensions; ++k) {
    first += term(row[k], others[k]);
    second += term(row[k], others[dimensions + k]);
    third += term(row[k], others[2 * dimensions + k]);
    fourth += term(row[k], others[3 * dimensions + k]);
  }
  sums[0] = first;
  sums[1] = second;
  sums[2] = third;
  sums[3] = fourth;
}

class TopSearch {
 public:
  TopSearch(const TopProblem& problem, const SearchPair& rows, const TopResult& result)
      : problem_(problem), rows_(rows), result_(result) {}

  // Returns the positions that stay undecided.
  std::vector<int64_t> run() {
    prepare();
    walk();
    const int64_t count = rows_.x().rows();
    std::vector<uint8_t> undecided(count, 0);
    torch::stable::parallel_for(0, count, 64,
                                [&](int64_t begin, int64_t end) { decide(begin, end, undecided); });
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < count; ++i) {
      if (undecided[i] != 0) {
        positions.push_back(i);
      }
    }
    return positions;
  }

 private:
  void prepare() {
    const SearchRows& x = rows_.x().view();
    const int64_t padded = x.panel_count * kSearchPanelRows;
    const int64_t capacity = problem_.capacity();
    twice_error_.assign(padded, 0.0f);
    limits_.assign(padded, -kFloatInfinity);
    counts_.assign(padded, 0);
    near_.reset(new NearKey[x.rows * capacity]);
    self_ = self_positions(problem_.anchors, problem_.references, problem_.self_index, padded);
    for (int64_t i = 0; i < x.rows; ++i) {
      // A row of NaN has keys of NaN, which compare with nothing; as an anchor it finds nothing.
      if (!std::isnan(rows_.x().norm(i))) {
        limits_[i] = kFloatInfinity;
        twice_error_[i] = rounded_up(2.0 * rows_.error(i));
      }
    }
    task_ = {{x, rows_.y().view(), rows_.is_symmetric(), problem_.rule,
              sums_differences(problem_.metric) ? -2.0f : -1.0f, self_.data()},
             twice_error_.data(),
             problem_.k,
             capacity,
             limits_.data(),
             counts_.data(),
             near_.get(),
             make_room};
  }

  void walk() const {
    const TopSearchFunction search = DMLFAST_OF_ISA(search_top);
    meet_all(task_.keys, [&](Span x, Span y) { search(task_, x, y); });
  }

  void decide(int64_t begin, int64_t end, std::vector<uint8_t>& undecided) const {
    const int64_t dimensions = problem_.anchors.rows.columns();
    std::vector<double> row(dimensions);
    std::vector<double> others(kTogether * dimensions);
    std::vector<Neighbor> candidates(task_.capacity);
    for (int64_t i = begin; i < end; ++i) {
      if (counts_[i] == task_.capacity && limits_[i] == -kFloatInfinity) {
        undecided[i] = 1;
        continue;
      }
      tighten(task_, i);
      problem_.anchors.rows.read_row(problem_.anchors.order[i], row.data());
      for (int64_t first = 0; first < counts_[i]; first += kTogether) {
        fill_values(i, first, row.data(), others.data(), candidates.data());
      }
      result_.write(i, candidates.data(), counts_[i]);
    }
  }

  // The exact values of an anchor's candidates [first, first + kTogether).
  void fill_values(int64_t i, int64_t first, const double* row, double* others,
                   Neighbor* candidates) const {
    const int64_t dimensions = problem_.anchors.rows.columns();
    const int64_t count = std::min(kTogether, counts_[i] - first);
    const NearKey* near = task_.near + i * task_.capacity + first;
    for (int64_t c = 0; c < count; ++c) {
      problem_.references.rows.read_row(problem_.references.order[near[c].position],
                                        others + c * dimensions);
    }
    // Past the count are rows that an earlier call left: their sums are not used.
    double sums[kTogether];
    if (sums_differences(problem_.metric)) {
      add_up(row, others, dimensions, sums, [](double a, double b) { return (a - b) * (a - b); });
    } else {
      add_up(row, others, dimensions, sums, [](double a, double b) { return a * b; });
    }
    const bool cosine = problem_.metric == Metric::cosine;
    for (int64_t c = 0; c < count; ++c) {
      const int64_t position = near[c].position;
      candidates[first + c] = {
          value_of(problem_.metric, sums[c], cosine ? rows_.x().own_norm(i) : 0.0,
                   cosine ? rows_.y().own_norm(position) : 0.0),
          problem_.references.order[position]};
    }
  }

  const TopProblem& problem_;
  const SearchPair& rows_;
  const TopResult& result_;
  TopSearchTask task_{};
  std::vector<float> twice_error_;
  std::vector<float> limits_;
  std::vector<int64_t> counts_;
  std::vector<int64_t> self_;
  std::unique_ptr<NearKey[]> near_;
};

}  // namespace

std::vector<int64_t> search_top(const TopProblem& problem, const TopResult& result) {
  SearchPair rows(problem.anchors, problem.references, problem.metric,
                  problem.rule == LabelRule::same_class);
  if (!rows.is_searchable()) {
    std::vector<int64_t> positions(problem.anchors.rows.rows());
    std::iota(positions.begin(), positions.end(), 0);
    return positions;
  }
  rows.pack(false);
  return TopSearch(problem, rows, result).run();
}

}  // namespace dmlfast::cpu
