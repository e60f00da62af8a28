// The fast search of the family `neighbors`, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/key_task.h"
#include "engine/span.h"

namespace dmlfast::cpu {

// Candidates kept per anchor. More of them inside the error bound send the anchor to the exact
// engine.
constexpr int64_t kWindow = 8;

// Arrays are indexed by the anchor's position in label order, up to the end of its last panel.
struct SearchTask {
  KeyTask keys;
  const float* least;        // keys below it are surely not admissible
  const float* surely;       // keys from here on surely are
  const float* twice_error;  // two error bounds of a key
  // What is found: keys up to `limits` may be the best; those of candidates that found no place
  // are remembered by the least of them.
  float* limits;
  float* lost;
  int32_t* counts;
  float* window_keys;         // [position][kWindow]
  int32_t* window_positions;  // [position][kWindow] in y
};

using SearchFunction = void (*)(const SearchTask& task, Span x, Span y);

// `search`, and without thresholds, for which `least` and `surely` may be null, one of rows packed
// as integers.

namespace baseline {
void search(const SearchTask& task, Span x, Span y);
void search_integers(const SearchTask& task, Span x, Span y);
}  // namespace baseline
namespace avx2 {
void search(const SearchTask& task, Span x, Span y);
void search_integers(const SearchTask& task, Span x, Span y);
}  // namespace avx2
namespace avx512 {
void search(const SearchTask& task, Span x, Span y);
void search_integers(const SearchTask& task, Span x, Span y);
}  // namespace avx512

}  // namespace dmlfast::cpu
