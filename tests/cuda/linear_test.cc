#include "ops/linear.h"

#include "base/arithmetic.h"
#include "cuda/device_context.h"
#include "number/formats.h"
#include "number/panels.h"
#include "ops/cuda/operators.h"

namespace fathom {
namespace {

// Random weights [matrices, rows, cols] in panels on the host; of one matrix rank 2.
Tensor random_panels(Format format, int64_t matrices, int64_t rows, int64_t cols, uint64_t seed) {
  const int64_t n_panels = ceil_div(rows, kPanelRows), bytes = panel_bytes(format, cols);
  uint8_t* const memory = test_memory<uint8_t>(matrices * n_panels * bytes + 64, 0);
  // Aligned as memory of the device is.
  auto* const data =
      reinterpret_cast<uint8_t*>(round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory)), int64_t{64}));
  Rng rng(seed);
  for (int64_t p = 0; p < matrices * n_panels; ++p) {
    const int64_t n = std::min(kPanelRows, rows - p % n_panels * kPanelRows);
    std::vector<float> numbers(static_cast<size_t>(n * cols));
    for (float& x : numbers) x = static_cast<float>(rng.normal());
    std::vector<uint8_t> encoded(static_cast<size_t>(n * format_bytes(format, cols)));
    std::vector<float> scales(static_cast<size_t>(ceil_div(cols, kFp8PanelBlock)));
    if (format == Format::f8_e4m3) {
      quantize_f8_blocks(encoded.data(), scales.data(), numbers.data(), n, cols, {kPanelRows, kFp8PanelBlock}, false);
    } else {
      from_f32(encoded.data(), numbers.data(), format, n * cols);
    }
    const void* of_panel[kPanelRows];
    for (int64_t r = 0; r < n; ++r) of_panel[r] = encoded.data() + r * format_bytes(format, cols);
    pack_panel(data + p * bytes, of_panel, n, format, cols, scales.data());
  }
  return matrices == 1 ? panel_tensor(data, format, {rows, cols}) : panel_tensor(data, format, {matrices, rows, cols});
}

constexpr Format kFormats[] = {Format::f32,  Format::bf16, Format::f16,  Format::f8_e4m3, Format::q8_0,
                               Format::q4_0, Format::q5_0, Format::q4_k, Format::q5_k,    Format::q6_k};

class CudaLinear : public testing::TestWithParam<Format> {
 protected:
  void SetUp() override {
    if (cuda_ctx().device == nullptr) GTEST_SKIP() << "there is no GPU";
  }
  Format format() const { return GetParam(); }
  bool in_blocks() const { return is_block_format(format()); }
  int64_t block() const { return format_traits(format()).block; }
};

Tensor on_cpu(Tensor x, Tensor w) {
  const Tensor y = filled_f32(x.rows(), w.rows(), 0);
  linear(ctx(), y, make_linear_input(ctx(), x, {w}), w);
  return y;
}

TEST_P(CudaLinear, MatchesTheCpuOnOddShapes) {
  const std::vector<int64_t> columns = block() == 256 ? std::vector<int64_t>{256, 768, 2560}
                                       : in_blocks()  ? std::vector<int64_t>{32, 96, 288, 1056}
                                                      : std::vector<int64_t>{1, 20, 64, 200, 513};
  for (const int64_t cols : columns) {
    for (const int64_t rows : {1, 8, 21, 72, 136, 520}) {
      for (const int64_t tokens : {1, 2, 7, 8, 9, 17, 33, 70}) {
        if ((tokens > 9 && rows > 72 && rows != 520) || (rows == 520 && (tokens < 70 || cols > 300))) continue;
        const Tensor w = random_panels(format(), 1, rows, cols, static_cast<uint64_t>(rows * cols));
        const Tensor x = random_f32(tokens, cols, static_cast<uint64_t>(tokens + cols), cols + 3);
        const Tensor y = upload(filled_f32(tokens, rows, NAN, rows + 5));
        linear(cuda_ctx(), y, make_linear_input(cuda_ctx(), upload(x), {w}), upload(w));
        const Tensor got = download(y);
        EXPECT_LE(max_relative_error(got, on_cpu(x, w)), 2e-5) << tokens << " x " << rows << " x " << cols;
        EXPECT_TRUE(gaps_untouched(got));
      }
    }
  }
}

TEST_P(CudaLinear, SeveralCallsAndExpertsMatchTheCpu) {
  const int64_t cols = block() * 2, rows = 40, experts = 5, tokens = 23, k = 2;
  for (const int64_t n : {int64_t{1}, int64_t{3}, tokens}) {
    const Tensor x = random_f32(n, cols, 5), w = random_panels(format(), experts, rows, cols, 6);
    const Tensor other = random_panels(format(), 1, 24, cols, 7);
    std::vector<int32_t> ids;
    Rng rng(8);
    for (int64_t t = 0; t < n; ++t) {
      const auto first = static_cast<int32_t>(rng.below(4));  // the expert 2 has none
      ids.push_back(first == 2 ? 3 : first);
      ids.push_back(4);
    }
    const Tensor ids_tensor(i32_tensor(ids).data, Format::i32, {n, k});
    const Dispatch d = make_dispatch(ctx(), ids_tensor, experts),
                   on_gpu = make_dispatch(cuda_ctx(), upload(ids_tensor), experts);
    ASSERT_TRUE(same_bits(download(on_gpu.offsets), d.offsets));
    ASSERT_TRUE(same_bits(download(on_gpu.slot_of), d.slot_of));
    ASSERT_TRUE(same_bits(download(on_gpu.token_of), d.token_of));
    ASSERT_TRUE(same_bits(download(on_gpu.choice_of), d.choice_of));

    const Tensor want = filled_f32(n * k, rows, 0);
    grouped_linear(ctx(), want, dispatch(ctx(), make_linear_input(ctx(), x, {w}), d, w), w, d.offsets);
    const LinearInput input = make_linear_input(cuda_ctx(), upload(x), {w});
    const LinearInput sorted = dispatch(cuda_ctx(), input, on_gpu, w);
    const Tensor y = upload(filled_f32(n * k, rows, NAN)), z = upload(filled_f32(n, 24, NAN));
    linear(cuda_ctx(), {{y, sorted, upload(w), on_gpu.offsets, on_gpu.experts}, {z, input, upload(other)}});
    EXPECT_LE(max_relative_error(download(y), want), 2e-5) << n;
    EXPECT_LE(max_relative_error(download(z), on_cpu(x, other)), 2e-5) << n;
  }
}

TEST_P(CudaLinear, HeadsMatchTheCpu) {
  const int64_t cols = block() == 1 ? 24 : block(), rows = 16, heads = 3, tokens = 5, x_step = cols + 8;
  const Tensor x = random_f32(tokens, heads * x_step, 5), w = random_panels(format(), heads, rows, cols, 6);
  const Tensor y = upload(filled_f32(tokens, heads * rows, NAN)), on_gpu = upload(x), weights = upload(w);
  cuda::heads_linear(cuda_ctx(), {y.columns(0, rows), rows, on_gpu.columns(0, cols), x_step, weights[0],
                                  ceil_div(rows, kPanelRows) * w.row_stride, heads});
  const Tensor got = download(y);
  for (int64_t h = 0; h < heads; ++h) {
    EXPECT_LE(max_relative_error(got.columns(h * rows, rows), on_cpu(x.columns(h * x_step, cols), w[h])), 2e-5) << h;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, CudaLinear, testing::ValuesIn(kFormats),
                         [](const auto& test) { return std::string(format_traits(test.param).name); });

}  // namespace
}  // namespace fathom
