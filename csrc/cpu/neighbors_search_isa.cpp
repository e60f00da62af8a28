#include "neighbors_search_isa.h"

#include "engine/key_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Keeps a window of candidates inside the error bound of the best admissible key: of all keys, or
// of those beyond a threshold.
template <bool kHasThreshold>
class WindowPolicy {
 public:
  explicit WindowPolicy(const SearchTask& task) : task_(task) {}

  MaskPart admits(Part keys, int64_t position) const {
    const MaskPart mask = keys <= task_.limits[position];
    return kHasThreshold ? mask & (keys >= task_.least[position]) : mask;
  }

  auto admitted_columns(int64_t position) const {
    const Part limits = load(task_.limits + position);
    const Part least = kHasThreshold ? load(task_.least + position) : Part{};
    return [limits, least](Part keys) -> MaskPart {
      return kHasThreshold ? (keys <= limits) & (keys >= least) : keys <= limits;
    };
  }

  void offer(int64_t position, int64_t candidate, float key) const {
    if (key > task_.limits[position]) {
      return;
    }
    if (!kHasThreshold || key >= task_.surely[position]) {
      const float limit = key + task_.twice_error[position];
      if (limit < task_.limits[position]) {
        task_.limits[position] = limit;
      }
    }
    int32_t& count = task_.counts[position];
    if (count == kWindow) {
      prune(position);
    }
    if (count == kWindow) {
      if (key < task_.lost[position]) {
        task_.lost[position] = key;
      }
      return;
    }
    task_.window_keys[position * kWindow + count] = key;
    task_.window_positions[position * kWindow + count] = static_cast<int32_t>(candidate);
    ++count;
  }

 private:
  void prune(int64_t position) const {
    float* keys = task_.window_keys + position * kWindow;
    int32_t* positions = task_.window_positions + position * kWindow;
    int32_t kept = 0;
    for (int32_t i = 0; i < task_.counts[position]; ++i) {
      if (keys[i] <= task_.limits[position]) {
        keys[kept] = keys[i];
        positions[kept] = positions[i];
        ++kept;
      }
    }
    task_.counts[position] = kept;
  }

  const SearchTask& task_;
};

}  // namespace

void search(const SearchTask& task, Span x, Span y) {
  WindowPolicy<true> policy(task);
  KeyWalk<WindowPolicy<true>>(task.keys, policy).walk(x, y);
}

void search_integers(const SearchTask& task, Span x, Span y) {
  WindowPolicy<false> policy(task);
  KeyWalk<WindowPolicy<false>, true>(task.keys, policy).walk(x, y);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
