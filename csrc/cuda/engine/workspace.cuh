// Parts of one allocation. Asked without memory it only counts, so that what a launch needs is
// written down once.
#pragma once

#include <cstdint>

namespace dmlfast::cuda {

class Workspace {
 public:
  explicit Workspace(void* memory = nullptr) : memory_(static_cast<unsigned char*>(memory)) {}

  // `count` elements at an address aligned to 16 bytes, as the memory is; null while counting.
  template <class T>
  T* take(int64_t count) {
    unsigned char* const at = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (count * int64_t{sizeof(T)} + 15) / 16 * 16;
    return reinterpret_cast<T*>(at);
  }

  int64_t bytes() const { return bytes_; }

 private:
  unsigned char* memory_;
  int64_t bytes_ = 0;
};

}  // namespace dmlfast::cuda
