// Triplets of every positive, or one, with all negatives, on the float32 engine.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "contrast_triplet.h"
#include "contrast_triplet_isa.h"
#include "engine/labelled_rows.h"
#include "engine/walk_pair.h"

namespace dmlfast::cpu {

// Distances to positives are exact, those to negatives as the float32 engine computes them; which
// triplets are active is decided by exact ones.
class TripletWalk {
 public:
  // Null where another way is needed: for float64 rows, for one negative, for many positives of an
  // anchor, and where a row is infinite. Without a gradient a pair may serve both its rows.
  static std::unique_ptr<TripletWalk> make(const LabelledRows& anchors,
                                           const LabelledRows& references,
                                           const int64_t* self_index, const TripletOptions& options,
                                           bool wants_gradient);

  // (N,) losses and numbers of active triplets.
  void write_losses(torch::stable::Tensor& loss, torch::stable::Tensor& active);

  // Gradients for upstream gradients by anchor.
  void write_gradients(const std::vector<double>& upstream, torch::stable::Tensor& grad_x,
                       torch::stable::Tensor& grad_references);

 private:
  struct Positive {
    int64_t position;  // among the references
    double value;
    double distance;
  };

  TripletWalk(const LabelledRows& anchors, const LabelledRows& references, bool is_symmetric,
              const int64_t* self_index, const TripletOptions& options, int64_t positives);

  // The exact positives of the anchor at a position, by position; one where that is chosen.
  void find_positives(int64_t position, std::vector<Positive>& positives) const;
  void set_bounds();
  double error() const;
  static float exact_distance(const void* walk, int64_t x, int64_t y);
  void run(const GradientRows* x, const GradientRows* y);
  void add_positives(double divisor, const std::vector<double>& upstream, const GradientRows& x,
                     const GradientRows& y) const;
  float* bounds_of(int64_t positive) { return bounds_.data() + positive * pair_.padded_anchors(); }

  TripletOptions options_;
  WalkPair pair_;
  int64_t positives_;  // bounds of an anchor
  std::vector<float> bounds_;
  std::vector<double> losses_;
  std::vector<int64_t> active_;
  std::vector<float> weights_;
  std::vector<int64_t> hits_;
};

}  // namespace dmlfast::cpu
