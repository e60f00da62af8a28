#include "peak.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "engine/isa.h"
#include "peak_isa.h"

namespace dmlfast::cpu {

namespace {}  // namespace

int64_t multiply_add(int64_t steps) {
  const PeakFunction run = DMLFAST_OF_ISA(multiply_add);
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  std::atomic<int64_t> operations{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      float result;
      operations += 2 * steps * run(steps, result);
    }
  });
  return operations;
}

}  // namespace dmlfast::cpu
