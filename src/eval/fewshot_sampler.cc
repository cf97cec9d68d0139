#include "eval/fewshot_sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace fathom::eval {

// init_by_array() of one word, as Python seeds.
FewshotSampler::FewshotSampler(uint32_t seed) {
  constexpr uint32_t kSize = 624;
  const auto mix = [](uint32_t x) { return x ^ (x >> 30); };
  state_[0] = 19650218;
  for (uint32_t i = 1; i < kSize; ++i) state_[i] = 1812433253U * mix(state_[i - 1]) + i;
  uint32_t i = 1;
  const auto step = [&] {
    if (++i < kSize) return;
    state_[0] = state_[kSize - 1];
    i = 1;
  };
  for (uint32_t k = 0; k < kSize; ++k) {
    state_[i] = (state_[i] ^ (mix(state_[i - 1]) * 1664525U)) + seed;
    step();
  }
  for (uint32_t k = 1; k < kSize; ++k) {
    state_[i] = (state_[i] ^ (mix(state_[i - 1]) * 1566083941U)) - i;
    step();
  }
  state_[0] = 0x80000000U;
  index_ = kSize;
}

uint32_t FewshotSampler::next() {
  constexpr size_t kSize = 624, kMiddle = 397;
  if (index_ == kSize) {
    for (size_t i = 0; i < kSize; ++i) {
      const uint32_t y = (state_[i] & 0x80000000U) | (state_[(i + 1) % kSize] & 0x7fffffffU);
      state_[i] = state_[(i + kMiddle) % kSize] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908b0dfU : 0U);
    }
    index_ = 0;
  }
  uint32_t y = state_[index_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680U;
  y ^= (y << 15) & 0xefc60000U;
  return y ^ (y >> 18);
}

size_t FewshotSampler::below(size_t bound) {
  const int bits = std::bit_width(bound);
  FATHOM_CHECK(bits <= 32, "{}", bound);
  size_t r = next() >> (32 - bits);
  while (r >= bound) r = next() >> (32 - bits);
  return r;
}

std::vector<size_t> FewshotSampler::sample(size_t n, size_t k) {
  FATHOM_CHECK(k <= n, "{} of {}", k, n);
  std::vector<size_t> chosen;
  // Python takes from a list where that is smaller than a set of what was chosen.
  size_t set_size = 21;
  if (k > 5)
    set_size += static_cast<size_t>(std::pow(4, std::ceil(std::log(3.0 * static_cast<double>(k)) / std::log(4))));
  if (n <= set_size) {
    std::vector<size_t> pool(n);
    std::iota(pool.begin(), pool.end(), size_t{0});
    for (size_t i = 0; i < k; ++i) {
      const size_t j = below(n - i);
      chosen.push_back(pool[j]);
      pool[j] = pool[n - i - 1];
    }
    return chosen;
  }
  while (chosen.size() < k) {
    const size_t j = below(n);
    if (std::find(chosen.begin(), chosen.end(), j) == chosen.end()) chosen.push_back(j);
  }
  return chosen;
}

}  // namespace fathom::eval
