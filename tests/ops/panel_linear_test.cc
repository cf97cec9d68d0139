// Weights in panels: every format and instruction set against the same product in double, of the numbers that weights
// and rounded activations stand for.
#include "number/panels.h"
#include "number/random_blocks.h"
#include "ops/cpu/panel_variants.h"
#include "ops/each_isa.h"
#include "ops/linear.h"
#include "ops/test_tensors.h"

namespace fathom {
namespace {

constexpr Format kFormats[] = {Format::q8_0, Format::q4_0, Format::q5_0, Format::q4_k, Format::q5_k,
                               Format::q6_k, Format::f32,  Format::bf16, Format::f16,  Format::f8_e4m3};

struct Weight {
  Tensor panels;                // [matrices, out, in]
  std::vector<float> unpacked;  // [matrices, out, in]
};

Weight random_weight(Format format, int64_t matrices, int64_t out, int64_t in, uint64_t seed) {
  const int64_t n = matrices * out * in;
  std::vector<uint8_t> stored;
  if (format_traits(format).block > 1) {
    stored = random_blocks(format, n, seed);
  } else {
    const Tensor numbers = random_f32(matrices * out, in, seed);
    stored.resize(static_cast<size_t>(format_bytes(format, n)));
    from_f32(stored.data(), numbers.f32(), format, n);
  }
  Weight w;
  w.panels = panel_tensor(nullptr, format, {matrices, out, in});
  w.panels.data = test_memory<uint8_t>(w.panels.size_bytes(), 0xEE);
  const std::vector<float> scales(static_cast<size_t>((in + 127) / 128), 0.75f);
  for (int64_t m = 0; m < matrices; ++m) {
    for (int64_t row = 0; row < out; row += 8) {
      const void* rows[8];
      const int64_t n_rows = std::min<int64_t>(8, out - row);
      for (int64_t r = 0; r < n_rows; ++r) rows[r] = stored.data() + format_bytes(format, (m * out + row + r) * in);
      auto* panel = static_cast<uint8_t*>(w.panels[m].data) + row / 8 * w.panels.row_stride;
      pack_panel(panel, rows, n_rows, format, in, scales.data());
      std::vector<float> numbers(static_cast<size_t>(8 * in));
      unpack_panel(numbers.data(), panel, format, in);
      w.unpacked.insert(w.unpacked.end(), numbers.begin(), numbers.begin() + n_rows * in);
    }
  }
  return w;
}

// What the codes of a row stand for.
std::vector<double> rounded_row(const LinearInput& input, int64_t t, Format format, int64_t in) {
  std::vector<double> row;
  const int64_t block = format_traits(format).block;
  if (block == 1) return {input.x.f32_row(t), input.x.f32_row(t) + in};
  const Tensor rows = block == 32 ? input.by_32 : input.by_256;
  const auto* codes = static_cast<const int8_t*>(rows.data) + t * rows.row_stride;
  for (int64_t k = 0; k < in; ++k) {
    float scale;
    std::memcpy(&scale, codes + in + k / block * 4, 4);
    row.push_back(static_cast<double>(codes[k]) * scale);
  }
  return row;
}

class PanelLinear : public testing::TestWithParam<Format> {};
INSTANTIATE_TEST_SUITE_P(Formats, PanelLinear, testing::ValuesIn(kFormats),
                         [](const auto& test) { return format_traits(test.param).name; });

TEST_P(PanelLinear, IsTheProductOfWhatIsStored) {
  const Format format = GetParam();
  const bool blocks = format_traits(format).block > 1;
  for (const auto& [tokens, out, in] : std::vector<std::array<int64_t, 3>>{{1, 1, 256},
                                                                           {1, 40, 512},
                                                                           {2, 17, 256},
                                                                           {6, 64, 768},
                                                                           {7, 9, 256},
                                                                           {13, 70, 1024},
                                                                           {131, 24, 256},
                                                                           {1, 33, blocks ? 1280 : 77},
                                                                           {5, 33, blocks ? 1280 : 77}}) {
    const Weight w = random_weight(format, 1, out, in, 5);
    const Tensor x = random_f32(tokens, in, 6), y = filled_f32(tokens, out, -1, out + 3);
    const LinearInput input = make_linear_input(ctx(), x, {w.panels});
    linear(ctx(), y, input, w.panels[0]);
    double worst = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<double> row = rounded_row(input, t, format, in);
      for (int64_t k = 0; k < in; ++k) {
        EXPECT_NEAR(row[static_cast<size_t>(k)], x.f32(t, k), blocks ? 4.0 / 127 : 0) << "a code of a normal number";
      }
      for (int64_t o = 0; o < out; ++o) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < in; ++k) {
          const double product = row[static_cast<size_t>(k)] * w.unpacked[static_cast<size_t>(o * in + k)];
          sum += product;
          magnitude += std::fabs(product);
        }
        worst = std::max(worst, std::fabs(y.f32(t, o) - sum) / magnitude);
      }
    }
    EXPECT_LT(worst, 1e-6) << tokens << " " << out << " " << in;
    EXPECT_TRUE(gaps_untouched(y));
  }
}

// Formats with 32 columns in a block take any number of them.
TEST(PanelLinear, TakesColumnsThatAreNoMultipleOf256) {
  for (const Format format : {Format::q8_0, Format::q4_0, Format::q5_0}) {
    for (const int64_t in : {32, 96, 352}) {
      const Weight w = random_weight(format, 1, 11, in, 5);
      const Tensor x = random_f32(3, in, 6), y = filled_f32(3, 11, 0);
      const LinearInput input = make_linear_input(ctx(), x, {w.panels});
      linear(ctx(), y, input, w.panels[0]);
      for (int64_t t = 0; t < 3; ++t) {
        const std::vector<double> row = rounded_row(input, t, format, in);
        for (int64_t o = 0; o < 11; ++o) {
          double sum = 0;
          for (int64_t k = 0; k < in; ++k) sum += row[k] * w.unpacked[o * in + k];
          EXPECT_NEAR(y.f32(t, o), sum, 1e-4) << in;
        }
      }
    }
  }
}

TEST_P(PanelLinear, GivesARowTheSameBitsInAnyBatchAndOnAnyThreads) {
  const Format format = GetParam();
  const int64_t tokens = 140, out = 270, in = 1280;  // more of each than tiles take at once
  const Weight w = random_weight(format, 1, out, in, 1);
  const Tensor x = random_f32(tokens, in, 2), y = filled_f32(tokens, out, 0), alone = filled_f32(tokens, out, 0);
  linear(ctx(), y, make_linear_input(ctx(), x, {w.panels}), w.panels[0]);
  ThreadedContext one(1);
  for (int64_t t = 0; t < tokens; ++t) {
    linear(one.ctx, alone.slice(t, 1), make_linear_input(one.ctx, x.slice(t, 1), {w.panels}), w.panels[0]);
  }
  EXPECT_EQ(0, std::memcmp(y.f32(), alone.f32(), static_cast<size_t>(y.size_bytes())));
  for (int64_t n = 2; n < 14; ++n) {  // some of which have kernels of their own
    const Tensor few = filled_f32(n, out, 0);
    linear(ctx(), few, make_linear_input(ctx(), x.slice(0, n), {w.panels}), w.panels[0]);
    EXPECT_EQ(0, std::memcmp(few.f32(), alone.f32(), static_cast<size_t>(few.size_bytes()))) << n;
  }
}

TEST_P(PanelLinear, OfExpertsIsThatOfEachExpert) {
  const int64_t out = 20, in = 256;
  const Weight w = random_weight(GetParam(), 4, out, in, 1);
  std::vector<int32_t> offsets = {0, 3, 3, 10, 11};
  const Tensor x = random_f32(11, in, 2), y = filled_f32(11, out, 0), want = filled_f32(11, out, 0);
  const LinearInput input = make_linear_input(ctx(), x, {w.panels});
  grouped_linear(ctx(), y, input, w.panels, Tensor(offsets.data(), Format::i32, {5}));
  for (int64_t e = 0; e < 4; ++e) {
    const int64_t begin = offsets[e], n = offsets[e + 1] - begin;
    if (n > 0) linear(ctx(), want.slice(begin, n), input.slice(begin, n), w.panels[e]);
  }
  EXPECT_EQ(0, std::memcmp(y.f32(), want.f32(), static_cast<size_t>(y.size_bytes())));
}

using Kernel = void (*)(const cpu::PanelProduct&);
Kernel kernel_of(const cpu::PanelKernels& kernels, Format format) {
  const std::array<Kernel, 10> of_format = {kernels.q8_0, kernels.q4_0, kernels.q5_0, kernels.q4_k, kernels.q5_k,
                                            kernels.q6_k, kernels.f32,  kernels.bf16, kernels.f16,  kernels.f8_e4m3};
  return of_format[static_cast<size_t>(std::find(std::begin(kFormats), std::end(kFormats), format) - kFormats)];
}
Tensor rows_for(const LinearInput& input, Format format) {
  Tensor w;
  w.format = format;
  w.panels = true;
  return input.*form_for(ctx(), w);
}
Tensor product_by(const cpu::PanelVariant& variant, const LinearInput& input, const Weight& w) {
  const Tensor rows = rows_for(input, w.panels.format), y = filled_f32(rows.rows(), w.panels.shape[1], 0);
  kernel_of(variant.kernels,
            w.panels.format)({rows.rows(), w.panels.cols(), static_cast<const uint8_t*>(rows.data),
                              rows.row_stride * format_bytes(rows.format), static_cast<const uint8_t*>(w.panels.data),
                              w.panels.row_stride, y.cols(), y.f32(), y.row_stride});
  return y;
}
const cpu::PanelVariant& variant_of(Isa isa) {
  for (const cpu::PanelVariant& variant : cpu::kPanelVariants) {
    if (variant.isa == isa) return variant;
  }
  return cpu::kPanelVariants[0];
}

TEST(PanelKernels, OfAllInstructionSetsAgree) {
  for (const int64_t tokens : {1, 9, 14}) {  // the last in tiles, whatever the format
    const int64_t out = 40, in = 768;
    const Tensor x = random_f32(tokens, in, 2);
    for (const Format format : kFormats) {
      const Weight w = random_weight(format, 1, out, in, 1);
      const LinearInput input = make_linear_input(ctx(), x, {w.panels});
      const int64_t block = format_traits(format).block;
      const Tensor rows = rows_for(input, format), want = filled_f32(tokens, out, 0);
      linear(ctx(), want, input, w.panels[0]);
      for (const cpu::PanelVariant& variant : cpu::kPanelVariants) {
        if (!cpu_has(variant.isa)) continue;
        const std::string name = std::string(isa_name(variant.isa)) + " " + format_traits(format).name;
        const Tensor y = product_by(variant, input, w);
        EXPECT_LT(max_relative_error(y, want), 2e-6) << name;
        const Tensor same = product_by(variant_of(variant.same_bits_as), input, w);
        EXPECT_EQ(0, std::memcmp(y.f32(), same.f32(), static_cast<size_t>(y.size_bytes()))) << name;
        if (block == 1) continue;
        const Tensor codes(test_memory<uint8_t>(rows.size_bytes(), 0), Format::u8, {tokens, rows.cols()});
        for (int64_t t = 0; t < tokens; ++t) {
          (block == 32 ? variant.kernels.quantize_32 : variant.kernels.quantize_256)(
              codes.as<uint8_t>() + t * rows.cols(), x.f32_row(t), in);
        }
        EXPECT_EQ(0, std::memcmp(codes.data, rows.data, static_cast<size_t>(in))) << name;
      }
    }
  }
}

// No sum of products overflows: all bits of codes and scales set or none, activations all at either end.
TEST(PanelKernels, HoldTheLargestSumsOfEachFormat) {
  const int64_t tokens = 14, out = 24, in = 512;
  Tensor x = filled_f32(tokens, in, 1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < in; ++k) x.f32(t, k) = t == 0 || (t == 1 && k % 2 == 0) || (t > 1 && k >> t & 1) ? -1 : 1;
  }
  for (const Format format : kBlockFormats) {
    for (const uint8_t byte : {0x00, 0xFF, 0x80, 0x7F}) {
      std::vector<uint8_t> stored = random_blocks(format, 8 * in, 3);
      const FormatTraits traits = format_traits(format);
      for (size_t i = 0; i < stored.size(); ++i) {
        const size_t place = i % static_cast<size_t>(traits.block_bytes);
        bool is_scale = false;
        for (const size_t f16 : f16_places(format)) is_scale |= place / 2 == f16 / 2;
        if (!is_scale) stored[i] = byte;
      }
      Weight w;
      w.panels = panel_tensor(nullptr, format, {1, out, in});
      w.panels.data = test_memory<uint8_t>(w.panels.size_bytes(), 0);
      const void* rows[8];
      for (int64_t r = 0; r < 8; ++r) rows[r] = stored.data() + format_bytes(format, r * in);
      for (int64_t row = 0; row < out; row += 8) {
        pack_panel(static_cast<uint8_t*>(w.panels.data) + row / 8 * w.panels.row_stride, rows, 8, format, in);
      }
      std::vector<float> numbers(static_cast<size_t>(8 * in));
      unpack_panel(numbers.data(), w.panels.data, format, in);
      for (const int64_t n : {int64_t{1}, int64_t{8}, tokens}) {  // the last in tiles, whatever the format
        const LinearInput input = make_linear_input(ctx(), x.slice(0, n), {w.panels});
        for (const cpu::PanelVariant& variant : cpu::kPanelVariants) {
          if (!cpu_has(variant.isa)) continue;
          const Tensor y = product_by(variant, input, w);
          for (int64_t t = 0; t < n; ++t) {
            for (int64_t o = 0; o < out; ++o) {
              double sum = 0, magnitude = 0;
              for (int64_t k = 0; k < in; ++k) {
                const double product = x.f32(t, k) * numbers[static_cast<size_t>(o % 8 * in + k)];
                sum += product;
                magnitude += std::fabs(product);
              }
              EXPECT_NEAR(y.f32(t, o), sum, 2e-6 * magnitude)
                  << isa_name(variant.isa) << " " << traits.name << " " << int{byte} << " " << t;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace fathom
