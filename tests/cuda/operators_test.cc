// The small operators of a device against the CPU's, over odd shapes and strided rows.
#include <array>
#include <cmath>

#include "cuda/device_context.h"
#include "number/formats.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/experts.h"
#include "ops/rms_norm.h"
#include "ops/router.h"
#include "ops/swiglu.h"

namespace fathom {
namespace {

using CudaOperators = CudaTest;

constexpr int64_t kTokens[] = {1, 2, 7, 33};

Tensor nans(int64_t rows, int64_t cols, int64_t stride = 0) { return upload(filled_f32(rows, cols, NAN, stride)); }

TEST_F(CudaOperators, EmbeddingReadsEveryFormat) {
  const std::vector<int32_t> ids = {4, 0, 10, 4};
  for (const Format format : {Format::f32, Format::bf16, Format::f16, Format::q8_0, Format::q4_0, Format::q5_0,
                              Format::q4_k, Format::q5_k, Format::q6_k}) {
    const int64_t cols = is_block_format(format) ? 2 * format_traits(format).block : 77;
    const Tensor numbers = random_f32(11, cols, 3);
    Tensor table(test_memory<uint8_t>(11 * format_bytes(format, cols), 0), format, {11, cols});
    from_f32(table.data, numbers.f32(), format, numbers.size());
    const Tensor want = filled_f32(4, cols, 0), got = nans(4, cols, cols + 3);
    embedding(ctx(), want, i32_tensor(ids), table);
    embedding(cuda_ctx(), got, upload(i32_tensor(ids)), upload(table));
    EXPECT_LE(max_relative_error(download(got), want), 1e-6) << format_traits(format).name;
    EXPECT_TRUE(gaps_untouched(download(got)));
  }
}

TEST_F(CudaOperators, SumsAndZeros) {
  for (const int64_t tokens : kTokens) {
    const Tensor a = random_f32(tokens, 301, 1, 310), b = random_f32(tokens, 301, 2);
    const Tensor want = filled_f32(tokens, 301, 0), got = nans(tokens, 301);
    add(ctx(), want, a, b);
    add(cuda_ctx(), got, upload(a), upload(b));
    EXPECT_TRUE(same_bits(download(got), want));
    fill_zero(cuda_ctx(), got);
    EXPECT_EQ(max_abs(download(got)), 0);
  }
}

TEST_F(CudaOperators, SwigluWithAndWithoutItsForm) {
  for (const int64_t tokens : kTokens) {
    for (const int64_t inter : {1, 7, 96, 1056}) {
      const Tensor gate_up = random_f32(tokens, 2 * inter, 1), want = filled_f32(tokens, inter, 0);
      const Tensor got = nans(tokens, inter);
      swiglu(ctx(), want, gate_up);
      swiglu(cuda_ctx(), got, upload(gate_up));
      EXPECT_LE(max_relative_error(download(got), want), 1e-6) << tokens << " x " << inter;
      if (inter % 32 != 0) continue;
      // The form says the same as the one that is made behind it.
      Tensor w(nullptr, Format::q8_0, {8, inter});
      w.panels = true;
      w.data = test_memory<char>(1, 0);
      const LinearInput two = make_linear_input(cuda_ctx(), got, {w});
      const LinearInput one = swiglu_input(cuda_ctx(), nans(tokens, inter), upload(gate_up), {w});
      EXPECT_TRUE(same_bits(download(one.by_32), download(two.by_32))) << tokens << " x " << inter;
    }
  }
}

TEST_F(CudaOperators, NormsWithSumAndForm) {
  for (const int64_t tokens : kTokens) {
    for (const int64_t hidden : {1, 7, 64, 516, 2048, 8192, 8196}) {
      if (hidden > 2048 && tokens > 2) continue;
      const Tensor a = random_f32(tokens, hidden, 1, hidden + 4), b = random_f32(tokens, hidden, 2);
      const Tensor w = random_f32(hidden, 3);
      for (const bool adds : {false, true}) {
        const Tensor sum = filled_f32(tokens, hidden, 0), y = filled_f32(tokens, hidden, 0),
                     rms = filled_f32(1, tokens, 0);
        add_norm_input(ctx(), y, adds ? sum : a, a, adds ? b : Tensor(), w, 1e-6f, rms, {});
        Tensor weight(nullptr, Format::q4_0, {8, hidden});
        weight.panels = true;
        weight.data = hidden % 32 == 0 ? test_memory<char>(1, 0) : nullptr;
        const Tensor a_there = upload(a), got_sum = nans(tokens, hidden), got = nans(tokens, hidden);
        const Tensor got_rms = nans(1, tokens);
        const LinearInput input = add_norm_input(cuda_ctx(), got, adds ? got_sum : a_there, a_there,
                                                 adds ? upload(b) : Tensor(), upload(w), 1e-6f, got_rms, {weight});
        EXPECT_LE(max_relative_error(download(got), y), 1e-6) << tokens << " x " << hidden;
        EXPECT_LE(max_relative_error(download(got_rms), rms), 1e-6);
        EXPECT_TRUE(!adds || same_bits(download(got_sum), sum));
        if (!weight) continue;
        const LinearInput other = make_linear_input(cuda_ctx(), got, {weight});
        EXPECT_TRUE(same_bits(download(input.by_32), download(other.by_32))) << tokens << " x " << hidden;
      }
    }
  }
}

TEST_F(CudaOperators, NormAndRotation) {
  for (const bool interleaved : {true, false}) {
    for (const int64_t rope_dim : {2, 16, 64}) {
      const int64_t tokens = 5, heads = 3, nope = 9, rank = 70;
      const Rope r = make_rope(rope_dim, 10000, interleaved, YarnScaling{40, 4096, 32, 1, 1, 1});
      const Tensor positions = i32_tensor({0, 1, 77, 4000, 100000});
      const RopeLayout layout{heads, nope + rope_dim, nope};
      const Tensor q = random_f32(tokens, heads * (nope + rope_dim), 1), kv_a = random_f32(tokens, rank + rope_dim, 2);
      const Tensor w = random_f32(rank, 3), latent = filled_f32(tokens, rank, 0), rms = filled_f32(1, tokens, 0);
      const Tensor q_there = upload(q), kv_there = upload(kv_a), latent_there = nans(tokens, rank),
                   rms_there = nans(1, tokens);
      const Tensor other = upload(q);
      rope(cuda_ctx(), r, other, upload(positions), layout);
      norm_and_rotate(cuda_ctx(), r, q_there, layout, latent_there, kv_there, upload(w), 1e-6f, rms_there,
                      upload(positions));
      norm_and_rotate(ctx(), r, q, layout, latent, kv_a, w, 1e-6f, rms, positions);
      EXPECT_LE(max_relative_error(download(q_there), q), 2e-6) << rope_dim;
      EXPECT_TRUE(same_bits(download(other), download(q_there))) << rope_dim;
      EXPECT_LE(max_relative_error(download(kv_there), kv_a), 2e-6) << rope_dim;
      EXPECT_LE(max_relative_error(download(latent_there), latent), 1e-6) << rope_dim;
    }
  }
}

TEST_F(CudaOperators, RoutersChooseAsTheCpuDoes) {
  struct Case {
    int64_t experts, k, groups, kept;
    Scoring scoring;
    TopkMethod method;
  };
  for (const Case& c : {Case{1, 1, 1, 1, Scoring::sigmoid, TopkMethod::noaux_tc},
                        Case{12, 3, 1, 1, Scoring::softmax, TopkMethod::greedy},
                        Case{24, 4, 4, 2, Scoring::softmax, TopkMethod::group_limited_greedy},
                        Case{256, 8, 8, 4, Scoring::sigmoid, TopkMethod::noaux_tc},
                        Case{1000, 6, 1, 1, Scoring::sigmoid, TopkMethod::noaux_tc}}) {
    const RouterConfig config{c.experts, c.k, c.groups, c.kept, c.scoring, c.method, true, 2.5f};
    const int64_t tokens = 9;
    const Tensor logits = random_f32(tokens, c.experts, 4), bias = random_f32(c.experts, 5);
    const Tensor ids(test_memory<int32_t>(tokens * c.k, 0), Format::i32, {tokens, c.k});
    const Tensor weights = filled_f32(tokens, c.k, 0), scores = filled_f32(tokens, c.experts, 0);
    route(ctx(), config, ids, weights, scores, logits, bias);
    const Tensor got_ids = new_i32(cuda_ctx(), {tokens, c.k}), got_weights = nans(tokens, c.k);
    const Tensor got_scores = nans(tokens, c.experts);
    route(cuda_ctx(), config, got_ids, got_weights, got_scores, upload(logits), upload(bias));
    EXPECT_TRUE(same_bits(download(got_ids), ids)) << c.experts;
    EXPECT_LE(max_relative_error(download(got_weights), weights), 1e-6) << c.experts;
    EXPECT_LE(max_relative_error(download(got_scores), scores), 1e-6) << c.experts;
  }
}

TEST_F(CudaOperators, TiesGoToTheLowerExpert) {
  const RouterConfig config{8, 3, 4, 2, Scoring::sigmoid, TopkMethod::noaux_tc, true, 1};
  const Tensor got = new_i32(cuda_ctx(), {1, 3});
  route(cuda_ctx(), config, got, nans(1, 3), nans(1, 8), upload(filled_f32(1, 8, 0.5f)), {});
  EXPECT_TRUE(same_bits(download(got), Tensor(i32_tensor({0, 1, 2}).data, Format::i32, {1, 3})));
}

TEST_F(CudaOperators, DispatchAndCombine) {
  const int64_t experts = 70, k = 3;
  for (const int64_t tokens : {1, 5, 150}) {
    std::vector<int32_t> ids;
    Rng rng(6);
    for (int64_t t = 0; t < tokens; ++t) {
      const auto first = static_cast<int32_t>(rng.below(20));
      for (int32_t j = 0; j < k; ++j) ids.push_back(first + 17 * j);
    }
    const Tensor topk(i32_tensor(ids).data, Format::i32, {tokens, k});
    const Dispatch want = make_dispatch(ctx(), topk, experts), got = make_dispatch(cuda_ctx(), upload(topk), experts);
    for (const auto part : {&Dispatch::offsets, &Dispatch::token_of, &Dispatch::choice_of, &Dispatch::slot_of}) {
      EXPECT_TRUE(same_bits(download(got.*part), want.*part)) << tokens;
    }
    const Tensor active = download(got.experts);
    int64_t n = 0;
    for (int32_t e = 0; e < experts; ++e) {
      if (want.offsets.i32()[e + 1] == want.offsets.i32()[e]) continue;
      EXPECT_EQ(active.i32()[n++], e);
    }
    for (; n < active.size(); ++n) EXPECT_EQ(active.i32()[n], -1);

    for (const int64_t hidden : {1, 6, 300}) {
      const Tensor x = random_f32(tokens, hidden, 7), weights = random_f32(tokens, k, 8),
                   y = random_f32(tokens, hidden, 9);
      const Tensor sorted = filled_f32(tokens * k, hidden, 0), got_sorted = nans(tokens * k, hidden), got_y = upload(y);
      dispatch(ctx(), sorted, x, want);
      dispatch(cuda_ctx(), got_sorted, upload(x), got);
      EXPECT_TRUE(same_bits(download(got_sorted), sorted));
      combine(ctx(), y, sorted, weights, want);
      combine(cuda_ctx(), got_y, got_sorted, upload(weights), got);
      EXPECT_LE(max_relative_error(download(got_y), y), 1e-6);
    }
  }
}

// Experts that are not there have no slots: nothing of theirs is added, and what is behind the others' slots names rows
// that there are.
TEST_F(CudaOperators, ExpertsThatAreElsewhere) {
  constexpr int64_t kExperts = 40, kHere = 7, k = 3, kHidden = 33;
  Rng rng(12);
  std::vector<int32_t> places(kExperts, -1);
  for (int32_t here = 0; here < kHere; ++here) places[static_cast<size_t>(5 * here + 3)] = here;
  for (const int64_t tokens : {1, 9, 100}) {
    std::vector<int32_t> ids, placed;
    for (int64_t i = 0; i < tokens * k; ++i) {
      ids.push_back(static_cast<int32_t>(rng.below(kExperts)));
      placed.push_back(places[static_cast<size_t>(ids.back())]);
    }
    if (tokens == 1) placed = {-1, -1, -1}, ids = {0, 1, 2};
    const Tensor topk(i32_tensor(ids).data, Format::i32, {tokens, k}),
        topk_here(i32_tensor(placed).data, Format::i32, {tokens, k});
    const Tensor got_here = upload(Tensor(i32_tensor(std::vector<int32_t>(ids.size())).data, Format::i32, {tokens, k}));
    cuda_ctx().device->operators.place_experts(cuda_ctx(), got_here, upload(topk), upload(i32_tensor(places)));
    EXPECT_TRUE(same_bits(download(got_here), topk_here)) << tokens;

    const Dispatch want = make_dispatch(ctx(), topk_here, kHere), got = make_dispatch(cuda_ctx(), got_here, kHere);
    EXPECT_TRUE(same_bits(download(got.offsets), want.offsets)) << tokens;
    EXPECT_TRUE(same_bits(download(got.slot_of), want.slot_of)) << tokens;
    const Tensor token_of = download(got.token_of);
    const int64_t n = want.token_of.cols();
    for (int64_t slot = 0; slot < tokens * k; ++slot) {
      EXPECT_EQ(token_of.i32()[slot], slot < n ? want.token_of.i32()[slot] : 0) << tokens << " " << slot;
    }
    const Tensor sorted = random_f32(tokens * k, kHidden, 7), weights = random_f32(tokens, k, 8),
                 y = random_f32(tokens, kHidden, 9), got_y = upload(y);
    combine(ctx(), y, sorted.slice(0, n), weights, want);
    combine(cuda_ctx(), got_y, upload(sorted), upload(weights), got);
    EXPECT_LE(max_relative_error(download(got_y), y), 1e-6);
  }
}

TEST_F(CudaOperators, ExpandedAttention) {
  for (const auto& [heads, nope, rope_dim, v] :
       {std::array<int64_t, 4>{1, 3, 2, 1}, {3, 16, 8, 24}, {2, 128, 64, 128}, {1, 20, 12, 256}}) {
    const MlaDims dims{heads, nope, rope_dim, v, 32};
    const std::vector<int32_t> offsets = {0, 1, 1, 9, 80};
    const int64_t tokens = offsets.back();
    const Tensor q = random_f32(tokens, heads * (nope + rope_dim), 1), kv = random_f32(tokens, heads * (nope + v), 2);
    const Tensor k_rope = random_f32(tokens, rope_dim, 3, rope_dim + 5);
    const Tensor o = filled_f32(tokens, heads * v, 0), lse = filled_f32(tokens, heads, 0);
    mla_attention(ctx(), o, q, kv, k_rope, i32_tensor(offsets), dims, 0.3f, lse);
    const Tensor got = nans(tokens, heads * v), got_lse = nans(tokens, heads);
    mla_attention(cuda_ctx(), got, upload(q), upload(kv), upload(k_rope), upload(i32_tensor(offsets)), dims, 0.3f,
                  got_lse);
    EXPECT_LE(max_relative_error(download(got), o), 5e-6) << nope;
    EXPECT_LE(max_relative_error(download(got_lse), lse), 5e-6) << nope;
  }
}

TEST_F(CudaOperators, CrossEntropy) {
  const Tensor logits = random_f32(4, 1001, 1), loss = nans(1, 4);
  const std::vector<int32_t> targets = {0, 1000, kNoTarget, 17};
  cuda_ctx().device->operators.cross_entropy(cuda_ctx(), loss, upload(logits), upload(i32_tensor(targets)));
  for (int64_t t = 0; t < 4; ++t) {
    double sum = 0;
    for (int64_t v = 0; v < 1001; ++v) sum += std::exp(static_cast<double>(logits.f32(t, v)));
    const double want = targets[static_cast<size_t>(t)] == kNoTarget
                            ? 0
                            : std::log(sum) - logits.f32(t, targets[static_cast<size_t>(t)]);
    EXPECT_NEAR(download(loss).f32()[t], want, 1e-5) << t;
  }
}

}  // namespace
}  // namespace fathom
