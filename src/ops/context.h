// What every operator is given: the threads or the device to run on, and the memory for what lives until the caller's
// scope ends.
#pragma once

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "number/tensor.h"

namespace fathom {

struct Device;

struct Context {
  ThreadPool& pool;
  Arena& arena;                    // of the device's memory, where there is one
  const Device* device = nullptr;  // where the work is done (ops/device.h); null: on the threads of the pool
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
