#include <math.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kInThread = 4;  // columns

struct EmbeddingGradient {
  float* d_table;
  const float* dy;
  const int32_t* ids;
  int32_t *next, *has_before;  // [tokens]: the next token with the same id, or -1; whether there is one before
  int64_t table_stride, dy_stride;
  int tokens, rows, cols;
};

// A warp a token: finds the next one of the same id, so that the rows of an id are a list. has_before: zeros before.
__global__ void __launch_bounds__(kThreads) link_kernel(EmbeddingGradient g) {
  wait_for_inputs();
  start_next();
  const int t = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (t >= g.tokens) return;
  const int id = g.ids[t];
  int next = -1;
  for (int begin = t + 1; begin < g.tokens && next < 0; begin += kWarp) {
    const int i = begin + lane;
    const unsigned same = __ballot_sync(kAllLanes, i < g.tokens && g.ids[i] == id);
    if (same != 0) next = begin + __popc((same & (0u - same)) - 1);
  }
  if (lane != 0) return;
  g.next[t] = next;
  if (next >= 0) g.has_before[next] = 1;
}

// A block the list that begins at a token, and 1024 columns: the rows are added in order.
__global__ void __launch_bounds__(kThreads) add_list_kernel(EmbeddingGradient g) {
  wait_for_inputs();
  start_next();
  const int first = static_cast<int>(blockIdx.x), id = g.ids[first];
  if (g.has_before[first] != 0 || id < 0 || id >= g.rows) return;
  const int begin = static_cast<int>(blockIdx.y) * kThreads * kInThread + static_cast<int>(threadIdx.x);
  float* to = g.d_table + id * g.table_stride;
  float sum[kInThread];
#pragma unroll
  for (int j = 0; j < kInThread; ++j) {
    const int d = begin + j * kThreads;
    sum[j] = d < g.cols ? to[d] : 0;
  }
  for (int t = first; t >= 0; t = g.next[t]) {
    const float* from = g.dy + t * g.dy_stride;
#pragma unroll
    for (int j = 0; j < kInThread; ++j) {
      const int d = begin + j * kThreads;
      if (d < g.cols) sum[j] += from[d];
    }
  }
#pragma unroll
  for (int j = 0; j < kInThread; ++j) {
    const int d = begin + j * kThreads;
    if (d < g.cols) to[d] = sum[j];
  }
}

struct SwigluGradient {
  float* d_gate_up;
  const float *dy, *gate_up;
  int64_t d_stride, dy_stride, stride;
  int cols;
};

// A block a row. d_gate_up may be gate_up.
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(SwigluGradient s) {
  wait_for_inputs();
  start_next();
  const float *gates = s.gate_up + blockIdx.x * s.stride, *dy = s.dy + blockIdx.x * s.dy_stride;
  float* out = s.d_gate_up + blockIdx.x * s.d_stride;
  for (int i = static_cast<int>(threadIdx.x); i < s.cols; i += kThreads) {
    const float gate = gates[i], up = gates[s.cols + i], d = dy[i], sigmoid = 1 / (1 + expf(-gate));
    out[i] = d * up * sigmoid * (1 + gate * (1 - sigmoid));
    out[s.cols + i] = d * gate * sigmoid;
  }
}

}  // namespace

void embedding_backward_weight(Context& ctx, Tensor dtable, Tensor dy, Tensor ids) {
  const int64_t tokens = ids.size();
  if (tokens == 0) return;
  FATHOM_CHECK(ids.contiguous() && tokens < int64_t{1} << 30);
  const ArenaScope scope(ctx.arena);
  const Tensor next = new_i32(ctx, {tokens}), has_before = new_i32(ctx, {tokens});
  ctx.device->fill_zero(*ctx.device, has_before.data, static_cast<size_t>(has_before.size_bytes()));
  const EmbeddingGradient g{dtable.f32(),
                            dy.f32(),
                            ids.i32(),
                            next.i32(),
                            has_before.i32(),
                            dtable.row_stride,
                            dy.row_stride,
                            static_cast<int>(tokens),
                            static_cast<int>(dtable.rows()),
                            static_cast<int>(dtable.cols())};
  launch(ctx, link_kernel, dim3(static_cast<unsigned>(ceil_div(tokens, int64_t{kWarps}))), dim3(kThreads), 0, g);
  launch(ctx, add_list_kernel,
         dim3(static_cast<unsigned>(tokens),
              static_cast<unsigned>(ceil_div(dtable.cols(), int64_t{kThreads * kInThread}))),
         dim3(kThreads), 0, g);
}

void swiglu_backward(Context& ctx, Tensor d_gate_up, Tensor dy, Tensor gate_up) {
  if (dy.rows() == 0) return;
  launch(ctx, swiglu_backward_kernel, dim3(static_cast<unsigned>(dy.rows())), dim3(kThreads), 0,
         SwigluGradient{d_gate_up.f32(), dy.f32(), gate_up.f32(), d_gate_up.row_stride, dy.row_stride,
                        gate_up.row_stride, static_cast<int>(dy.cols())});
}

}  // namespace fathom::cuda
