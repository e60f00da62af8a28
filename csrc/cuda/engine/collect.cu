#include "engine/collect.cuh"

namespace dmlfast::cuda {

void launch_collect_walk(const WalkTask& task, const CollectArguments& arguments,
                         Precision precision, int shared_bytes, cudaStream_t stream) {
  const CollectPolicy policy(arguments);
  if (precision == Precision::half) {
    launch_walk<CollectPolicy, Precision::half>(task, policy, shared_bytes, stream);
  } else {
    launch_walk<CollectPolicy, Precision::split>(task, policy, shared_bytes, stream);
  }
}

}  // namespace dmlfast::cuda
