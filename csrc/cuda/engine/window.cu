#include "engine/window.cuh"

namespace dmlfast::cuda {

namespace {

template <class Policy>
void launch(const WalkTask& task, const WindowArguments& arguments, Precision precision,
            int shared_bytes, cudaStream_t stream) {
  const Policy policy(arguments);
  if (precision == Precision::half) {
    launch_walk<Policy, Precision::half>(task, policy, shared_bytes, stream);
  } else {
    launch_walk<Policy, Precision::split>(task, policy, shared_bytes, stream);
  }
}

}  // namespace

void launch_window_walk(const WalkTask& task, const WindowArguments& arguments, WindowKind kind,
                        Precision precision, int shared_bytes, cudaStream_t stream) {
  if (kind == WindowKind::farthest) {
    launch<WindowPolicy<true, false>>(task, arguments, precision, shared_bytes, stream);
  } else if (kind == WindowKind::beyond) {
    launch<WindowPolicy<false, true>>(task, arguments, precision, shared_bytes, stream);
  } else if (kind == WindowKind::several) {
    launch<WindowPolicy<false, false, true>>(task, arguments, precision, shared_bytes, stream);
  } else {
    launch<WindowPolicy<false, false>>(task, arguments, precision, shared_bytes, stream);
  }
}

}  // namespace dmlfast::cuda
