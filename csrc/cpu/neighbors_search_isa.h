// The fast search of the family `neighbors`, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/search_rows.h"

namespace dmlfast::cpu {

// Candidates kept per anchor. More of them inside the error bound send the anchor to the exact
// engine.
constexpr int64_t kWindow = 8;

struct SearchTask {
  SearchRows x;
  SearchRows y;
  bool symmetric;  // y is x: a tile serves its rows and its columns
  bool same_class;
  float factor;
  const int64_t* self;       // [position in x] position in y that is never a candidate, or -1
  const float* least;        // [position] keys below it are surely not admissible
  const float* surely;       // [position] keys from here on surely are
  const float* twice_error;  // [position] two error bounds of a key
};

// What one thread found for every anchor. Keys up to `limit` may be the best; those of candidates
// that found no place are remembered by the least of them.
struct SearchWindows {
  float* limits;       // [position]
  float* lost;         // [position]
  int32_t* counts;     // [position]
  float* keys;         // [position][kWindow]
  int32_t* positions;  // [position][kWindow] in y
};

// Anchors are walked in groups of this many panels.
constexpr int64_t kSearchGroup = 4;

using SearchFunction = void (*)(const SearchTask&, const SearchWindows&, int64_t group);

namespace baseline {
void search(const SearchTask& task, const SearchWindows& windows, int64_t group);
}
namespace avx2 {
void search(const SearchTask& task, const SearchWindows& windows, int64_t group);
}
namespace avx512 {
void search(const SearchTask& task, const SearchWindows& windows, int64_t group);
}

}  // namespace dmlfast::cpu
