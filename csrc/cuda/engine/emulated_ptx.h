// The twins of ptx.cuh for the emulation.
#pragma once

#include "engine/launch.cuh"

namespace dmlfast::cuda {

using Half = _Float16;

inline Half to_half(float value) { return static_cast<Half>(value); }
inline float to_float(Half value) { return static_cast<float>(value); }

inline uint32_t pack_halves(float first, float second) {
  const Half pair[2] = {to_half(first), to_half(second)};
  uint32_t word;
  std::memcpy(&word, pair, sizeof word);
  return word;
}

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

inline float divide(float a, float b) { return a / std::fmax(b, 0x1p-126f); }
template <int kSteps>
void hold_operands(uint32_t (&)[kSteps][4]) {}

inline float square_root(float value) { return std::sqrt(value); }
inline float exponential2(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }

inline unsigned thread_anew() { return threadIdx.x; }

inline void copy_async(void* to, const void* from, bool exists) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      (exists && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    std::fprintf(stderr, "copy_async: an address is not aligned to 16 bytes\n");
    std::abort();
  }
  emulation::Block::current().copy_later(to, exists ? from : nullptr);
}

inline void commit_copies() { emulation::Block::current().commit_copies(); }

template <int kPending>
inline void wait_copies() {
  emulation::Block::current().wait_copies(kPending);
}

// Lane l's part of matrix m is elements 2(l % 4) and 2(l % 4) + 1 of its row l / 4; transposed, of
// its column l / 4.
inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed) {
  emulation::Block& block = emulation::Block::current();
  uint32_t words[4];  // the row that this lane names
  std::memcpy(words, row, 16);
  const auto* rows = block.exchange(words);
  const unsigned group = block.lane() / 4;
  const unsigned pair = block.lane() % 4;
  for (unsigned m = 0; m < 4; ++m) {
    if (!transposed) {
      to[m] = rows[8 * m + group][pair];
      continue;
    }
    Half column[2];
    for (unsigned k = 0; k < 2; ++k) {
      Half values[8];
      std::memcpy(values, rows[8 * m + 2 * pair + k], sizeof values);
      column[k] = values[group];
    }
    std::memcpy(&to[m], column, sizeof to[m]);
  }
}

inline void load_matrices(uint32_t (&to)[4], const void* row) { load_matrices(to, row, false); }

inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  load_matrices(to, row, true);
}

inline void multiply_matrices(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4],
                              uint32_t b0, uint32_t b1) {
  emulation::Block& block = emulation::Block::current();
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto* lanes = block.exchange(words);
  const unsigned group = block.lane() / 4;
  const unsigned pair = block.lane() % 4;
  float* const results[2][2] = {{&d0, &d1}, {&d2, &d3}};
  for (unsigned row = 0; row < 2; ++row) {
    for (unsigned column = 0; column < 2; ++column) {
      float sum = *results[row][column];
      for (unsigned k = 0; k < 16; k += 2) {
        Half x[2];
        Half y[2];
        const unsigned from = k % 8 / 2;
        std::memcpy(x, &lanes[4 * group + from][row + k / 8 * 2], sizeof x);
        std::memcpy(y, &lanes[4 * (2 * pair + column) + from][4 + k / 8], sizeof y);
        sum += to_float(x[0]) * to_float(y[0]) + to_float(x[1]) * to_float(y[1]);
      }
      *results[row][column] = sum;
    }
  }
}

}  // namespace dmlfast::cuda

#include "engine/emulated_group_products.h"
