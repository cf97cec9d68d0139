// The backward pass of expanded attention, and what of the forward pass it needs, against the CPU's.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/device_context.h"
#include "ops/attention.h"

namespace fathom {
namespace {

constexpr double kTolerance = 2e-5;
constexpr double kBf16Tolerance = 1e-2;  // of factors with 8 bits, of which sums are made of sums

struct Problem {
  MlaDims dims;
  Tensor q, kv, k_rope, seq_offsets, o, lse, d_o;
  float scale;
};

// gap: floats between the rows of every tensor.
Problem make_problem(const MlaDims& dims, const std::vector<int32_t>& lengths, int64_t gap, uint64_t seed = 1) {
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
  mla_attention(ctx(), p.o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, p.lse);
  return p;
}

Problem uploaded(Problem p) {
  for (Tensor* t : {&p.q, &p.kv, &p.k_rope, &p.seq_offsets, &p.o, &p.lse, &p.d_o}) *t = upload(*t);
  return p;
}

struct Gradients {
  Tensor dq, dkv, dk_rope;
};

Gradients backward_on_cpu(const Problem& p) {
  const Gradients g = {filled_like(p.q, NAN), filled_like(p.kv, NAN), filled_like(p.k_rope, NAN)};
  mla_attention_backward(ctx(), g.dq, g.dkv, g.dk_rope, p.d_o, p.o, p.q, p.kv, p.k_rope, p.lse, p.seq_offsets, p.dims,
                         p.scale);
  return g;
}

// p: on the device.
Gradients backward(const Problem& p, Precision precision = Precision::f32) {
  const auto nan_like = [](Tensor t) { return upload(filled_f32(t.rows(), t.cols(), NAN, t.row_stride)); };
  const Gradients g = {nan_like(p.q), nan_like(p.kv), nan_like(p.k_rope)};
  mla_attention_backward(cuda_ctx(), g.dq, g.dkv, g.dk_rope, p.d_o, p.o, p.q, p.kv, p.k_rope, p.lse, p.seq_offsets,
                         p.dims, p.scale, {}, precision);
  return {download(g.dq), download(g.dkv), download(g.dk_rope)};
}

void expect_close(const Gradients& got, const Gradients& want, double tolerance = kTolerance) {
  EXPECT_LE(max_relative_error(got.dq, want.dq), tolerance);
  EXPECT_LE(max_relative_error(got.dkv, want.dkv), tolerance);
  EXPECT_LE(max_relative_error(got.dk_rope, want.dk_rope), tolerance);
  for (const Tensor t : {got.dq, got.dkv, got.dk_rope}) EXPECT_TRUE(gaps_untouched(t));
}

void expect_same_bits(const Gradients& a, const Gradients& b) {
  EXPECT_TRUE(same_bits(a.dq, b.dq));
  EXPECT_TRUE(same_bits(a.dkv, b.dkv));
  EXPECT_TRUE(same_bits(a.dk_rope, b.dk_rope));
}

// Rows of a sequence alone.
Gradients rows_of(const Gradients& g, int64_t begin, int64_t n) {
  return {g.dq.slice(begin, n), g.dkv.slice(begin, n), g.dk_rope.slice(begin, n)};
}

MlaDims dims_of(int64_t heads, int64_t nope, int64_t rope, int64_t v) { return {heads, nope, rope, v, 32}; }

struct Case {
  MlaDims dims;
  std::vector<int32_t> lengths;
  int64_t gap;
};
const std::vector<Case> kCases = {
    {dims_of(3, 5, 2, 3), {1, 5, 64, 65, 0, 130}, 5},
    {dims_of(2, 8, 4, 8), {1, 5, 64, 65, 0, 130}, 4},
    {dims_of(1, 32, 32, 32), {0, 0, 129, 63}, 0},
    {dims_of(1, 1, 1, 1), {1}, 0},
    {dims_of(2, 128, 64, 128), {66, 3}, 4},
    {dims_of(2, 128, 64, 128), {70}, 1},  // float by float
    {dims_of(1, 65, 6, 67), {2, 40}, 3},  // slices of 1, 6 and 3 columns behind whole ones
    {dims_of(1, 256, 128, 256), {5, 61}, 0},
    {dims_of(1, 255, 66, 130), {3, 17}, 0},
};

using CudaAttentionBackward = CudaTest;

// Both passes with products in bf16.
TEST_F(CudaAttentionBackward, OnTensorCoresIsNear) {
  for (const Case& c : kCases) {
    if (c.lengths.size() == 1 && c.lengths[0] == 1) continue;  // one key: queries and keys have no gradient at all
    SCOPED_TRACE(testing::Message() << c.dims.qk_nope_head_dim << " + " << c.dims.qk_rope_head_dim << ", "
                                    << c.dims.v_head_dim << ", gap " << c.gap);
    const Problem p = make_problem(c.dims, c.lengths, c.gap);
    Problem on_device = uploaded(p);
    const auto nan_like = [](Tensor t) { return upload(filled_f32(t.rows(), t.cols(), NAN, t.row_stride)); };
    on_device.o = nan_like(p.o);
    on_device.lse = nan_like(p.lse);
    mla_attention(cuda_ctx(), on_device.o, on_device.q, on_device.kv, on_device.k_rope, on_device.seq_offsets, p.dims,
                  p.scale, on_device.lse, {}, Precision::bf16);
    const Tensor o = download(on_device.o), lse = download(on_device.lse);
    EXPECT_LE(max_relative_error(o, p.o), kBf16Tolerance);
    EXPECT_LE(max_relative_error(lse, p.lse), kBf16Tolerance);
    EXPECT_TRUE(gaps_untouched(o) && gaps_untouched(lse));
    const Gradients got = backward(on_device, Precision::bf16);
    expect_close(got, backward_on_cpu(p), kBf16Tolerance);
    expect_same_bits(got, backward(on_device, Precision::bf16));
  }
}

TEST_F(CudaAttentionBackward, MatchesTheCpu) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.dims.qk_nope_head_dim << " + " << c.dims.qk_rope_head_dim << ", "
                                    << c.dims.v_head_dim << ", gap " << c.gap);
    const Problem p = make_problem(c.dims, c.lengths, c.gap), on_device = uploaded(p);
    const Gradients got = backward(on_device);
    expect_close(got, backward_on_cpu(p));
    expect_same_bits(got, backward(on_device));
  }
}

TEST_F(CudaAttentionBackward, OfTheDevicesForwardPass) {
  for (const Case& c : kCases) {
    if (c.dims.qk_nope_head_dim > 128) continue;
    const Problem p = make_problem(c.dims, c.lengths, c.gap);
    Problem on_device = uploaded(p);
    on_device.o = upload(filled_like(p.o, NAN));
    on_device.lse = upload(filled_like(p.lse, NAN));
    mla_attention(cuda_ctx(), on_device.o, on_device.q, on_device.kv, on_device.k_rope, on_device.seq_offsets, p.dims,
                  p.scale, on_device.lse);
    const Tensor lse = download(on_device.lse);
    EXPECT_LE(max_relative_error(lse, p.lse), 5e-6) << c.dims.qk_nope_head_dim;
    EXPECT_TRUE(gaps_untouched(lse));
    expect_close(backward(on_device), backward_on_cpu(p));
  }
}

// The rotary key and its gradient are columns of wider matrices, whose other columns are other tensors.
TEST_F(CudaAttentionBackward, LeavesTheColumnsBesideTheRotaryKeyAlone) {
  constexpr int64_t kBeside = 12;
  for (const int64_t rope : {8, 7}) {
    const Problem p = make_problem(dims_of(2, 16, rope, 20), {3, 70}, 0);
    Problem on_device = uploaded(p);
    const Tensor wide = random_f32(p.q.rows(), kBeside + rope, 9), d_wide = random_f32(p.q.rows(), kBeside + rope, 10);
    for (int64_t t = 0; t < p.q.rows(); ++t) std::copy_n(p.k_rope.f32_row(t), rope, wide.f32_row(t) + kBeside);
    on_device.k_rope = upload(wide).columns(kBeside, rope);
    const Tensor dq = upload(filled_like(p.q, NAN)), dkv = upload(filled_like(p.kv, NAN)), d_on_device = upload(d_wide);
    mla_attention_backward(cuda_ctx(), dq, dkv, d_on_device.columns(kBeside, rope), on_device.d_o, on_device.o,
                           on_device.q, on_device.kv, on_device.k_rope, on_device.lse, on_device.seq_offsets, p.dims,
                           p.scale);
    const Tensor got = download(d_on_device);
    expect_close({download(dq), download(dkv), copy_of(got.columns(kBeside, rope))}, backward_on_cpu(p));
    EXPECT_TRUE(same_bits(got.columns(0, kBeside), d_wide.columns(0, kBeside)));
  }
}

// Sums run over a sequence's tokens in their order, wherever tiles begin.
TEST_F(CudaAttentionBackward, SequencesDoNotChangeEachOthersBits) {
  const std::vector<int32_t> lengths = {7, 70, 1, 64};
  const Problem p = make_problem(dims_of(2, 12, 4, 8), lengths, 0), on_device = uploaded(p);
  const Gradients all = backward(on_device);
  int64_t begin = 0;
  for (const int32_t n : lengths) {
    Problem alone = on_device;
    for (Tensor* t : {&alone.q, &alone.kv, &alone.k_rope, &alone.o, &alone.lse, &alone.d_o}) *t = t->slice(begin, n);
    alone.seq_offsets = upload(i32_tensor({0, n}));
    expect_same_bits(backward(alone), rows_of(all, begin, n));
    begin += n;
  }
}

TEST_F(CudaAttentionBackward, FollowsLargeScores) {
  Problem p = make_problem(dims_of(1, 16, 8, 12), {80, 9}, 0);
  p.scale = 20;
  mla_attention(ctx(), p.o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, p.lse);
  // Scores are some hundreds, whose rounding is larger than that of their exponentials.
  const Gradients got = backward(uploaded(p)), want = backward_on_cpu(p);
  EXPECT_LE(max_relative_error(got.dq, want.dq), 1e-4);
  EXPECT_LE(max_relative_error(got.dkv, want.dkv), 1e-4);
  EXPECT_LE(max_relative_error(got.dk_rope, want.dk_rope), 1e-4);
}

// More heads than one launch takes.
TEST_F(CudaAttentionBackward, ManyHeads) {
  const Problem p = make_problem(dims_of(1031, 1, 2, 1), {2}, 0);
  expect_close(backward(uploaded(p)), backward_on_cpu(p));
}

TEST_F(CudaAttentionBackward, NoTokens) {
  for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{}, {0, 0}}) {
    const Problem p = make_problem(dims_of(2, 8, 4, 8), lengths, 0);
    const Gradients g = backward(uploaded(p));
    EXPECT_EQ(g.dq.rows(), 0);
  }
}

TEST_F(CudaAttentionBackward, GivesItsMemoryBack) {
  const Problem p = uploaded(make_problem(dims_of(2, 8, 4, 8), {70}, 0));
  Context& context = cuda_ctx();
  const Tensor dq = new_f32(context, {70, p.q.cols()}), dkv = new_f32(context, {70, p.kv.cols()});
  const Tensor dk_rope = new_f32(context, {70, p.k_rope.cols()});
  const Arena::Mark before = context.arena.mark();
  mla_attention_backward(context, dq, dkv, dk_rope, p.d_o, p.o, p.q, p.kv, p.k_rope, p.lse, p.seq_offsets, p.dims,
                         p.scale);
  EXPECT_EQ(context.arena.mark().block, before.block);
  EXPECT_EQ(context.arena.mark().offset, before.offset);
}

}  // namespace
}  // namespace fathom
