// Operators of training on a device against the CPU's, over odd shapes and strided rows.
#include <array>
#include <cmath>
#include <vector>

#include "cuda/device_context.h"
#include "number/formats.h"
#include "ops/adamw.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/experts.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/router.h"
#include "ops/swiglu.h"

namespace fathom {
namespace {

using CudaBackward = CudaTest;

constexpr int64_t kTokens[] = {0, 1, 7, 33, 70};

Tensor nans(int64_t rows, int64_t cols, int64_t stride = 0) { return upload(filled_f32(rows, cols, NAN, stride)); }

TEST_F(CudaBackward, Norms) {
  for (const int64_t tokens : kTokens) {
    for (const int64_t hidden : {3, 7, 64, 516}) {
      const Tensor x = random_f32(tokens, hidden, 1, hidden + 4), dy = random_f32(tokens, hidden, 2, hidden + 1);
      const Tensor w = random_f32(hidden, 3), rms = filled_f32(1, tokens, 0), y = filled_f32(tokens, hidden, 0);
      rms_norm(ctx(), y, x, w, 1e-6f, rms);
      for (const bool accumulate : {false, true}) {
        const Tensor dx = random_f32(tokens, hidden, 4, hidden + 2), got = upload(dx);
        rms_norm_backward_input(cuda_ctx(), got, upload(dy), upload(x), upload(w), upload(rms), accumulate);
        rms_norm_backward_input(ctx(), dx, dy, x, w, rms, accumulate);
        EXPECT_LE(max_relative_error(download(got), dx), 2e-6) << tokens << " x " << hidden;
        EXPECT_TRUE(gaps_untouched(download(got)));
      }
      const Tensor dw = random_f32(hidden, 5), got = upload(dw);
      rms_norm_backward_weight(cuda_ctx(), got, upload(dy), upload(x), upload(rms));
      rms_norm_backward_weight(ctx(), dw, dy, x, rms);
      EXPECT_LE(max_relative_error(download(got), dw), 2e-6) << tokens << " x " << hidden;
    }
  }
}

TEST_F(CudaBackward, RotationIsUndone) {
  for (const bool interleaved : {true, false}) {
    const Rope r = make_rope(16, 10000, interleaved, YarnScaling{40, 4096, 32, 1, 1, 1});
    const Tensor positions = i32_tensor({0, 1, 77, 4000, 100000});
    const RopeLayout layout{3, 9 + 16, 9};
    const Tensor dx = random_f32(5, 3 * 25, 1, 80), got = upload(dx);
    rope_backward(cuda_ctx(), r, got, upload(positions), layout);
    rope_backward(ctx(), r, dx, positions, layout);
    EXPECT_LE(max_relative_error(download(got), dx), 2e-6);
  }
}

TEST_F(CudaBackward, Swiglu) {
  for (const int64_t tokens : kTokens) {
    for (const int64_t inter : {1, 7, 300}) {
      const Tensor gate_up = random_f32(tokens, 2 * inter, 1), dy = random_f32(tokens, inter, 2, inter + 3);
      const Tensor want = filled_f32(tokens, 2 * inter, 0), got = nans(tokens, 2 * inter), in_place = upload(gate_up);
      swiglu_backward(ctx(), want, dy, gate_up);
      swiglu_backward(cuda_ctx(), got, upload(dy), upload(gate_up));
      EXPECT_LE(max_relative_error(download(got), want), 2e-6) << tokens << " x " << inter;
      swiglu_backward(cuda_ctx(), in_place, upload(dy), in_place);
      EXPECT_TRUE(same_bits(download(in_place), download(got)));
    }
  }
}

TEST_F(CudaBackward, RowsOfTheEmbedding) {
  Rng rng(3);
  for (const int64_t tokens : {0, 1, 40, 200}) {
    for (const int64_t hidden : {5, 1030}) {
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < tokens; ++t) ids.push_back(static_cast<int32_t>(rng.below(t % 2 == 0 ? 3 : 11)));
      const Tensor table = random_f32(11, hidden, 1, hidden + 1), got = upload(table);
      const Tensor dy = random_f32(tokens, hidden, 2, hidden + 2);
      embedding_backward_weight(cuda_ctx(), got, upload(dy), upload(i32_tensor(ids)));
      embedding_backward_weight(ctx(), table, dy, i32_tensor(ids));
      EXPECT_TRUE(same_bits(download(got), table)) << tokens << " x " << hidden;  // both in order of the tokens
    }
  }
}

TEST_F(CudaBackward, HeadAndCrossEntropy) {
  const int64_t tokens = 9, hidden = 6;
  for (const int64_t vocab : {3, 700}) {
    const Tensor x = random_f32(tokens, hidden, 1), w = random_f32(vocab, hidden, 2);
    const Tensor targets = i32_tensor({0, 1, kNoTarget, 2, 2, 1, kNoTarget, 0, 1});
    for (const bool scaled : {false, true}) {
      const Tensor scales = scaled ? random_f32(tokens, 3) : Tensor();
      const Tensor loss = random_f32(tokens, 8), dx = filled_f32(tokens, hidden, 0), dw = random_f32(vocab, hidden, 4);
      const Tensor got_loss = upload(random_f32(tokens, 9)), got_dx = nans(tokens, hidden), got_dw = upload(dw);
      head_cross_entropy_backward(cuda_ctx(), got_loss, got_dx, got_dw, upload(x), upload(w), upload(targets), 0.3f,
                                  scaled ? upload(scales) : Tensor());
      head_cross_entropy_backward(ctx(), loss, dx, dw, x, w, targets, 0.3f, scales);
      EXPECT_LE(max_relative_error(download(got_loss), loss), 2e-6);
      EXPECT_LE(max_relative_error(download(got_dx), dx), 5e-6);
      EXPECT_LE(max_relative_error(download(got_dw), dw), 5e-6);
    }
  }
}

RouterConfig router(int64_t experts, int64_t k, Scoring scoring, bool norm) {
  return {.n_routed_experts = experts,
          .num_experts_per_tok = k,
          .scoring = scoring,
          .method = TopkMethod::greedy,
          .norm_topk_prob = norm,
          .routed_scaling_factor = 2.5f};
}

TEST_F(CudaBackward, Routers) {
  const int64_t tokens = 6;
  for (const int64_t experts : {1, 12, 300}) {
    for (const Scoring scoring : {Scoring::sigmoid, Scoring::softmax}) {
      for (const bool norm : {false, true}) {
        const RouterConfig config = router(experts, std::min<int64_t>(4, experts), scoring, norm);
        const int64_t k = config.num_experts_per_tok;
        const Tensor logits = random_f32(tokens, experts, 1), scores = filled_f32(tokens, experts, 0);
        const Tensor ids(test_memory<int32_t>(tokens * k, 0), Format::i32, {tokens, k});
        const Tensor weights = filled_f32(tokens, k, 0), d_weights = random_f32(tokens, k, 2);
        route(ctx(), config, ids, weights, scores, logits, {});
        const Tensor got_weights = nans(tokens, k), got_scores = nans(tokens, experts);
        weigh_chosen(cuda_ctx(), config, upload(ids), got_weights, got_scores, upload(logits));
        EXPECT_LE(max_relative_error(download(got_weights), weights), 2e-6);
        EXPECT_LE(max_relative_error(download(got_scores), scores), 2e-6);
        for (const bool balanced : {false, true}) {
          const Tensor d_scores = balanced ? random_f32(tokens, experts, 3, experts + 2) : Tensor();
          const Tensor want = filled_f32(tokens, experts, 0), got = nans(tokens, experts, experts + 1);
          route_backward(ctx(), config, want, d_weights, ids, scores, d_scores);
          route_backward(cuda_ctx(), config, got, upload(d_weights), upload(ids), upload(scores),
                         balanced ? upload(d_scores) : Tensor());
          EXPECT_LE(max_relative_error(download(got), want), 3e-6) << experts;
          EXPECT_TRUE(gaps_untouched(download(got)));
        }
      }
    }
  }
}

// Some choices without a slot, and experts without a token.
TEST_F(CudaBackward, DispatchAndCombine) {
  const int64_t tokens = 9, k = 3, experts = 6, hidden = 37, inter = 70;
  std::vector<int32_t> chosen;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto first = static_cast<int32_t>(t % 3);
    chosen.insert(chosen.end(), {first, t % 4 == 1 ? -1 : first + 1, 4});
  }
  const Tensor ids(i32_tensor(chosen).data, Format::i32, {tokens, k});
  const Dispatch here = make_dispatch(ctx(), ids, experts), there = make_dispatch(cuda_ctx(), upload(ids), experts);
  const int64_t slots = here.token_of.size(), all = tokens * k;
  ASSERT_LT(slots, all);
  const auto padded = [&](Tensor t) {  // the device's empty slots last
    const Tensor more = filled_f32(all, t.cols(), NAN);
    for (int64_t s = 0; s < slots; ++s) std::copy_n(t.f32_row(s), t.cols(), more.f32_row(s));
    return upload(more);
  };
  const Tensor sorted = random_f32(slots, hidden, 1), dx = random_f32(tokens, hidden, 2, hidden + 3), got = upload(dx);
  dispatch_backward(cuda_ctx(), got, padded(sorted), there);
  dispatch_backward(ctx(), dx, sorted, here);
  EXPECT_LE(max_relative_error(download(got), dx), 1e-6);

  const Tensor weights = random_f32(tokens, k, 3), dy = random_f32(tokens, hidden, 4, hidden + 1);
  weights.f32(2, 0) = 0;
  const Tensor want_sorted = filled_f32(slots, hidden, 0), got_sorted = nans(all, hidden);
  combine_backward(ctx(), want_sorted, dy, weights, here);
  combine_backward(cuda_ctx(), got_sorted, upload(dy), upload(weights), there);
  EXPECT_TRUE(same_bits(download(got_sorted).slice(0, slots), want_sorted));
  EXPECT_EQ(max_abs(download(got_sorted).slice(slots, all - slots)), 0);

  const Tensor inner = random_f32(slots, inter, 5), d_inner = random_f32(slots, inter, 6);
  const Tensor want = filled_f32(tokens, k, 1), got_weights = nans(tokens, k);
  combine_backward_weights(ctx(), want, d_inner, inner, weights, here);
  combine_backward_weights(cuda_ctx(), got_weights, padded(d_inner), padded(inner), upload(weights), there);
  EXPECT_LE(max_relative_error(download(got_weights), want), 3e-6);
}

TEST_F(CudaBackward, BalanceLoss) {
  const RouterConfig config = router(7, 2, Scoring::softmax, false);
  const Tensor scores = random_f32(20, 7, 1), d_scores = random_f32(20, 7, 2), got = upload(d_scores);
  for (int64_t i = 0; i < scores.size(); ++i) scores.f32()[i] = std::abs(scores.f32()[i]) + 0.1f;
  const Tensor offsets = i32_tensor({0, 3, 3, 20});
  const double there = sequence_balance_loss(cuda_ctx(), config, got, upload(scores), upload(offsets), 0.01, 2.0);
  EXPECT_EQ(there, sequence_balance_loss(ctx(), config, d_scores, scores, offsets, 0.01, 2.0));
  EXPECT_LE(max_relative_error(download(got), d_scores), 1e-6);
}

std::span<float> numbers(Tensor t) { return {t.f32(), static_cast<size_t>(t.size())}; }

TEST_F(CudaBackward, AdamW) {
  const AdamwConfig config{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f};
  for (const int64_t n : {0, 1, 1000, 3001}) {
    for (const Format format : {Format::f32, Format::bf16}) {
      const Tensor params = random_f32(n, 1), grads = random_f32(n, 2);
      const auto moment = [&](uint64_t seed) {
        const Tensor from = random_f32(n, seed);
        for (float& x : numbers(from)) x = std::abs(x);
        const Tensor m(test_memory<char>(format_bytes(format, n), 0), format, {n});
        from_f32(m.data, from.f32(), format, n);
        return m;
      };
      const Tensor m = moment(3), v = moment(4);
      const Tensor p_there = upload(params), g_there = upload(grads), m_there = upload(m), v_there = upload(v);
      EXPECT_TRUE(adamw_step(ctx(), config, 3, numbers(params), numbers(grads), m, v, 0.7f));
      EXPECT_TRUE(adamw_step(cuda_ctx(), config, 3, numbers(p_there), numbers(g_there), m_there, v_there, 0.7f));
      EXPECT_LE(max_relative_error(download(p_there), params), 1e-6) << n;
      if (format == Format::f32) {
        EXPECT_LE(max_relative_error(download(m_there), m), 1e-6) << n;
        EXPECT_LE(max_relative_error(download(v_there), v), 1e-6) << n;
      } else {  // a last digit of f32 may be on the other side of a half
        const Tensor here = download(m_there);
        for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(here.as<uint16_t>()[i], m.as<uint16_t>()[i], 1);
      }
      if (n == 0) continue;
      grads.f32()[n - 1] = INFINITY;
      EXPECT_FALSE(adamw_step(cuda_ctx(), config, 3, numbers(p_there), numbers(upload(grads)), m_there, v_there, 0.7f));
    }
  }
}

TEST_F(CudaBackward, SumsOverAllParameters) {
  for (const int64_t n : {0, 1, 255, 16385, 50001}) {
    const Tensor values = random_f32(n, 1), average = random_f32(n, 2);
    const Tensor there = upload(values), average_there = upload(average);
    const double want = sum_of_squares(ctx(), numbers(values)), got = sum_of_squares(cuda_ctx(), numbers(there));
    EXPECT_NEAR(got, want, 1e-12 * want) << n;
    move_average(cuda_ctx(), numbers(average_there), numbers(there), 0.9f);
    move_average(ctx(), numbers(average), numbers(values), 0.9f);
    EXPECT_LE(max_relative_error(download(average_there), average), 1e-6) << n;
  }
}

}  // namespace
}  // namespace fathom
