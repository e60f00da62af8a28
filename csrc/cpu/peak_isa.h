// Multiplications and additions as fast as the processor makes them, for benchmarks; compiled once
// per instruction set level.
#pragma once

#include <cstdint>

namespace dmlfast::cpu {

// Makes `steps` rounds of independent float32 multiply-adds, and returns how many of these a round
// has; `result` keeps the compiler from leaving them out.
using PeakFunction = int64_t (*)(int64_t steps, float& result);

namespace baseline {
int64_t multiply_add(int64_t steps, float& result);
}
namespace avx2 {
int64_t multiply_add(int64_t steps, float& result);
}
namespace avx512 {
int64_t multiply_add(int64_t steps, float& result);
}

}  // namespace dmlfast::cpu
