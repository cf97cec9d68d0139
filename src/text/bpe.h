// Byte-pair encoding of one word: of all adjacent pairs the one of lowest rank is merged, the leftmost of equals, until
// none is left.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace fathom {

// Pairs of ids -> a value, open addressing, at most half full.
class PairTable {
 public:
  static constexpr uint32_t kNone = 0xFFFFFFFF;
  explicit PairTable(size_t expected = 0);
  uint32_t find(uint32_t left, uint32_t right) const {
    const uint64_t key = uint64_t{left} << 32 | right;
    for (size_t slot = hash(key) & mask_;; slot = (slot + 1) & mask_) {
      if (slots_[slot].key == key) return slots_[slot].value;
      if (slots_[slot].key == kEmpty) return kNone;
    }
  }
  void set(uint32_t left, uint32_t right, uint32_t value);  // replaces

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // no pair: ids are below 2^31
  struct Slot {
    uint64_t key = kEmpty;
    uint32_t value = 0;
  };
  static size_t hash(uint64_t key) {
    key *= 0x9E3779B97F4A7C15;
    return static_cast<size_t>(key >> 32 ^ key);
  }
  void grow();
  std::vector<Slot> slots_;
  size_t mask_ = 0, used_ = 0;
};

struct Merge {
  int32_t left, right, result;
};

class Bpe {
 public:
  Bpe() { byte_ids_.fill(-1); }
  // The id of every byte (-1: the vocabulary lacks it) and the merges, lowest rank first; a pair that comes twice has
  // its last rank.
  Bpe(const std::array<int32_t, 256>& byte_ids, std::vector<Merge> merges);

  // Appends the ids of `word`. Error when a byte of it has no id.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

 private:
  void merge_short(std::vector<int32_t>& ids, size_t first) const;
  void merge_long(std::vector<int32_t>& ids, size_t first) const;
  std::array<int32_t, 256> byte_ids_;
  std::vector<Merge> merges_;  // by rank
  PairTable ranks_;
};

}  // namespace fathom
