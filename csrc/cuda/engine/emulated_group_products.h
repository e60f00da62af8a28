// The twins of the group products of ptx.cuh: descriptors are taken apart, and operands are read
// from where they say.
#pragma once

#include "engine/emulated_ptx.h"

namespace dmlfast::cuda {

constexpr bool kHasGroupProducts = emulation::kEmulatesHopper;

inline uint32_t shared_address(const void* address) {
  return emulation::Block::current().shared_address(address);
}

inline void publish_copies() { emulation::Block::current().publish_copies(); }
inline void begin_products() { emulation::Block::current().begin_products(); }
inline void end_products() { emulation::Block::current().end_products(); }

template <int kColumns>
inline void hold_sums(float (&)[2][kColumns]) {}

// A matrix of halves in shared memory.
class DescribedMatrix {
 public:
  explicit DescribedMatrix(uint64_t descriptor)
      : start_(offset(descriptor)),
        leading_(offset(descriptor >> 16)),
        stride_(offset(descriptor >> 32)) {
    // Chunks permuted over 128 bytes, in blocks that begin at multiples of 1024.
    constexpr uint64_t kOther =
        ~(uint64_t{0x3fff} | uint64_t{0x3fff} << 16 | uint64_t{0x3fff} << 32);
    emulation::Block::require((descriptor & kOther) == uint64_t{1} << 62,
                              "a matrix descriptor of a kind that is not emulated");
  }

  // Lines are rows.
  float of_rows(unsigned row, unsigned k) const {
    return half_at(row / 8 * stride_ + row % 8 * 128 + 2 * k);
  }
  // Lines are steps along the sum.
  float of_steps(unsigned row, unsigned k) const {
    return half_at(row / 64 * leading_ + k / 8 * stride_ + k % 8 * 128 + row % 64 * 2);
  }

 private:
  static uint32_t offset(uint64_t bits) { return static_cast<uint32_t>(bits & 0x3fff) << 4; }

  float half_at(uint32_t bytes) const {
    const uint32_t address = start_ + bytes;
    const uint32_t permuted = address ^ (address >> 7 & 7) << 4;
    Half value;
    std::memcpy(&value, emulation::Block::current().published(permuted), sizeof value);
    return to_float(value);
  }

  uint32_t start_;
  uint32_t leading_;
  uint32_t stride_;
};

// All threads of the group must name the same matrices.
inline void agree_in_group(uint64_t a, uint64_t b) {
  const uint32_t words[4] = {static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32),
                             static_cast<uint32_t>(b), static_cast<uint32_t>(b >> 32)};
  const auto* all = emulation::Block::current().exchange_in_group(words);
  for (unsigned thread = 0; thread < emulation::kWarpGroup; ++thread) {
    emulation::Block::require(std::memcmp(all[thread], words, sizeof words) == 0,
                              "threads of a group name different matrices");
  }
}

// Adds the product of this thread's two rows of a and its columns of b.
template <int kColumns, class Element>
inline void add_products(float (&d)[2][kColumns], const float (&a)[2][16], const Element& element) {
  for (unsigned j = 0; j < kColumns; ++j) {
    const unsigned column = j / 2 * 8 + emulation::Block::current().lane() % 4 * 2 + j % 2;
    float b[16];
    for (unsigned k = 0; k < 16; ++k) {
      b[k] = element(column, k);
    }
    for (unsigned slot = 0; slot < 2; ++slot) {
      for (unsigned k = 0; k < 16; k += 2) {
        d[slot][j] += a[slot][k] * b[k] + a[slot][k + 1] * b[k + 1];
      }
    }
  }
}

template <bool kAdds, int kColumns>
inline void clear_unless_adds(float (&d)[2][kColumns]) {
  if (!kAdds) {
    std::fill_n(&d[0][0], 2 * kColumns, 0.0f);
  }
}

template <bool kAdds>
inline void multiply_group(float (&d)[2][32], uint64_t a, uint64_t b) {
  emulation::Block::current().multiply_later([&d, a, b] {
    agree_in_group(a, b);
    const DescribedMatrix x(a);
    const DescribedMatrix y(b);
    const unsigned thread = emulation::Block::thread() % emulation::kWarpGroup;
    float rows[2][16];
    for (unsigned slot = 0; slot < 2; ++slot) {
      for (unsigned k = 0; k < 16; ++k) {
        rows[slot][k] = x.of_rows(thread / 32 * 16 + thread % 32 / 4 + 8 * slot, k);
      }
    }
    clear_unless_adds<kAdds>(d);
    add_products(d, rows, [&](unsigned column, unsigned k) { return y.of_rows(column, k); });
  });
}

template <bool kAdds>
inline void multiply_group(float (&d)[2][16], const uint32_t (&a)[4], uint64_t b) {
  emulation::Block::current().multiply_later([&d, &a, b] {
    agree_in_group(0, b);
    const DescribedMatrix y(b);
    emulation::Block& block = emulation::Block::current();
    const auto* lanes = block.exchange(a);
    float rows[2][16];
    for (unsigned slot = 0; slot < 2; ++slot) {
      for (unsigned k = 0; k < 16; ++k) {
        Half pair[2];
        std::memcpy(pair, &lanes[block.lane() / 4 * 4 + k % 8 / 2][slot + k / 8 * 2], sizeof pair);
        rows[slot][k] = to_float(pair[k % 2]);
      }
    }
    clear_unless_adds<kAdds>(d);
    add_products(d, rows, [&](unsigned column, unsigned k) { return y.of_steps(column, k); });
  });
}

}  // namespace dmlfast::cuda
