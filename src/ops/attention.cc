#include "ops/attention.h"

#include <cmath>

#include "ops/attention_blocks.h"
#include "ops/device.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace fathom {
namespace {

using namespace attention;

constexpr int64_t kQueryBlock = 128;
constexpr int64_t kScoreStride = kQueryBlock | 16;
constexpr int64_t kExpandedFloats = int64_t{1} << 24;  // of keys and values made from a cache at a time

// Up to kQueryBlock queries of one sequence. Its keys begin at key_begin; the first query is row `first` of q and sees
// keys up to first_key, itself.
struct QueryBlock {
  int64_t key_begin, first_key, first, n;
  int64_t n_keys() const { return first_key + n - key_begin; }
};

void add_query_blocks(std::vector<QueryBlock>& blocks, int64_t key_begin, int64_t first_key, int64_t first, int64_t n) {
  for (int64_t i = 0; i < n; i += kQueryBlock) {
    blocks.push_back({key_begin, first_key + i, first + i, std::min(kQueryBlock, n - i)});
  }
}

struct Scratch {
  float* q_transposed;                // [key_dim, queries], scaled
  float* keys;                        // [keys, key_dim]
  float* values;                      // [keys, v]
  float* scores;                      // [keys, queries]
  float* out;                         // [queries, v]
  float *largest, *sum, *correction;  // [queries]
  uint32_t* seen;                     // [2, queries]: of the keys of a tile, where not all are
};

// The bits of a tile's keys of each query, for AttentionKernels::mask_keys. Returns whether there are any.
bool gather_seen(uint32_t* words, int64_t n_padded, const SeenKeys& seen, const QueryBlock& block, int64_t key) {
  uint64_t any = 0;
  std::fill_n(words, 2 * n_padded, 0);
  for (int64_t i = 0; i < block.n; ++i) {
    const uint64_t word = seen.row(block.first + i)[(key - block.key_begin) / kBlock];
    words[i] = static_cast<uint32_t>(word);
    words[n_padded + i] = static_cast<uint32_t>(word >> 32);
    any |= word;
  }
  return any != 0;
}

void attend(const ExpandedInputs& in, const QueryBlock& block, int64_t head, float scale, Tensor o, Tensor lse,
            const SeenKeys& seen, const Scratch& s) {
  const cpu::AttentionKernels& k = kernels();
  const int64_t key_dim = in.key_dim(), v_dim = in.dims.v_head_dim, v_stride = block_stride(v_dim);
  const int64_t n_queries = padded(block.n), end = block.first_key + block.n;
  transpose_padded(s.q_transposed, kScoreStride, in.query(block.first, head), in.q.row_stride, block.n, key_dim, scale);
  std::fill_n(s.largest, n_queries, kLowest);
  std::fill_n(s.sum, n_queries, 0.0f);

  bool first = true;
  for (int64_t key = block.key_begin; key < end; key += kBlock) {
    const int64_t n_keys = std::min(kBlock, end - key),
                  diagonal = block.first_key - key;  // query i sees key diagonal + i
    if (seen.bits != nullptr && !gather_seen(s.seen, n_queries, seen, block, key)) continue;
    in.copy_keys(s.keys, key_dim, key, head, n_keys);
    copy_rows(s.values, v_stride, in.value(key, head), in.kv.row_stride, n_keys, v_dim);
    const bool masked = diagonal + 1 < n_keys;
    const int64_t strip = masked ? kStrip : kQueryBlock;
    for (int64_t j = 0; j < n_keys; j += strip) {
      const int64_t first_query = std::max<int64_t>(0, j - diagonal) / kStrip * kStrip;
      k.multiply({std::min(strip, n_keys - j), n_queries - first_query, key_dim}, {s.keys + j * key_dim, key_dim},
                 {s.q_transposed + first_query, kScoreStride},
                 {s.scores + j * kScoreStride + first_query, kScoreStride}, false);
    }
    for (int64_t j = std::max<int64_t>(0, diagonal + 1); j < n_keys; ++j) {
      std::fill_n(s.scores + j * kScoreStride, j - diagonal, kMasked);  // queries before this key
    }
    if (seen.bits != nullptr) k.mask_keys(s.scores, kScoreStride, n_keys, n_queries, s.seen);
    k.online_softmax(s.scores, kScoreStride, n_keys, n_queries, s.largest, s.sum, s.correction);
    for (int64_t i = 0; i < block.n && !first; ++i) {
      if (s.correction[i] != 1) k.scale_and_add(s.out + i * v_stride, s.correction[i], nullptr, 0, v_dim);
    }
    for (int64_t i = 0; i < block.n; i += strip) {
      const int64_t n = std::min(strip, block.n - i), n_visible = std::clamp<int64_t>(diagonal + i + n, 0, n_keys);
      k.multiply({n, v_dim, n_visible}, {s.scores + i, 1, kScoreStride}, {s.values, v_stride},
                 {s.out + i * v_stride, v_stride}, !first);
    }
    first = false;
  }

  for (int64_t i = 0; i < block.n; ++i) {
    float* out = s.out + i * v_stride;
    k.scale_and_add(out, 1 / s.sum[i], nullptr, 0, v_dim);
    std::copy_n(out, v_dim, o.f32_row(block.first + i) + head * v_dim);
    if (lse) lse.f32(block.first + i, head) = s.largest[i] + std::log(s.sum[i]);
  }
}

// All heads of all blocks. The longest blocks go first, so that the threads end together.
void attend_all(Context& ctx, const ExpandedInputs& in, std::vector<QueryBlock> blocks, float scale, Tensor o,
                Tensor lse, const SeenKeys& seen) {
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const QueryBlock& a, const QueryBlock& b) { return a.n_keys() > b.n_keys(); });
  const ArenaScope scope(ctx.arena);
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < ctx.pool.size(); ++thread) {
    const int64_t v_stride = block_stride(in.dims.v_head_dim);
    scratch.push_back({.q_transposed = new_floats(ctx, in.key_dim() * kScoreStride),
                       .keys = new_floats(ctx, kBlock * in.key_dim()),
                       .values = new_floats(ctx, kBlock * v_stride),
                       .scores = new_floats(ctx, kBlock * kScoreStride),
                       .out = new_floats(ctx, kQueryBlock * v_stride),
                       .largest = new_floats(ctx, kQueryBlock),
                       .sum = new_floats(ctx, kQueryBlock),
                       .correction = new_floats(ctx, kQueryBlock),
                       .seen = static_cast<uint32_t*>(new_i32(ctx, {2, kQueryBlock}).data)});
  }
  ctx.pool.run(static_cast<int64_t>(blocks.size()) * in.dims.n_heads, [&](int64_t task, int thread) {
    attend(in, blocks[static_cast<size_t>(task / in.dims.n_heads)], task % in.dims.n_heads, scale, o, lse, seen,
           scratch[static_cast<size_t>(thread)]);
  });
}

// A sequence's rows as floats: [length, rank + rope].
Tensor cached_rows(Context& ctx, const LatentCacheView& sequence, const MlaDims& dims) {
  const LatentRowLayout layout = dims.cached_row(sequence.format);
  if (sequence.format == Format::f32 && sequence.pages == nullptr) {
    return {const_cast<void*>(sequence.rows), Format::f32, {sequence.length, layout.dim()}};  // NOLINT: a view to read
  }
  const Tensor rows = new_f32(ctx, {sequence.length, layout.dim()});
  const int64_t row_bytes = latent_row_bytes(layout);
  ctx.pool.run(ceil_div(sequence.length, kCachePageRows), [&](int64_t page, int) {
    const int64_t begin = page * kCachePageRows, n = std::min(kCachePageRows, sequence.length - begin);
    read_latent_rows(layout, rows.f32_row(begin), sequence.row(begin, row_bytes), n);
  });
  return rows;
}

}  // namespace

void norm_and_rotate(Context& ctx, const Rope& rope_of, Tensor q, const RopeLayout& layout, Tensor latent, Tensor kv_a,
                     Tensor w, float eps, Tensor inv_rms, Tensor positions) {
  const int64_t rank = latent.cols();
  FATHOM_CHECK(kv_a.cols() == rank + rope_of.dim && kv_a.rows() == q.rows() && latent.rows() == q.rows());
  if (ctx.device != nullptr) {
    return ctx.device->operators.norm_and_rotate(ctx, rope_of, q, layout, latent, kv_a, w, eps, inv_rms, positions);
  }
  rope(ctx, rope_of, q, positions, layout);
  rms_norm(ctx, latent, kv_a.columns(0, rank), w, eps, inv_rms);
  rope(ctx, rope_of, kv_a, positions, {1, rank + rope_of.dim, rank});
}

void mla_attention(Context& ctx, Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims& dims,
                   float scale, Tensor lse, Tensor selected, Precision precision) {
  const ExpandedInputs in = {q, kv, k_rope, dims};
  if (ctx.device != nullptr) {
    check_shapes(in, o);
    FATHOM_CHECK(!selected);
    return ctx.device->operators.mla_attention(ctx, o, q, kv, k_rope, seq_offsets, dims, scale, lse, precision);
  }
  check_expanded(in, o, seq_offsets);
  std::vector<QueryBlock> blocks;
  for (int64_t s = 0; s + 1 < seq_offsets.size(); ++s) {
    const int64_t begin = seq_offsets.i32()[s], end = seq_offsets.i32()[s + 1];
    add_query_blocks(blocks, begin, begin, begin, end - begin);
  }
  const ArenaScope scope(ctx.arena);
  const SeenKeys seen = selected ? seen_keys(ctx, selected, longest_sequence(seq_offsets)) : SeenKeys{};
  attend_all(ctx, in, std::move(blocks), scale, o, lse, seen);
}

void mla_attention_expanded(Context& ctx, Tensor o, Tensor q, Tensor kv_b, std::span<const LatentCacheView> sequences,
                            const MlaDims& dims, float scale, Tensor selected) {
  const int64_t kv_dim = dims.qk_nope_head_dim + dims.v_head_dim,
                key_dim = dims.qk_nope_head_dim + dims.qk_rope_head_dim;
  const int64_t rank = dims.kv_lora_rank, v_dim = dims.v_head_dim;
  FATHOM_CHECK(q.cols() == dims.n_heads * key_dim && o.cols() == dims.n_heads * v_dim && o.rows() == q.rows());
  FATHOM_CHECK(kv_b.rows() == dims.n_heads * kv_dim && kv_b.cols() == rank);
  int64_t first = 0;
  for (const LatentCacheView& sequence : sequences) {
    const int64_t n_keys = sequence.length;
    const ArenaScope scope(ctx.arena);
    SeenKeys seen = selected ? seen_keys(ctx, selected.slice(first, sequence.n_new), n_keys) : SeenKeys{};
    if (seen.bits != nullptr) seen.bits -= first * seen.words;  // as rows of q are counted
    const Tensor cached = cached_rows(ctx, sequence, dims);
    const LinearInput latents = make_linear_input(ctx, cached.columns(0, rank), {kv_b});
    // Heads whose keys and values are in memory at a time.
    const int64_t heads = std::clamp<int64_t>(kExpandedFloats / (n_keys * kv_dim), 1, dims.n_heads);
    const Tensor memory = new_f32(ctx, {n_keys, heads * kv_dim});
    for (int64_t head = 0; head < dims.n_heads; head += heads) {
      MlaDims of_group = dims;
      of_group.n_heads = std::min(heads, dims.n_heads - head);
      const Tensor kv(memory.data, Format::f32, {n_keys, of_group.n_heads * kv_dim});
      linear(ctx, kv, latents, kv_b.slice(head * kv_dim, of_group.n_heads * kv_dim));
      std::vector<QueryBlock> blocks;
      add_query_blocks(blocks, 0, n_keys - sequence.n_new, first, sequence.n_new);
      const ExpandedInputs in = {q.columns(head * key_dim, of_group.n_heads * key_dim), kv,
                                 cached.columns(rank, dims.qk_rope_head_dim), of_group};
      attend_all(ctx, in, std::move(blocks), scale, o.columns(head * v_dim, of_group.n_heads * v_dim), {}, seen);
    }
    first += sequence.n_new;
  }
  FATHOM_CHECK(first == q.rows());
}

}  // namespace fathom
