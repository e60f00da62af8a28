// The part of the family `contrast` that is compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/packed_rows.h"
#include "metric.h"

namespace dmlfast::cpu {

// Values of a range of anchors against all references, in label order.
struct ValueRowsTask {
  PackedRows anchors;
  PackedRows references;
  Metric metric;
  int64_t first_position;  // the anchor whose values go to the first row
  double* values;          // [anchor - first_position][references.panel_count * kPanelRows]
};

using ValueRowsFunction = void (*)(const ValueRowsTask&, int64_t panel_begin, int64_t panel_end);

namespace baseline {
void value_rows(const ValueRowsTask& task, int64_t panel_begin, int64_t panel_end);
}
namespace avx2 {
void value_rows(const ValueRowsTask& task, int64_t panel_begin, int64_t panel_end);
}
namespace avx512 {
void value_rows(const ValueRowsTask& task, int64_t panel_begin, int64_t panel_end);
}

}  // namespace dmlfast::cpu
