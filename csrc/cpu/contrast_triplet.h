// The triplets of one anchor, given its distances to all references.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/packed_rows.h"
#include "metric.h"

namespace dmlfast::cpu {

enum class Positives { all, nearest, farthest };
enum class Negatives { all, hardest, semihard };

struct TripletOptions {
  Metric metric;
  Positives positives;
  Negatives negatives;
  double margin;
  bool returns_double;
};

TripletOptions triplet_options(const std::string& metric, const std::string& positives,
                               const std::string& negatives, double margin, bool returns_double);

// Works in O(M log M) time, whatever the number of triplets: with the negatives sorted, those a
// positive is active with are a prefix, and the semi-hard one is found by bisection. One object
// serves the anchors of one thread, one after another.
class TripletRow {
 public:
  TripletRow(const TripletOptions& options, const PackedRows& references);

  // `values` are the anchor's, by reference position; `self` is a row of the references or -1.
  void compute(const double* values, int64_t label, int64_t self);

  double loss() const { return loss_; }
  int64_t active() const { return active_; }

  // Derivatives of the loss by the distances, by reference position; 0 for most.
  void write_weights(double* weights) const;

 private:
  struct Partner {
    double value;
    double distance;  // as it is returned, rounded
    int64_t index;
    int64_t position;
    int64_t triplets;  // active ones that this partner is in
  };

  void collect(const double* values, int64_t label, int64_t self);
  void keep_one_positive();
  void pair_with_all();
  void pair_with_one();

  TripletOptions options_;
  const PackedRows& references_;
  std::vector<Partner> positives_;
  std::vector<Partner> negatives_;  // sorted by value, equal ones by index
  std::vector<int64_t> ends_;
  std::vector<double> sums_;
  double loss_ = 0.0;
  int64_t active_ = 0;
};

}  // namespace dmlfast::cpu
