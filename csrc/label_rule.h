// Which references an anchor may choose by their labels.
#pragma once

#include <cstdint>

namespace dmlfast {

enum class LabelRule { all, same_class, other_class };

// Internal linkage: sources compiled for different instruction sets must not share a copy.
static inline bool obeys(LabelRule rule, int64_t label, int64_t other) {
  return rule == LabelRule::all || (rule == LabelRule::same_class) == (label == other);
}

}  // namespace dmlfast
