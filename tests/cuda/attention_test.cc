// The latent caches and absorbed attention on a device.
#include "ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cuda/device_context.h"
#include "number/formats.h"
#include "number/panels.h"

namespace fathom {
namespace {

constexpr Format kFormats[] = {Format::f32, Format::bf16, Format::f16, Format::f8_e4m3, Format::q8_0};
constexpr int64_t kLayers = 2;

using CudaAttention = CudaTest;

class CudaAttentionOf : public CudaTest, public testing::WithParamInterface<Format> {};

struct Lengths {
  int64_t length, n_new;
};

Tensor i64_tensor(const std::vector<int64_t>& values) {
  const auto n = static_cast<int64_t>(values.size());
  const Tensor t(test_memory<int64_t>(n, 0), Format::i64, {n});
  std::copy(values.begin(), values.end(), t.as<int64_t>());
  return t;
}

// Caches of some sequences on the device, whose second layer counts. stored: of each, that layer's rows and room for
// more of which all bits are set.
DeviceCaches upload_caches(const LatentRowLayout& layout, const std::vector<Tensor>& stored,
                           const std::vector<Lengths>& lengths) {
  std::vector<int64_t> rows, strides;
  std::vector<int32_t> sequence, positions;
  for (size_t s = 0; s < stored.size(); ++s) {
    const int64_t bytes = stored[s].size(), stride = (bytes + 63) / 64 * 64;
    const Tensor both(test_memory<uint8_t>(kLayers * stride, 0xFF), Format::u8, {kLayers * stride});
    std::copy_n(stored[s].as<uint8_t>(), bytes, both.as<uint8_t>() + stride);
    rows.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(upload(both).data)));
    strides.push_back(stride);
    for (int64_t i = lengths[s].length - lengths[s].n_new; i < lengths[s].length; ++i) {
      sequence.push_back(static_cast<int32_t>(s));
      positions.push_back(static_cast<int32_t>(i));
    }
  }
  return {upload(i64_tensor(rows)),
          upload(i64_tensor(strides)),
          upload(i32_tensor(sequence)),
          upload(i32_tensor(positions)),
          layout,
          1};
}

Tensor room_for(const LatentRowLayout& layout, int64_t n) {
  const int64_t bytes = n * latent_row_bytes(layout);
  return Tensor(test_memory<uint8_t>(bytes, 0xFF), Format::u8, {bytes});
}

// Of the counting layer.
Tensor download_rows(const DeviceCaches& caches, int64_t s, int64_t bytes) {
  const auto first = download(caches.rows).as<int64_t>()[s], stride = download(caches.strides).as<int64_t>()[s];
  return download(Tensor(reinterpret_cast<void*>(first + stride), Format::u8, {bytes}));
}

TEST_F(CudaAttention, WritesTheRowsThatTheCpuWrites) {
  const std::vector<Lengths> lengths = {{5, 5}, {3, 1}, {9, 2}};
  for (const Format format : kFormats) {
    for (const auto& [rank, rope] : {std::pair<int64_t, int64_t>{1, 2}, {7, 2}, {32, 8}, {140, 6}, {512, 64}}) {
      const LatentRowLayout layout{format, rank, rope};
      const int64_t row_bytes = latent_row_bytes(layout), n_tokens = 8;
      const Tensor latent = random_f32(n_tokens, rank, 3, rank + 3), k_rope = random_f32(n_tokens, rope, 4, rope + 1);
      for (int64_t t = 0; t < n_tokens; ++t) {
        for (int64_t i = 0; i < rank; ++i) latent.f32(t, i) *= std::exp2(static_cast<float>(i % 40 - 3 * t));
      }
      std::fill_n(latent.f32_row(1), rank, 0.0f);
      latent.f32(2, 0) = 1e5f;
      k_rope.f32(2, 1) = -1e-6f;

      std::vector<Tensor> want, empty;
      const Tensor latent_back = copy_of(latent), k_rope_back = copy_of(k_rope);
      int64_t t = 0;
      for (const auto [length, n_new] : lengths) {
        empty.push_back(room_for(layout, length + 1));
        want.push_back(room_for(layout, length + 1));
        for (int64_t i = length - n_new; i < length; ++i, ++t) {
          uint8_t* row = want.back().as<uint8_t>() + i * row_bytes;
          write_latent_row(layout, row, latent.f32_row(t), k_rope.f32_row(t));
          const Tensor read = filled_f32(1, rank + rope, 0);
          read_latent_rows(layout, read.f32(), row, 1);
          std::copy_n(read.f32(), rank, latent_back.f32_row(t));
          std::copy_n(read.f32() + rank, rope, k_rope_back.f32_row(t));
        }
      }
      const DeviceCaches caches = upload_caches(layout, empty, lengths);
      const Tensor on_gpu = upload(latent), k_on_gpu = upload(k_rope);
      cuda_ctx().device->operators.write_cache(cuda_ctx(), caches, on_gpu, k_on_gpu);
      for (size_t s = 0; s < want.size(); ++s) {
        EXPECT_TRUE(same_bits(download_rows(caches, static_cast<int64_t>(s), want[s].size()), want[s]))
            << format_traits(format).name << " " << rank << " " << s;
      }
      EXPECT_TRUE(same_bits(download(on_gpu), latent_back)) << format_traits(format).name << " " << rank;
      EXPECT_TRUE(same_bits(download(k_on_gpu), k_rope_back)) << format_traits(format).name << " " << rank;
      EXPECT_TRUE(gaps_untouched(download(on_gpu)) && gaps_untouched(download(k_on_gpu)));
    }
  }
}

// [matrices, rows, cols] or [rows, cols] of f32 in panels.
Tensor in_panels(const std::vector<Tensor>& matrices) {
  const int64_t rows = matrices[0].rows(), cols = matrices[0].cols(), bytes = panel_bytes(Format::f32, cols);
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows, n = static_cast<int64_t>(matrices.size());
  auto* to = test_memory<uint8_t>(n * panels * bytes + 64, 0);
  to += (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64;
  for (int64_t m = 0; m < n; ++m) {
    const Tensor& matrix = matrices[static_cast<size_t>(m)];
    for (int64_t p = 0; p < panels; ++p) {
      const void* source[kPanelRows] = {};
      const int64_t n_rows = std::min(kPanelRows, rows - p * kPanelRows);
      for (int64_t r = 0; r < n_rows; ++r) source[r] = matrix.f32_row(p * kPanelRows + r);
      pack_panel(to + (m * panels + p) * bytes, source, n_rows, Format::f32, cols);
    }
  }
  return n == 1 ? panel_tensor(to, Format::f32, {rows, cols}) : panel_tensor(to, Format::f32, {n, rows, cols});
}

struct Problem {
  MlaDims dims;
  Format format;
  std::vector<Lengths> lengths;
  std::vector<Tensor> stored;
  Tensor q, kv_b, kv_b_on_gpu, k_b;
  float scale;
};

Problem make_problem(const MlaDims& dims, Format format, const std::vector<Lengths>& lengths) {
  Problem p{dims,
            format,
            lengths,
            {},
            {},
            {},
            {},
            {},
            2 / std::sqrt(static_cast<float>(dims.qk_nope_head_dim * dims.kv_lora_rank + dims.qk_rope_head_dim))};
  uint64_t seed = 1;
  const auto [heads, nope, rope, v_dim, rank] = dims;
  const LatentRowLayout layout = dims.cached_row(format);
  int64_t n_tokens = 0;
  for (const auto [length, n_new] : lengths) {
    const Tensor rows = random_f32(length, rank + rope, seed++);
    p.stored.push_back(room_for(layout, length + 1));  // of which the last is full of NaN
    for (int64_t i = 0; i < length; ++i) {
      write_latent_row(layout, p.stored.back().as<uint8_t>() + i * latent_row_bytes(layout), rows.f32_row(i),
                       rows.f32_row(i) + rank);
    }
    n_tokens += n_new;
  }
  p.q = random_f32(n_tokens, heads * (nope + rope), seed++);
  p.kv_b = random_f32(heads * (nope + v_dim), rank, seed++);
  if (nope % kPanelRows != 0 || v_dim % kPanelRows != 0) {
    p.kv_b_on_gpu = upload(p.kv_b);
    return p;
  }
  std::vector<Tensor> transposed;
  for (int64_t h = 0; h < heads; ++h) {
    transposed.push_back(filled_f32(rank, nope, 0));
    for (int64_t c = 0; c < rank; ++c) {
      for (int64_t d = 0; d < nope; ++d) transposed.back().f32(c, d) = p.kv_b.f32(h * (nope + v_dim) + d, c);
    }
  }
  p.kv_b_on_gpu = upload(in_panels({p.kv_b}));
  p.k_b = upload(in_panels(transposed));
  if (heads == 1) p.k_b = Tensor(p.k_b.data, Format::f32, {1, rank, nope});
  p.k_b.panels = true;
  p.k_b.row_stride = panel_bytes(Format::f32, nope);
  return p;
}

Tensor attend(const Problem& p, int n_processors) {
  Device device = *cuda_ctx().device;
  device.n_processors = n_processors;
  Context context{cuda_ctx().pool, cuda_ctx().arena, &device};
  const DeviceCaches caches = upload_caches(p.dims.cached_row(p.format), p.stored, p.lengths);
  const Tensor o = upload(filled_f32(p.q.rows(), p.dims.n_heads * p.dims.v_head_dim, NAN));
  device.operators.mla_attention_absorbed(context, o, upload(p.q), p.kv_b_on_gpu, p.k_b, caches, p.dims, p.scale);
  return download(o);
}

Tensor attend_plainly(const Problem& p) {
  std::vector<LatentCacheView> views;
  for (size_t s = 0; s < p.stored.size(); ++s) {
    views.push_back({p.stored[s].data, p.lengths[s].length, p.lengths[s].n_new, p.format});
  }
  const Tensor o = filled_f32(p.q.rows(), p.dims.n_heads * p.dims.v_head_dim, NAN);
  plain::mla_attention_absorbed(o, p.q, p.kv_b, views, p.dims, p.scale);
  return o;
}

MlaDims dims_of(int64_t heads, int64_t rank, int64_t rope, int64_t nope = 16, int64_t v_dim = 8) {
  return {
      .n_heads = heads, .qk_nope_head_dim = nope, .qk_rope_head_dim = rope, .v_head_dim = v_dim, .kv_lora_rank = rank};
}

struct Case {
  MlaDims dims;
  std::vector<Lengths> lengths;
};

// Of one token of some sequences, of more, of prompts, and all mixed.
const std::vector<Case> kCases = {
    {dims_of(1, 16, 8), {{1, 1}, {17, 1}, {33, 1}}},
    {dims_of(1, 64, 16), {{70, 70}}},
    {dims_of(4, 64, 16), {{65, 1}, {129, 1}}},
    {dims_of(4, 64, 8), {{200, 1}, {64, 2}, {33, 33}, {5, 0}, {128, 1}, {1, 1}}},
    {dims_of(16, 64, 16), {{1, 1}, {64, 1}, {200, 1}}},
    {dims_of(16, 512, 64), {{65, 1}, {31, 1}}},
    {dims_of(16, 512, 64), {{37, 9}}},
    {dims_of(16, 48, 8), {{90, 40}, {9, 9}}},
    {dims_of(64, 64, 16), {{97, 3}, {32, 1}}},
    {dims_of(70, 32, 24), {{40, 2}}},
    {dims_of(128, 64, 16), {{64, 1}, {33, 2}}},
    {dims_of(128, 512, 64), {{40, 1}}},
};
// Shapes that bf16 products have no kernel for.
const std::vector<Case> kOddCases = {
    {dims_of(3, 7, 2, 5, 3), {{65, 1}, {600, 2}, {1, 1}, {5, 5}}},
    {dims_of(17, 140, 6), {{70, 3}}},
};

TEST_P(CudaAttentionOf, MatchesThePlainTwin) {
  const Format format = GetParam();
  for (const auto& [cases, products] : {std::pair{&kCases, true}, {&kOddCases, false}}) {
    for (const Case& c : *cases) {
      const bool exact = format == Format::f32 || !products, common = exact || format == Format::bf16;
      if (!common && c.dims.n_heads > 70) continue;  // nothing new, and slow where it is emulated
      const Problem p = make_problem(c.dims, format, c.lengths);
      const Tensor want = attend_plainly(p);
      for (const int n_processors : {1, 20}) {
        if (!common && n_processors == 1) continue;
        if (c.dims.n_heads > 70 && n_processors == 20) continue;
        EXPECT_LE(max_relative_error(attend(p, n_processors), want), exact ? 5e-6 : 1e-2)
            << c.dims.n_heads << " heads, rank " << c.dims.kv_lora_rank << ", " << c.lengths.size() << " sequences, "
            << n_processors << " processors";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, CudaAttentionOf, testing::ValuesIn(kFormats),
                         [](const auto& test) { return std::string(format_traits(test.param).name); });

// Queries of few heads keep the precision of f32: what is left are the roundings of the weights.
TEST_F(CudaAttention, ScoresOfFewHeadsAreExact) {
  const Problem p = make_problem(dims_of(16, 64, 16), Format::bf16, {{3, 1}, {150, 1}});
  EXPECT_LE(max_relative_error(attend(p, 1), attend_plainly(p)), 2e-3);
}

// Largest scores in the first and in the last tile, far above all others.
TEST_F(CudaAttention, FollowsLargeScores) {
  for (const Format format : {Format::f32, Format::bf16}) {
    for (const int64_t heads : {16, 64}) {
      Problem p = make_problem(dims_of(heads, 64, 16), format, {{200, 1}, {140, 1}});
      p.scale *= 30;
      EXPECT_LE(max_relative_error(attend(p, 7), attend_plainly(p)), format == Format::f32 ? 5e-5 : 0.1) << heads;
    }
  }
}

// Where as many are decoded together.
TEST_F(CudaAttention, DecodingHasTheSameBitsInOtherCompany) {
  for (const Format format : {Format::f32, Format::bf16, Format::f8_e4m3}) {
    for (const int64_t heads : {16, 64}) {
      const Problem p = make_problem(dims_of(heads, 64, 16), format, {{77, 1}, {130, 1}, {3, 1}});
      Problem other = p;
      other.lengths = {{1, 1}, {130, 1}, {2, 1}};
      EXPECT_TRUE(same_bits(attend(p, 5).slice(1, 1), attend(other, 5).slice(1, 1))) << format_traits(format).name;
    }
  }
}

}  // namespace
}  // namespace fathom
