#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/test_tensors.h"
#include "sanitized.h"

namespace fathom {
namespace {

const MlaDims kOdd = {.n_heads = 3, .qk_nope_head_dim = 5, .qk_rope_head_dim = 2, .v_head_dim = 3, .kv_lora_rank = 7};
const MlaDims kMany = {
    .n_heads = 70, .qk_nope_head_dim = 16, .qk_rope_head_dim = 8, .v_head_dim = 24, .kv_lora_rank = 140};

struct Lengths {
  int64_t length, n_new;
};

struct Problem {
  MlaDims dims;
  Tensor q, kv_b, o;
  std::vector<LatentCacheView> sequences;
  float scale;
};

Problem make_problem(const MlaDims& dims, const std::vector<Lengths>& lengths, int64_t gap = 0,
                     Format format = Format::f32) {
  uint64_t seed = 1;
  const int64_t rank = dims.kv_lora_rank, nope = dims.qk_nope_head_dim, rope = dims.qk_rope_head_dim;
  Problem p;
  p.dims = dims;
  int64_t n_tokens = 0;
  for (const auto [length, n_new] : lengths) {
    const Tensor rows = random_f32(length, rank + rope, seed++);
    const LatentRowLayout layout = dims.cached_row(format);
    auto* const stored = test_memory<char>(length * latent_row_bytes(layout), 0);
    for (int64_t i = 0; i < length; ++i) {
      write_latent_row(layout, stored + i * latent_row_bytes(layout), rows.f32_row(i), rows.f32_row(i) + rank);
    }
    p.sequences.push_back({stored, length, n_new, format});
    n_tokens += n_new;
  }
  const int64_t q_dim = dims.n_heads * (nope + rope), o_dim = dims.n_heads * dims.v_head_dim;
  p.q = random_f32(n_tokens, q_dim, seed++, q_dim + gap);
  p.kv_b = random_f32(dims.n_heads * (nope + dims.v_head_dim), rank, seed++, rank + gap);
  p.o = filled_f32(n_tokens, o_dim, NAN, o_dim + gap);
  p.scale = 0.3f / std::sqrt(static_cast<float>(nope * rank));
  return p;
}

void absorbed(Context& context, const Problem& p) {
  mla_attention_absorbed(context, p.o, p.q, p.kv_b, {}, p.sequences, p.dims, p.scale);
}

TEST(AbsorbedAttention, MatchesPlainTwinOnOddShapes) {
  struct Case {
    MlaDims dims;
    std::vector<Lengths> lengths;
    int64_t gap;
    Format format = Format::f32;
  };
  for (const Case& c : {Case{kOdd, {{1, 1}}, 0},
                        {kOdd, {{65, 1}, {1, 1}, {600, 2}, {5, 5}, {3, 0}, {257, 130}}, 3},
                        {kMany, {{64, 1}}, 0},
                        {kMany, {{256, 1}, {700, 3}, {9, 9}}, 1},
                        {kOdd, {{65, 1}, {600, 2}, {5, 5}}, 0, Format::bf16},
                        {kMany, {{256, 1}, {700, 3}, {9, 9}}, 0, Format::f16},
                        {kOdd, {{300, 3}, {1, 1}}, 0, Format::f8_e4m3},
                        {kMany, {{300, 3}, {1, 1}}, 0, Format::f8_e4m3},
                        {kMany, {{129, 2}, {64, 1}}, 0, Format::q8_0}}) {
    const Problem p = make_problem(c.dims, c.lengths, c.gap, c.format);
    absorbed(ctx(), p);
    const Tensor o = filled_like(p.o, NAN);
    plain::mla_attention_absorbed(o, p.q, p.kv_b, p.sequences, p.dims, p.scale);
    EXPECT_LE(max_relative_error(p.o, o), 5e-6) << c.dims.n_heads << " heads, " << c.lengths.size() << " sequences";
    EXPECT_TRUE(gaps_untouched(p.o));
  }
}

TEST(AbsorbedAttention, EqualsTheExpandedForm) {
  for (const MlaDims& dims : {kOdd, kMany}) {
    const int64_t n = 131, rank = dims.kv_lora_rank;
    const Problem p = make_problem(dims, {{n, n}});
    const Tensor rows(const_cast<void*>(p.sequences[0].rows), Format::f32, {n, rank + dims.qk_rope_head_dim});
    const Tensor kv = filled_f32(n, p.kv_b.rows(), NAN);
    linear(ctx(), kv, rows.columns(0, rank), p.kv_b);
    const Tensor expanded = filled_like(p.o, NAN);
    mla_attention(ctx(), expanded, p.q, kv, rows.columns(rank, dims.qk_rope_head_dim),
                  i32_tensor({0, static_cast<int32_t>(n)}), dims, p.scale);
    absorbed(ctx(), p);
    EXPECT_LE(max_relative_error(p.o, expanded), 1e-5);
    // The newest token alone, as in decoding, and the newest three, as in speculation: the same bits.
    for (const int64_t n_new : {1, 3}) {
      const Tensor newest = filled_like(p.o.slice(n - n_new, n_new), NAN);
      const LatentCacheView view = {p.sequences[0].rows, n, n_new};
      mla_attention_absorbed(ctx(), newest, p.q.slice(n - n_new, n_new), p.kv_b, {}, std::span(&view, 1), dims,
                             p.scale);
      EXPECT_TRUE(same_bits(newest, p.o.slice(n - n_new, n_new))) << n_new;
    }
  }
}

TEST(ExpandedAttention, OverCachesMatchesThePlainTwin) {
  for (const MlaDims& dims : {kOdd, kMany}) {
    for (const Format format : {Format::f32, Format::bf16, Format::q8_0}) {
      if (format != Format::f32 && dims.n_heads > kOdd.n_heads) continue;  // the twin takes long
      const int64_t n = test::kSanitized ? 35 : 140;
      const Problem p = make_problem(dims, {{300, n}, {1, 1}, {70, 3}, {5, 0}, {n - 11, n - 11}}, 2, format);
      mla_attention_expanded(ctx(), p.o, p.q, p.kv_b, p.sequences, p.dims, p.scale);
      const Tensor o = filled_like(p.o, NAN);
      plain::mla_attention_absorbed(o, p.q, p.kv_b, p.sequences, p.dims, p.scale);
      EXPECT_LE(max_relative_error(p.o, o), 1e-5);
      EXPECT_TRUE(gaps_untouched(p.o));
    }
  }
}

TEST(ExpandedAttention, GivesTheSameBitsInAnyPieces) {
  for (const auto& [dims, n] : {std::pair{kOdd, int64_t{331}}, std::pair{kMany, int64_t{139}}}) {
    const int64_t rank = dims.kv_lora_rank;
    const Problem p = make_problem(dims, {{n, n}});
    const Tensor rows(const_cast<void*>(p.sequences[0].rows), Format::f32, {n, rank + dims.qk_rope_head_dim});
    const Tensor kv = filled_f32(n, p.kv_b.rows(), NAN);
    linear(ctx(), kv, rows.columns(0, rank), p.kv_b);
    mla_attention(ctx(), p.o, p.q, kv, rows.columns(rank, dims.qk_rope_head_dim),
                  i32_tensor({0, static_cast<int32_t>(n)}), dims, p.scale);
    for (const int64_t piece : {n, int64_t{128}, int64_t{77}, int64_t{1}}) {
      const Tensor o = filled_like(p.o, NAN);
      for (int64_t begin = 0; begin < n; begin += piece) {
        const int64_t n_new = std::min(piece, n - begin);
        const LatentCacheView view = {p.sequences[0].rows, begin + n_new, n_new};
        mla_attention_expanded(ctx(), o.slice(begin, n_new), p.q.slice(begin, n_new), p.kv_b, std::span(&view, 1), dims,
                               p.scale);
      }
      EXPECT_TRUE(same_bits(o, p.o)) << piece;
    }
  }
}

// The same rows in pages that lie anywhere.
TEST(LatentCachePages, GiveTheSameBits) {
  constexpr int64_t kOffset = 64;  // of the rows in a page
  for (const Format format : {Format::f32, Format::bf16, Format::q8_0}) {
    for (const MlaDims& dims : {kOdd, kMany}) {
      const Problem p = make_problem(dims, {{1, 1}, {700, 3}, {64, 64}, {65, 1}, {257, 130}}, 0, format);
      const int64_t row_bytes = latent_row_bytes(dims.cached_row(format));
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
      const Tensor whole = filled_like(p.o, NAN), in_pages = filled_like(p.o, NAN);
      mla_attention_expanded(ctx(), whole, p.q, p.kv_b, p.sequences, dims, p.scale);
      mla_attention_expanded(ctx(), in_pages, p.q, p.kv_b, paged, dims, p.scale);
      EXPECT_TRUE(same_bits(whole, in_pages)) << "expanded";
      mla_attention_absorbed(ctx(), whole, p.q, p.kv_b, {}, p.sequences, dims, p.scale);
      mla_attention_absorbed(ctx(), in_pages, p.q, p.kv_b, {}, paged, dims, p.scale);
      EXPECT_TRUE(same_bits(whole, in_pages)) << "absorbed";
    }
  }
}

TEST(AbsorbedAttention, SequencesDoNotChangeEachOthersBits) {
  const Problem p = make_problem(kMany, {{300, 2}, {40, 1}, {513, 1}});
  absorbed(ctx(), p);
  int64_t row = 0;
  for (const LatentCacheView& sequence : p.sequences) {
    const Tensor alone = filled_like(p.o.slice(row, sequence.n_new), NAN);
    mla_attention_absorbed(ctx(), alone, p.q.slice(row, sequence.n_new), p.kv_b, {}, std::span(&sequence, 1), p.dims,
                           p.scale);
    EXPECT_TRUE(same_bits(alone, p.o.slice(row, sequence.n_new)));
    row += sequence.n_new;
  }
}

TEST(AbsorbedAttention, SameBitsForAnyNumberOfThreads) {
  // Long enough that one thread goes over the chunks of a sequence in several waves.
  const Problem p = make_problem(kMany, {{2600, 1}, {300, 3}});
  Tensor first;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    absorbed(context, p);
    EXPECT_EQ(arena.mark().offset, 0u);
    if (!first) first = copy_of(p.o);
    EXPECT_TRUE(same_bits(first, p.o)) << threads;
  }
}

TEST(AbsorbedAttention, LongPromptsAreTakenInRounds) {
  const MlaDims dims = {
      .n_heads = 130, .qk_nope_head_dim = 4, .qk_rope_head_dim = 2, .v_head_dim = 3, .kv_lora_rank = 6};
  const Problem p = make_problem(dims, {{10, 1}, {140, 130}, {7, 2}});
  absorbed(ctx(), p);
  const Tensor o = filled_like(p.o, NAN);
  plain::mla_attention_absorbed(o, p.q, p.kv_b, p.sequences, p.dims, p.scale);
  EXPECT_LE(max_relative_error(p.o, o), 5e-6);
}

TEST(AbsorbedAttention, LargeScoresDoNotOverflow) {
  Problem p = make_problem(kOdd, {{600, 2}});
  p.scale = 1e4f;
  absorbed(ctx(), p);
  const Tensor o = filled_like(p.o, NAN);
  plain::mla_attention_absorbed(o, p.q, p.kv_b, p.sequences, p.dims, p.scale);
  EXPECT_LE(max_relative_error(p.o, o), 1e-2);
}

}  // namespace
}  // namespace fathom
