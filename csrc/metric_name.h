// Metrics by the name that the operators' schemas carry.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <string>

#include "metric.h"

namespace dmlfast {

inline Metric metric_of(const std::string& name) {
  if (name == "euclidean") return Metric::euclidean;
  if (name == "sqeuclidean") return Metric::sqeuclidean;
  if (name == "cosine") return Metric::cosine;
  STD_TORCH_CHECK(name == "dot",
                  "metric: expected 'euclidean', 'sqeuclidean', 'cosine' or 'dot', got '", name,
                  "'");
  return Metric::dot;
}

}  // namespace dmlfast
