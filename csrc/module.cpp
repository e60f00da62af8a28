// What was built and which instruction set is in use. No tensors pass here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/engine/isa.h"
#include "cpu/peak.h"

namespace {

std::vector<std::string> names(const std::vector<dmlfast::cpu::Isa>& isas, bool supported_only) {
  std::vector<std::string> result;
  for (dmlfast::cpu::Isa isa : isas) {
    if (!supported_only || dmlfast::cpu::processor_has(isa)) {
      result.emplace_back(dmlfast::cpu::isa_name(isa));
    }
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("version") = DMLFAST_VERSION;
  m.attr("compiler") = DMLFAST_COMPILER;
  m.attr("torch_version") = DMLFAST_TORCH_VERSION;
  m.attr("cuda_status") = DMLFAST_CUDA_STATUS;
  m.def("built_cpu_isas", [] { return names(dmlfast::cpu::built_isas(), false); });
  m.def("usable_cpu_isas", [] { return names(dmlfast::cpu::built_isas(), true); });
  m.def("cpu_isa", [] { return std::string(dmlfast::cpu::isa_name(dmlfast::cpu::active_isa())); });
  m.def("cpu_multiply_add", &dmlfast::cpu::multiply_add, pybind11::arg("steps"),
        pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("select_cpu_isa", &dmlfast::cpu::select_isa, pybind11::arg("name"));
}
