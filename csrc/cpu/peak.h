// The rate of the processor's float32 multiply-add units, for benchmarks.
#pragma once

#include <cstdint>

namespace dmlfast::cpu {

// Makes multiply-adds with all threads of torch for `steps` rounds each, and returns how many
// floating-point operations that was, two for each.
int64_t multiply_add(int64_t steps);

}  // namespace dmlfast::cpu
