#include "neighbors_top_isa.h"

#include "engine/class_panels.h"
#include "engine/tile_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Keeps every reference that may be among the k nearest of an anchor.
class TopPolicy {
 public:
  explicit TopPolicy(const TopTask& task) : task_(task) {}

  bool is_class_bound() const { return task_.rule == LabelRule::same_class; }

  PanelRange panels(int64_t first, int64_t last) const {
    const PackedRows& references = task_.references;
    if (!is_class_bound()) {
      return {0, references.panel_count};
    }
    return class_panels(references, task_.anchors.labels[first], task_.anchors.labels[last]);
  }

  bool skips(int64_t first, int64_t last, int64_t panel) const {
    return task_.rule == LabelRule::other_class &&
           is_one_class(task_.anchors, first, last, task_.references, panel);
  }

  void take(int64_t position, int64_t panel, Vector values) {
    const Mask wanted = values <= task_.limits[position];  // not where a value is NaN
    if (any(wanted)) {
      keep(position, panel, values, wanted);
    }
  }

 private:
  void keep(int64_t position, int64_t panel, Vector values, Mask wanted) {
    const PackedRows& references = task_.references;
    const int64_t label = task_.anchors.labels[position];
    const int64_t self = task_.self_index[position];
    int64_t& count = task_.counts[position];
    for (int64_t lane = 0; lane < kPanelRows; ++lane) {
      const int64_t column = panel * kPanelRows + lane;
      const int64_t index = references.index[column];
      if (!wanted[lane] || index < 0 || index == self ||
          !obeys(task_.rule, label, references.labels[column])) {
        continue;
      }
      if (count == task_.capacity) {
        task_.make_room(task_, position);
      }
      if (values[lane] <= task_.limits[position]) {
        task_.neighbors[position * task_.capacity + count] = {values[lane], index};
        ++count;
      }
    }
  }

  const TopTask& task_;
};

}  // namespace

void top(const TopTask& task, int64_t panel_begin, int64_t panel_end) {
  TopPolicy policy(task);
  walk(task.metric, task.anchors, task.references, {panel_begin, panel_end}, policy);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
