// The operator new of this program, which can run out of memory.
#pragma once

#include <cstdint>

namespace fathom::test {

// This thread's n-th allocation from now on fails, and those behind it; then this is 0. Below 0: none fails.
extern thread_local int64_t allocations_left;

}  // namespace fathom::test
