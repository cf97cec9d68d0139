#include "ops/gqa_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "ops/test_tensors.h"

namespace fathom {
namespace {

const GqaDims kOdd = {.n_heads = 6, .n_kv_heads = 2, .head_dim = 10};
const GqaDims kOne = {.n_heads = 3, .n_kv_heads = 3, .head_dim = 2};       // a head of keys each
const GqaDims kMany = {.n_heads = 35, .n_kv_heads = 5, .head_dim = 64};    // seven a head of keys
const GqaDims kShared = {.n_heads = 70, .n_kv_heads = 1, .head_dim = 48};  // more heads than share a reading

struct Lengths {
  int64_t length, n_new;
};

struct Problem {
  GqaDims dims;
  Tensor q, o, lse;
  std::vector<LatentCacheView> sequences;
  float scale;
};

Problem make_problem(const GqaDims& dims, const std::vector<Lengths>& lengths, int64_t gap = 0,
                     Format format = Format::f32) {
  uint64_t seed = 1;
  Problem p;
  p.dims = dims;
  int64_t n_tokens = 0;
  for (const auto [length, n_new] : lengths) {
    const Tensor rows = random_f32(length, dims.row(), seed++);
    const LatentRowLayout layout = dims.cached_row(format);
    auto* const stored = test_memory<char>(length * latent_row_bytes(layout), 0);
    for (int64_t i = 0; i < length; ++i) {
      write_latent_row(layout, stored + i * latent_row_bytes(layout), rows.f32_row(i), nullptr);
    }
    p.sequences.push_back({stored, length, n_new, format});
    n_tokens += n_new;
  }
  const int64_t q_dim = dims.n_heads * dims.head_dim;
  p.q = random_f32(n_tokens, q_dim, seed++, q_dim + gap);
  p.o = filled_f32(n_tokens, q_dim, NAN, q_dim + gap);
  p.lse = filled_f32(n_tokens, dims.n_heads, NAN, dims.n_heads + gap);
  p.scale = 1 / std::sqrt(static_cast<float>(dims.head_dim));
  return p;
}

TEST(GroupedQueryAttention, MatchesPlainTwinOnOddShapes) {
  struct Case {
    GqaDims dims;
    std::vector<Lengths> lengths;
    int64_t gap;
    Format format = Format::f32;
  };
  for (const Case& c : {Case{kOdd, {{1, 1}}, 0},
                        {kOdd, {{65, 1}, {1, 1}, {600, 2}, {5, 5}, {3, 0}, {257, 130}}, 3},
                        {kOne, {{64, 64}, {65, 3}}, 1},
                        {kMany, {{64, 1}}, 0},
                        {kMany, {{256, 1}, {700, 3}, {9, 9}}, 1},
                        {kShared, {{300, 2}, {40, 40}}, 0},
                        {kOdd, {{65, 1}, {600, 2}, {5, 5}}, 0, Format::bf16},
                        {kMany, {{256, 1}, {130, 3}}, 0, Format::f16},
                        {kOdd, {{300, 3}, {1, 1}}, 0, Format::f8_e4m3},
                        {kMany, {{300, 3}, {1, 1}}, 0, Format::f8_e4m3},
                        {kOdd, {{129, 2}, {64, 1}}, 0, Format::q8_0},
                        {kMany, {{129, 2}, {64, 1}}, 0, Format::q8_0}}) {
    const Problem p = make_problem(c.dims, c.lengths, c.gap, c.format);
    gqa_attention(ctx(), p.o, p.q, p.sequences, p.dims, p.scale, p.lse);
    const Tensor o = filled_like(p.o, NAN), lse = filled_like(p.lse, NAN);
    plain::gqa_attention(o, p.q, p.sequences, p.dims, p.scale, lse);
    EXPECT_LE(max_relative_error(p.o, o), 5e-6) << c.dims.n_heads << " heads, " << c.lengths.size() << " sequences";
    EXPECT_LE(max_relative_error(p.lse, lse), 2e-6);
    EXPECT_TRUE(gaps_untouched(p.o) && gaps_untouched(p.lse));
  }
}

TEST(GroupedQueryAttention, GivesTheSameBitsInAnyPieces) {
  for (const GqaDims& dims : {kOdd, kMany, kShared}) {
    constexpr int64_t kLength = 331;
    const Problem p = make_problem(dims, {{kLength, kLength}});
    gqa_attention(ctx(), p.o, p.q, p.sequences, dims, p.scale);
    for (const int64_t piece : {int64_t{128}, int64_t{77}, int64_t{1}}) {
      const Tensor o = filled_like(p.o, NAN);
      for (int64_t begin = 0; begin < kLength; begin += piece) {
        const int64_t n_new = std::min(piece, kLength - begin);
        const LatentCacheView view = {p.sequences[0].rows, begin + n_new, n_new};
        gqa_attention(ctx(), o.slice(begin, n_new), p.q.slice(begin, n_new), std::span(&view, 1), dims, p.scale);
      }
      EXPECT_TRUE(same_bits(o, p.o)) << piece;
    }
  }
}

// The same rows in pages that lie anywhere.
TEST(GroupedQueryAttention, PagesGiveTheSameBits) {
  constexpr int64_t kOffset = 64;  // of the rows in a page
  for (const Format format : {Format::f32, Format::bf16, Format::q8_0}) {
    const Problem p = make_problem(kOdd, {{1, 1}, {700, 3}, {64, 64}, {65, 1}, {257, 130}}, 0, format);
    const int64_t row_bytes = latent_row_bytes(kOdd.cached_row(format));
    std::vector<LatentCacheView> paged = p.sequences;
    std::vector<std::vector<const char*>> pages(paged.size());
    for (size_t s = 0; s < pages.size(); ++s) {
      const LatentCacheView& view = p.sequences[s];
      for (int64_t begin = 0; begin < view.length; begin += kCachePageRows) {
        const int64_t n = std::min(kCachePageRows, view.length - begin);
        auto* const page = test_memory<char>(kOffset + n * row_bytes, 0);
        std::memcpy(page + kOffset, view.row(begin, row_bytes), static_cast<size_t>(n * row_bytes));
        pages[s].push_back(page);
      }
      paged[s] = {nullptr, view.length, view.n_new, format, pages[s].data(), kOffset};
    }
    const Tensor in_pages = filled_like(p.o, NAN);
    gqa_attention(ctx(), p.o, p.q, p.sequences, p.dims, p.scale);
    gqa_attention(ctx(), in_pages, p.q, paged, p.dims, p.scale);
    EXPECT_TRUE(same_bits(p.o, in_pages));
  }
}

TEST(GroupedQueryAttention, SequencesDoNotChangeEachOthersBits) {
  const Problem p = make_problem(kMany, {{300, 2}, {40, 1}, {513, 100}, {1, 1}});
  gqa_attention(ctx(), p.o, p.q, p.sequences, p.dims, p.scale);
  int64_t row = 0;
  for (const LatentCacheView& sequence : p.sequences) {
    const Tensor alone = filled_like(p.o.slice(row, sequence.n_new), NAN);
    gqa_attention(ctx(), alone, p.q.slice(row, sequence.n_new), std::span(&sequence, 1), p.dims, p.scale);
    EXPECT_TRUE(same_bits(alone, p.o.slice(row, sequence.n_new)));
    row += sequence.n_new;
  }
}

TEST(GroupedQueryAttention, SameBitsForAnyNumberOfThreads) {
  // Long enough that one thread goes over the chunks of a sequence in several waves.
  const Problem p = make_problem(kOdd, {{5000, 1}, {300, 3}});
  Tensor first;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    gqa_attention(context, p.o, p.q, p.sequences, p.dims, p.scale);
    EXPECT_EQ(arena.mark().offset, 0u);
    if (!first) first = copy_of(p.o);
    EXPECT_TRUE(same_bits(first, p.o)) << threads;
  }
}

// Packed sequences with what the backward pass takes.
struct Packed {
  GqaDims dims;
  Tensor q, kv, o, lse, d_o, seq_offsets;
  float scale;

  std::vector<LatentCacheView> views() const {
    std::vector<LatentCacheView> all;
    for (int64_t s = 0; s + 1 < seq_offsets.size(); ++s) {
      const int64_t first = seq_offsets.i32()[s], n = seq_offsets.i32()[s + 1] - first;
      all.push_back({kv.f32_row(first), n, n});
    }
    return all;
  }
};
Packed make_packed(const GqaDims& dims, const std::vector<int32_t>& offsets) {
  const int64_t n = offsets.back(), width = dims.n_heads * dims.head_dim;
  Packed p{dims,
           random_f32(n, width, 1),
           random_f32(n, dims.row(), 2),
           filled_f32(n, width, NAN),
           filled_f32(n, dims.n_heads, NAN),
           random_f32(n, width, 3),
           i32_tensor(offsets),
           1 / std::sqrt(static_cast<float>(dims.head_dim))};
  gqa_attention(ctx(), p.o, p.q, p.views(), dims, p.scale, p.lse);
  return p;
}

TEST(GroupedQueryAttentionBackward, MatchesPlainTwinOnOddShapes) {
  for (const auto& [dims, offsets] : {std::pair{kOdd, std::vector<int32_t>{0, 1, 1, 70, 75}},
                                      {kOne, std::vector<int32_t>{0, 65}},
                                      {kMany, std::vector<int32_t>{0, 9, 40}},
                                      {kShared, std::vector<int32_t>{0, 17}}}) {
    const Packed p = make_packed(dims, offsets);
    const Tensor dq = filled_like(p.q, NAN), dkv = filled_like(p.kv, NAN), want_q = filled_like(p.q, NAN),
                 want_kv = filled_like(p.kv, NAN);
    gqa_attention_backward(ctx(), dq, dkv, p.d_o, p.o, p.q, p.kv, p.lse, p.seq_offsets, dims, p.scale);
    plain::gqa_attention_backward(want_q, want_kv, p.d_o, p.o, p.q, p.kv, p.lse, p.seq_offsets, dims, p.scale);
    EXPECT_LE(max_relative_error(dq, want_q), 1e-5) << dims.n_heads;
    EXPECT_LE(max_relative_error(dkv, want_kv), 1e-5) << dims.n_heads;
  }
}

TEST(GroupedQueryAttentionBackward, IsTheSlopeOfTheForwardPass) {
  const Packed p = make_packed(kOdd, {0, 5, 14});
  const Tensor dq = filled_like(p.q, NAN), dkv = filled_like(p.kv, NAN), o = filled_like(p.o, NAN);
  gqa_attention_backward(ctx(), dq, dkv, p.d_o, p.o, p.q, p.kv, p.lse, p.seq_offsets, kOdd, p.scale);
  const auto loss = [&] {
    plain::gqa_attention(o, p.q, p.views(), kOdd, p.scale);
    return dot(o, p.d_o);
  };
  EXPECT_LE(gradient_error(loss, p.q, dq), 1e-3);
  EXPECT_LE(gradient_error(loss, p.kv, dkv), 1e-3);
}

}  // namespace
}  // namespace fathom
