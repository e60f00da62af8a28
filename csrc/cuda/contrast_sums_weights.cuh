// What the derivatives of an anchor's sums have in common for all its partners, and what they make
// of the gradients of the bounds.
#pragma once

#include "contrast_sums_parts.cuh"
#include "engine/gradient_walk.cuh"

namespace dmlfast::cuda {

// A side of the anchors, by position, padded to whole tiles. Where e <= limit, the derivative of
// the sum by the distance is, times the upstream gradient,
//   factor                               of a hinge and of a sum,
//   factor * 2^(scale * D - shift)       of a log-sum-exp,
//   factor / (1 + 2^(-scale * D - shift))  of softplus.
struct SideWeights {
  float* limit;
  float* shift;
  float* factor;

  static SideWeights take(Workspace& workspace, int64_t anchors) {
    const int64_t padded = padded_rows(anchors);
    return {workspace.take<float>(padded), workspace.take<float>(padded),
            workspace.take<float>(padded)};
  }
};

constexpr int kSideWeights = 3;

// Results beyond this say their exponents too coarsely.
constexpr float kGreatestResult = 64.0f;

struct WeightArguments {
  SumForm form[kSides];
  double scale[kSides];
  const float* bound[kSides];  // as given
  SumUpstream grad[kSides];
  const float* result[kSides];
  PackedRows x;
  const int64_t* order;
  Split split;  // of the parts
  const SumPart* parts;
  int32_t* is_wanted;  // whether sums are computed again; those of log-sum-exps, if at all
  SideWeights weights[kSides];
  uint8_t* lost;  // by anchor position
};

static __global__ void want_nothing_kernel(int32_t* is_wanted) { *is_wanted = 0; }

// Whether there is a result that is too coarse.
static __global__ void want_sums_kernel(WeightArguments a) {
  bool is_coarse = false;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < a.x.rows; i += gridDim.x * blockDim.x) {
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      const bool has_exponents = a.form[side] == SumForm::logsumexp;
      const float size = has_exponents ? fabsf(a.result[side][i]) : 0.0f;
      is_coarse = is_coarse || (size > kGreatestResult && size < INFINITY);
    }
  }
  if (is_coarse) {
    atomicOr(a.is_wanted, 1);
  }
}

// An anchor's numbers of one side.
struct Weight {
  float limit = NAN;
  float shift = 0.0f;
  float factor = 0.0f;
};

// Of a log-sum-exp, the factor by its sum of powers of 2, relative to 2^shift.
__device__ inline Weight exponential_weight(const WeightArguments& a, int side, int position,
                                            float limit, double factor) {
  const float result = a.result[side][a.order[position]];
  if (result - result != 0.0f) {
    return {};
  }
  if (*a.is_wanted != 0) {
    const SumPart part = join_parts(a.parts, a.split, position, side);
    return part.sum > 0.0 ? Weight{limit, part.greatest, static_cast<float>(factor / part.sum)}
                          : Weight{};
  }
  const double exponent = result * 1.4426950408889634;
  const double shift = rint(exponent);
  return {limit, static_cast<float>(shift), static_cast<float>(factor * exp2(shift - exponent))};
}

template <int kSide>
__device__ inline Weight weight_at(const WeightArguments& a, int position, bool* is_nan) {
  const int64_t anchor = a.order[position];
  const SumForm form = a.form[kSide];
  const float grad = a.grad[kSide].data[anchor * a.grad[kSide].stride];
  if (grad == 0.0f || form == SumForm::none) {
    return {};
  }
  if (is_lost(form, a.bound[kSide], a.x.norm[position], anchor)) {
    *is_nan = true;
    return {};
  }
  const float bound = side_bound(form, kSign<kSide>, a.bound[kSide], anchor);
  switch (form) {
    case SumForm::hinge:
      return {below(bound), 0.0f, -kSign<kSide> * grad};
    case SumForm::softplus:
      return {INFINITY, bound, static_cast<float>(grad * a.scale[kSide])};
    case SumForm::logsumexp:
      return exponential_weight(a, kSide, position, bound, grad * a.scale[kSide]);
    default:
      return {INFINITY, 0.0f, grad};
  }
}

static __global__ void side_weights_kernel(WeightArguments a, int padded) {
  for (int position = blockIdx.x * blockDim.x + threadIdx.x; position < padded;
       position += gridDim.x * blockDim.x) {
    bool is_nan = false;
    Weight weight[kSides];
    if (position < a.x.rows) {
      weight[kPositive] = weight_at<kPositive>(a, position, &is_nan);
      weight[kNegative] = weight_at<kNegative>(a, position, &is_nan);
      a.lost[position] = is_nan ? 1 : 0;
    }
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      a.weights[side].limit[position] = weight[side].limit;
      a.weights[side].shift[position] = weight[side].shift;
      a.weights[side].factor[position] = weight[side].factor;
    }
  }
}

__host__ __device__ inline bool has_bound_gradient(SumForm form) {
  return form == SumForm::hinge || form == SumForm::softplus;
}

// Derivatives by the bounds but for the sign, summed over the partners, by item, row and side.
struct BoundArguments {
  WeightArguments weights;
  Split split;  // of the slopes
  const double* slopes;
  float* grad_bound[kSides];
};

static __global__ void bound_gradients_kernel(BoundArguments a) {
  const WeightArguments& w = a.weights;
  for (int position = blockIdx.x * blockDim.x + threadIdx.x; position < w.x.rows;
       position += gridDim.x * blockDim.x) {
    const int64_t anchor = w.order[position];
    const int64_t first =
        int64_t{position / kTileRows} * a.split.parts * kTileRows + position % kTileRows;
#pragma unroll
    for (int side = 0; side < kSides; ++side) {
      const double grad = w.grad[side].data[anchor * w.grad[side].stride];
      double gradient = 0.0;
      if (has_bound_gradient(w.form[side]) && grad != 0.0) {
        double slope = 0.0;
        for (int part = 0; part < a.split.parts; ++part) {
          slope += a.slopes[(first + int64_t{part} * kTileRows) * kSides + side];
        }
        // Of a hinge, [D - bound]_+ of positives and [bound - D]_+ of negatives.
        const bool falls = w.form[side] == SumForm::hinge && side == kPositive;
        gradient = slope == 0.0 ? 0.0 : (falls ? -grad : grad) * slope;
        gradient =
            is_lost(w.form[side], w.bound[side], w.x.norm[position], anchor) ? NAN : gradient;
      }
      a.grad_bound[side][anchor] = static_cast<float>(gradient);
    }
  }
}

}  // namespace dmlfast::cuda
