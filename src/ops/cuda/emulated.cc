#include "ops/cuda/emulated.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "ops/cuda/emulated_device.h"
#include "ops/cuda/operators.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FATHOM_EMULATED_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define FATHOM_EMULATED_ASAN 1
#endif
#if defined(FATHOM_EMULATED_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom_old, size_t* size_old);
}
#endif

namespace fathom::cuda::emulated {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr size_t kMaxShared = size_t{227} << 10;
constexpr unsigned kLanes = 32;

enum class State { ready, at_block_barrier, at_exchange, ended };

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t context{};
  void* saved_stack = nullptr;  // of a context that was switched by hand
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  State state = State::ended;
  uint3 thread{};
  unsigned index = 0;
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;
};

struct Warp {
  unsigned arrived = 0;
  int turn = 0;
  unsigned active_at[2] = {};
  unsigned char slots[2][kLanes][kExchangeBytes];
};

struct Block {
  Place place{};
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept for the next block
  std::vector<Warp> warps;
  size_t n_threads = 0;
  Fiber* running = nullptr;
  ucontext_t scheduler{};
  void* scheduler_stack = nullptr;
  void* scheduler_fake = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  const std::function<void()>* kernel = nullptr;
  std::vector<unsigned char> shared;
  unsigned char* shared_begin = nullptr;
  size_t shared_bytes = 0;
};

thread_local Block* current = nullptr;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s (block %u %u %u)\n", what, current->place.block.x, current->place.block.y,
               current->place.block.z);
  std::abort();
}

#if defined(__x86_64__)
// Saves what a call must keep and continues where the other stack left off.
extern "C" void fathom_switch_stack(void** save, void* load);
asm(R"(
.text
.globl fathom_switch_stack
.hidden fathom_switch_stack
.type fathom_switch_stack,@function
fathom_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fathom_switch_stack,.-fathom_switch_stack
)");
#endif

void to_scheduler(Fiber& fiber) {
  Block& block = *current;
#if defined(FATHOM_EMULATED_ASAN)
  __sanitizer_start_switch_fiber(fiber.state == State::ended ? nullptr : &fiber.fake_stack, block.scheduler_bottom,
                                 block.scheduler_size);
#endif
#if defined(__x86_64__)
  fathom_switch_stack(&fiber.saved_stack, block.scheduler_stack);
#else
  swapcontext(&fiber.context, &block.scheduler);
#endif
#if defined(FATHOM_EMULATED_ASAN)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &block.scheduler_bottom, &block.scheduler_size);
#endif
}

void fiber_main() {
#if defined(FATHOM_EMULATED_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &current->scheduler_bottom, &current->scheduler_size);
#endif
  Fiber& fiber = *current->running;
  (*current->kernel)();
  fiber.state = State::ended;
  to_scheduler(fiber);
  std::abort();  // nobody comes back here
}

void start(Fiber& fiber) {
  if (fiber.stack == nullptr) fiber.stack = std::make_unique<char[]>(kStackBytes);
  fiber.state = State::ready;
  fiber.groups.clear();
  fiber.open.clear();
  fiber.fake_stack = nullptr;
#if defined(__x86_64__)
  // As if fiber_main had been called: its return address's place is 8 off a multiple of 16.
  auto* top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) / 16 * 16);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.saved_stack = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
#endif
}

void resume(Fiber& fiber) {
  Block& block = *current;
  block.running = &fiber;
  block.place.thread = fiber.thread;
#if defined(FATHOM_EMULATED_ASAN)
  __sanitizer_start_switch_fiber(&block.scheduler_fake, fiber.stack.get(), kStackBytes);
#endif
#if defined(__x86_64__)
  fathom_switch_stack(&block.scheduler_stack, fiber.saved_stack);
#else
  swapcontext(&block.scheduler, &fiber.context);
#endif
#if defined(FATHOM_EMULATED_ASAN)
  __sanitizer_finish_switch_fiber(block.scheduler_fake, nullptr, nullptr);
#endif
}

// Lets those go on whom everybody has reached.
bool release(Block& block) {
  bool released = false;
  for (size_t w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    unsigned waiting = 0, alive = 0;
    for (size_t i = w * kLanes; i < std::min(block.n_threads, (w + 1) * kLanes); ++i) {
      const State state = block.fibers[i]->state;
      if (state == State::at_exchange) waiting |= 1u << (i % kLanes);
      if (state != State::ended) alive |= 1u << (i % kLanes);
    }
    if (waiting == 0 || waiting != alive) continue;
    warp.active_at[warp.turn] = alive;
    warp.turn ^= 1;
    for (size_t i = w * kLanes; i < std::min(block.n_threads, (w + 1) * kLanes); ++i) {
      if (block.fibers[i]->state == State::at_exchange) block.fibers[i]->state = State::ready;
    }
    released = true;
  }
  if (released) return true;
  for (size_t i = 0; i < block.n_threads; ++i) {
    const State state = block.fibers[i]->state;
    if (state != State::at_block_barrier && state != State::ended) return false;
  }
  for (size_t i = 0; i < block.n_threads; ++i) {
    if (block.fibers[i]->state == State::at_block_barrier) {
      block.fibers[i]->state = State::ready;
      released = true;
    }
  }
  return released;
}

void run_block(Block& block) {
  std::fill(block.shared.begin(), block.shared.end(), static_cast<unsigned char>(0xFF));
  for (size_t i = 0; i < block.n_threads; ++i) start(*block.fibers[i]);
  for (Warp& warp : block.warps) warp.turn = 0;
  for (bool goes_on = true; goes_on;) {
    for (size_t i = 0; i < block.n_threads; ++i) {
      Fiber& fiber = *block.fibers[backwards ? block.n_threads - 1 - i : i];
      while (fiber.state == State::ready) resume(fiber);
    }
    goes_on = release(block);
  }
  for (size_t i = 0; i < block.n_threads; ++i) {
    if (block.fibers[i]->state != State::ended) die("some threads wait where the others never come");
  }
  const auto untouched = [](const unsigned char* begin, const unsigned char* end) {
    return std::all_of(begin, end, [](unsigned char x) { return x == 0xFF; });
  };
  const unsigned char *const first = block.shared.data(), *const last = first + block.shared.size();
  if (!untouched(first, block.shared_begin)) die("wrote before its shared memory");
  if (!untouched(block.shared_begin + block.shared_bytes, last)) die("wrote behind its shared memory");
}

}  // namespace

Place& here() { return current->place; }
unsigned lane() { return current->running->index % kLanes; }
void* block_memory() { return current->shared_begin; }

void block_barrier() {
  Fiber& fiber = *current->running;
  fiber.state = State::at_block_barrier;
  to_scheduler(fiber);
}

Slots exchange(const void* mine, size_t bytes, unsigned* active) {
  Fiber& fiber = *current->running;
  Warp& warp = current->warps[fiber.index / kLanes];
  const int turn = warp.turn;
  memcpy(warp.slots[turn][fiber.index % kLanes], mine, bytes);
  fiber.state = State::at_exchange;
  to_scheduler(fiber);
  *active = warp.active_at[turn];
  return warp.slots[turn];
}

void add_copy(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0)) {
    die("copy_async of what is not aligned to 16 bytes");
  }
  current->running->open.push_back({shared, global, valid});
}
void commit() {
  Fiber& fiber = *current->running;
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
void wait(int n) {
  Fiber& fiber = *current->running;
  while (fiber.groups.size() > static_cast<size_t>(n)) {
    for (const Copy& copy : fiber.groups.front()) {
      if (copy.valid) {
        memcpy(copy.to, copy.from, 16);
      } else {
        memset(copy.to, 0, 16);
      }
    }
    fiber.groups.pop_front();
  }
}

void run(dim3 grid, dim3 block_dim, size_t shared_bytes, const std::function<void()>& kernel) {
  static thread_local Block block;
  current = &block;
  if (shared_bytes > kMaxShared) die("more shared memory than a block can have");
  block.n_threads = size_t{block_dim.x} * block_dim.y * block_dim.z;
  if (block.n_threads == 0 || block.n_threads > 1024) die("a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) die("no such grid");
  block.warps.resize((block.n_threads + kLanes - 1) / kLanes);
  while (block.fibers.size() < block.n_threads) block.fibers.push_back(std::make_unique<Fiber>());
  constexpr size_t kAligned = 1024;
  // In a heap block of its own, with some room before and behind.
  block.shared = std::vector<unsigned char>(shared_bytes + 3 * kAligned);
  const auto begin = reinterpret_cast<uintptr_t>(block.shared.data());
  block.shared_begin = reinterpret_cast<unsigned char*>((begin + 2 * kAligned - 1) / kAligned * kAligned);
  block.shared_bytes = shared_bytes;
  block.kernel = &kernel;
  for (unsigned i = 0; i < block.n_threads; ++i) {
    block.fibers[i]->index = i;
    block.fibers[i]->thread = {i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y};
  }
  block.place.block_dim = block_dim;
  block.place.grid_dim = grid;
  const uint64_t n_blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < n_blocks; ++i) {
    const uint64_t b = backwards ? n_blocks - 1 - i : i;
    block.place.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                         static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(block);
  }
}

}  // namespace fathom::cuda::emulated

namespace fathom {

std::unique_ptr<Device> open_emulated_device() {
  auto device = std::make_unique<Device>();
  device->name = "emulated";
  device->operators = cuda::cuda_operators();
  device->n_processors = 4;
  device->memory_bytes = size_t{4} << 30;
  // What nobody has written is no number.
  device->allocate = [](size_t bytes) {
    Buffer buffer(bytes);
    if (bytes > 0) memset(buffer.data(), 0xFF, bytes);
    return buffer;
  };
  device->free_bytes = [] { return size_t{4} << 30; };
  device->upload = [](const Device&, void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); };
  device->download = device->upload;
  device->copy = device->upload;
  device->fill_zero = [](const Device&, void* to, size_t bytes) { memset(to, 0, bytes); };
  device->synchronize = [](const Device&) {};
  device->allocate_pinned = [](size_t bytes) { return Buffer(bytes); };
  device->start_host = [](const Device&, HostWork given) {
    for (const HostWork::Copy& copy : given.down) memcpy(copy.to, copy.from, copy.bytes);
    given.work();
    for (const HostWork::Copy& copy : given.up) memcpy(copy.to, copy.from, copy.bytes);
  };
  device->join_host = [](const Device&) {};
  return device;
}

}  // namespace fathom
