// The lightning indexer of DeepSeek Sparse Attention (V3.2 section 2.1.1): which of the tokens before it a query
// attends to.
//   I[t, s] = sum_j w[t, j] relu(q[t, j] . k[s]) for s <= t,  S_t = the topk largest of them, of equal ones the earlier
// The factors head_dim^-1/2 and n_heads^-1/2 are in w. Where topk or fewer tokens are visible all are chosen.
#pragma once

#include <span>

#include "ops/context.h"

namespace fathom {

struct LatentCacheView;

struct IndexerDims {
  int64_t n_heads = 0, head_dim = 0, topk = 0;  // index_n_heads, index_head_dim, index_topk
  bool operator==(const IndexerDims&) const = default;
};

// How a cache stores index keys: in blocks of kIndexBlock tokens, tiles of kIndexTile within, so that a vector holds
// the same element of as many keys.
//   f32   [tiles][head_dim][kIndexTile] floats
//   i8    [tiles][ceil(head_dim / 4)][kIndexTile][4] codes + 128, then [kIndexBlock] f32 scales: 132 bytes a token for
//         V3.2. Scale = largest / 127 of the key behind its Hadamard transform.
//   f8    the same places, e4m3 codes, scales that are powers of two: the numbers of the released model
// Elements that fill up a tile's last quad are zero.
enum class IndexFormat : uint8_t { f32, i8, f8 };
inline constexpr int64_t kIndexTile = 16, kIndexBlock = 64;

struct IndexKeyLayout {
  IndexFormat format = IndexFormat::f32;
  int64_t head_dim = 0;  // 0: no keys are stored
  bool operator==(const IndexKeyLayout&) const = default;
};
// The format of index keys beside latents of this one: f32 for f32, f8 for f8_e4m3, i8 for all others.
IndexFormat index_format(Format latents);
int64_t index_block_bytes(const IndexKeyLayout& layout);
// Key `row` of a block, from 0. key: [head_dim], behind its norm and rotation.
void write_index_key(const IndexKeyLayout& layout, void* block, int64_t row, const float* key);
// The same as scores see it; in i8 and f8 that is transformed still.
void read_index_key(const IndexKeyLayout& layout, float* key, const void* block, int64_t row);

// x = H x / sqrt(n) in place, H the Hadamard matrix in Sylvester's order. n is a power of two: of another head_dim
// nothing is transformed.
void hadamard(float* x, int64_t n);

// Chooses for the newest tokens of each sequence, views of whose caches hold their keys too.
// q: [sum of n_new, n_heads * head_dim], rotated; w: [sum of n_new, n_heads], scaled as above
// selected: [sum of n_new, topk] i32: rows of the cache, ascending, then -1
// Memory does not grow with the context. NaN counts as the largest score.
void select_keys(Context& ctx, Tensor selected, Tensor q, Tensor w, std::span<const LatentCacheView> sequences,
                 const IndexerDims& dims);
// scores: [sum of n_new, >= longest sequence], -infinity where a token is not visible; what lies behind is left alone.
void index_scores(Context& ctx, Tensor scores, Tensor q, Tensor w, std::span<const LatentCacheView> sequences,
                  const IndexerDims& dims);

namespace plain {
void hadamard(float* x, int64_t n);  // by the matrix' definition
void select_keys(Tensor selected, Tensor q, Tensor w, std::span<const LatentCacheView> sequences,
                 const IndexerDims& dims);
void index_scores(Tensor scores, Tensor q, Tensor w, std::span<const LatentCacheView> sequences,
                  const IndexerDims& dims);
}  // namespace plain

}  // namespace fathom
