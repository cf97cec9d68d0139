#include "text/bpe.h"

#include <queue>

#include "base/error.h"

namespace fathom {
namespace {

constexpr size_t kShortWord = 48;  // bytes; up to here looking at every pair again beats a heap

}  // namespace

PairTable::PairTable(size_t expected) {
  size_t size = 16;
  while (size < expected * 2 + 2) size *= 2;
  slots_.resize(size);
  mask_ = size - 1;
}

void PairTable::set(uint32_t left, uint32_t right, uint32_t value) {
  const uint64_t key = uint64_t{left} << 32 | right;
  size_t slot = hash(key) & mask_;
  while (slots_[slot].key != key && slots_[slot].key != kEmpty) slot = (slot + 1) & mask_;
  if (slots_[slot].key == key) {
    slots_[slot].value = value;
    return;
  }
  slots_[slot] = {key, value};
  if (++used_ * 2 > slots_.size()) grow();
}

void PairTable::grow() {
  const std::vector<Slot> old = std::move(slots_);
  slots_.assign(old.size() * 2, {});
  mask_ = slots_.size() - 1;
  for (const Slot& entry : old) {
    if (entry.key == kEmpty) continue;
    size_t slot = hash(entry.key) & mask_;
    while (slots_[slot].key != kEmpty) slot = (slot + 1) & mask_;
    slots_[slot] = entry;
  }
}

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, std::vector<Merge> merges)
    : byte_ids_(byte_ids), merges_(std::move(merges)), ranks_(merges_.size()) {
  for (size_t rank = 0; rank < merges_.size(); ++rank) {
    const Merge& merge = merges_[rank];
    ranks_.set(static_cast<uint32_t>(merge.left), static_cast<uint32_t>(merge.right), static_cast<uint32_t>(rank));
  }
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& ids) const {
  const size_t first = ids.size();
  for (const char c : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id < 0) throw Error("the vocabulary has no token for the byte 0x{:02x}", static_cast<uint8_t>(c));
    ids.push_back(id);
  }
  if (word.size() < 2) return;
  if (word.size() <= kShortWord) {
    merge_short(ids, first);
  } else {
    merge_long(ids, first);
  }
}

void Bpe::merge_short(std::vector<int32_t>& ids, size_t first) const {
  std::array<uint32_t, kShortWord> ranks;  // of the pair that begins at i
  int32_t* word = ids.data() + first;
  size_t n = ids.size() - first;
  const auto rank_at = [&](size_t i) {
    return ranks_.find(static_cast<uint32_t>(word[i]), static_cast<uint32_t>(word[i + 1]));
  };
  for (size_t i = 0; i + 1 < n; ++i) ranks[i] = rank_at(i);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == PairTable::kNone) break;
    word[best] = merges_[ranks[best]].result;
    --n;
    for (size_t i = best + 1; i < n; ++i) word[i] = word[i + 1];
    for (size_t i = best + 1; i + 1 < n; ++i) ranks[i] = ranks[i + 1];
    if (best + 1 < n) ranks[best] = rank_at(best);
    if (best > 0) ranks[best - 1] = rank_at(best - 1);
  }
  ids.resize(first + n);
}

// A linked list of symbols and a heap of pairs; entries whose pair has changed since are recognized and dropped.
void Bpe::merge_long(std::vector<int32_t>& ids, size_t first) const {
  struct Symbol {
    int32_t id;
    int64_t previous, next;  // -1: none; id -1: merged away
  };
  struct Candidate {
    uint32_t rank;
    int64_t at;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  const auto n = static_cast<int64_t>(ids.size() - first);
  std::vector<Symbol> symbols(static_cast<size_t>(n));
  const auto symbol = [&](int64_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  for (int64_t i = 0; i < n; ++i) symbol(i) = {ids[first + static_cast<size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1};
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  const auto consider = [&](int64_t at) {
    if (at < 0 || symbol(at).next < 0) return;
    const uint32_t rank =
        ranks_.find(static_cast<uint32_t>(symbol(at).id), static_cast<uint32_t>(symbol(symbol(at).next).id));
    if (rank != PairTable::kNone) heap.push({rank, at});
  };
  for (int64_t i = 0; i + 1 < n; ++i) consider(i);
  while (!heap.empty()) {
    const auto [rank, at] = heap.top();
    heap.pop();
    const Merge& merge = merges_[rank];
    Symbol& left = symbol(at);
    if (left.id != merge.left || left.next < 0 || symbol(left.next).id != merge.right) continue;
    Symbol& right = symbol(left.next);
    left.id = merge.result;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbol(left.next).previous = at;
    consider(left.previous);
    consider(at);
  }
  ids.resize(first);
  for (int64_t i = 0; i >= 0; i = symbol(i).next) ids.push_back(symbol(i).id);
}

}  // namespace fathom
