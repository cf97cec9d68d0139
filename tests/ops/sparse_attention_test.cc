// Attention to chosen keys, in each of its forms, and what trains the indexer that chooses.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "ops/attention.h"
#include "ops/each_isa.h"
#include "ops/indexer_loss.h"
#include "ops/test_tensors.h"
#include "sanitized.h"

namespace fathom {
namespace {

const MlaDims kOdd = {.n_heads = 3, .qk_nope_head_dim = 5, .qk_rope_head_dim = 2, .v_head_dim = 3, .kv_lora_rank = 7};
const MlaDims kMany = {
    .n_heads = 70, .qk_nope_head_dim = 16, .qk_rope_head_dim = 8, .v_head_dim = 24, .kv_lora_rank = 140};

// [n, topk] rows of which token i chooses among its first n_seen(i), ascending, its own among them.
template <class Seen>
Tensor random_choice(int64_t n, int64_t topk, uint64_t seed, const Seen& n_seen) {
  Tensor chosen(test_memory<int32_t>(n * topk, -1), Format::i32, {n, topk});
  Rng rng(seed);
  for (int64_t t = 0; t < n; ++t) {
    const int64_t seen = n_seen(t);
    std::vector<int32_t> rows(static_cast<size_t>(seen));
    std::iota(rows.begin(), rows.end(), 0);
    while (std::ssize(rows) > topk) {
      rows.erase(rows.begin() + static_cast<ptrdiff_t>(rng.uniform() * static_cast<double>(rows.size() - 1)));
    }
    std::copy(rows.begin(), rows.end(), chosen.i32() + t * topk);
  }
  return chosen;
}

struct Expanded {
  MlaDims dims;
  Tensor q, kv, k_rope, seq_offsets, selected, d_o, o, lse;
  float scale;
};

Expanded make_expanded(const MlaDims& dims, const std::vector<int32_t>& lengths, int64_t topk, int64_t gap = 0) {
  std::vector<int32_t> offsets = {0};
  for (const int32_t n : lengths) offsets.push_back(offsets.back() + n);
  const int64_t n = offsets.back(), key_dim = dims.qk_nope_head_dim + dims.qk_rope_head_dim, v_dim = dims.v_head_dim;
  uint64_t seed = 1;
  const auto random = [&](int64_t cols) { return random_f32(n, cols, seed++, cols + gap); };
  Expanded p{dims, random(dims.n_heads * key_dim), random(dims.n_heads * (dims.qk_nope_head_dim + v_dim)),
             random(dims.qk_rope_head_dim), i32_tensor(offsets)};
  p.selected = random_choice(n, topk, seed, [&](int64_t t) {
    return t + 1 - *(std::upper_bound(offsets.begin(), offsets.end(), static_cast<int32_t>(t)) - 1);
  });
  p.d_o = random(dims.n_heads * v_dim);
  p.o = filled_f32(n, dims.n_heads * v_dim, NAN, dims.n_heads * v_dim + gap);
  p.lse = filled_f32(n, dims.n_heads, NAN, dims.n_heads + gap);
  p.scale = 1 / std::sqrt(static_cast<float>(key_dim));
  return p;
}

void attend(Context& context, const Expanded& p, Tensor o, Tensor lse, Tensor selected) {
  mla_attention(context, o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, lse, selected);
}

struct Case {
  MlaDims dims;
  std::vector<int32_t> lengths;
  int64_t topk, gap;
};
const Case kCases[] = {{kOdd, {1}, 1, 0},         {kOdd, {40, 6, 27}, 8, 3}, {kOdd, {300, 1, 129}, 17, 1},
                       {kMany, {200, 64}, 64, 0}, {kOdd, {500}, 3, 0},       {kMany, {33}, 100, 2}};

TEST(SparseAttention, ExpandedMatchesPlainTwin) {
  for (const auto& [dims, lengths, topk, gap] : kCases) {
    const Expanded p = make_expanded(dims, lengths, topk, gap);
    attend(ctx(), p, p.o, p.lse, p.selected);
    const Tensor o = filled_like(p.o, NAN), lse = filled_like(p.lse, NAN);
    plain::mla_attention(o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, lse, p.selected);
    EXPECT_LE(max_relative_error(p.o, o), 3e-6);
    EXPECT_LE(max_relative_error(p.lse, lse), 3e-6);
    EXPECT_TRUE(gaps_untouched(p.o));

    const auto gradients = [&](bool fast) {
      const Tensor dq = filled_like(p.q, NAN), dkv = filled_like(p.kv, NAN), dk_rope = filled_like(p.k_rope, NAN);
      if (fast) {
        mla_attention_backward(ctx(), dq, dkv, dk_rope, p.d_o, o, p.q, p.kv, p.k_rope, lse, p.seq_offsets, p.dims,
                               p.scale, p.selected);
      } else {
        plain::mla_attention_backward(dq, dkv, dk_rope, p.d_o, o, p.q, p.kv, p.k_rope, lse, p.seq_offsets, p.dims,
                                      p.scale, p.selected);
      }
      return std::vector<Tensor>{dq, dkv, dk_rope};
    };
    const std::vector<Tensor> got = gradients(true), want = gradients(false);
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_LE(max_abs_error(got[i], want[i]), 5e-6 * (0.1 + max_abs(want[i]))) << i;
  }
}

TEST(SparseAttention, GradientsAreThoseOfTheFunction) {
  const Expanded p = make_expanded(kOdd, {23, 9}, 5);
  const Tensor dq = zeros_like(p.q), dkv = zeros_like(p.kv), dk_rope = zeros_like(p.k_rope);
  const auto loss = [&] {
    plain::mla_attention(p.o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, p.lse, p.selected);
    return dot(p.o, p.d_o);
  };
  loss();
  mla_attention_backward(ctx(), dq, dkv, dk_rope, p.d_o, p.o, p.q, p.kv, p.k_rope, p.lse, p.seq_offsets, p.dims,
                         p.scale, p.selected);
  EXPECT_LT(gradient_error(loss, p.q, dq), 2e-3);
  EXPECT_LT(gradient_error(loss, p.kv, dkv), 2e-3);
  EXPECT_LT(gradient_error(loss, p.k_rope, dk_rope), 2e-3);
}

TEST(SparseAttention, AllKeysChosenIsTheDenseFormToTheBit) {
  const Expanded p = make_expanded(kOdd, {300, 1, 129}, 300);
  const Tensor o = filled_like(p.o, NAN), lse = filled_like(p.lse, NAN);
  attend(ctx(), p, p.o, p.lse, p.selected);
  attend(ctx(), p, o, lse, {});
  EXPECT_TRUE(same_bits(p.o, o));
  EXPECT_TRUE(same_bits(p.lse, lse));
}

struct Cached {
  MlaDims dims;
  Tensor q, kv_b, selected;
  std::vector<LatentCacheView> sequences;
  float scale;
};

struct Lengths {
  int64_t length, n_new;
};
Cached make_cached(const MlaDims& dims, const std::vector<Lengths>& lengths, int64_t topk, Format format) {
  Cached p;
  uint64_t seed = 1;
  p.dims = dims;
  int64_t n = 0;
  std::vector<int64_t> seen;
  for (const auto& [length, n_new] : lengths) {
    const LatentRowLayout layout = dims.cached_row(format);
    const Tensor rows = random_f32(length, layout.dim(), seed++);
    auto* const stored = test_memory<char>(length * latent_row_bytes(layout), 0);
    for (int64_t i = 0; i < length; ++i) {
      write_latent_row(layout, stored + i * latent_row_bytes(layout), rows.f32_row(i),
                       rows.f32_row(i) + dims.kv_lora_rank);
    }
    p.sequences.push_back({stored, length, n_new, format});
    for (int64_t i = 0; i < n_new; ++i) seen.push_back(length - n_new + i + 1);
    n += n_new;
  }
  const int64_t nope = dims.qk_nope_head_dim, rope = dims.qk_rope_head_dim;
  p.q = random_f32(n, dims.n_heads * (nope + rope), seed++);
  p.kv_b = random_f32(dims.n_heads * (nope + dims.v_head_dim), dims.kv_lora_rank, seed++);
  p.selected = random_choice(n, topk, seed, [&](int64_t t) { return seen[static_cast<size_t>(t)]; });
  p.scale = 0.3f / std::sqrt(static_cast<float>(nope * dims.kv_lora_rank));
  return p;
}

TEST(SparseAttention, BothFormsOverCachesMatchPlainTwin) {
  for (const MlaDims& dims : {kOdd, kMany}) {
    for (const Format format : {Format::f32, Format::bf16, Format::f8_e4m3, Format::q8_0}) {
      for (const int64_t topk : {1, 7, 64, 300}) {
        const Cached p =
            make_cached(dims, {{65, 1}, {600, 3}, {5, 5}, {3, 0}, {257, test::kSanitized ? 5 : 30}}, topk, format);
        const Tensor o = filled_f32(p.q.rows(), dims.n_heads * dims.v_head_dim, NAN), absorbed = copy_of(o),
                     expanded = copy_of(o);
        plain::mla_attention_absorbed(o, p.q, p.kv_b, p.sequences, dims, p.scale, p.selected);
        mla_attention_absorbed(ctx(), absorbed, p.q, p.kv_b, {}, p.sequences, dims, p.scale, p.selected);
        mla_attention_expanded(ctx(), expanded, p.q, p.kv_b, p.sequences, dims, p.scale, p.selected);
        EXPECT_LE(max_relative_error(absorbed, o), 5e-6);
        EXPECT_LE(max_relative_error(expanded, o), 5e-6);
      }
    }
  }
}

TEST(SparseAttention, BitsOfATokenDependOnItAlone) {
  const Cached p = make_cached(kMany, {{600, 5}, {400, 1}}, 130, Format::bf16);
  const int64_t o_dim = kMany.n_heads * kMany.v_head_dim;
  const Tensor all = filled_f32(p.q.rows(), o_dim, NAN);
  for (const int threads : {1, 4}) {
    ThreadedContext c(threads);
    const Tensor again = copy_of(all);
    mla_attention_absorbed(c.ctx, again, p.q, p.kv_b, {}, p.sequences, kMany, p.scale, p.selected);
    if (threads == 1) std::memcpy(all.data, again.data, static_cast<size_t>(all.size_bytes()));
    EXPECT_TRUE(same_bits(all, again));
  }
  for (int64_t i = 0; i < 5; ++i) {
    LatentCacheView alone = p.sequences[0];
    alone.length -= 4 - i;
    alone.n_new = 1;
    const Tensor o = filled_f32(1, o_dim, NAN);
    mla_attention_absorbed(ctx(), o, p.q.slice(i, 1), p.kv_b, {}, {&alone, 1}, kMany, p.scale, p.selected.slice(i, 1));
    EXPECT_TRUE(same_bits(o, all.slice(i, 1)));
  }
}

struct LossCase {
  Expanded main;
  IndexerLossInputs in;
};
LossCase make_loss(const std::vector<int32_t>& lengths, const IndexerDims& dims, bool sparse) {
  LossCase c{make_expanded(kOdd, lengths, dims.topk), {}};
  Expanded& p = c.main;
  const Tensor selected = sparse ? p.selected : Tensor();
  attend(ctx(), p, p.o, p.lse, selected);
  const int64_t n = p.q.rows();
  c.in = {random_f32(n, dims.n_heads * dims.head_dim, 91),
          random_f32(n, dims.head_dim, 92),
          random_f32(n, dims.n_heads, 93),
          dims,
          p.q,
          p.kv,
          p.k_rope,
          p.lse,
          p.seq_offsets,
          selected,
          p.dims,
          p.scale};
  return c;
}

struct LossResults {
  Tensor kl, recall, dq, dk, d_weights;
  explicit LossResults(const IndexerLossInputs& in)
      : kl(random_f32(in.q.rows(), 1)),
        recall(random_f32(in.q.rows(), 1)),
        dq(filled_like(in.q, NAN)),
        dk(filled_like(in.k, NAN)),
        d_weights(filled_like(in.weights, NAN)) {}
};

TEST(IndexerLoss, MatchesPlainTwin) {
  for (const bool sparse : {false, true}) {
    for (const std::vector<int32_t>& lengths :
         {std::vector<int32_t>{1}, std::vector<int32_t>{40, 6, 27}, std::vector<int32_t>{300, 1, 570}}) {
      const LossCase c = make_loss(lengths, {.n_heads = 3, .head_dim = 5, .topk = 9}, sparse);
      const LossResults got(c.in), want(c.in);
      indexer_loss(ctx(), c.in, 0.5f, got.kl, got.recall, got.dq, got.dk, got.d_weights);
      plain::indexer_loss(c.in, 0.5f, want.kl, want.recall, want.dq, want.dk, want.d_weights);
      EXPECT_LE(max_abs_error(got.kl, want.kl), 2e-5 * (1 + max_abs(want.kl)));
      EXPECT_LE(max_abs_error(got.recall, want.recall), 1e-5);
      EXPECT_LE(max_relative_error(got.dq, want.dq), 1e-5);
      EXPECT_LE(max_relative_error(got.dk, want.dk), 1e-5);
      EXPECT_LE(max_relative_error(got.d_weights, want.d_weights), 1e-5);
      const LossResults without(c.in);
      indexer_loss(ctx(), c.in, 0.5f, without.kl, {}, without.dq, without.dk, without.d_weights);
      EXPECT_TRUE(same_bits(without.kl, got.kl) && same_bits(without.dk, got.dk));
    }
  }
}

TEST(IndexerLoss, GradientsAreThoseOfTheFunction) {
  for (const bool sparse : {false, true}) {
    const LossCase c = make_loss({23, 9}, {.n_heads = 2, .head_dim = 6, .topk = 5}, sparse);
    const LossResults r(c.in), probe(c.in);
    indexer_loss(ctx(), c.in, 1, r.kl, {}, r.dq, r.dk, r.d_weights);
    const auto loss = [&] {
      plain::indexer_loss(c.in, 1, probe.kl, {}, probe.dq, probe.dk, probe.d_weights);
      double sum = 0;
      for (int64_t t = 0; t < probe.kl.size(); ++t) sum += probe.kl.f32()[t];
      return sum;
    };
    EXPECT_LT(gradient_error(loss, c.in.q, r.dq, 1e-3f), 5e-3);
    EXPECT_LT(gradient_error(loss, c.in.k, r.dk, 1e-3f), 5e-3);
    EXPECT_LT(gradient_error(loss, c.in.weights, r.d_weights, 1e-3f), 5e-3);
  }
}

TEST(IndexerLoss, IsZeroWhereTheIndexerSaysWhatAttentionDoes) {
  // One head each, keys and queries alike: relu is the identity where all products are positive.
  MlaDims dims = {.n_heads = 1, .qk_nope_head_dim = 4, .qk_rope_head_dim = 2, .v_head_dim = 2, .kv_lora_rank = 4};
  const int64_t n = 30;
  Expanded p = make_expanded(dims, {static_cast<int32_t>(n)}, 8);
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t d = 0; d < p.q.cols(); ++d) p.q.f32(t, d) = std::abs(p.q.f32(t, d));
    for (int64_t d = 0; d < p.kv.cols(); ++d) p.kv.f32(t, d) = std::abs(p.kv.f32(t, d));
    for (int64_t d = 0; d < 2; ++d) p.k_rope.f32(t, d) = std::abs(p.k_rope.f32(t, d));
  }
  attend(ctx(), p, p.o, p.lse, {});
  const Tensor k = filled_f32(n, 6, 0), weights = filled_f32(n, 1, p.scale);
  for (int64_t t = 0; t < n; ++t) {
    std::copy_n(p.kv.f32_row(t), 4, k.f32_row(t));
    std::copy_n(p.k_rope.f32_row(t), 2, k.f32_row(t) + 4);
  }
  const IndexerLossInputs in = {p.q,      k,     weights,       {1, 6, 8}, p.q,    p.kv,
                                p.k_rope, p.lse, p.seq_offsets, {},        p.dims, p.scale};
  const LossResults r(in);
  indexer_loss(ctx(), in, 1, r.kl, r.recall, r.dq, r.dk, r.d_weights);
  EXPECT_LE(max_abs(r.kl), 1e-5);
  EXPECT_LE(max_abs(r.dq), 1e-5);
  for (int64_t t = 0; t < n; ++t) EXPECT_NEAR(r.recall.f32()[t], 1, 1e-6);
}

TEST(IndexerLoss, BitsDoNotDependOnThreads) {
  const LossCase c = make_loss({300, 70}, {.n_heads = 3, .head_dim = 8, .topk = 20}, true);
  const LossResults first(c.in);
  indexer_loss(ctx(), c.in, 1, first.kl, first.recall, first.dq, first.dk, first.d_weights);
  for (const int threads : {1, 2, 5}) {
    ThreadedContext t(threads);
    const LossResults r(c.in);
    indexer_loss(t.ctx, c.in, 1, r.kl, r.recall, r.dq, r.dk, r.d_weights);
    EXPECT_TRUE(same_bits(r.kl, first.kl) && same_bits(r.recall, first.recall) && same_bits(r.dq, first.dq) &&
                same_bits(r.dk, first.dk) && same_bits(r.d_weights, first.d_weights));
  }
}

}  // namespace
}  // namespace fathom
