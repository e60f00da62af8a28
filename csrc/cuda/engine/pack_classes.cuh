// Rows packed around the centres of their classes: for work within classes, however tight these are
// and however far from each other.
#pragma once

#include "engine/class_ranges.cuh"
#include "engine/pack.cuh"

namespace dmlfast::cuda {

constexpr int kCentreMembers = 64;  // of a class: their mean is as good a centre as that of all

// The centre of each class of at least two references, and numbers that know no row yet. Blocks
// share the positions, their threads the columns. `ranges` are those of the references.
template <class T>
__global__ void class_centres_kernel(Rows<T> references, const int64_t* order, ClassRanges ranges,
                                     bool has_centre, PackCentre centre, PackScale* scale) {
  if (!centre.is_wanted()) {
    return;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *scale = {INT_MIN, 0, {0.0f, 0.0f, 0.0f, 0.0f, 0.0f}};
  }
  for (int64_t begin = blockIdx.x; begin < references.rows; begin += gridDim.x) {
    if (ranges.begin[begin] != begin) {
      continue;
    }
    if (threadIdx.x == 0) {
      centre.groups.greatest[begin] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    }
    const int64_t members = ranges.end[begin] - begin;
    const int64_t step = (members + kCentreMembers - 1) / kCentreMembers;
    for (int64_t k = threadIdx.x; k < references.columns; k += blockDim.x) {
      double sum = 0.0;
      int64_t count = 0;
      for (int64_t member = 0; has_centre && member < members; member += step) {
        const double value = element(references, order[begin + member], k);
        sum += value - value == 0.0 ? value : 0.0;
        ++count;
      }
      const float mean = count == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(count));
      centre.groups.centre[begin * references.columns + k] = mean - mean == 0.0f ? mean : 0.0f;
    }
  }
}

// Memory of both operands packed by class, and of what their classes have.
struct PackClassesMemory {
  PackPairMemory pair;
  float* centre;
  RowNumbers* greatest;
  ClassRanges own;  // of the references among themselves; unused within a batch

  static PackClassesMemory take(Workspace& workspace, int64_t anchors, int64_t references,
                                int64_t columns, bool within_batch) {
    PackClassesMemory memory{};
    memory.pair = PackPairMemory::take(workspace, anchors, references, columns, within_batch);
    memory.centre = workspace.take<float>(references * columns);
    memory.greatest = workspace.take<RowNumbers>(references);
    if (!within_batch) {
      memory.own.begin = workspace.take<int32_t>(references);
      memory.own.end = workspace.take<int32_t>(references);
    }
    return memory;
  }
};

// Packs both operands by class, if `wanted` on the device is not 0. `labels` are those of the
// references, `ranges` those of the anchors among them, computed already.
template <class T>
PackedPair launch_pack_classes(const Rows<T>& x, const int64_t* order, const Rows<T>& references,
                               const Labels& labels, const ClassRanges& ranges,
                               const int32_t* wanted, bool within_batch, Metric metric,
                               const PackClassesMemory& memory, cudaStream_t stream) {
  const ClassRanges own = within_batch ? ranges : memory.own;
  const PackCentre y_centre{nullptr,
                            {own.begin, memory.centre, memory.greatest},
                            references.rows,
                            references.columns,
                            wanted};
  PackCentre x_centre = y_centre;
  x_centre.groups.begin = ranges.begin;
  if (!within_batch) {
    launch_class_places(labels, labels, nullptr, wanted, {own, nullptr}, stream);
  }
  DMLFAST_LAUNCH((class_centres_kernel<T>), dim3{grid_for(kWantedItems)}, 128, stream, references,
                 labels.order, own, sums_differences(metric), y_centre, memory.pair.scale);
  return launch_pack_centred(x, order, x_centre, references, labels.order, y_centre, within_batch,
                             metric, memory.pair, stream);
}

}  // namespace dmlfast::cuda
