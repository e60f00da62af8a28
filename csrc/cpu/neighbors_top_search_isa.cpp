#include "neighbors_top_search_isa.h"

#include "engine/key_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Keeps the candidates up to a limit, which falls as they grow in number.
class NearPolicy {
 public:
  explicit NearPolicy(const TopSearchTask& task) : task_(task) {}

  MaskPart admits(Part keys, int64_t position) const { return keys <= task_.limits[position]; }

  auto admitted_columns(int64_t position) const {
    const Part limits = load(task_.limits + position);
    return [limits](Part keys) -> MaskPart { return keys <= limits; };
  }

  void offer(int64_t position, int64_t candidate, float key) const {
    int64_t& count = task_.counts[position];
    if (count == task_.capacity) {
      task_.make_room(task_, position);
    }
    if (key <= task_.limits[position]) {
      task_.near[position * task_.capacity + count] = {key, static_cast<int32_t>(candidate)};
      ++count;
    }
  }

 private:
  const TopSearchTask& task_;
};

}  // namespace

void search_top(const TopSearchTask& task, Span x, Span y) {
  NearPolicy policy(task);
  KeyWalk<NearPolicy>(task.keys, policy).walk(x, y);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
