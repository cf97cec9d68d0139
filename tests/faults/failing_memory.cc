#include "faults/failing_memory.h"

#include <cstdlib>
#include <new>

namespace fathom::test {

thread_local int64_t allocations_left = -1;

}  // namespace fathom::test

using fathom::test::allocations_left;

void* operator new(size_t bytes) {
  const bool fails = allocations_left == 0 || (allocations_left > 0 && --allocations_left == 0);
  void* const p = fails ? nullptr : std::malloc(bytes > 0 ? bytes : 1);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
