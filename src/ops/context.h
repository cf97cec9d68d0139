// What every operator is given: the threads to run on and the memory for what lives until the caller's scope ends.
#pragma once

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "number/tensor.h"

namespace fathom {

struct Context {
  ThreadPool& pool;
  Arena& arena;
};

// Uninitialized tensors from the arena.
inline Tensor new_tensor(Context& ctx, Format format, std::initializer_list<int64_t> shape) {
  Tensor t(nullptr, format, shape);
  t.data = ctx.arena.allocate(static_cast<size_t>(t.size_bytes()));
  return t;
}
inline Tensor new_f32(Context& ctx, std::initializer_list<int64_t> shape) {
  return new_tensor(ctx, Format::f32, shape);
}
inline Tensor new_i32(Context& ctx, std::initializer_list<int64_t> shape) {
  return new_tensor(ctx, Format::i32, shape);
}

}  // namespace fathom
