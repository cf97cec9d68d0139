#include "ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "ops/test_tensors.h"

namespace fathom {
namespace {

// Inputs of the expanded form, and room for its results.
struct Problem {
  MlaDims dims;
  Tensor q, kv, k_rope, seq_offsets, o, lse, d_o;
  float scale;
};

// gap: floats between the rows of every tensor.
Problem make_problem(const MlaDims& dims, const std::vector<int32_t>& lengths, int64_t gap = 0, uint64_t seed = 1) {
  std::vector<int32_t> offsets = {0};
  for (const int32_t n : lengths) offsets.push_back(offsets.back() + n);
  const int64_t n_tokens = offsets.back(), heads = dims.n_heads;
  const int64_t key_dim = dims.qk_nope_head_dim + dims.qk_rope_head_dim, v_dim = dims.v_head_dim;
  const auto random = [&](int64_t cols) { return random_f32(n_tokens, cols, seed++, cols + gap); };
  Problem p;
  p.dims = dims;
  p.q = random(heads * key_dim);
  p.kv = random(heads * (dims.qk_nope_head_dim + v_dim));
  p.k_rope = random(dims.qk_rope_head_dim);
  p.d_o = random(heads * v_dim);
  p.seq_offsets = i32_tensor(offsets);
  p.o = filled_f32(n_tokens, heads * v_dim, NAN, heads * v_dim + gap);
  p.lse = filled_f32(n_tokens, heads, NAN, heads + gap);
  p.scale = 1 / std::sqrt(static_cast<float>(key_dim));
  return p;
}

void forward(Context& context, const Problem& p) {
  mla_attention(context, p.o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, p.lse);
}

struct Gradients {
  Tensor dq, dkv, dk_rope;
};

Gradients new_gradients(const Problem& p) {
  return {filled_like(p.q, NAN), filled_like(p.kv, NAN), filled_like(p.k_rope, NAN)};
}

Gradients backward(Context& context, const Problem& p) {
  const Gradients g = new_gradients(p);
  mla_attention_backward(context, g.dq, g.dkv, g.dk_rope, p.d_o, p.o, p.q, p.kv, p.k_rope, p.lse, p.seq_offsets, p.dims,
                         p.scale);
  return g;
}

const MlaDims kOdd = {.n_heads = 3, .qk_nope_head_dim = 5, .qk_rope_head_dim = 2, .v_head_dim = 3, .kv_lora_rank = 7};
const MlaDims kOne = {
    .n_heads = 1, .qk_nope_head_dim = 16, .qk_rope_head_dim = 8, .v_head_dim = 24, .kv_lora_rank = 33};
const MlaDims kReal = {
    .n_heads = 2, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128, .kv_lora_rank = 512};

struct Case {
  MlaDims dims;
  std::vector<int32_t> lengths;
  int64_t gap;
};
const std::vector<Case> kCases = {
    {kOdd, {1}, 0},        {kOdd, {1, 2, 63, 64, 65, 130}, 5}, {kOne, {130, 0, 1, 64}, 0}, {kOne, {3}, 1},
    {kReal, {65, 129}, 0},
};

TEST(Attention, MatchesPlainTwinOnOddShapes) {
  for (const Case& c : kCases) {
    const Problem p = make_problem(c.dims, c.lengths, c.gap);
    forward(ctx(), p);
    const Tensor o = filled_like(p.o, NAN), lse = filled_like(p.lse, NAN);
    plain::mla_attention(o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, lse);
    EXPECT_LE(max_relative_error(p.o, o), 2e-6) << c.lengths.size() << " sequences, " << c.dims.n_heads << " heads";
    EXPECT_LE(max_relative_error(p.lse, lse), 2e-6);
    EXPECT_TRUE(gaps_untouched(p.o) && gaps_untouched(p.lse));
    const Tensor without_lse = filled_like(p.o, NAN);
    mla_attention(ctx(), without_lse, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale);
    EXPECT_TRUE(same_bits(without_lse, p.o));
  }
}

TEST(Attention, BackwardMatchesPlainTwinOnOddShapes) {
  for (const Case& c : kCases) {
    const Problem p = make_problem(c.dims, c.lengths, c.gap);
    forward(ctx(), p);
    const Gradients fast = backward(ctx(), p), slow = new_gradients(p);
    plain::mla_attention_backward(slow.dq, slow.dkv, slow.dk_rope, p.d_o, p.o, p.q, p.kv, p.k_rope, p.lse,
                                  p.seq_offsets, p.dims, p.scale);
    EXPECT_LE(max_abs_error(fast.dq, slow.dq), 5e-6 * (1 + max_abs(slow.dq))) << c.lengths.size() << " sequences";
    EXPECT_LE(max_abs_error(fast.dkv, slow.dkv), 5e-6 * (1 + max_abs(slow.dkv)));
    EXPECT_LE(max_abs_error(fast.dk_rope, slow.dk_rope), 5e-6 * (1 + max_abs(slow.dk_rope)));
    EXPECT_TRUE(gaps_untouched(fast.dq) && gaps_untouched(fast.dkv) && gaps_untouched(fast.dk_rope));
  }
}

TEST(Attention, PlainBackwardIsTheSlopeOfThePlainForward) {
  const Problem p = make_problem(kOdd, {1, 9, 4}, 2);
  const auto loss = [&] {
    plain::mla_attention(p.o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, p.lse);
    return dot(p.o, p.d_o);
  };
  loss();
  const Gradients g = new_gradients(p);
  plain::mla_attention_backward(g.dq, g.dkv, g.dk_rope, p.d_o, p.o, p.q, p.kv, p.k_rope, p.lse, p.seq_offsets, p.dims,
                                p.scale);
  EXPECT_LE(gradient_error(loss, p.q, g.dq), 1e-3);
  EXPECT_LE(gradient_error(loss, p.kv, g.dkv), 1e-3);
  EXPECT_LE(gradient_error(loss, p.k_rope, g.dk_rope), 1e-3);
}

TEST(Attention, PackedSequencesDoNotSeeEachOther) {
  const Problem p = make_problem(kOdd, {70, 65, 3});
  forward(ctx(), p);
  const Tensor o = copy_of(p.o);
  const Gradients before = backward(ctx(), p);
  for (int64_t t = 70; t < 135; ++t) {
    for (const Tensor x : {p.q, p.kv, p.k_rope, p.d_o}) x.f32(t, 0) += 1;
  }
  forward(ctx(), p);
  const Gradients after = backward(ctx(), p);
  for (const auto& [begin, n] : {std::pair<int64_t, int64_t>{0, 70}, {135, 3}}) {
    EXPECT_TRUE(same_bits(o.slice(begin, n), p.o.slice(begin, n)));
    EXPECT_TRUE(same_bits(before.dq.slice(begin, n), after.dq.slice(begin, n)));
    EXPECT_TRUE(same_bits(before.dkv.slice(begin, n), after.dkv.slice(begin, n)));
    EXPECT_TRUE(same_bits(before.dk_rope.slice(begin, n), after.dk_rope.slice(begin, n)));
  }
  EXPECT_FALSE(same_bits(o.slice(70, 65), p.o.slice(70, 65)));
}

TEST(Attention, LaterTokensDoNotChangeTheBitsOfEarlierOnes) {
  const Problem longer = make_problem(kOdd, {130});
  forward(ctx(), longer);
  Problem shorter = make_problem(kOdd, {67});
  shorter.q = longer.q.slice(0, 67);
  shorter.kv = longer.kv.slice(0, 67);
  shorter.k_rope = longer.k_rope.slice(0, 67);
  forward(ctx(), shorter);
  EXPECT_TRUE(same_bits(shorter.o, longer.o.slice(0, 67)));
  EXPECT_TRUE(same_bits(shorter.lse, longer.lse.slice(0, 67)));
}

TEST(Attention, SameBitsForAnyNumberOfThreads) {
  // With one sequence and few heads, more threads split the backward pass in another way.
  for (const auto& lengths : {std::vector<int32_t>{300}, {130, 65, 7, 200}}) {
    const Problem p = make_problem(kOdd, lengths);
    Tensor o, lse;
    Gradients g;
    for (const int threads : {1, 2, 5, 9}) {
      ThreadPool pool(threads);
      Arena arena;
      Context context{pool, arena};
      forward(context, p);
      const Gradients now = backward(context, p);
      if (!o) {
        o = copy_of(p.o);
        lse = copy_of(p.lse);
        g = now;
      }
      EXPECT_TRUE(same_bits(o, p.o)) << threads;
      EXPECT_TRUE(same_bits(lse, p.lse)) << threads;
      EXPECT_TRUE(same_bits(g.dq, now.dq)) << threads;
      EXPECT_TRUE(same_bits(g.dkv, now.dkv)) << threads;
      EXPECT_TRUE(same_bits(g.dk_rope, now.dk_rope)) << threads;
    }
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  for (const float size : {1e4f, 1e30f}) {
    Problem p = make_problem(kOdd, {70});
    p.scale = size / 10;  // the scores before it are about 10
    forward(ctx(), p);
    const Tensor o = filled_like(p.o, NAN), lse = filled_like(p.lse, NAN);
    plain::mla_attention(o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, lse);
    EXPECT_LE(max_relative_error(p.lse, lse), 1e-6);
    EXPECT_LE(max_relative_error(p.o, o), 1e-2);  // near ties: a rounding of 1e4 moves a probability by 1e-3
    const Gradients g = backward(ctx(), p);
    for (const Tensor x : {p.o, g.dq, g.dkv, g.dk_rope}) EXPECT_TRUE(std::isfinite(max_abs_error(x, zeros_like(x))));
  }
}

TEST(Attention, ReleasesWhatItTookFromTheArena) {
  const Problem p = make_problem(kOdd, {130});
  Arena arena;
  Context context{ctx().pool, arena};
  forward(context, p);
  backward(context, p);
  EXPECT_EQ(arena.mark().block, 0u);
  EXPECT_EQ(arena.mark().offset, 0u);
}

}  // namespace
}  // namespace fathom
