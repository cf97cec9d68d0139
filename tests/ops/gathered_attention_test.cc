// Attention to chosen rows that are read where they lie: the kernels of every instruction set against their formulas,
// and the operator with bf16 products against its plain twin.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "number/formats.h"
#include "ops/attention.h"
#include "ops/cpu/gathered_attention_variants.h"
#include "ops/each_isa.h"
#include "ops/test_tensors.h"
#include "sanitized.h"

namespace fathom {
namespace {

constexpr double kRounding = 1.0 / 256;  // the largest relative error of rounding to bf16

Tensor rounded(Tensor x) {
  const Tensor y = copy_of(x);
  std::vector<uint16_t> bits(static_cast<size_t>(x.size()));
  from_f32(bits.data(), x.f32(), Format::bf16, x.size());
  to_f32(y.f32(), bits.data(), Format::bf16, x.size());
  return y;
}

struct KernelCase {
  int64_t row_dim, rank, n_queries, n;
};

void check_kernel(const cpu::GatheredAttentionKernels& k, const KernelCase& c, bool bf16, const char* isa) {
  SCOPED_TRACE(fmt::format("{} {}: {} of {}, {} queries, {} rows", isa, bf16 ? "bf16" : "f32", c.rank, c.row_dim,
                           c.n_queries, c.n));
  constexpr int64_t kPanel = cpu::kQueryPanel;
  const Tensor rows = rounded(random_f32(c.n, c.row_dim, 1)), queries = rounded(random_f32(c.n_queries, c.row_dim, 2));
  const int64_t bytes = bf16 ? 2 : 4, n_panels = (c.n_queries + kPanel - 1) / kPanel;
  std::vector<const char*> pointers, ahead;
  for (int64_t i = 0; i < c.n; ++i) {
    auto* const row = test_memory<char>(c.row_dim * bytes, 0);
    from_f32(row, rows.f32_row(i), bf16 ? Format::bf16 : Format::f32, c.row_dim);
    pointers.push_back(row);
  }
  ahead.assign(pointers.rbegin(), pointers.rend());
  while (pointers.size() % cpu::kRowTile != 0) pointers.push_back(test_memory<char>(c.row_dim * bytes, 0));
  auto* const panels = test_memory<float>(n_panels * kPanel * c.row_dim, 0);
  for (int64_t i = 0; i < c.n_queries; ++i) {
    for (int64_t d = 0; d < c.row_dim; ++d) {
      panels[i / kPanel * kPanel * c.row_dim + d * kPanel + i % kPanel] = 0.1f * queries.f32(i, d);
    }
  }
  const Tensor scaled = filled_like(queries, 0);
  for (int64_t i = 0; i < queries.size(); ++i) scaled.f32()[i] = 0.1f * queries.f32()[i];
  const Tensor seen = bf16 ? rounded(scaled) : scaled;
  for (int64_t p = 0; p < n_panels; ++p) {
    float* const panel = panels + p * kPanel * c.row_dim;
    (bf16 ? k.pack_bf16 : k.pack_f32)(panel, c.row_dim);
    if (bf16) std::copy_n(panel, kPanel * c.row_dim / 2, panels + p * kPanel * c.row_dim / 2);
  }
  const Tensor out = filled_f32(c.n_queries, c.rank, NAN);
  auto* const largest = test_memory<float>(n_panels * kPanel, NAN);
  auto* const sum = test_memory<float>(n_panels * kPanel, NAN);
  (bf16 ? k.attend_bf16 : k.attend_f32)(
      {pointers.data(), c.n, c.row_dim, c.rank, c.n_queries, reinterpret_cast<const char*>(panels),
       test_memory<float>(n_panels * kPanel * cpu::kGatheredRows, NAN), test_memory<char>(cpu::kStripBytes, 0), largest,
       sum, out.f32(), ahead.data(), std::ssize(ahead), c.row_dim * bytes});

  // Weights are rounded, and scores are sums in f32.
  const double tolerance = (bf16 ? kRounding : 0) + 2e-5;
  for (int64_t i = 0; i < c.n_queries; ++i) {
    std::vector<double> s(static_cast<size_t>(c.n), 0.0);
    for (int64_t j = 0; j < c.n; ++j) {
      for (int64_t d = 0; d < c.row_dim; ++d) {
        s[static_cast<size_t>(j)] += static_cast<double>(seen.f32(i, d)) * rows.f32(j, d);
      }
    }
    const double highest = *std::max_element(s.begin(), s.end());
    double total = 0;
    for (double& score : s) total += score = std::exp(score - highest);
    ASSERT_NEAR(largest[i], highest, 1e-5 * (1 + std::abs(highest)));
    ASSERT_NEAR(sum[i], total, tolerance * total);
    for (int64_t r = 0; r < c.rank; ++r) {
      double value = 0, magnitude = 0;
      for (int64_t j = 0; j < c.n; ++j) {
        value += s[static_cast<size_t>(j)] * rows.f32(j, r);
        magnitude += s[static_cast<size_t>(j)] * std::abs(rows.f32(j, r));
      }
      ASSERT_NEAR(out.f32(i, r), value, tolerance * magnitude) << i << " " << r;
    }
  }
}

TEST(GatheredAttentionKernels, MatchPlainLoops) {
  for (const cpu::GatheredAttentionVariant& variant : cpu::kGatheredAttentionVariants) {
    if (!cpu_has(variant.isa)) continue;
    for (const bool bf16 : {false, true}) {
      if (bf16 && variant.kernels.attend_bf16 == nullptr) continue;
      const auto check = [&](const KernelCase& c) { check_kernel(variant.kernels, c, bf16, isa_name(variant.isa)); };
      for (const int64_t n_queries : {1, 3, 8, 16, 17, 31, 64}) {
        if (test::kSanitized && n_queries % 8 == 0) continue;  // whole vectors
        for (const int64_t n : {1, 2, 7, 8, 63, 64, 65, 255, 256}) check({36, 32, n_queries, n});
      }
      check({64, 64, 6, 33});
      check({104, 96, 24, 129});
      check({576, 512, 16, 131});
      if (!test::kSanitized) check({576, 512, 40, 256});
    }
  }
}

TEST(GatheredAttentionKernels, RoundRowsAsTheFormatsDo) {
  for (const cpu::GatheredAttentionVariant& variant : cpu::kGatheredAttentionVariants) {
    if (!cpu_has(variant.isa) || variant.kernels.narrow_row == nullptr) continue;
    for (const int64_t n : {1, 4, 15, 16, 36, 576}) {
      const Tensor x = random_f32(n, 7);
      std::vector<uint16_t> got(static_cast<size_t>(n)), want(static_cast<size_t>(n));
      variant.kernels.narrow_row(reinterpret_cast<char*>(got.data()), x.f32(), n);
      from_f32(want.data(), x.f32(), Format::bf16, n);
      EXPECT_EQ(got, want) << n;
    }
  }
}

MlaDims small(int64_t heads) {
  return {.n_heads = heads, .qk_nope_head_dim = 8, .qk_rope_head_dim = 8, .v_head_dim = 4, .kv_lora_rank = 64};
}

struct Problem {
  MlaDims dims;
  Tensor q, kv_b, selected;
  LatentCacheView sequence;
  float scale;
};

// Tokens choose up to topk of `length` rows, which all are theirs to see; every third row is chosen by none.
Problem make_problem(const MlaDims& dims, int64_t length, int64_t n_new, int64_t topk, Format format) {
  Problem p;
  p.dims = dims;
  const LatentRowLayout layout = dims.cached_row(format);
  const int64_t row_bytes = latent_row_bytes(layout), nope = dims.qk_nope_head_dim, rope = dims.qk_rope_head_dim;
  const Tensor rows = random_f32(length, layout.dim(), 1);
  auto* const stored = test_memory<char>(length * row_bytes, 0);
  for (int64_t i = 0; i < length; ++i) {
    write_latent_row(layout, stored + i * row_bytes, rows.f32_row(i), rows.f32_row(i) + dims.kv_lora_rank);
  }
  p.sequence = {stored, length, n_new, format};
  p.q = random_f32(n_new, dims.n_heads * (nope + rope), 2);
  p.kv_b = random_f32(dims.n_heads * (nope + dims.v_head_dim), dims.kv_lora_rank, 3);
  p.selected = Tensor(test_memory<int32_t>(n_new * topk, -1), Format::i32, {n_new, topk});
  Rng rng(4);
  for (int64_t t = 0; t < n_new; ++t) {
    const auto n = std::min<int64_t>(topk, length - length / 3 - 1 - t);
    std::vector<int32_t> choice;
    for (int64_t i = 0; i < length; ++i) {
      if (i % 3 != 2) choice.push_back(static_cast<int32_t>(i));
    }
    while (std::ssize(choice) > n) {
      choice.erase(choice.begin() + static_cast<ptrdiff_t>(rng.uniform() * static_cast<double>(choice.size())));
    }
    std::copy(choice.begin(), choice.end(), p.selected.i32() + t * topk);
  }
  p.scale = 0.3f / std::sqrt(static_cast<float>(nope * dims.kv_lora_rank));
  return p;
}

Tensor attended(Context& context, const Problem& p) {
  const Tensor o = filled_f32(p.q.rows(), p.dims.n_heads * p.dims.v_head_dim, NAN);
  mla_attention_absorbed(context, o, p.q, p.kv_b, {}, {&p.sequence, 1}, p.dims, p.scale, p.selected);
  return o;
}

// What rounding can change at most. Queries, and rows that are not bf16, are rounded: that moves a score by e, and so
// weights by the factor exp(2 e), their sum being moved too. Weights are rounded, and their sum, and such rows again as
// values. [tokens, heads * v], as o.
Tensor largest_change(const Problem& p) {
  const MlaDims& d = p.dims;
  const int64_t rank = d.kv_lora_rank, rope = d.qk_rope_head_dim, nope = d.qk_nope_head_dim;
  const LatentRowLayout layout = d.cached_row(p.sequence.format);
  const double of_rows = layout.format == Format::bf16 ? 0 : kRounding;
  const Tensor rows = filled_f32(p.sequence.length, layout.dim(), 0);
  read_latent_rows(layout, rows.f32(), p.sequence.rows, p.sequence.length);
  const Tensor bound = filled_f32(p.q.rows(), d.n_heads * d.v_head_dim, 0);
  for (int64_t t = 0; t < p.q.rows(); ++t) {
    for (int64_t h = 0; h < d.n_heads; ++h) {
      const float* const q = p.q.f32_row(t) + h * (nope + rope);
      std::vector<double> q_c(static_cast<size_t>(rank + rope), 0.0), s, weighed(static_cast<size_t>(rank), 0.0);
      for (int64_t r = 0; r < rank; ++r) {
        for (int64_t i = 0; i < nope; ++i) {
          q_c[static_cast<size_t>(r)] += static_cast<double>(q[i]) * p.kv_b.f32(h * (nope + d.v_head_dim) + i, r);
        }
      }
      for (int64_t i = 0; i < rope; ++i) q_c[static_cast<size_t>(rank + i)] = q[nope + i];
      double moved = 0;
      const int32_t* const chosen = p.selected.i32() + t * p.selected.cols();
      int64_t n = 0;
      for (; n < p.selected.cols() && chosen[n] >= 0; ++n) {
        double score = 0, magnitude = 0;
        for (int64_t r = 0; r < rank + rope; ++r) {
          const double product = static_cast<double>(p.scale) * q_c[static_cast<size_t>(r)] * rows.f32(chosen[n], r);
          score += product;
          magnitude += std::abs(product);
        }
        s.push_back(score);
        moved = std::max(moved, magnitude * (kRounding + of_rows));
      }
      const double highest = *std::max_element(s.begin(), s.end());
      double total = 0;
      for (double& score : s) total += score = std::exp(score - highest);
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t r = 0; r < rank; ++r) {
          weighed[static_cast<size_t>(r)] += s[static_cast<size_t>(j)] / total * std::abs(rows.f32(chosen[j], r));
        }
      }
      const double change = std::exp(2 * moved) * (1 + kRounding) * (1 + of_rows) / (1 - kRounding) - 1 + 1e-5;
      for (int64_t v = 0; v < d.v_head_dim; ++v) {
        double sum = 0;
        for (int64_t r = 0; r < rank; ++r) {
          sum += std::abs(p.kv_b.f32(h * (nope + d.v_head_dim) + nope + v, r)) * weighed[static_cast<size_t>(r)];
        }
        bound.f32(t, h * d.v_head_dim + v) = static_cast<float>(change * sum);
      }
    }
  }
  return bound;
}

TEST(GatheredAttention, DiffersFromThePlainTwinByRoundingAlone) {
  for (const Format format : {Format::f32, Format::bf16, Format::f16, Format::f8_e4m3, Format::q8_0}) {
    for (const auto& [heads, topk, n_new] : {std::array<int64_t, 3>{1, 1, 3},
                                             {1, 300, 2},
                                             {3, 7, 2},
                                             {16, 63, 3},
                                             {16, 64, 2},
                                             {16, 65, 2},
                                             {16, 300, 2},
                                             {70, 65, 2},
                                             {70, 300, 1},
                                             {128, 300, 1},
                                             {16, 2048, 1}}) {
      const Problem p = make_problem(small(heads), topk == 2048 ? 3500 : 700, n_new, topk, format);
      const Tensor o = attended(ctx(), p), want = filled_like(o, NAN);
      plain::mla_attention_absorbed(want, p.q, p.kv_b, {&p.sequence, 1}, p.dims, p.scale, p.selected);
      SCOPED_TRACE(fmt::format("{}: {} heads, {} rows", format_traits(format).name, heads, topk));
      if (format == Format::f32 || !cpu_has(Isa::avx512_bf16)) {
        EXPECT_LE(max_relative_error(o, want), 5e-6);
        continue;
      }
      const Tensor bound = largest_change(p);
      double error = 0, allowed = 0;
      for (int64_t i = 0; i < o.size(); ++i) {
        const double difference = std::abs(static_cast<double>(o.f32()[i]) - want.f32()[i]);
        ASSERT_LE(difference, bound.f32()[i]) << i;
        error += difference;
        allowed += bound.f32()[i];
      }
      EXPECT_LE(error, allowed / 5);  // errors that are not all of one sign
    }
  }
}

TEST(GatheredAttention, DimensionsOfV3) {
  const MlaDims dims = {
      .n_heads = 128, .qk_nope_head_dim = 8, .qk_rope_head_dim = 64, .v_head_dim = 8, .kv_lora_rank = 512};
  for (const Format format : {Format::f32, Format::bf16, Format::f8_e4m3}) {
    const Problem p = make_problem(dims, 700, 2, 300, format);
    const Tensor o = attended(ctx(), p), want = filled_like(o, NAN);
    plain::mla_attention_absorbed(want, p.q, p.kv_b, {&p.sequence, 1}, p.dims, p.scale, p.selected);
    EXPECT_LE(max_relative_error(o, want), format == Format::f32 ? 5e-6 : 2 * kRounding);
  }
}

// Rows apart, in both ways of sharing the work out.
TEST(GatheredAttention, BitsOfATokenDependOnItAlone) {
  for (const Format format : {Format::f32, Format::bf16, Format::q8_0}) {
    for (const int64_t heads : {16, 70}) {
      const Problem p = make_problem(small(heads), 1500, 12, 600, format);
      const Tensor first = attended(ctx(), p);
      for (const int threads : {1, 4}) {
        ThreadedContext t(threads);
        EXPECT_TRUE(same_bits(first, attended(t.ctx, p))) << threads;
      }
      for (const int64_t i : {0, 7, 11}) {
        Problem alone = p;
        alone.q = p.q.slice(i, 1);
        alone.selected = p.selected.slice(i, 1);
        alone.sequence.n_new = 1;
        EXPECT_TRUE(same_bits(attended(ctx(), alone), first.slice(i, 1))) << i;
      }
    }
  }
}

TEST(GatheredAttention, RowsThatAreNotChosenAreNotSeen) {
  for (const Format format : {Format::f32, Format::bf16, Format::f8_e4m3}) {
    const Problem p = make_problem(small(16), 400, 20, 70, format);
    const Tensor before = attended(ctx(), p);
    const int64_t row_bytes = latent_row_bytes(p.dims.cached_row(format));
    for (int64_t i = 2; i < p.sequence.length; i += 3) {
      auto* const row = const_cast<char*>(p.sequence.row(i, row_bytes));
      std::memset(row, i % 2 == 0 ? 0xFF : 0x7F, static_cast<size_t>(row_bytes));
    }
    EXPECT_TRUE(same_bits(before, attended(ctx(), p)));
  }
}

}  // namespace
}  // namespace fathom
