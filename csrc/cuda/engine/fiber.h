// Switching between the stacks of emulated threads: many million times in a test.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace dmlfast::emulation {

#ifdef __x86_64__

// A stack that waits: what a function call has to leave unchanged is on top of it.
class Context {
 public:
  Context() = default;

  // Calls `enter`, which must never return, when it is first switched to.
  Context(char* stack, size_t bytes, void (*enter)()) {
    uintptr_t top = reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16;
    uintptr_t* words = reinterpret_cast<uintptr_t*>(top) - 8;
    for (int i = 0; i < 8; ++i) {
      words[i] = 0;
    }
    words[6] = reinterpret_cast<uintptr_t>(enter);  // above six registers: where it goes on
    top_ = words;
  }

 private:
  friend void switch_context(Context& from, const Context& to);
  void* top_ = nullptr;
};

// Neither asks the system nor touches a sanitizer's notes about a stack, as swapcontext does.
__attribute__((naked, noinline)) inline void switch_stack(void** /* from */, void* /* to */) {
  asm("push %rbp\n"
      "push %rbx\n"
      "push %r12\n"
      "push %r13\n"
      "push %r14\n"
      "push %r15\n"
      "mov %rsp, (%rdi)\n"
      "mov %rsi, %rsp\n"
      "pop %r15\n"
      "pop %r14\n"
      "pop %r13\n"
      "pop %r12\n"
      "pop %rbx\n"
      "pop %rbp\n"
      "ret\n");
}

inline void switch_context(Context& from, const Context& to) { switch_stack(&from.top_, to.top_); }

#else

class Context {
 public:
  Context() = default;
  Context(char* stack, size_t bytes, void (*enter)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    makecontext(&context_, enter, 0);
  }

 private:
  friend void switch_context(Context& from, const Context& to);
  ucontext_t context_{};
};

inline void switch_context(Context& from, const Context& to) {
  swapcontext(&from.context_, &to.context_);
}

#endif

}  // namespace dmlfast::emulation
