// What the kernels of absorbed attention share. A block takes a tile of queries, pairs of token and head, heads
// innermost, and a part of the cached rows that they see: one of n_splits, all as large as lengths, which only the
// device knows, allow. What several splits leave is merged by another kernel.
#pragma once

#include <math.h>

#include <algorithm>

#include "ops/cuda/kernel.h"
#include "ops/cuda/latent_row.h"

namespace fathom::cuda {

struct AbsorbedAttention {
  CachedRows cache;
  RowShape row;
  const float* q_latent;  // [tokens, heads, rank]
  const float* q_rope;    // the first head's; from head to head and token to token
  int64_t q_rope_step, q_rope_stride;
  float* out;     // [splits, tokens, heads, rank]: of one split the result, of several sums yet to be divided
  float* maxima;  // [splits, tokens, heads] in log2, -infinity where a split has no key: then no out
  float* sums;    // [splits, tokens, heads]
  int n_tokens, n_heads, n_sequences, n_splits;
  float scale_log2;
  int rows_of_tile;                   // queries a block has room for
  int tokens_of_tile, heads_of_tile;  // of one token some heads, or of some tokens all

  __host__ __device__ int tiles_of_token() const { return (n_heads + heads_of_tile - 1) / heads_of_tile; }
  __host__ __device__ int n_tiles() const {
    return (n_tokens + tokens_of_tile - 1) / tokens_of_tile * tiles_of_token();
  }
};

// Tokens that see other rows than their neighbours do have tiles of their own.
inline void divide_into_tiles(AbsorbedAttention& a, int rows) {
  a.rows_of_tile = rows;
  a.heads_of_tile = std::min(a.n_heads, rows);
  a.tokens_of_tile = a.n_tokens <= a.n_sequences ? 1 : std::max(1, rows / a.n_heads);
}

// Blocks of x: tiles, those with the longest contexts of a prompt first; of y: splits.
inline dim3 grid_of(const AbsorbedAttention& a) {
  return {static_cast<unsigned>(a.n_tiles()), static_cast<unsigned>(a.n_splits)};
}

struct Tile {
  int token, end;  // its tokens
  int head;        // the first one
};
__device__ __forceinline__ Tile tile_of_block(const AbsorbedAttention& a) {
  const int tile = a.n_tiles() - 1 - static_cast<int>(blockIdx.x), per_token = a.tiles_of_token();
  const int token = tile / per_token * a.tokens_of_tile;
  return {token, min(token + a.tokens_of_tile, a.n_tokens), tile % per_token * a.heads_of_tile};
}

// A tile's row; token is -1 where there is none.
struct Query {
  int token, head;
};
__device__ __forceinline__ Query query_of(const AbsorbedAttention& a, const Tile& tile, int row) {
  const Query query{tile.token + row / a.heads_of_tile, tile.head + row % a.heads_of_tile};
  return query.token < tile.end && query.head < a.n_heads ? query : Query{-1, 0};
}

// Columns `column` (even) and the next of a query, zeros beyond its end. rank and rope are even.
__device__ __forceinline__ float2 query_pair(const AbsorbedAttention& a, const Query& query, int column) {
  if (query.token < 0 || column >= a.row.dim()) return make_float2(0, 0);
  const int64_t token = query.token;
  return *reinterpret_cast<const float2*>(
      column < a.row.rank ? a.q_latent + (token * a.n_heads + query.head) * a.row.rank + column
                          : a.q_rope + token * a.q_rope_stride + query.head * a.q_rope_step + (column - a.row.rank));
}

// Tokens of a tile that are of one sequence, and the keys that this split has of it, in tiles.
struct Run {
  int token, end;
  const uint8_t* rows;
  int n_keys;
  int begin_tile, end_tile;

  __device__ int n_visible(const AbsorbedAttention& a, const Query& query) const {
    return query.token >= token && query.token < end ? a.cache.positions[query.token] + 1 : 0;
  }
};
__device__ __forceinline__ Run run_from(const AbsorbedAttention& a, int token, int end, int keys_of_tile) {
  const int s = a.cache.sequence[token];
  Run run{token, token + 1, a.cache.of_sequence(s), 0, 0, 0};
  while (run.end < end && a.cache.sequence[run.end] == s) ++run.end;
  run.n_keys = a.cache.positions[run.end - 1] + 1;
  const int64_t n = (run.n_keys + keys_of_tile - 1) / keys_of_tile, split = blockIdx.y;
  run.begin_tile = static_cast<int>(n * split / a.n_splits);
  run.end_tile = static_cast<int>(n * (split + 1) / a.n_splits);
  return run;
}

// Where this split's part of a query goes.
__device__ __forceinline__ int64_t slot_of(const AbsorbedAttention& a, const Query& query) {
  return (static_cast<int64_t>(blockIdx.y) * a.n_tokens + query.token) * a.n_heads + query.head;
}

// The maximum to subtract where all was masked.
__device__ __forceinline__ float finite(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

// Divide into tiles.
bool plan_bf16_attention(AbsorbedAttention& a);  // false where it has no such kernel
void plan_f32_attention(AbsorbedAttention& a);
// Write out, and of more than one split maxima and sums.
void attend_bf16(Context& ctx, const AbsorbedAttention& a);
void attend_f32(Context& ctx, const AbsorbedAttention& a);

}  // namespace fathom::cuda
