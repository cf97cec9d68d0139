#include "base/buffer.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "base/terminal.h"

namespace fathom {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Smaller blocks are the allocator's: cheaper to make, and sanitizers guard their ends.
constexpr size_t kMappedFrom = size_t{64} << 10;
constexpr size_t kLeastBlock = size_t{16} << 20, kMostGrowth = size_t{1} << 30;  // of arenas

void release_memory(void* p, size_t bytes) {
  if (bytes < kMappedFrom) {
    std::free(p);
  } else {
    munmap(p, bytes);
  }
}

size_t round_up_to(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

uint64_t machine_memory_bytes() {
  struct sysinfo info {};
  if (sysinfo(&info) != 0) return UINT64_MAX;
  return (uint64_t{info.totalram} + info.totalswap) * info.mem_unit;
}

Buffer::Buffer(void* data, size_t bytes, void (*release)(void*, size_t))
    : data_(data, {release, bytes}), size_(bytes) {}

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  void* p = nullptr;
  if (bytes < kMappedFrom) {
    if (posix_memalign(&p, kAlignment, bytes) != 0) p = nullptr;
    if (p != nullptr) std::memset(p, 0, bytes);
  } else if (bytes <= machine_memory_bytes()) {
    // Anonymous pages come zeroed and are taken only when touched; so a system may promise more than it has.
    p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) p = nullptr;
  }
  if (p == nullptr) {
    throw Error("out of memory: could not allocate {}; try a smaller model, batch or context",
                human_bytes(static_cast<double>(bytes)));
  }
  if (bytes >= kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
  data_ = {p, {release_memory, bytes}};
}

void* Arena::allocate(size_t bytes) {
  bytes = round_up_to(std::max<size_t>(bytes, 1), kAlignment);
  while (block_ < blocks_.size() && offset_ + bytes > blocks_[block_].size()) {
    before_ += blocks_[block_].size();
    ++block_;
    offset_ = 0;
  }
  if (block_ == blocks_.size()) {
    const size_t least = std::max(kLeastBlock, grows_ ? std::min(before_, kMostGrowth) : 0);
    blocks_.push_back(make_block_(std::max(least, round_up_to(bytes, kHugePage))));
  }
  void* p = static_cast<char*>(blocks_[block_].data()) + offset_;
  offset_ += bytes;
  peak_ = std::max(peak_, before_ + offset_);
  return p;
}

void Arena::release(Mark mark) {
  while (block_ > mark.block) before_ -= blocks_[--block_].size();
  offset_ = mark.offset;
}

}  // namespace fathom
