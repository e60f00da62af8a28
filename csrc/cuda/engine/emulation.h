// Runs kernels on a CPU: the threads of a block are fibers that take turns between barriers.
// It shows wrong indices, masks, tails and tie rules, not races or speed.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __restrict__

using cudaStream_t = void*;

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

namespace dmlfast::emulation {

class Block {
 public:
  Block(unsigned threads, const std::function<void()>& body) : body_(body), fibers_(threads) {
    for (Fiber& fiber : fibers_) {
      fiber.stack.resize(kStackBytes);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, &Block::enter, 0);
    }
  }

  // Resumes every thread up to its next barrier until all have returned.
  void run() {
    current_ = this;
    for (size_t done = 0; done < fibers_.size();) {
      done = 0;
      for (thread_ = 0; thread_ < fibers_.size(); ++thread_) {
        if (!fibers_[thread_].done) {
          swapcontext(&scheduler_, &fibers_[thread_].context);
        }
        done += fibers_[thread_].done;
      }
      if (done != 0 && done != fibers_.size()) {
        std::fprintf(stderr, "some threads of a block returned while others wait at a barrier\n");
        std::abort();
      }
    }
  }

  static unsigned thread() { return static_cast<unsigned>(current_->thread_); }

  static void barrier() {
    swapcontext(&current_->fibers_[current_->thread_].context, &current_->scheduler_);
  }

 private:
  static constexpr size_t kStackBytes = 64 * 1024;

  struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
  };

  static void enter() {
    Block* block = current_;
    block->body_();
    block->fibers_[block->thread_].done = true;
  }

  static inline Block* current_ = nullptr;

  const std::function<void()>& body_;
  std::vector<Fiber> fibers_;
  ucontext_t scheduler_;
  size_t thread_ = 0;
};

inline dim3 block_index;
inline dim3 block_size;
inline dim3 grid_size;

template <class Kernel, class... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, const Arguments&... arguments) {
  grid_size = grid;
  block_size = {threads, 1, 1};
  const std::function<void()> body = [&] { kernel(arguments...); };
  for (block_index.y = 0; block_index.y < grid.y; ++block_index.y) {
    for (block_index.x = 0; block_index.x < grid.x; ++block_index.x) {
      Block(threads, body).run();
    }
  }
}

}  // namespace dmlfast::emulation

#define threadIdx (dim3{::dmlfast::emulation::Block::thread(), 0, 0})
#define blockIdx (::dmlfast::emulation::block_index)
#define blockDim (::dmlfast::emulation::block_size)
#define gridDim (::dmlfast::emulation::grid_size)
#define __syncthreads() ::dmlfast::emulation::Block::barrier()
#define DMLFAST_LAUNCH(kernel, grid, block, stream, ...) \
  ::dmlfast::emulation::launch(kernel, (grid), (block), __VA_ARGS__)
