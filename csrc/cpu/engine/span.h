// A range of positions.
#pragma once

#include <cstdint>

namespace dmlfast::cpu {

struct Span {
  int64_t begin;
  int64_t end;
};

}  // namespace dmlfast::cpu
