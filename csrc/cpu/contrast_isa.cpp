#include "contrast_isa.h"

#include "engine/tile_walk.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Writes every value out.
class StorePolicy {
 public:
  explicit StorePolicy(const ValueRowsTask& task) : task_(task) {}

  bool is_class_bound() const { return false; }

  PanelRange panels(int64_t, int64_t) const { return {0, task_.references.panel_count}; }

  bool skips(int64_t, int64_t, int64_t) const { return false; }

  void take(int64_t position, int64_t panel, Vector values) {
    const int64_t row = position - task_.first_position;
    double* to = task_.values + (row * task_.references.panel_count + panel) * kPanelRows;
    *reinterpret_cast<LooseVector*>(to) = values;
  }

 private:
  const ValueRowsTask& task_;
};

}  // namespace

void value_rows(const ValueRowsTask& task, int64_t panel_begin, int64_t panel_end) {
  StorePolicy policy(task);
  walk(task.metric, task.anchors, task.references, {panel_begin, panel_end}, policy);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
