#include "neighbors_isa.h"

#include "engine/class_panels.h"
#include "engine/tile_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Keeps the best admissible reference of each anchor; equal values go to the lowest row.
class SelectPolicy {
 public:
  explicit SelectPolicy(const SelectTask& task) : task_(task) {}

  bool is_class_bound() const { return task_.same_class; }

  PanelRange panels(int64_t first, int64_t last) const {
    const PackedRows& references = task_.references;
    if (!task_.same_class) {
      return {0, references.panel_count};
    }
    return class_panels(references, task_.anchors.labels[first], task_.anchors.labels[last]);
  }

  bool skips(int64_t first, int64_t last, int64_t panel) const {
    return !task_.same_class && is_one_class(task_.anchors, first, last, task_.references, panel);
  }

  void take(int64_t position, int64_t panel, Vector values) {
    const Mask same =
        load(task_.references.labels + panel * kPanelRows) == task_.anchors.labels[position];
    const Mask eligible = task_.same_class ? same : ~same;
    const Vector keys = task_.farthest ? -values : values;
    for (int64_t t = 0; t < task_.thresholds; ++t) {
      const int64_t slot = position * task_.thresholds + t;
      const Mask better =
          eligible & (keys <= task_.best_value[slot]) & (values >= task_.lower[slot]);
      if (any(better)) {
        keep(position, panel, slot, keys, better);
      }
    }
  }

 private:
  void keep(int64_t position, int64_t panel, int64_t slot, Vector keys, Mask better) {
    const int64_t self = task_.self_index[position];
    for (int64_t lane = 0; lane < kPanelRows; ++lane) {
      const int64_t index = task_.references.index[panel * kPanelRows + lane];
      if (!better[lane] || index < 0 || index == self) {
        continue;
      }
      const double best = task_.best_value[slot];
      const int64_t best_index = task_.best_index[slot];
      if (keys[lane] < best || (keys[lane] == best && (best_index < 0 || index < best_index))) {
        task_.best_value[slot] = keys[lane];
        task_.best_index[slot] = index;
      }
    }
  }

  const SelectTask& task_;
};

}  // namespace

void select(const SelectTask& task, int64_t panel_begin, int64_t panel_end) {
  SelectPolicy policy(task);
  walk(task.metric, task.anchors, task.references, {panel_begin, panel_end}, policy);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
