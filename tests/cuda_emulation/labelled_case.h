// What programs read of a case and write of its results: anchors and references with labels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "engine/matrix.h"
#include "neighbors_pairs.h"

namespace dmlfast::cuda {

template <class T>
std::vector<T> read(std::ifstream& file, int64_t count) {
  // Exactly as long as needed, so that the address sanitizer sees the first element too many.
  std::vector<T> data(count);
  file.read(reinterpret_cast<char*>(data.data()), count * sizeof(T));
  if (!file) {
    std::fprintf(stderr, "the case file is too short\n");
    std::exit(1);
  }
  return data;
}

template <class T>
void write(std::ofstream& file, const std::vector<T>& data) {
  file.write(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(T));
}

// Doubles, to be aligned; not a number wherever nothing is written.
inline std::vector<double> memory_of(int64_t bytes) {
  return std::vector<double>((bytes + 7) / 8, NAN);
}

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
    const ElementType type = h.is_double ? ElementType::float64 : ElementType::float32;
    LabelledPairs a{};
    a.x = {x.data(), type, h.anchors, h.dimensions, h.dimensions, 1};
    a.references = {references.data(), type, h.references, h.dimensions, h.dimensions, 1};
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
int run_case(int argc, char** argv, const Run& run) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CASE RESULT\n", argv[0]);
    return 1;
  }
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  const Header header = read<Header>(in, 1)[0];
  if (header.labelled.is_double) {
    run(double{}, header, in, out);
  } else {
    run(float{}, header, in, out);
  }
  return 0;
}

}  // namespace dmlfast::cuda
