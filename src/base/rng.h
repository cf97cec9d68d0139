// Seeded randomness: same seed, same bits, on every machine. xoshiro256** (Blackman & Vigna 2018).
#pragma once

#include <array>
#include <cstdint>

namespace fathom {

class Rng {
 public:
  // Streams with different `stream` are independent: one a purpose (data order, initialization, sampling).
  explicit Rng(uint64_t seed, uint64_t stream = 0);

  uint64_t next();                 // 64 random bits
  double uniform();                // [0, 1), 53 bits
  double normal();                 // mean 0, deviation 1 (Box-Muller, one value a call)
  uint64_t below(uint64_t bound);  // [0, bound), without bias; bound > 0

  using State = std::array<uint64_t, 4>;
  State state() const { return state_; }
  void set_state(const State& state) { state_ = state; }

 private:
  State state_;
};

}  // namespace fathom
