// Which spans of rows meet which, in rounds. The tasks of a round share no span: each may add to
// the sums of both its spans, in an order that the numbers of rows alone decide.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "engine/span.h"

namespace dmlfast::cpu {

// Splits rows into at most 32 spans of whole panels; short ones only where there are few rows.
class Spans {
 public:
  static constexpr int64_t kMost = 32;
  static constexpr int64_t kLeastRows = 64;

  explicit Spans(int64_t rows) : rows_(rows) {
    const int64_t even = (rows + kMost - 1) / kMost;
    length_ = (std::max(even, kLeastRows) + 15) / 16 * 16;
    count_ = (rows + length_ - 1) / length_;
  }

  int64_t count() const { return count_; }
  Span operator[](int64_t i) const { return {i * length_, std::min(rows_, (i + 1) * length_)}; }

 private:
  int64_t rows_;
  int64_t length_;
  int64_t count_;
};

// Calls f(i) for all i below a count, by as many threads as there are; whoever is free takes the
// next.
template <class F>
void share(int64_t count, const F& f) {
  const int64_t workers =
      std::min<int64_t>(std::max<int64_t>(1, torch::stable::get_num_threads()), count);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = next++; i < count; i = next++) {
        f(i);
      }
    }
  });
}

// Calls run(span, span) for every span with itself, then for every two of them once.
template <class Run>
void meet_within(const Spans& spans, const Run& run) {
  const int64_t count = spans.count();
  share(count, [&](int64_t i) { run(spans[i], spans[i]); });
  // A round-robin tournament: one place stays, the others rotate; a place past the end rests.
  const int64_t places = count + count % 2;
  const int64_t ring = places - 1;
  for (int64_t round = 0; round < ring; ++round) {
    share(places / 2, [&](int64_t k) {
      const int64_t a = (round + k) % ring;
      const int64_t b = k == 0 ? ring : (round - k + ring) % ring;
      if (std::max(a, b) < count) {
        run(spans[std::min(a, b)], spans[std::max(a, b)]);
      }
    });
  }
}

// Calls run(row span, column span) for all of them.
template <class Run>
void meet_across(const Spans& rows, const Spans& columns, const Run& run) {
  const int64_t fewer = std::min(rows.count(), columns.count());
  const int64_t more = std::max(rows.count(), columns.count());
  for (int64_t round = 0; round < more; ++round) {
    share(fewer, [&](int64_t i) {
      const int64_t other = (i + round) % more;
      if (rows.count() <= columns.count()) {
        run(rows[i], columns[other]);
      } else {
        run(rows[other], columns[i]);
      }
    });
  }
}

// Calls run(row span, column span) for all pairs of a task, each pair once. A task has rows x and
// y, and whether it is symmetric.
template <class Task, class Run>
void meet_all(const Task& task, const Run& run) {
  const Spans rows(task.x.rows);
  if (task.is_symmetric) {
    meet_within(rows, run);
  } else {
    meet_across(rows, Spans(task.y.rows), run);
  }
}

}  // namespace dmlfast::cpu
