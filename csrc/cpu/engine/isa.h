// The instruction set levels of the CPU kernels, and the one in use.
#pragma once

#include <string>
#include <vector>

namespace dmlfast::cpu {

enum class Isa { baseline, avx2, avx512 };

const char* isa_name(Isa isa);

// Levels compiled into this library, lowest first.
std::vector<Isa> built_isas();

// Whether this processor can run a level.
bool processor_has(Isa isa);

// The level the kernels run at: the highest one built that the processor has, unless
// DMLFAST_CPU_ISA or select_isa names another.
Isa active_isa();

// The function of the level in use, of those that each level's sources define.
template <class Function>
Function of_active_isa(Function baseline, Function avx2, Function avx512) {
  switch (active_isa()) {
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    default:
      return baseline;
  }
}

// Other processors have the baseline alone.
#ifdef DMLFAST_X86
#define DMLFAST_OF_ISA(name) of_active_isa(baseline::name, avx2::name, avx512::name)
#else
#define DMLFAST_OF_ISA(name) of_active_isa(baseline::name, baseline::name, baseline::name)
#endif

// Throws std::invalid_argument when the level is unknown, not built or not supported here.
void select_isa(const std::string& name);

}  // namespace dmlfast::cpu
