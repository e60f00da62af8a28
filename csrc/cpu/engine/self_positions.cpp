#include "engine/self_positions.h"

namespace dmlfast::cpu {

std::vector<int64_t> self_positions(const LabelledRows& anchors, const LabelledRows& references,
                                    const int64_t* self_index, int64_t padded) {
  std::vector<int64_t> self(padded, -1);
  if (self_index == nullptr) {
    return self;
  }
  const int64_t count = references.rows.rows();
  std::vector<int64_t> position_of(count);
  for (int64_t j = 0; j < count; ++j) {
    position_of[references.order[j]] = j;
  }
  for (int64_t i = 0; i < anchors.rows.rows(); ++i) {
    const int64_t own = self_index[anchors.order[i]];
    self[i] = own >= 0 && own < count ? position_of[own] : -1;
  }
  return self;
}

}  // namespace dmlfast::cpu
