// Pairs of rows that have no distance.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace dmlfast::cpu {

// Where a row of a pair is lost, as one that is not finite is, the sums of its anchor are NaN, and
// the gradients of both rows, unless nothing comes from the anchor.
class LostPairs {
 public:
  // By position: whether anchors and references are lost, the reference that is no partner of an
  // anchor, or -1, and whether something comes from it.
  LostPairs(std::vector<uint8_t> anchors, std::vector<uint8_t> references, const int64_t* self,
            const std::vector<uint8_t>& is_wanted)
      : anchors_(std::move(anchors)),
        references_(std::move(references)),
        self_(self),
        is_wanted_(is_wanted),
        own_(references_.size()),
        own_lost_(references_.size()) {
    for (size_t i = 0; i < anchors_.size(); ++i) {
      const int64_t lost = is_wanted[i] != 0 && anchors_[i] != 0 ? 1 : 0;
      wanted_anchors_ += is_wanted[i];
      lost_anchors_ += lost;
      if (self[i] >= 0) {  // no partner of this reference
        own_[self[i]] += is_wanted[i];
        own_lost_[self[i]] += lost;
      }
    }
    for (uint8_t lost : references_) {
      lost_references_ += lost;
    }
  }

  bool has_anchor(int64_t i) const {
    const int64_t self = self_[i];
    const int64_t partners = static_cast<int64_t>(references_.size()) - (self < 0 ? 0 : 1);
    const int64_t lost = lost_references_ - (self < 0 ? 0 : references_[self]);
    return is_wanted_[i] != 0 && (anchors_[i] != 0 ? partners : lost) > 0;
  }

  bool has_reference(int64_t j) const {
    return references_[j] != 0 ? wanted_anchors_ > own_[j] : lost_anchors_ > own_lost_[j];
  }

 private:
  std::vector<uint8_t> anchors_;
  std::vector<uint8_t> references_;
  const int64_t* self_;
  const std::vector<uint8_t>& is_wanted_;
  std::vector<int64_t> own_;
  std::vector<int64_t> own_lost_;
  int64_t wanted_anchors_ = 0;
  int64_t lost_anchors_ = 0;
  int64_t lost_references_ = 0;
};

}  // namespace dmlfast::cpu
