#include "ops/rope.h"

#include <string>

#include "each_isa.h"
#include "fixtures.h"
#include "ops/cpu/rotation_kernels.h"
#include "test_tensors.h"

namespace fathom {
namespace {

Rope rope_of(simdjson::dom::element parameters, bool interleaved) {
  std::optional<YarnScaling> yarn;
  const simdjson::dom::element scaling = parameters["scaling"];
  if (!scaling.is_null()) {
    const auto number = [&](const char* key) { return scaling[key].get_double().value(); };
    yarn = YarnScaling{.factor = number("factor"),
                       .original_max_position_embeddings = scaling["original_max_position_embeddings"].get_int64(),
                       .beta_fast = number("beta_fast"),
                       .beta_slow = number("beta_slow"),
                       .mscale = number("mscale"),
                       .mscale_all_dim = number("mscale_all_dim")};
  }
  return make_rope(parameters["dim"].get_int64(), parameters["theta"].get_double(), interleaved, yarn);
}

class RopeFixture : public testing::TestWithParam<const char*> {};

TEST_P(RopeFixture, FrequenciesScalesAndRotationsMatch) {
  const OpFixtures fixtures;
  const std::string name = GetParam();
  const auto parameters = fixtures.parameters("/rope/" + name);
  const auto tensor = [&](const char* of) { return fixtures["rope." + name + "." + of]; };
  const Tensor positions = tensor("positions"), frequencies = tensor("inv_freq");
  for (const bool interleaved : {true, false}) {
    const Rope r = rope_of(parameters, interleaved);
    EXPECT_FLOAT_EQ(r.attention_scaling, static_cast<float>(parameters["attention_scaling"].get_double().value()));
    EXPECT_FLOAT_EQ(r.softmax_scale_factor,
                    static_cast<float>(parameters["softmax_scale_factor"].get_double().value()));
    ASSERT_EQ(static_cast<int64_t>(r.inv_freq.size()), frequencies.size());
    for (int64_t i = 0; i < frequencies.size(); ++i) EXPECT_FLOAT_EQ(r.inv_freq[i], frequencies.f32()[i]);

    const Tensor want = tensor(interleaved ? "out_interleaved_pairs" : "out_half");
    const Tensor x = tensor("x"), twin = copy_of(x);
    const double largest = max_abs(x);
    rope(ctx(), r, x, positions, {});
    plain::rope(r, twin, positions, {});
    for (int64_t t = 0; t < x.rows(); ++t) {
      const double tolerance = (5e-7 + 6e-8 * positions.i32()[t]) * largest;
      EXPECT_LE(max_abs_error(x.slice(t, 1), want.slice(t, 1)), tolerance) << "position " << positions.i32()[t];
      EXPECT_LE(max_abs_error(twin.slice(t, 1), want.slice(t, 1)), tolerance);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, RopeFixture, testing::Values("plain", "yarn_v3", "yarn_unequal"),
                         [](const auto& param) { return std::string(param.param); });

TEST(Rope, MagnitudesFollowTheKeysGiven) {
  YarnScaling yarn = {.factor = 40, .original_max_position_embeddings = 4096};
  const double g1 = 0.1 * std::log(40.0) + 1;
  Rope r = make_rope(64, 10000, true, yarn);  // neither
  EXPECT_FLOAT_EQ(r.attention_scaling, static_cast<float>(g1));
  EXPECT_EQ(r.softmax_scale_factor, 1);
  yarn.mscale_all_dim = 1;  // one of them
  r = make_rope(64, 10000, true, yarn);
  EXPECT_FLOAT_EQ(r.attention_scaling, static_cast<float>(g1));
  EXPECT_FLOAT_EQ(r.softmax_scale_factor, static_cast<float>(g1 * g1));
  yarn.mscale = 0.707;  // both
  r = make_rope(64, 10000, true, yarn);
  EXPECT_FLOAT_EQ(r.attention_scaling, static_cast<float>((0.0707 * std::log(40.0) + 1) / g1));
  yarn.factor = 0.5;  // no stretch
  r = make_rope(64, 10000, true, yarn);
  EXPECT_EQ(r.attention_scaling, 1);
  EXPECT_EQ(r.softmax_scale_factor, 1);
}

Tensor some_positions(int64_t n) {
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < n; ++t) positions.push_back(static_cast<int32_t>(t * 7919 % 163840));
  return i32_tensor(positions);
}

struct Case {
  int64_t tokens, dim;
  RopeLayout layout;
  int64_t stride;
};
const Case kCases[] = {{1, 2, {1, 0, 0}, 2},      {3, 6, {1, 0, 5}, 13},
                       {7, 10, {3, 17, 7}, 51},   {129, 64, {16, 192, 128}, 3073},
                       {65, 34, {5, 34, 0}, 170}, {300, 8, {2, 9, 1}, 18}};

TEST(Rope, MatchesPlainOverLayoutsAndTouchesNothingElse) {
  for (const auto& [tokens, dim, layout, cols] : kCases) {
    for (const bool interleaved : {true, false}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, dim " << dim << " interleaved " << interleaved);
      const Rope r = make_rope(dim, 10000, interleaved, YarnScaling{40, 4096, 32, 1, 0.9, 0.6});
      const Tensor positions = some_positions(tokens), x = random_f32(tokens, cols, 1, cols + 3);
      const Tensor before = copy_of(x), want = copy_of(x);
      rope(ctx(), r, x, positions, layout);
      plain::rope(r, want, positions, layout);
      EXPECT_LT(max_abs_error(x, want), 2e-6);
      EXPECT_TRUE(gaps_untouched(x));
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < layout.offset; ++i) EXPECT_EQ(x.f32(t, i), before.f32(t, i));
      }
      plain::rope_backward(r, want, positions, layout);
      rope_backward(ctx(), r, x, positions, layout);
      EXPECT_LT(max_abs_error(x, want), 4e-6);
      // There and back multiplies by the square of the scaling.
      const float square = r.attention_scaling * r.attention_scaling;
      for (int64_t i = 0; i < dim; ++i) {
        EXPECT_NEAR(x.f32(tokens - 1, layout.offset + i), square * before.f32(tokens - 1, layout.offset + i), 1e-5);
      }
    }
  }
}

TEST(Rope, GradientIsThatOfTheFunction) {
  for (const bool interleaved : {true, false}) {
    const Rope r = make_rope(6, 100, interleaved, YarnScaling{4, 64, 32, 1, 0.9, 0.6});
    const RopeLayout layout = {2, 8, 1};
    const Tensor positions = some_positions(5), x = random_f32(5, 16, 1), g = random_f32(5, 16, 2), dx = copy_of(g);
    rope_backward(ctx(), r, dx, positions, layout);
    const auto loss = [&] {
      const Tensor y = copy_of(x);
      plain::rope(r, y, positions, layout);
      return dot(y, g);
    };
    EXPECT_LT(gradient_error(loss, x, dx), 1e-3);
  }
}

TEST(Rope, ScoresDependOnDistanceAlone) {
  const Rope r = make_rope(64, 10000, true, std::nullopt);
  const Tensor q = random_f32(1, 64, 1), k = random_f32(1, 64, 2);
  const auto score = [&](int32_t q_position, int32_t k_position) {
    const Tensor a = copy_of(q), b = copy_of(k);
    rope(ctx(), r, a, i32_tensor({q_position}), {});
    rope(ctx(), r, b, i32_tensor({k_position}), {});
    return dot(a, b);
  };
  EXPECT_NEAR(score(17, 5), score(1017, 1005), 1e-3);
  EXPECT_GT(std::abs(score(17, 5) - score(17, 6)), 1e-3);
}

TEST(Rope, EveryInstructionSetAgrees) {
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::rotation_kernels, cpu::avx2::rotation_kernels, cpu::avx512::rotation_kernels)) {
    for (int64_t half = 1; half <= 40; ++half) {
      SCOPED_TRACE(testing::Message() << isa << " " << half);
      const Tensor x = random_f32(2 * half, 1), pairs = copy_of(x), halves = copy_of(x);
      const Tensor angles = random_f32(half, 2), c = zeros_like(angles), s = zeros_like(angles);
      for (int64_t i = 0; i < half; ++i) {
        c.f32()[i] = std::cos(angles.f32()[i]);
        s.f32()[i] = std::sin(angles.f32()[i]);
      }
      kernels.rotate_interleaved(pairs.f32(), c.f32(), s.f32(), half);
      kernels.rotate_halves(halves.f32(), c.f32(), s.f32(), half);
      for (int64_t i = 0; i < half; ++i) {
        const auto check = [&](Tensor got, int64_t first, int64_t second) {
          const double x0 = x.f32()[first], x1 = x.f32()[second], cos = c.f32()[i], sin = s.f32()[i];
          EXPECT_NEAR(got.f32()[first], x0 * cos - x1 * sin, 5e-7);
          EXPECT_NEAR(got.f32()[second], x1 * cos + x0 * sin, 5e-7);
        };
        check(pairs, 2 * i, 2 * i + 1);
        check(halves, i, i + half);
      }
    }
  }
}

// Llama 3.1's: what its report and transformers say of each band of waves.
TEST(Rope, Llama3StretchesLongWavesAlone) {
  const Llama3Scaling scaling{.factor = 8, .low_freq_factor = 1, .high_freq_factor = 4};
  const Rope plain = make_rope(128, 500000, false, std::nullopt);
  Rope scaled = plain;
  scale_as_llama3(scaled, scaling);
  int n_same = 0, n_between = 0, n_stretched = 0;
  for (size_t i = 0; i < plain.inv_freq.size(); ++i) {
    const float wave = 6.2831853f / plain.inv_freq[i], ratio = plain.inv_freq[i] / scaled.inv_freq[i];
    if (wave < 2048) {
      EXPECT_EQ(ratio, 1);
      ++n_same;
    } else if (wave > 8192) {
      EXPECT_NEAR(ratio, 8, 1e-6);
      ++n_stretched;
    } else {
      const float smooth = (8192 / wave - 1) / 3;
      EXPECT_NEAR(ratio, 1 / ((1 - smooth) / 8 + smooth), 1e-5);
      ++n_between;
    }
  }
  EXPECT_GT(std::min({n_same, n_between, n_stretched}), 3);
}

TEST(Rope, BitsDoNotDependOnThreads) {
  const Rope r = make_rope(64, 10000, true, std::nullopt);
  const Tensor positions = some_positions(400), x = random_f32(400, 4 * 96, 1);
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 5}) {
    ThreadedContext c(threads);
    const Tensor y = copy_of(x);
    rope(c.ctx, r, y, positions, {4, 96, 32});
    first.push_back(y);
    EXPECT_TRUE(same_bits(y, first[0]));
  }
}

}  // namespace
}  // namespace fathom
