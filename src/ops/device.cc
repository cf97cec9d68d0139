#include "ops/device.h"

#include <cstring>

namespace fathom {
namespace {

Tensor copied(Context& ctx, const void* numbers, Format format, int64_t n) {
  const Tensor t = new_tensor(ctx, format, {n});
  const auto bytes = static_cast<size_t>(t.size_bytes());
  if (bytes > 0) upload_where(ctx.device, t.data, numbers, bytes);
  return t;
}

}  // namespace

Tensor from_host(Context& ctx, std::span<const int32_t> numbers) {
  return copied(ctx, numbers.data(), Format::i32, std::ssize(numbers));
}

Tensor from_host(Context& ctx, std::span<const int64_t> numbers) {
  return copied(ctx, numbers.data(), Format::i64, std::ssize(numbers));
}

Tensor on_host(Context& ctx, Tensor t, Buffer& memory) {
  if (ctx.device == nullptr) return t;
  FATHOM_CHECK(t.contiguous() && !t.panels);
  const auto bytes = static_cast<size_t>(t.size_bytes());
  if (memory.size() < bytes) memory = Buffer(bytes);
  ctx.device->download(*ctx.device, memory.data(), t.data, bytes);
  t.data = memory.data();
  return t;
}

Buffer allocate_where(const Device* device, size_t bytes) {
  return device != nullptr ? device->allocate(bytes) : Buffer(bytes);
}

void upload_where(const Device* device, void* to, const void* from, size_t bytes) {
  if (device != nullptr) return device->upload(*device, to, from, bytes);
  std::memcpy(to, from, bytes);
}

void copy_where(const Device* device, void* to, const void* from, size_t bytes) {
  if (device != nullptr) return device->copy(*device, to, from, bytes);
  std::memcpy(to, from, bytes);
}

#if !defined(FATHOM_CUDA)
std::unique_ptr<Device> open_cuda_device(int) {
  throw UsageError("--device cuda: this build has no CUDA (cmake -DFATHOM_CUDA=ON builds it in); use --device cpu");
}

std::string cuda_build_text() { return "CUDA: not built"; }
#endif

}  // namespace fathom
