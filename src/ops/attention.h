// The core of multi-head latent attention (V2 section 2.1, V3 equations 1-11), causal, over packed sequences.
//   s[t, j] = scale * (q_nope[t, h] . k_nope[j, h] + q_rope[t, h] . k_rope[j]),  o[t, h] = sum_j softmax_j(s[t, j])
//   v[j, h]
// Blocked with an online softmax: no context x context matrix is ever stored.
#pragma once

#include <span>

#include "ops/context.h"
#include "ops/indexer.h"
#include "ops/latent_rows.h"
#include "ops/rope.h"
#include "ops/rounding.h"

namespace fathom {

struct MlaDims {
  int64_t n_heads, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank;

  LatentRowLayout cached_row(Format format) const { return {format, kv_lora_rank, qk_rope_head_dim}; }
};

// What comes between the projections and the core: q's rotary parts and the shared key are rotated in place, the latent
// is normed.
//   q: [tokens, heads * (nope + rope)];  kv_a: [tokens, kv_lora_rank + rope], as kv_a_proj gives it
//   latent = rms_norm(kv_a's first columns, w): [tokens, kv_lora_rank];  inv_rms: [tokens]
void norm_and_rotate(Context& ctx, const Rope& rope, Tensor q, const RopeLayout& layout, Tensor latent, Tensor kv_a,
                     Tensor w, float eps, Tensor inv_rms, Tensor positions);

// Expanded form (training, prefill of an empty cache).
// q:  [tokens, heads * (nope + rope)], rope parts rotated
// kv: [tokens, heads * (nope + v)], per head [k_nope | v], as kv_b_proj gives them
// k_rope: [tokens, rope], rotated, one key for all heads
// seq_offsets: [sequences + 1] i32; tokens offsets[s] .. offsets[s+1] see each other and no others
// o: [tokens, heads * v];  lse: [tokens, heads] log-sum-exp of the scaled scores, for the backward pass (optional)
// selected: [tokens, any] i32 (optional): the keys that each token sees, counted from its sequence's first, then -1
// (V3.2 section 2.1.1); without it, all up to its own
// precision: bf16 has a device round the operands of its products to bf16, with sums in f32; the CPU's are f32.
void mla_attention(Context& ctx, Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims& dims,
                   float scale, Tensor lse = {}, Tensor selected = {}, Precision precision = Precision::f32);

// dq, dkv, dk_rope: shaped as their forward twins, overwritten. Needs o and lse of the forward pass.
void mla_attention_backward(Context& ctx, Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q,
                            Tensor kv, Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims& dims, float scale,
                            Tensor selected = {}, Precision precision = Precision::f32);

inline constexpr int64_t kCachePageRows = 64;  // of a latent cache in pages
static_assert(kIndexBlock == kCachePageRows);

// One sequence's cached rows [c | k_rope] (latent after its norm, rotary key after rotation) and its newest queries.
struct LatentCacheView {
  const void* rows = nullptr;  // [length], as ops/latent_rows.h stores them, one behind the other
  int64_t length = 0;          // rows in the cache, those of the new tokens included
  int64_t n_new = 0;           // the last n_new rows belong to the new tokens: query i sees length - n_new + i + 1 rows
  Format format = Format::f32;
  const char* const* pages = nullptr;  // instead of `rows`: kCachePageRows rows begin page_offset bytes behind each
  int64_t page_offset = 0;
  // Index keys (ops/indexer.h), where there are some: blocks of kIndexBlock behind `index_blocks`, or, with pages, one
  // in each, index_offset bytes behind its rows' begin.
  IndexKeyLayout index_keys{};
  const void* index_blocks = nullptr;
  int64_t index_offset = 0;

  // Row i, and those behind it as far as the page goes.
  const char* row(int64_t i, int64_t row_bytes) const {
    if (pages == nullptr) return static_cast<const char*>(rows) + i * row_bytes;
    return pages[i / kCachePageRows] + page_offset + i % kCachePageRows * row_bytes;
  }
  // Block i of index keys, of `bytes` = index_block_bytes(index_keys).
  const char* index_block(int64_t i, int64_t bytes) const {
    if (pages == nullptr) return static_cast<const char*>(index_blocks) + i * bytes;
    return pages[i] + page_offset + index_offset;
  }
};

// Expanded form over caches (prompts that are read in parts): keys and values of all cached tokens are made again from
// their latents, some heads at a time. A query's result has the bits that mla_attention over the whole sequence gives.
// Cheaper than the absorbed form for passes of some hundred tokens. selected: as in the absorbed form.
void mla_attention_expanded(Context& ctx, Tensor o, Tensor q, Tensor kv_b, std::span<const LatentCacheView> sequences,
                            const MlaDims& dims, float scale, Tensor selected = {});

// Absorbed form (decode, V2 section 2.1.2): the up-projections W_UK and W_UV are applied to query and output, not to
// the cache.
//   q_c[h] = W_UK[h]^T q_nope[h],  s = scale * (q_c . c_j + q_rope . k_rope_j),  o[h] = W_UV[h] sum_j p_j c_j
// q: [sum of n_new, heads * (nope + rope)]; kv_b: [heads * (nope + v), kv_lora_rank]; o: [sum of n_new, heads * v]
// kv_b in panels (nope and v multiples of 8) goes with k_b, [heads, kv_lora_rank, nope]: W_UK of each head, transposed.
// selected (optional): [sum of n_new, any] i32, the rows that each token sees, then -1; without it, all up to its own.
void mla_attention_absorbed(Context& ctx, Tensor o, Tensor q, Tensor kv_b, Tensor k_b,
                            std::span<const LatentCacheView> sequences, const MlaDims& dims, float scale,
                            Tensor selected = {});

// From this position on, a token's topk chosen rows are cheaper to read one by one, in the absorbed form, than all up
// to its own are in the expanded form, which masks the others: by the products of both, and how fast they are made.
int64_t gather_from(const MlaDims& dims, Format cache, int64_t topk);

namespace plain {
void mla_attention(Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims& dims, float scale,
                   Tensor lse = {}, Tensor selected = {});
void mla_attention_backward(Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q, Tensor kv,
                            Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims& dims, float scale,
                            Tensor selected = {});
void mla_attention_absorbed(Tensor o, Tensor q, Tensor kv_b, std::span<const LatentCacheView> sequences,
                            const MlaDims& dims, float scale, Tensor selected = {});
}  // namespace plain

}  // namespace fathom
