#include <math.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "ops/cpu/optimizer_kernels.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kInThread = 4;     // parameters of a thread, so that their loads overlap
constexpr int kSquares = 16384;  // numbers whose squares a block adds up

__device__ float widen(float x) { return x; }
__device__ float widen(uint16_t code) { return __uint_as_float(static_cast<uint32_t>(code) << 16); }
__device__ void narrow(float* to, float x) { *to = x; }
__device__ void narrow(uint16_t* to, float x) {  // to nearest, ties to even; moments are numbers
  const uint32_t bits = __float_as_uint(x);
  *to = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
__device__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7FFFFFFF) < 0x7F800000; }

template <class Moment>
struct Adamw {
  cpu::AdamwStep step;
  float* params;
  const float* grads;
  Moment *m, *v;
  int* not_finite;
  int64_t n;
};

template <class Moment>
__global__ void __launch_bounds__(kThreads) adamw_kernel(Adamw<Moment> a) {
  wait_for_inputs();
  start_next();
  const cpu::AdamwStep& s = a.step;
  bool finite = true;
#pragma unroll
  for (int j = 0; j < kInThread; ++j) {
    const int64_t i = (int64_t{blockIdx.x} * kInThread + j) * kThreads + threadIdx.x;
    if (i >= a.n) break;
    const float g = a.grads[i] * s.gradient_scale;
    const float m_old = widen(a.m[i]);
    const float m = m_old + s.beta1_rest * (g - m_old);
    const float v = s.beta2 * widen(a.v[i]) + s.beta2_rest * (g * g);
    narrow(a.m + i, m);
    narrow(a.v + i, v);
    const float p = a.params[i] * s.decay - s.step_size * m / (sqrtf(v) / s.root_correction2 + s.eps);
    a.params[i] = p;
    finite = finite && is_finite(p) && is_finite(m) && is_finite(v);
  }
  if (!finite) *a.not_finite = 1;  // whoever writes it writes the same
}

__global__ void __launch_bounds__(kThreads)
    move_average_kernel(float* average, const float* values, float part, int64_t n) {
  wait_for_inputs();
  start_next();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) average[i] += part * (values[i] - average[i]);
}

// To the first thread, by a tree.
__device__ double block_total(double x, double* shared) {
  shared[threadIdx.x] = x;
  for (int d = kThreads / 2; d > 0; d /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < d) shared[threadIdx.x] += shared[threadIdx.x + d];
  }
  return shared[0];
}

// sums[block]: of the squares of its numbers.
__global__ void __launch_bounds__(kThreads) squares_kernel(double* sums, const float* values, int64_t n) {
  __shared__ double shared[kThreads];
  wait_for_inputs();
  start_next();
  const int64_t begin = int64_t{blockIdx.x} * kSquares, end = min(n, begin + kSquares);
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const double x = values[i];
    sum += x * x;
  }
  sum = block_total(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block.
__global__ void __launch_bounds__(kThreads) total_kernel(double* total, const double* sums, int64_t n) {
  __shared__ double shared[kThreads];
  wait_for_inputs();
  start_next();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += sums[i];
  sum = block_total(sum, shared);
  if (threadIdx.x == 0) *total = sum;
}

unsigned blocks_for(int64_t n, int64_t in_block) { return static_cast<unsigned>(ceil_div(n, in_block)); }

template <class Moment>
bool run(Context& ctx, const cpu::AdamwStep& step, std::span<float> params, std::span<const float> grads, Tensor m,
         Tensor v) {
  const auto n = static_cast<int64_t>(params.size());
  const ArenaScope scope(ctx.arena);
  const Tensor flag = new_i32(ctx, {1});
  const Device& device = *ctx.device;
  device.fill_zero(device, flag.data, sizeof(int));
  launch(ctx, adamw_kernel<Moment>, dim3(blocks_for(n, kThreads * kInThread)), dim3(kThreads), 0,
         Adamw<Moment>{step, params.data(), grads.data(), m.as<Moment>(), v.as<Moment>(), flag.i32(), n});
  int not_finite = 0;
  device.download(device, &not_finite, flag.data, sizeof not_finite);
  return not_finite == 0;
}

}  // namespace

bool adamw_step(Context& ctx, const cpu::AdamwStep& step, std::span<float> params, std::span<const float> grads,
                Tensor m, Tensor v) {
  if (params.empty()) return true;
  FATHOM_CHECK(m.contiguous() && v.contiguous());
  return m.format == Format::f32 ? run<float>(ctx, step, params, grads, m, v)
                                 : run<uint16_t>(ctx, step, params, grads, m, v);
}

void move_average(Context& ctx, std::span<float> average, std::span<const float> values, float decay) {
  const auto n = static_cast<int64_t>(values.size());
  if (n == 0) return;
  launch(ctx, move_average_kernel, dim3(blocks_for(n, kThreads)), dim3(kThreads), 0, average.data(), values.data(),
         1 - decay, n);
}

double sum_of_squares(Context& ctx, std::span<const float> values) {
  const auto n = static_cast<int64_t>(values.size());
  if (n == 0) return 0;
  const ArenaScope scope(ctx.arena);
  const unsigned blocks = blocks_for(n, kSquares);
  auto* const sums = static_cast<double*>(ctx.arena.allocate((size_t{blocks} + 1) * sizeof(double)));
  launch(ctx, squares_kernel, dim3(blocks), dim3(kThreads), 0, sums, values.data(), n);
  launch(ctx, total_kernel, dim3(1), dim3(kThreads), 0, sums + blocks, sums, int64_t{blocks});
  double total = 0;
  ctx.device->download(*ctx.device, &total, sums + blocks, sizeof total);
  return total;
}

}  // namespace fathom::cuda
