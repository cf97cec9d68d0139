// What benchmarks of operators work on: all of the machine's cores, and tensors with contents.
#pragma once

#include "base/rng.h"
#include "ops/context.h"

namespace fathom {

inline Context& ctx() {
  static ThreadPool pool(usable_cores());
  static Arena arena;
  static Context context{pool, arena};
  return context;
}

// Normally distributed, deviation 1.
inline Tensor random(int64_t rows, int64_t cols) {
  static Rng rng(1);
  const Tensor t = new_f32(ctx(), {rows, cols});
  for (int64_t i = 0; i < t.size(); ++i) t.f32()[i] = static_cast<float>(rng.normal());
  return t;
}

}  // namespace fathom
