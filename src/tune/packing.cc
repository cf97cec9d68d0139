#include "tune/packing.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/error.h"

namespace fathom::tune {

std::vector<std::vector<int64_t>> rows_of_one(int64_t n, Rng& rng) {
  std::vector<std::vector<int64_t>> rows;
  for (int64_t i = 0; i < n; ++i) rows.push_back({i});
  shuffle(rows, rng);
  return rows;
}

std::vector<std::vector<int64_t>> pack_best_fit(std::span<const int64_t> lengths, int64_t room, Rng& rng) {
  std::vector<int64_t> order(lengths.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  shuffle(order, rng);
  const auto length = [&](int64_t i) { return lengths[static_cast<size_t>(i)]; };
  std::ranges::stable_sort(order, std::greater(), length);
  std::vector<std::vector<int64_t>> rows;
  std::map<int64_t, std::vector<size_t>> with_room;  // rows by what is left in them
  for (const int64_t i : order) {
    FATHOM_CHECK(length(i) > 0 && length(i) <= room);
    size_t row = rows.size();
    int64_t left = room;
    if (const auto best = with_room.lower_bound(length(i)); best != with_room.end()) {
      left = best->first;
      row = best->second.back();
      best->second.pop_back();
      if (best->second.empty()) with_room.erase(best);
    } else {
      rows.emplace_back();
    }
    rows[row].push_back(i);
    with_room[left - length(i)].push_back(row);
  }
  shuffle(rows, rng);
  return rows;
}

}  // namespace fathom::tune
