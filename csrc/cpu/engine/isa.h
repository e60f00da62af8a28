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

// Throws std::invalid_argument when the level is unknown, not built or not supported here.
void select_isa(const std::string& name);

}  // namespace dmlfast::cpu
