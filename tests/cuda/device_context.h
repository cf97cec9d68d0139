// The device of a test program, and what tests need to get tensors there and back.
#pragma once

#include <gtest/gtest.h>

#include <cstring>

#include "ops/device.h"
#include "ops/test_tensors.h"

namespace fathom {

// Each program has its own: an emulated device, or a GPU (null without one).
std::unique_ptr<Device> open_test_device();

// The arena is never reset.
inline Context& cuda_ctx() {
  static const std::unique_ptr<Device> device = open_test_device();
  static ThreadPool pool(2);
  static Arena arena = device != nullptr ? Arena(device->allocate) : Arena();
  static Context context{pool, arena, device.get()};
  return context;
}

// On the device, with the same strides; what lies between rows is copied too.
inline Tensor upload(Tensor t) {
  Context& ctx = cuda_ctx();
  const int64_t n = t.panels ? 0 : t.rows() == 0 ? 0 : (t.rows() - 1) * t.row_stride + t.cols();
  const auto bytes = static_cast<size_t>(t.panels ? t.size_bytes() : format_bytes(t.format, n));
  void* const to = ctx.arena.allocate(bytes);
  if (bytes > 0) ctx.device->upload(*ctx.device, to, t.data, bytes);
  t.data = to;
  return t;
}

inline Tensor download(Tensor t) {
  Context& ctx = cuda_ctx();
  const int64_t n = t.rows() == 0 ? 0 : (t.rows() - 1) * t.row_stride + t.cols();
  const auto bytes = static_cast<size_t>(format_bytes(t.format, n));
  uint8_t* const to = test_memory<uint8_t>(static_cast<int64_t>(bytes) + 16, 0);
  if (bytes > 0) ctx.device->download(*ctx.device, to, t.data, bytes);
  t.data = to;
  return t;
}

// Tests of a device, skipped where there is none.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_ctx().device == nullptr) GTEST_SKIP() << "there is no GPU";
  }
};

}  // namespace fathom
