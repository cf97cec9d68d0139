#include "base/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <span>

namespace fathom {
namespace {

TEST(Buffer, IsZeroedAndAlignedAtEverySize) {
  for (const size_t bytes : {size_t{1}, size_t{63}, size_t{65535}, size_t{65536}, size_t{2 << 20}, size_t{5'000'001}}) {
    // Twice: memory that was used and given back must be zeroed too.
    for (int round = 0; round < 2; ++round) {
      Buffer buffer(bytes);
      const std::span all(static_cast<uint8_t*>(buffer.data()), bytes);
      EXPECT_EQ(buffer.size(), bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kAlignment, 0u) << bytes;
      EXPECT_TRUE(std::ranges::all_of(all, [](uint8_t x) { return x == 0; })) << bytes;
      std::ranges::fill(all, uint8_t{0xFF});
      const Buffer moved = std::move(buffer);
      EXPECT_EQ(moved.data(), all.data());
      EXPECT_EQ(all.back(), 0xFF);
    }
  }
}

TEST(Buffer, OfNoBytesIsNowhere) { EXPECT_EQ(Buffer(0).data(), nullptr); }

}  // namespace
}  // namespace fathom
