// Runs kernels on a CPU: the threads of a block are fibers that take turns between barriers, and
// the lanes of a warp meet where they exchange values. It shows wrong indices, masks, tails, tie
// rules, fragment layouts and copies that nobody waited for, not races or speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "engine/fiber.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__
#define __align__(bytes) alignas(bytes)

using cudaStream_t = void*;

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace dmlfast::emulation {

constexpr unsigned kWarp = 32;
constexpr unsigned kWarpGroup = 4 * kWarp;

#ifdef DMLFAST_EMULATE_HOPPER
constexpr bool kEmulatesHopper = true;
#else
constexpr bool kEmulatesHopper = false;
#endif

// What the threads of a warp, or of four, hand each other. Two of each, used in turns: a thread may
// be one exchange ahead of the others, never two.
template <unsigned kThreads>
struct Exchange {
  static constexpr unsigned kMembers = kThreads;
  uint64_t arrived = 0;
  uint32_t words[kThreads][16];
};

class Block {
 public:
  Block(unsigned threads, size_t shared_bytes, const std::function<void()>& body)
      : body_(body),
        fibers_(threads),
        exchanges_(2 * ((threads + kWarp - 1) / kWarp)),
        group_exchanges_(2 * ((threads + kWarpGroup - 1) / kWarpGroup)),
        unpublished_(shared_bytes / kChunk + 1),
        // Not a number wherever nothing was written.
        shared_(shared_bytes + kAlignment, 0xff) {
    while (stacks_.size() < threads) {
      stacks_.emplace_back(new char[kStackBytes]);  // not zeroed: most of it is never touched
    }
    for (size_t i = 0; i < threads; ++i) {
      // Where the thread before it has ended, the sanitizer still sees its last frames.
      char* const end = stacks_[i].get() + kStackBytes;
      ASAN_UNPOISON_MEMORY_REGION(end - kLastFrames, kLastFrames);
      fibers_[i].context = Context(stacks_[i].get(), kStackBytes, &Block::enter);
    }
    const uintptr_t begin = reinterpret_cast<uintptr_t>(shared_.data());
    dynamic_ = shared_.data() + (kAlignment - begin % kAlignment) % kAlignment;
    // The address sanitizer shall see the first byte too many.
    ASAN_POISON_MEMORY_REGION(dynamic_ + shared_bytes,
                              shared_.data() + shared_.size() - (dynamic_ + shared_bytes));
  }

  ~Block() { ASAN_UNPOISON_MEMORY_REGION(shared_.data(), shared_.size()); }

  // Resumes every thread up to its next wait until all have returned.
  void run() {
    current_ = this;
    for (size_t done = 0; done < fibers_.size();) {
      done = 0;
      moved_ = false;
      for (thread_ = 0; thread_ < fibers_.size(); ++thread_) {
        if (!fibers_[thread_].done) {
          switch_context(scheduler_, fibers_[thread_].context);
        }
        done += fibers_[thread_].done;
      }
      if (!moved_ && done != fibers_.size()) {
        std::fprintf(stderr, "threads of a block wait for others that will not come\n");
        std::abort();
      }
    }
  }

  static Block& current() { return *current_; }
  static unsigned thread() { return static_cast<unsigned>(current_->thread_); }
  unsigned lane() const { return static_cast<unsigned>(thread_) % kWarp; }
  unsigned char* dynamic_memory() const { return dynamic_; }

  // Waits for all threads of the block; returns whether any of them brought a true vote.
  static bool barrier(bool vote = false) {
    Block& block = *current_;
    const unsigned turn = block.barriers_ % 2;
    const uint64_t mine = block.barriers_;
    block.votes_[turn] |= vote;
    if (++block.waiting_ == block.fibers_.size()) {
      block.waiting_ = 0;
      ++block.barriers_;
      block.votes_[1 - turn] = false;
    }
    block.moved_ = true;
    while (block.barriers_ == mine) {
      block.yield();
    }
    return block.votes_[turn];
  }

  // Every lane of the warp brings words and then sees those of all lanes.
  template <size_t kWords>
  const uint32_t (*exchange(const uint32_t (&words)[kWords]))[16] {
    return exchange_among(exchanges_, fiber().exchanges, words);
  }

  // The same among four warps.
  template <size_t kWords>
  const uint32_t (*exchange_in_group(const uint32_t (&words)[kWords]))[16] {
    return exchange_among(group_exchanges_, fiber().group_exchanges, words);
  }

  // Copies to shared memory that happen no earlier than the wait for them.
  void copy_later(void* to, const void* from) { fiber().copies.back().push_back({to, from}); }
  void commit_copies() { fiber().copies.emplace_back(); }
  void wait_copies(size_t pending) {
    auto& groups = fiber().copies;  // the last one is not committed yet
    while (groups.size() - 1 > pending) {
      for (const Copy& copy : groups.front()) {
        if (copy.from == nullptr) {
          std::memset(copy.to, 0, kChunk);
        } else {
          std::memcpy(copy.to, copy.from, kChunk);
        }
        if (kEmulatesHopper) {
          const size_t chunk = shared_address(copy.to) / kChunk;
          unpublished_[chunk] = true;
          fiber().copied.push_back(chunk);
        }
      }
      groups.erase(groups.begin());
    }
  }

  // Lets group products see what this thread's copies have brought.
  void publish_copies() {
    for (const size_t chunk : fiber().copied) {
      unpublished_[chunk] = false;
    }
    fiber().copied.clear();
  }

  // Products between these two happen at the end, all threads of the group together.
  void begin_products() { fiber().multiplies = true; }
  void multiply_later(std::function<void()> product) {
    require(fiber().multiplies, "a group product that nobody began");
    fiber().products.push_back(std::move(product));
  }
  void end_products() {
    std::vector<std::function<void()>> products;
    products.swap(fiber().products);
    for (const auto& product : products) {
      product();
    }
    fiber().multiplies = false;
  }

  // Places in dynamic memory by their number, as descriptors name them.
  uint32_t shared_address(const void* place) const {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(place) - dynamic_);
  }
  const unsigned char* published(uint32_t address) const {
    require(address / kChunk < unpublished_.size() && !unpublished_[address / kChunk],
            "a group product reads what was not published");
    return dynamic_ + address;
  }

  static void require(bool holds, const char* otherwise) {
    if (!holds) {
      std::fprintf(stderr, "%s\n", otherwise);
      std::abort();
    }
  }

 private:
  static constexpr size_t kChunk = 16;  // bytes of a copy
  static constexpr size_t kStackBytes = 128 * 1024;
  static constexpr size_t kLastFrames = 4 * 1024;
  static constexpr size_t kAlignment = 1024;

  struct Copy {
    void* to;
    const void* from;
  };

  struct Fiber {
    Context context;
    std::vector<std::vector<Copy>> copies{1};
    std::vector<size_t> copied;  // chunks of dynamic memory that are not published yet
    std::vector<std::function<void()>> products;
    bool multiplies = false;
    uint64_t exchanges = 0;
    uint64_t group_exchanges = 0;
    bool done = false;
  };

  Fiber& fiber() { return fibers_[thread_]; }

  template <class Some, size_t kWords>
  const uint32_t (*exchange_among(std::vector<Some>& exchanges, uint64_t& turns,
                                  const uint32_t (&words)[kWords]))[16] {
    const size_t first = thread_ / Some::kMembers * Some::kMembers;
    const uint64_t members = std::min<size_t>(Some::kMembers, fibers_.size() - first);
    Some& exchange = exchanges[thread_ / Some::kMembers * 2 + turns % 2];
    const uint64_t target = (turns / 2 + 1) * members;
    ++turns;
    std::memcpy(exchange.words[thread_ - first], words, sizeof words);
    moved_ = true;
    if (++exchange.arrived < target) {
      while (exchange.arrived < target) {
        yield();
      }
    }
    return exchange.words;
  }

  void yield() { switch_context(fibers_[thread_].context, scheduler_); }

  static void enter() {
    Block* block = current_;
    block->body_();
    Fiber& fiber = block->fiber();
    require(fiber.copies.size() == 1 && fiber.copies.back().empty(),
            "a thread returned without waiting for its copies");
    require(!fiber.multiplies, "a thread returned without waiting for its products");
    fiber.done = true;
    block->moved_ = true;
    block->yield();
  }

  static inline Block* current_ = nullptr;
  // One block after another has them.
  static inline std::vector<std::unique_ptr<char[]>> stacks_;

  const std::function<void()>& body_;
  std::vector<Fiber> fibers_;
  std::vector<Exchange<kWarp>> exchanges_;
  std::vector<Exchange<kWarpGroup>> group_exchanges_;
  std::vector<bool> unpublished_;  // by chunk of dynamic memory
  std::vector<unsigned char> shared_;
  unsigned char* dynamic_;
  Context scheduler_;
  size_t thread_ = 0;
  size_t waiting_ = 0;
  uint64_t barriers_ = 0;
  bool votes_[2] = {};
  bool moved_ = false;
};

inline dim3 block_index;
inline dim3 block_size;
inline dim3 grid_size;

template <class Kernel, class... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, size_t shared_bytes,
            const Arguments&... arguments) {
  grid_size = grid;
  block_size = {threads, 1, 1};
  const std::function<void()> body = [&] { kernel(arguments...); };
  for (block_index.y = 0; block_index.y < grid.y; ++block_index.y) {
    for (block_index.x = 0; block_index.x < grid.x; ++block_index.x) {
      Block(threads, shared_bytes, body).run();
    }
  }
}

template <class T>
T shuffle(T value, unsigned source) {
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= 16, "shuffles move whole words");
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof value);
  const auto* all = Block::current().exchange(words);
  std::memcpy(&value, all[source % kWarp], sizeof value);
  return value;
}

inline unsigned ballot(bool vote) {
  const uint32_t words[1] = {vote};
  const auto* all = Block::current().exchange(words);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    votes |= all[lane][0] != 0 ? 1u << lane : 0u;
  }
  return votes;
}

}  // namespace dmlfast::emulation

#define threadIdx (dim3{::dmlfast::emulation::Block::thread(), 0, 0})
#define blockIdx (::dmlfast::emulation::block_index)
#define blockDim (::dmlfast::emulation::block_size)
#define gridDim (::dmlfast::emulation::grid_size)
#define __syncthreads() ((void)::dmlfast::emulation::Block::barrier())
#define __syncthreads_or(vote) (::dmlfast::emulation::Block::barrier((vote) != 0))
#define __syncwarp() ((void)::dmlfast::emulation::ballot(false))
// Blocks of fewer than 32 threads, or of no whole number of warps, do not exchange values.
#define __shfl_sync(mask, value, source) (::dmlfast::emulation::shuffle((value), (source)))
#define __shfl_xor_sync(mask, value, bits) \
  (::dmlfast::emulation::shuffle((value), ::dmlfast::emulation::Block::current().lane() ^ (bits)))
#define __ballot_sync(mask, vote) (::dmlfast::emulation::ballot(vote))
#define DMLFAST_LAUNCH(kernel, grid, block, stream, ...) \
  ::dmlfast::emulation::launch(kernel, (grid), (block), 0, __VA_ARGS__)
#define DMLFAST_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...) \
  ::dmlfast::emulation::launch(kernel, (grid), (block), (bytes), __VA_ARGS__)
#define DMLFAST_SHARED_MEMORY(name) \
  unsigned char* const name = ::dmlfast::emulation::Block::current().dynamic_memory()

// Fibers take turns only where they wait: plain operations are atomic.
template <class T>
inline T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <class T>
inline T atomicMax(T* address, T value) {
  const T before = *address;
  *address = before < value ? value : before;
  return before;
}
template <class T>
inline T atomicOr(T* address, T value) {
  const T before = *address;
  *address |= value;
  return before;
}

using std::max;
using std::min;

inline int __ffs(int word) { return __builtin_ffs(word); }
inline int __popc(unsigned word) { return __builtin_popcount(word); }
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
template <class T>
inline T __ldg(const T* address) {
  return *address;
}
