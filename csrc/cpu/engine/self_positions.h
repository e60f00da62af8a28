// Where the anchors themselves stand among the references.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/labelled_rows.h"

namespace dmlfast::cpu {

// Per anchor position the reference position that is the anchor itself, -1 for none; `padded`
// entries, the rest -1. `self_index` holds rows of the references, or is null.
std::vector<int64_t> self_positions(const LabelledRows& anchors, const LabelledRows& references,
                                    const int64_t* self_index, int64_t padded);

}  // namespace dmlfast::cpu
