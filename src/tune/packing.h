// Sequences of unequal length -> rows of at most as many tokens as fit in one.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/rng.h"

namespace fathom::tune {

// Into an order that rng draws (Fisher-Yates).
template <class T>
void shuffle(std::vector<T>& items, Rng& rng) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[rng.below(i)]);
}

// Rows of indices into `lengths`, each in one row: best fit, the longest first (Johnson 1974), which needs at most 11/9
// of the fewest rows possible, and one. Sequences of one length, and the rows, stand in an order that rng draws; how
// many rows there are depends on the lengths alone. No length is above `room`.
std::vector<std::vector<int64_t>> pack_best_fit(std::span<const int64_t> lengths, int64_t room, Rng& rng);

// One row for each, in an order that rng draws.
std::vector<std::vector<int64_t>> rows_of_one(int64_t n, Rng& rng);

}  // namespace fathom::tune
