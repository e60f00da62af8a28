// What programs read of a case and write of its results: anchors and references with labels.
#pragma once

#include <cstdint>
#include <fstream>
#include <vector>

#include "case.h"
#include "neighbors_pairs.h"

namespace dmlfast::cuda {

struct LabelledHeader {
  int64_t anchors, references, dimensions, is_double, metric, has_self;
  int64_t is_batch_itself;  // the references are the anchors, in the same memory
};

// Anchors, references and what belongs to them, and memory for their norms.
template <class T>
struct LabelledCase {
  std::vector<T> x, references;
  std::vector<int64_t> labels, order, reference_labels, reference_order, self_index;
  std::vector<double> norms_x, norms_references;

  LabelledCase(const LabelledHeader& h, std::ifstream& in)
      : x(read<T>(in, h.anchors * h.dimensions)),
        references(read<T>(in, h.references * h.dimensions)),
        labels(read<int64_t>(in, h.anchors)),
        order(read<int64_t>(in, h.anchors)),
        reference_labels(read<int64_t>(in, h.references)),
        reference_order(read<int64_t>(in, h.references)),
        self_index(read<int64_t>(in, h.has_self ? h.anchors : 0)),
        norms_x(h.anchors),
        norms_references(h.references) {}

  // Without results.
  LabelledPairs pairs(const LabelledHeader& h) {
    LabelledPairs a{};
    a.x = any_rows_of(x, h.anchors, h.dimensions);
    a.references = any_rows_of(references, h.references, h.dimensions);
    a.labels = labels.data();
    a.order = order.data();
    a.reference_labels = reference_labels.data();
    a.reference_order = reference_order.data();
    if (h.is_batch_itself) {
      a.references = a.x;
      a.reference_labels = a.labels;
      a.reference_order = a.order;
    }
    a.self_index = h.has_self ? self_index.data() : nullptr;
    a.metric = static_cast<Metric>(h.metric);
    a.norms_x = norms_x.data();
    a.norms_references = norms_references.data();
    return a;
  }
};

// Calls `run` with a value of the rows' type, the header, and the files of the case and the
// results.
template <class Header, class Run>
int run_labelled_case(int argc, char** argv, const Run& run) {
  return run_case<Header>(argc, argv, [&](const Header& h, std::ifstream& in, std::ofstream& out) {
    run_with_type(h.labelled.is_double, [&](auto type) { run(type, h, in, out); });
  });
}

}  // namespace dmlfast::cuda
