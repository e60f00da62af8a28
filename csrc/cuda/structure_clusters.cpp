#include "structure_clusters.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "structure_checks.h"
#include "tensor_arguments.h"

namespace dmlfast::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The arguments of both operators, checked.
struct ClusterTensors {
  Tensor e;
  Tensor w;
  Tensor targets;
  double sharpness;
  bool ordered;

  void check() const {
    check_clusters(e, w, targets, sharpness);
    check_count("e: rows", e.size(0));
    check_count("targets", targets.size(0));
  }

  StructureRows rows() const {
    StructureRows rows{};
    rows.e = any_rows_of(e);
    rows.w = any_rows_of(w);
    rows.references = rows.e;
    rows.within_batch = true;
    rows.shared_bytes = shared_bytes_of(e);
    return rows;
  }

  Clusters clusters() const {
    return {targets.const_data_ptr<double>(), static_cast<int>(targets.size(0)), sharpness,
            ordered};
  }

  // Rows of what is by anchor and cluster.
  int64_t cluster_rows() const { return ordered ? e.size(0) : 0; }
};

std::tuple<Tensor, Tensor, Tensor> structure_clusters(Tensor e, Tensor w, Tensor targets,
                                                      double sharpness, bool ordered) {
  const ClusterTensors tensors{e, w, targets, sharpness, ordered};
  tensors.check();
  const torch::stable::accelerator::DeviceGuard guard(e.get_device());
  const int64_t sums = tensors.cluster_rows();
  Tensor loss = torch::stable::new_empty(e, {e.size(0)}, ScalarType::Double);
  Tensor mass = torch::stable::new_empty(e, {sums, targets.size(0)}, ScalarType::Double);
  Tensor moment = torch::stable::new_empty(e, {sums, targets.size(0)}, ScalarType::Double);
  if (e.size(0) > 0) {
    const StructureRows rows = tensors.rows();
    Tensor memory = new_memory(e, structure_clusters_bytes(rows, tensors.clusters()));
    launch_structure_clusters(rows, tensors.clusters(),
                              {static_cast<double*>(loss.mutable_data_ptr()),
                               static_cast<double*>(mass.mutable_data_ptr()),
                               static_cast<double*>(moment.mutable_data_ptr())},
                              memory.mutable_data_ptr(), current_stream(e));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {loss, mass, moment};
}

std::tuple<Tensor, Tensor> structure_clusters_backward(Tensor grad_loss, Tensor grad_mass,
                                                       Tensor grad_moment, Tensor e, Tensor w,
                                                       Tensor targets, double sharpness,
                                                       bool ordered) {
  const ClusterTensors tensors{e, w, targets, sharpness, ordered};
  tensors.check();
  check_cluster_gradients(grad_loss, grad_mass, grad_moment, e, targets, ordered);
  const torch::stable::accelerator::DeviceGuard guard(e.get_device());
  Tensor grad_e = torch::stable::new_empty(e, {e.size(0), e.size(1)});
  Tensor grad_w = torch::stable::new_empty(e, {e.size(0), e.size(1)});
  if (e.size(0) > 0) {
    const StructureRows rows = tensors.rows();
    const ClusterUpstream upstream{
        grad_loss.const_data_ptr<double>(),   grad_loss.stride(0),
        grad_mass.const_data_ptr<double>(),   {grad_mass.stride(0), grad_mass.stride(1)},
        grad_moment.const_data_ptr<double>(), {grad_moment.stride(0), grad_moment.stride(1)}};
    Tensor memory = new_memory(e, structure_clusters_gradient_bytes(rows, tensors.clusters()));
    launch_structure_clusters_gradient(
        rows, tensors.clusters(), upstream,
        {grad_e.mutable_data_ptr(), grad_w.mutable_data_ptr(), nullptr}, memory.mutable_data_ptr(),
        current_stream(e));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {grad_e, grad_w};
}

}  // namespace

}  // namespace dmlfast::cuda

STABLE_TORCH_LIBRARY_IMPL(dmlfast, CUDA, m) {
  m.impl("structure_clusters", TORCH_BOX(&dmlfast::cuda::structure_clusters));
  m.impl("structure_clusters_backward", TORCH_BOX(&dmlfast::cuda::structure_clusters_backward));
}
