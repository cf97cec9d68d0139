// The few-shot examples that lm-evaluation-harness draws: Python's random.Random(seed).sample() (Mersenne Twister,
// Matsumoto & Nishimura 1998), so that prompts are the same to the letter.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fathom::eval {

class FewshotSampler {
 public:
  explicit FewshotSampler(uint32_t seed = 1234);  // the harness's own

  // k of n indices, each at most once, in the order drawn; one draw goes on behind the other. 0 <= k <= n.
  std::vector<size_t> sample(size_t n, size_t k);

 private:
  uint32_t next();
  size_t below(size_t bound);

  std::array<uint32_t, 624> state_;
  size_t index_;
};

}  // namespace fathom::eval
