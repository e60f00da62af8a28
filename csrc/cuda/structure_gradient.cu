#include "structure_rows.cuh"

namespace dmlfast::cuda {

namespace {

struct RowArguments {
  GradientTask task;
  AnyRows w;                    // of anchors
  const float* of_partners;     // null without
  const uint8_t* lost;          // by row: the gradient is NaN
  const uint8_t* lost_partner;  // the same of its other role; null without
  AnyResult to;
  AnyResult to_w;   // of anchors
  float* partners;  // of references within a batch, instead of `to`
  const int32_t* upstream_exponent;

  __device__ double upstream_unit() const {
    return upstream_exponent == nullptr ? 1.0 : scalbn(1.0, *upstream_exponent);
  }
};

// Units of packed elements, and what a weight is multiplied by in those of the gradient.
struct RowUnits {
  double row;
  double weight;
  double pair;

  __device__ explicit RowUnits(const DistanceTask& task)
      : row(scalbn(1.0, task.weights.scale->rows - kScaledExponent)),
        weight(scalbn(1.0, task.weights.scale->weights - kScaledExponent)),
        pair(weight_unit(task)) {}
};

// A row's element, less the centre, in packed units.
__device__ double packed_element(const DistanceTask& task, int64_t row, int64_t k, double unit) {
  return (element(task.x_rows, row, k) - task.weights.centre[k]) / unit;
}

// A warp a row. Rows that are not finite have no sums: their gradient is 0 unless it is lost.
__global__ void anchor_rows_kernel(RowArguments a) {
  const DistanceTask& task = a.task.distances;
  const RowUnits units(task);
  const int64_t dimensions = task.x_rows.columns;
  for (int row = blockIdx.x * kElementWarps + warp_number(); row < task.x.rows;
       row += gridDim.x * kElementWarps) {
    const PartSums sums(a.task, row);
    const bool is_used = task.x.norm[row] < INFINITY;
    const bool is_lost = a.lost[row] != 0;
    const bool is_lost_partner = a.lost_partner != nullptr && a.lost_partner[row] != 0;
    const double own = sums.weight();
    const double upstream_unit = a.upstream_unit();
    for (int64_t k = lane_number(); k < dimensions; k += 32) {
      double by_e = 0.0;
      double by_w = 0.0;
      if (is_used) {
        const double value = packed_element(task, row, k, units.row);
        const double product = sums.column(dimensions + k);
        const double square = scalbn(sums.column(k), kScaledExponent);
        const double weight = element(a.w, row, k);
        by_e = units.pair * units.row * weight * (value * own - product) + sums.near(k);
        by_w = 0.5 * units.pair * units.row * units.row *
                   (value * (value * own - 2.0 * product) + square) +
               sums.near(dimensions + k);
      }
      if (a.of_partners != nullptr) {
        by_e += a.of_partners[row * dimensions + k];
      }
      store_element(a.to, row, k, is_lost || is_lost_partner ? NAN : by_e * upstream_unit);
      store_element(a.to_w, row, k, is_lost ? NAN : by_w * upstream_unit);
    }
  }
}

__global__ void reference_rows_kernel(RowArguments a) {
  const DistanceTask& task = a.task.distances;
  const RowUnits units(task);
  const int64_t dimensions = task.x_rows.columns;
  for (int row = blockIdx.x * kElementWarps + warp_number(); row < task.x.rows;
       row += gridDim.x * kElementWarps) {
    const PartSums sums(a.task, row);
    const bool is_used = task.x.norm[row] < INFINITY;
    for (int64_t k = lane_number(); k < dimensions; k += 32) {
      double by_y = 0.0;
      if (is_used) {
        const double value = packed_element(task, row, k, units.row);
        const double product = scalbn(sums.column(dimensions + k), kScaledExponent);
        by_y = -units.pair * units.row * units.weight * (2.0 * value * sums.column(k) + product) +
               sums.near(k);
      }
      if (a.partners != nullptr) {
        a.partners[row * dimensions + k] = static_cast<float>(by_y);
      } else {
        store_element(a.to, row, k, a.lost[row] != 0 ? NAN : by_y * a.upstream_unit());
      }
    }
  }
}

RowArguments row_arguments(const StructureRows& rows, const PairwiseWalk& pairs,
                           const StructureSums& memory) {
  RowArguments arguments{};
  arguments.task = gradient_task(pairs, memory.sums);
  arguments.w = rows.w;
  arguments.upstream_exponent = memory.upstream_exponent;
  return arguments;
}

AnyResult result_of(const StructureRows& rows, void* data) {
  return {data, rows.e.type, rows.e.columns};
}

}  // namespace

StructureSums StructureSums::take(Workspace& workspace, const StructureRows& rows) {
  const int64_t anchors = rows.e.rows;
  const int64_t references = rows.references.rows;
  const int of_e = walk_split(anchors, references, rows.wanted_items).items();
  const int of_references = walk_split(references, anchors, rows.wanted_items).items();
  const int64_t sums = int64_t{of_e > of_references ? of_e : of_references} * kTileRows;
  StructureSums memory{};
  memory.pairs = StructureMemory::take(workspace, rows);
  memory.sums.rows = workspace.take<float>(sums * padded_columns(2 * rows.e.columns));
  memory.sums.weights = workspace.take<float>(sums);
  memory.sums.near = workspace.take<float>(sums * padded_columns(2 * rows.e.columns));
  memory.of_partners =
      rows.within_batch ? workspace.take<float>(anchors * rows.e.columns) : nullptr;
  memory.lost_anchors = workspace.take<uint8_t>(anchors);
  memory.lost_references = workspace.take<uint8_t>(references);
  return memory;
}

StructureRows in_gradient_items(StructureRows rows) {
  const int most = wanted_gradient_items(2 * rows.e.columns, 0);
  rows.wanted_items = rows.wanted_items < most ? rows.wanted_items : most;
  return rows;
}

void launch_reference_rows(const StructureRows& rows, const PairwiseWalk& pairs,
                           const StructureSums& memory, const StructureResults& results,
                           cudaStream_t stream) {
  RowArguments arguments = row_arguments(rows, pairs, memory);
  arguments.lost = memory.lost_references;
  arguments.to = result_of(rows, results.references);
  arguments.partners = memory.of_partners;
  DMLFAST_LAUNCH(reference_rows_kernel, element_blocks(int64_t{pairs.walk.x.rows} * 32),
                 kElementThreads, stream, arguments);
}

void launch_anchor_rows(const StructureRows& rows, const PairwiseWalk& pairs,
                        const StructureSums& memory, const StructureResults& results,
                        cudaStream_t stream) {
  RowArguments arguments = row_arguments(rows, pairs, memory);
  arguments.of_partners = memory.of_partners;
  arguments.lost = memory.lost_anchors;
  arguments.lost_partner = rows.within_batch ? memory.lost_references : nullptr;
  arguments.to = result_of(rows, results.e);
  arguments.to_w = result_of(rows, results.w);
  DMLFAST_LAUNCH(anchor_rows_kernel, element_blocks(int64_t{pairs.walk.x.rows} * 32),
                 kElementThreads, stream, arguments);
}

int64_t structure_distance_gradient_bytes(const StructureRows& rows) {
  Workspace workspace;
  StructureSums::take(workspace, in_gradient_items(rows));
  return workspace.bytes();
}

void launch_structure_distance_gradient(const StructureRows& given, const PairMatrix& grad,
                                        const PairMatrix& distance, const StructureResults& results,
                                        void* workspace, cudaStream_t stream) {
  const StructureRows rows = in_gradient_items(given);
  Workspace parts(workspace);
  const StructureSums memory = StructureSums::take(parts, rows);
  const PairwiseWalk pairs = launch_structure_pack(rows, memory.pairs, stream);
  const DistanceGradient of{distance, grad, false, memory.lost_anchors};
  if (rows.references.rows > 0) {
    const PairwiseWalk of_references = exchanged(pairs);
    launch_distance_gradient_walk(of_references, exchanged(of, memory.lost_references),
                                  kStructureIsSplit, memory.sums, rows.shared_bytes, stream);
    launch_reference_rows(rows, of_references, memory, results, stream);
  }
  if (rows.e.rows > 0) {
    launch_distance_gradient_walk(pairs, of, kStructureIsSplit, memory.sums, rows.shared_bytes,
                                  stream);
    launch_anchor_rows(rows, pairs, memory, results, stream);
  }
}

}  // namespace dmlfast::cuda
