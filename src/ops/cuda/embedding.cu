#include <math.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "number/blocks.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/latent_row.h"
#include "ops/cuda/operators.h"
#include "ops/cuda/quantize.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;

struct Rows {
  float* out;
  const void* a;
  const void* b;
  int64_t out_stride, a_stride, b_stride;  // elements
  int cols, n;                             // n: rows of `a`
};

__device__ float f16_at(const uint8_t* p) { return f16_to_float(load_u16(p)); }

// Number k of a row that is stored row by row, as number/blocks.h lays it out.
template <Format format>
__device__ float number_at(const uint8_t* row, int k) {
  if constexpr (format == Format::f32) return reinterpret_cast<const float*>(row)[k];
  if constexpr (format == Format::bf16) return widen_bf16(reinterpret_cast<const uint16_t*>(row)[k]);
  if constexpr (format == Format::f16) return f16_to_float(reinterpret_cast<const uint16_t*>(row)[k]);
  if constexpr (format == Format::q8_0) {
    const uint8_t* block = row + static_cast<int64_t>(k / 32) * 34;
    return f16_at(block) * static_cast<float>(static_cast<int8_t>(block[2 + k % 32]));
  }
  if constexpr (format == Format::q4_0) {
    const uint8_t* block = row + static_cast<int64_t>(k / 32) * 18;
    return f16_at(block) * static_cast<float>((block[2 + k % 16] >> k % 32 / 16 * 4 & 15) - 8);
  }
  if constexpr (format == Format::q5_0) {
    const uint8_t* block = row + static_cast<int64_t>(k / 32) * 22;
    const int fifth = block[2 + k % 32 / 8] >> k % 8 & 1;
    return f16_at(block) * static_cast<float>(((block[6 + k % 16] >> k % 32 / 16 * 4 & 15) | fifth << 4) - 16);
  }
  if constexpr (format == Format::q4_k || format == Format::q5_k) {
    constexpr bool kFive = format == Format::q5_k;
    const uint8_t* block = row + static_cast<int64_t>(k / 256) * (kFive ? 176 : 144);
    const int i = k % 256, s = i / 32;
    const uint8_t* scales = block + 4;
    const int scale = s < 4 ? scales[s] & 63 : (scales[s + 4] & 15) | scales[s - 4] >> 6 << 4;
    const int min_of = s < 4 ? scales[s + 4] & 63 : scales[s + 4] >> 4 | scales[s] >> 6 << 4;
    const uint8_t* codes = block + (kFive ? 48 : 16);
    int code = codes[s / 2 * 32 + i % 32] >> s % 2 * 4 & 15;
    if (kFive) code |= (block[16 + i % 32] >> s & 1) << 4;
    return f16_at(block) * static_cast<float>(scale) * static_cast<float>(code) -
           f16_at(block + 2) * static_cast<float>(min_of);
  }
  if constexpr (format == Format::q6_k) {
    const uint8_t* block = row + static_cast<int64_t>(k / 256) * 210;
    const int i = k % 256, half = i / 128, part = i % 128 / 32, j = i % 32;
    const int low = block[half * 64 + part % 2 * 32 + j] >> part / 2 * 4 & 15;
    const int high = block[128 + half * 32 + j] >> part * 2 & 3;
    const int scale = static_cast<int8_t>(block[192 + i / 16]);
    return f16_at(block + 208) * static_cast<float>(scale * ((low | high << 4) - 32));
  }
  return NAN;
}

// A block a part of a row: out[t] = table[ids[t]], ids in b.
template <Format format>
__global__ void embedding_kernel(Rows r, int64_t row_bytes) {
  wait_for_inputs();
  start_next();
  const int id = static_cast<const int32_t*>(r.b)[blockIdx.y];
  // Ids are checked on the host; one that is wrong must still not read elsewhere.
  const uint8_t* row = static_cast<const uint8_t*>(r.a) + min(max(id, 0), r.n - 1) * row_bytes;
  const int k = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (k < r.cols) r.out[blockIdx.y * r.out_stride + k] = number_at<format>(row, k);
}

__global__ void add_kernel(Rows r) {
  wait_for_inputs();
  start_next();
  const int k = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (k >= r.cols) return;
  r.out[blockIdx.y * r.out_stride + k] = static_cast<const float*>(r.a)[blockIdx.y * r.a_stride + k] +
                                         static_cast<const float*>(r.b)[blockIdx.y * r.b_stride + k];
}

__device__ float swiglu_of(float gate, float up) { return gate / (1 + expf(-gate)) * up; }

__global__ void swiglu_kernel(Rows r) {
  wait_for_inputs();
  start_next();
  const int k = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (k >= r.cols) return;
  const float* row = static_cast<const float*>(r.a) + blockIdx.y * r.a_stride;
  r.out[blockIdx.y * r.out_stride + k] = swiglu_of(row[k], row[r.cols + k]);
}

// Four columns a thread, into the form of blocks of 32 columns.
__global__ void __launch_bounds__(kThreads) swiglu_by_32_kernel(Rows r, int64_t row_bytes) {
  wait_for_inputs();
  start_next();
  const int k = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * 4;
  const bool there = k < r.cols;
  const float* row = static_cast<const float*>(r.a) + blockIdx.y * r.a_stride;
  float4 x = make_float4(0, 0, 0, 0);
  if (there) {
    const float4 gate = *reinterpret_cast<const float4*>(row + k);
    const float4 up = *reinterpret_cast<const float4*>(row + r.cols + k);
    x = make_float4(swiglu_of(gate.x, up.x), swiglu_of(gate.y, up.y), swiglu_of(gate.z, up.z), swiglu_of(gate.w, up.w));
  }
  quantize_four(reinterpret_cast<uint8_t*>(r.out) + blockIdx.y * row_bytes, k, x, there);
}

// launch_rows(first row, grid) for as many rows as a grid can have.
template <class LaunchRows>
void over_rows(int64_t rows, int64_t cols, const LaunchRows& launch_rows) {
  for (int64_t begin = 0; begin < rows; begin += kMaxGridY) {
    launch_rows(begin, dim3(static_cast<unsigned>(ceil_div(cols, int64_t{kThreads})),
                            static_cast<unsigned>(std::min(kMaxGridY, rows - begin))));
  }
}

}  // namespace

void embedding(Context& ctx, Tensor y, Tensor ids, Tensor table) {
  FATHOM_CHECK(ids.contiguous() && !table.panels && table.rows() > 0);
  const int64_t row_bytes = format_bytes(table.format, table.row_stride);
  const auto run = [&](auto* kernel) {
    over_rows(y.rows(), y.cols(), [&](int64_t begin, dim3 grid) {
      launch(ctx, kernel, grid, dim3(kThreads), 0,
             Rows{y.f32_row(begin), table.data, ids.i32() + begin, y.row_stride, 0, 0, static_cast<int>(y.cols()),
                  static_cast<int>(table.rows())},
             row_bytes);
    });
  };
  switch (table.format) {
    case Format::f32:
      return run(embedding_kernel<Format::f32>);
    case Format::bf16:
      return run(embedding_kernel<Format::bf16>);
    case Format::f16:
      return run(embedding_kernel<Format::f16>);
    case Format::q8_0:
      return run(embedding_kernel<Format::q8_0>);
    case Format::q4_0:
      return run(embedding_kernel<Format::q4_0>);
    case Format::q5_0:
      return run(embedding_kernel<Format::q5_0>);
    case Format::q4_k:
      return run(embedding_kernel<Format::q4_k>);
    case Format::q5_k:
      return run(embedding_kernel<Format::q5_k>);
    case Format::q6_k:
      return run(embedding_kernel<Format::q6_k>);
    default:
      throw Error("an embedding in {} cannot be read on a GPU: take the model in another format",
                  format_traits(table.format).name);
  }
}

void add(Context& ctx, Tensor out, Tensor a, Tensor b) {
  over_rows(out.rows(), out.cols(), [&](int64_t begin, dim3 grid) {
    launch(ctx, add_kernel, grid, dim3(kThreads), 0,
           Rows{out.f32_row(begin), a.f32_row(begin), b.f32_row(begin), out.row_stride, a.row_stride, b.row_stride,
                static_cast<int>(out.cols()), 0});
  });
}

LinearInput swiglu_input(Context& ctx, Tensor y, Tensor gate_up, std::span<const Tensor> weights) {
  const bool by_32 = std::all_of(weights.begin(), weights.end(),
                                 [&](const Tensor& w) { return form_for(ctx, w) == &LinearInput::by_32; });
  const bool whole = reinterpret_cast<uintptr_t>(gate_up.data) % sizeof(float4) == 0 && gate_up.row_stride % 4 == 0;
  if (!by_32 || !whole || y.rows() > kMaxGridY || y.rows() == 0) {
    swiglu(ctx, y, gate_up);
    return make_linear_input(ctx, y, weights);
  }
  LinearInput input = y;
  const int64_t row_bytes = y.cols() / 32 * kBlock32;
  input.by_32 = new_tensor(ctx, Format::u8, {y.rows(), row_bytes});
  launch(ctx, swiglu_by_32_kernel,
         dim3(static_cast<unsigned>(ceil_div(y.cols(), int64_t{4 * kThreads})), static_cast<unsigned>(y.rows())),
         dim3(kThreads), 0,
         Rows{static_cast<float*>(input.by_32.data), gate_up.f32(), nullptr, 0, gate_up.row_stride, 0,
              static_cast<int>(y.cols()), 0},
         row_bytes);
  return input;
}

void swiglu(Context& ctx, Tensor y, Tensor gate_up) {
  over_rows(y.rows(), y.cols(), [&](int64_t begin, dim3 grid) {
    launch(ctx, swiglu_kernel, grid, dim3(kThreads), 0,
           Rows{y.f32_row(begin), gate_up.f32_row(begin), nullptr, y.row_stride, gate_up.row_stride, 0,
                static_cast<int>(y.cols()), 0});
  });
}

}  // namespace fathom::cuda
