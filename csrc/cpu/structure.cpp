#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "engine/block_schedule.h"
#include "engine/isa.h"
#include "engine/unit_factors.h"
#include "pairwise_isa.h"
#include "structure_checks.h"
#include "structure_pair.h"

namespace dmlfast::cpu {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The loops of plain distances store these, too: they differ in what is packed.
void walk(const StructurePair& pair, const WalkTask& walk, float* distances, const Tensor* grad) {
  const UnitFactors factors(pair.unit());
  DistanceTask task{walk,
                    factors.unit_high,
                    factors.unit_low,
                    factors.packed_high,
                    factors.packed_low,
                    distances,
                    pair.references(),
                    grad == nullptr ? nullptr : static_cast<const float*>(grad->const_data_ptr()),
                    grad == nullptr ? 0 : grad->stride(0),
                    grad == nullptr ? 0 : grad->stride(1)};
  task.walk.distance.near_unit = 1.0;
  const DistanceFunction run = DMLFAST_OF_ISA(pairwise_distances);
  meet_all(task.walk, [&](Span x, Span y) { run(task, x, y); });
}

Tensor structure_distance(Tensor e, Tensor w, std::optional<Tensor> references, bool squared) {
  check_structure(e, w, references);
  const StructurePair pair(e, w, references, squared, false);
  Tensor distance =
      torch::stable::new_empty(e, {pair.anchors(), pair.references()}, ScalarType::Float);
  walk(pair, pair.task(nullptr, nullptr), static_cast<float*>(distance.mutable_data_ptr()),
       nullptr);
  return distance;
}

std::tuple<Tensor, Tensor, Tensor> structure_distance_backward(Tensor grad, Tensor distance,
                                                               Tensor e, Tensor w,
                                                               std::optional<Tensor> references,
                                                               bool squared) {
  check_structure(e, w, references);
  const int64_t columns = references ? references->size(0) : e.size(0);
  check_distance_gradient(grad, distance, e, columns);
  Tensor grad_e = torch::stable::new_empty(e, {e.size(0), e.size(1)});
  Tensor grad_w = torch::stable::new_empty(e, {e.size(0), e.size(1)});
  Tensor grad_references = torch::stable::new_empty(e, {references ? columns : 0, e.size(1)});
  const StructurePair pair(e, w, references, squared, false);
  const StructureGradients gradients(pair);
  walk(pair, gradients.task(), static_cast<float*>(distance.mutable_data_ptr()), &grad);
  // The loops weigh differences y - x: by minus twice the derivative by the square.
  gradients.write(
      squared ? -0.5 : -0.5 / pair.unit(), !references,
      [&](int64_t i) { return gradients.x().has_nan(i); },
      [&](int64_t j) { return gradients.y().has_nan(j); }, grad_e, grad_w, grad_references);
  return {grad_e, grad_w, grad_references};
}

}  // namespace

}  // namespace dmlfast::cpu

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CPU, m) {
  m.impl("structure_distance", TORCH_BOX(&dmlfast::cpu::structure_distance));
  m.impl("structure_distance_backward", TORCH_BOX(&dmlfast::cpu::structure_distance_backward));
}
