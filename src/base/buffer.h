// Memory: Buffer owns one aligned block; Arena hands out pieces that live until it is reset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fathom {

inline constexpr size_t kAlignment = 64;  // bytes: one cache line, one AVX-512 register

// Memory and swap of this machine.
uint64_t machine_memory_bytes();

// An aligned block of zeroed memory that owns itself; movable. Blocks above 2 MiB ask for huge pages.
// Throws Error when the system has no memory to give, at once where the machine has less than that.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  // Takes over memory of another kind, which `release` gives back.
  Buffer(void* data, size_t bytes, void (*release)(void* data, size_t bytes));
  void* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Release {
    void (*release)(void* data, size_t bytes);
    size_t bytes;
    void operator()(void* p) const { release(p, bytes); }
  };
  std::unique_ptr<void, Release> data_{nullptr, {nullptr, 0}};
  size_t size_ = 0;
};

// A stack of aligned allocations, uninitialized. Grows by blocks and keeps them, so that a step which repeats allocates
// nothing after its first round. Of this machine's memory, which is taken when it is touched, each block is as large as
// all before it: what does not fit in the rest of one and goes to the next leaves pages behind that other steps take.
// Not thread-safe: tasks take what they need before they start.
class Arena {
 public:
  struct Mark {
    size_t block = 0, offset = 0;
  };
  Arena() = default;
  explicit Arena(Buffer (*make_block)(size_t bytes)) : make_block_(make_block), grows_(false) {}  // of other memory
  void* allocate(size_t bytes);
  Mark mark() const { return {block_, offset_}; }
  void release(Mark mark);  // frees what was allocated after `mark`
  void reset() { release({}); }
  size_t peak_bytes() const { return peak_; }

 private:
  Buffer (*make_block_)(size_t bytes) = [](size_t bytes) { return Buffer(bytes); };
  bool grows_ = true;
  std::vector<Buffer> blocks_;
  size_t block_ = 0, offset_ = 0;
  size_t before_ = 0, peak_ = 0;  // bytes in the blocks before block_; highest use seen
};

// Releases at the end of a scope what was allocated in it.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace fathom
