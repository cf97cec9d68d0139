#include <algorithm>
#include <vector>

#include "base/arithmetic.h"
#include "number/panels.h"
#include "ops/cpu/panel_kernels.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/linear_launch.h"
#include "ops/cuda/operators.h"
#include "ops/cuda/quantize.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;

// Rows of tokens, blockIdx.y, and of heads in these, blockIdx.z.
struct Quantize {
  uint8_t* out;
  const float* x;
  int64_t x_stride, x_step, row_bytes;
  int cols;
  __device__ uint8_t* row_out() const { return out + (blockIdx.y * int64_t{gridDim.z} + blockIdx.z) * row_bytes; }
  __device__ const float* row_in() const { return x + blockIdx.y * x_stride + blockIdx.z * x_step; }
};

// Four columns a thread.
__global__ void quantize_32_kernel(Quantize q) {
  wait_for_inputs();
  start_next();
  const int k = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * 4;
  const bool there = k < q.cols;
  const float* in = q.row_in() + k;
  quantize_four(q.row_out(), k, there ? make_float4(in[0], in[1], in[2], in[3]) : make_float4(0, 0, 0, 0), there);
}

// A warp a block of 256 columns, a lane 8 columns.
__global__ void quantize_256_kernel(Quantize q) {
  wait_for_inputs();
  start_next();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int block = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) / kWarp;
  const int n_blocks = q.cols / 256;
  if (block >= n_blocks) return;
  uint8_t* out = q.row_out();
  const float* in = q.row_in() + block * 256 + lane * 8;
  float x[8], amax = 0;
  for (int i = 0; i < 8; ++i) {
    x[i] = in[i];
    amax = fmaxf(amax, fabsf(x[i]));
  }
  amax = warp_max(amax);
  const float inverse = inverse_of(amax);
  int sum = 0;
  uint32_t words[2] = {};
  for (int i = 0; i < 8; ++i) {
    const int code = rounded(x[i], inverse);
    sum += code;
    words[i / 4] |= (static_cast<uint32_t>(code) & 255) << i % 4 * 8;
  }
  auto* codes = reinterpret_cast<uint32_t*>(out + block * 256 + lane * 8);
  codes[0] = words[0];
  codes[1] = words[1];
  const int sum_16 = sum + __shfl_xor_sync(kAllLanes, sum, 1);
  const int sum_32 = sum_16 + __shfl_xor_sync(kAllLanes, sum_16, 2);
  auto* scales = reinterpret_cast<float*>(out + q.cols);
  auto* sums_32 = reinterpret_cast<int16_t*>(scales + n_blocks);
  int16_t* sums_16 = sums_32 + q.cols / 32;
  if (lane == 0) scales[block] = amax / 127;
  if (lane % 2 == 0) sums_16[block * 16 + lane / 2] = static_cast<int16_t>(sum_16);
  if (lane % 4 == 0) sums_32[block * 8 + lane / 4] = static_cast<int16_t>(sum_32);
}

// Sixteen columns a thread: each number as a bf16 and what that is off by as another. Word q of a block's part c are
// columns 2c, 2c + 1 (q = 0) and 8 + 2c, 9 + 2c (1) of the first, and the same of the second, as a lane of a product
// wants them. Behind the last column zeros.
__global__ void split_kernel(Quantize q) {
  wait_for_inputs();
  start_next();
  const int block = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (block * 16 >= q.cols) return;
  auto* out = reinterpret_cast<uint4*>(q.row_out() + block * kBlock16);
  const float* in = q.row_in() + block * 16;
  const int n = q.cols - block * 16;
  for (int c = 0; c < 4; ++c) {
    uint32_t high[2], low[2];
    for (int i = 0; i < 2; ++i) {
      const int k = i * 8 + 2 * c;
      const float first = k < n ? in[k] : 0, second = k + 1 < n ? in[k + 1] : 0;
      high[i] = pack_bf16(first, second);
      low[i] = pack_bf16(first - bf16_low(high[i]), second - bf16_high(high[i]));
    }
    out[c] = make_uint4(high[0], high[1], low[0], low[1]);
  }
}

// [tokens, heads * bytes of a row]: of each head `cols` columns, x_step floats apart.
Tensor quantize(Context& ctx, Tensor x, int64_t cols, int64_t n_heads, int64_t x_step, Tensor LinearInput::*form) {
  const bool by_32 = form == &LinearInput::by_32, by_16 = form == &LinearInput::by_16;
  const int64_t tokens = x.rows();
  const int64_t row_bytes = by_16   ? ceil_div(cols, int64_t{16}) * kBlock16
                            : by_32 ? cols / 32 * kBlock32
                                    : cpu::quantized_256_bytes(cols);
  const Tensor rows = new_tensor(ctx, Format::u8, {tokens, n_heads * row_bytes});
  const int64_t n_threads = ceil_div(cols, int64_t{by_16 ? 16 : by_32 ? 4 : 8});  // for a row
  for (int64_t begin = 0; begin < tokens; begin += kMaxGridY) {
    const int64_t n = std::min(kMaxGridY, tokens - begin);
    launch(ctx,
           by_16   ? split_kernel
           : by_32 ? quantize_32_kernel
                   : quantize_256_kernel,
           dim3(static_cast<unsigned>(ceil_div(n_threads, int64_t{kThreads})), static_cast<unsigned>(n),
                static_cast<unsigned>(n_heads)),
           dim3(kThreads), 0,
           Quantize{rows.as<uint8_t>() + begin * rows.row_stride, x.f32_row(begin), x.row_stride, x_step, row_bytes,
                    static_cast<int>(cols)});
  }
  return rows;
}

// ---- Calls

int64_t matrix_bytes(Tensor w) {
  FATHOM_CHECK(w.panels && (w.rank == 2 || w.rank == 3));
  return ceil_div(w.shape[w.rank - 2], kPanelRows) * w.row_stride;
}

PanelCall panel_call(Context& ctx, const LinearCall& call) {
  const Tensor rows = call.x.*form_for(ctx, call.w), w = call.w, y = call.y;
  const int64_t tokens = call.x.x.rows(), out = w.shape[w.rank - 2];
  FATHOM_CHECK(rows && y.rows() == tokens && y.cols() == out && call.x.x.cols() == w.cols(),
               "[{}, {}], [{}, {}] and a weight [{}, {}]", y.rows(), y.cols(), tokens, call.x.x.cols(), out, w.cols());
  FATHOM_CHECK(rows.rows() == 1 || rows.row_stride * format_bytes(rows.format) * rows.rows() < int64_t{1} << 32);
  FATHOM_CHECK((w.rank == 3) == static_cast<bool>(call.offsets) && (w.rank == 2 || call.experts));
  return {.x = static_cast<const uint8_t*>(rows.data),
          .x_stride = rows.row_stride * format_bytes(rows.format),
          .x_step = 0,
          .w = static_cast<const uint8_t*>(w.data),
          .panel_bytes = w.row_stride,
          .matrix_bytes = matrix_bytes(w),
          .y = y.f32(),
          .y_stride = y.row_stride,
          .y_step = 0,
          .rows = static_cast<int>(out),
          .cols = static_cast<int>(w.cols()),
          .tokens = static_cast<int>(tokens),
          .offsets = call.offsets ? call.offsets.i32() : nullptr,
          .experts = call.offsets ? call.experts.i32() : nullptr,
          .token_of = call.x.rows ? call.x.rows.i32() : nullptr,
          .n_matrices = call.offsets ? static_cast<int>(call.experts.size()) : 1};
}

void launch_calls(Context& ctx, Format format, std::span<const PanelCall> calls) {
  switch (format) {
    case Format::q4_0:
      return launch_q4_0(ctx, calls);
    case Format::q5_0:
      return launch_q5_0(ctx, calls);
    case Format::q8_0:
      return launch_q8_0(ctx, calls);
    case Format::q4_k:
      return launch_q4_k(ctx, calls);
    case Format::q5_k:
      return launch_q5_k(ctx, calls);
    case Format::q6_k:
      return launch_q6_k(ctx, calls);
    case Format::bf16:
      return launch_bf16(ctx, calls);
    case Format::f8_e4m3:
      return launch_f8_e4m3(ctx, calls);
    case Format::f32:
      return launch_f32(ctx, calls);
    case Format::f16:
      return launch_f16(ctx, calls);
    default:
      FATHOM_CHECK(false, "no panels of {}", format_traits(format).name);
  }
}

}  // namespace

int64_t usual_tokens(const PanelCall& call) {
  return call.offsets == nullptr ? call.tokens : ceil_div(int64_t{call.tokens}, int64_t{call.n_matrices});
}

void add_forms(Context& ctx, LinearInput& input, std::span<const Tensor> weights) {
  const Tensor x = input.x;
  for (const Tensor& w : weights) {
    if (!w) continue;
    const auto form = form_for(ctx, w);
    if (!(input.*form) && x.rows() > 0) input.*form = quantize(ctx, x, x.cols(), 1, 0, form);
  }
}

LinearInput make_linear_input(Context& ctx, Tensor x, std::span<const Tensor> weights) {
  LinearInput input = x;
  add_forms(ctx, input, weights);
  return input;
}

void linear(Context& ctx, std::span<const LinearCall> calls) {
  const auto by_rows = [](const LinearCall& call) { return !call.w.panels; };
  if (std::any_of(calls.begin(), calls.end(), by_rows)) {
    FATHOM_CHECK(std::all_of(calls.begin(), calls.end(), by_rows));
    return linear_rows(ctx, calls);
  }
  std::vector<bool> done(calls.size());
  for (size_t i = 0; i < calls.size(); ++i) {
    if (done[i]) continue;
    std::vector<PanelCall> together;
    for (size_t j = i; j < calls.size() && together.size() < kCallsTogether; ++j) {
      if (done[j] || calls[j].w.format != calls[i].w.format) continue;
      done[j] = true;
      if (calls[j].x.x.rows() == 0) continue;
      const PanelCall call = panel_call(ctx, calls[j]);
      // What has many tokens for a matrix and what has few take kernels of their own.
      if (!together.empty() && (usual_tokens(call) > kFewTokens) != (usual_tokens(together[0]) > kFewTokens)) {
        launch_calls(ctx, calls[i].w.format, {&call, 1});
      } else {
        together.push_back(call);
      }
    }
    if (!together.empty()) launch_calls(ctx, calls[i].w.format, together);
  }
}

void heads_linear(Context& ctx, const HeadsLinear& h) {
  const int64_t tokens = h.x.rows(), cols = h.w.cols();
  if (tokens == 0) return;
  FATHOM_CHECK(h.w.panels && h.w.rank == 2 && h.x.cols() == cols && h.y.rows() == tokens && h.y.cols() == h.w.rows());
  Tensor rows = h.x;
  int64_t x_step = h.x_step * 4;
  if (const auto form = form_for(ctx, h.w); form != &LinearInput::x) {
    rows = quantize(ctx, h.x, cols, h.n_heads, h.x_step, form);
    x_step = rows.cols() / h.n_heads;
  }
  const PanelCall call{.x = static_cast<const uint8_t*>(rows.data),
                       .x_stride = rows.row_stride * format_bytes(rows.format),
                       .x_step = x_step,
                       .w = static_cast<const uint8_t*>(h.w.data),
                       .panel_bytes = h.w.row_stride,
                       .matrix_bytes = h.w_step,
                       .y = h.y.f32(),
                       .y_stride = h.y.row_stride,
                       .y_step = h.y_step,
                       .rows = static_cast<int>(h.w.rows()),
                       .cols = static_cast<int>(cols),
                       .tokens = static_cast<int>(tokens),
                       .offsets = nullptr,
                       .experts = nullptr,
                       .token_of = nullptr,
                       .n_matrices = static_cast<int>(h.n_heads)};
  launch_calls(ctx, h.w.format, {&call, 1});
}

}  // namespace fathom::cuda
