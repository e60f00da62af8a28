#include "engine/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dmlfast::cpu {

namespace {

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) {
    text += text.empty() ? "" : ", ";
    text += isa_name(isa);
  }
  return text;
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> usable;
  for (Isa isa : built_isas()) {
    if (processor_has(isa)) {
      usable.push_back(isa);
    }
  }
  return usable;
}

Isa parse(const std::string& name, const std::string& source) {
  for (Isa isa : usable_isas()) {
    if (name == isa_name(isa)) {
      return isa;
    }
  }
  throw std::invalid_argument(source + ": expected one of " + names(usable_isas()) +
                              " (built and supported by this processor), got '" + name + "'");
}

Isa initial_isa() {
  const char* wanted = std::getenv("DMLFAST_CPU_ISA");
  return wanted == nullptr || *wanted == '\0' ? usable_isas().back()
                                              : parse(wanted, "DMLFAST_CPU_ISA");
}

std::atomic<Isa>& state() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "baseline";
  }
}

std::vector<Isa> built_isas() {
#ifdef DMLFAST_X86
  return {Isa::baseline, Isa::avx2, Isa::avx512};
#else
  return {Isa::baseline};
#endif
}

bool processor_has(Isa isa) {
#ifdef DMLFAST_X86
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    default:
      return true;
  }
#else
  return isa == Isa::baseline;
#endif
}

Isa active_isa() { return state().load(std::memory_order_relaxed); }

void select_isa(const std::string& name) {
  state().store(parse(name, "CPU instruction set"), std::memory_order_relaxed);
}

}  // namespace dmlfast::cpu
