// The fast search of the k nearest references, compiled once per instruction set level.
#pragma once

#include <cstdint>

#include "engine/key_task.h"
#include "engine/span.h"

namespace dmlfast::cpu {

struct NearKey {
  float key;
  int32_t position;  // among the references
};

// Arrays are indexed by the anchor's position in label order, up to the end of its last panel.
struct TopSearchTask {
  KeyTask keys;
  const float* twice_error;  // [position] two error bounds of a key
  int64_t k;
  int64_t capacity;  // more than k, or the number of references
  float* limits;     // [position] in and out: no greater key can belong to the k nearest
  int64_t* counts;   // [position] in and out
  NearKey* near;     // [position][capacity]
  // Lowers the limit of an anchor whose array is full, and leaves the keys up to it; to -inf where
  // these are too many, and then leaves the array full. Compiled once for all levels.
  void (*make_room)(const TopSearchTask&, int64_t position);
};

using TopSearchFunction = void (*)(const TopSearchTask& task, Span x, Span y);

namespace baseline {
void search_top(const TopSearchTask& task, Span x, Span y);
}
namespace avx2 {
void search_top(const TopSearchTask& task, Span x, Span y);
}
namespace avx512 {
void search_top(const TopSearchTask& task, Span x, Span y);
}

}  // namespace dmlfast::cpu
