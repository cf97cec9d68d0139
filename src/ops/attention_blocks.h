// What the forms of attention share: the size of their blocks and how a block is laid out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/arithmetic.h"
#include "ops/attention.h"
#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/isa.h"

namespace fathom::attention {

inline constexpr int64_t kBlock = 64;  // keys of one tile of scores
// On the diagonal a tile is made in strips, which leave out what no query sees.
inline constexpr int64_t kStrip = 16;
inline constexpr float kLowest = -std::numeric_limits<float>::max();  // a running maximum before its first score
inline constexpr float kMasked = -std::numeric_limits<float>::infinity();

inline const cpu::AttentionKernels& kernels() {
  return cpu::choose(cpu::baseline::attention_kernels, cpu::avx2::attention_kernels, cpu::avx512::attention_kernels);
}

// Columns of a block of scores, a multiple of every vector's width.
inline int64_t padded(int64_t n) { return round_up(n, 16); }
// Floats between the rows of a block that has n columns: an odd number of cache lines, so that the rows spread over all
// sets of a cache.
inline int64_t block_stride(int64_t n) { return padded(n) | 16; }

inline float* new_floats(Context& ctx, int64_t n) { return new_f32(ctx, {n}).f32(); }

inline void copy_rows(float* to, int64_t ld_to, const float* from, int64_t ld_from, int64_t rows, int64_t cols) {
  kernels().copy(to, ld_to, from, ld_from, rows, cols, 1);
}

// to[j, i] = factor * from[i, j], and zeros in the columns of `to` up to padded(rows).
inline void transpose_padded(float* to, int64_t ld_to, const float* from, int64_t ld_from, int64_t rows, int64_t cols,
                             float factor) {
  kernels().transpose(to, ld_to, from, ld_from, rows, cols, factor);
  for (int64_t j = 0; rows < padded(rows) && j < cols; ++j) {
    std::fill(to + j * ld_to + rows, to + j * ld_to + padded(rows), 0.0f);
  }
}

// Which keys a token sees, where not all up to its own: bit j of its row is key j of its sequence.
struct SeenKeys {
  int64_t words = 0;  // of a row
  const uint64_t* bits = nullptr;

  const uint64_t* row(int64_t token) const { return bits + token * words; }
};
// Of `selected`, [tokens, any] i32 with -1 behind a token's keys; memory from ctx.arena.
inline SeenKeys seen_keys(Context& ctx, Tensor selected, int64_t longest) {
  SeenKeys seen{ceil_div(longest, int64_t{64})};
  auto* const bits = static_cast<uint64_t*>(new_tensor(ctx, Format::i64, {selected.rows(), seen.words}).data);
  ctx.pool.parallel_for(0, selected.rows(), 16, [&](int64_t begin, int64_t end) {
    std::fill(bits + begin * seen.words, bits + end * seen.words, 0);
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* const keys = selected.i32() + t * selected.row_stride;
      for (int64_t i = 0; i < selected.cols() && keys[i] >= 0; ++i) {
        FATHOM_CHECK(keys[i] < longest);
        bits[t * seen.words + keys[i] / 64] |= uint64_t{1} << keys[i] % 64;
      }
    }
  });
  seen.bits = bits;
  return seen;
}
inline int64_t longest_sequence(Tensor seq_offsets) {
  int64_t longest = 0;
  for (int64_t s = 0; s + 1 < seq_offsets.size(); ++s) {
    longest = std::max<int64_t>(longest, seq_offsets.i32()[s + 1] - seq_offsets.i32()[s]);
  }
  return longest;
}

// The inputs of the expanded form and where one head's parts stand in their rows.
struct ExpandedInputs {
  Tensor q, kv, k_rope;
  MlaDims dims;

  int64_t key_dim() const { return dims.qk_nope_head_dim + dims.qk_rope_head_dim; }
  int64_t kv_dim() const { return dims.qk_nope_head_dim + dims.v_head_dim; }
  const float* query(int64_t token, int64_t head) const { return q.f32_row(token) + head * key_dim(); }
  const float* value(int64_t token, int64_t head) const {
    return kv.f32_row(token) + head * kv_dim() + dims.qk_nope_head_dim;
  }
  // Keys of n tokens, both parts side by side. to: [n, key_dim], rows ld apart
  void copy_keys(float* to, int64_t ld, int64_t token, int64_t head, int64_t n) const {
    copy_rows(to, ld, kv.f32_row(token) + head * kv_dim(), kv.row_stride, n, dims.qk_nope_head_dim);
    copy_rows(to + dims.qk_nope_head_dim, ld, k_rope.f32_row(token), k_rope.row_stride, n, dims.qk_rope_head_dim);
  }
};

inline void check_shapes(const ExpandedInputs& in, Tensor o) {
  const MlaDims& d = in.dims;
  FATHOM_CHECK(in.q.cols() == d.n_heads * in.key_dim());
  FATHOM_CHECK(in.kv.cols() == d.n_heads * in.kv_dim() && in.kv.rows() == in.q.rows());
  FATHOM_CHECK(in.k_rope.cols() == d.qk_rope_head_dim && in.k_rope.rows() == in.q.rows());
  FATHOM_CHECK(o.cols() == d.n_heads * d.v_head_dim && o.rows() == in.q.rows());
}
inline void check_expanded(const ExpandedInputs& in, Tensor o, Tensor seq_offsets) {
  check_shapes(in, o);
  FATHOM_CHECK(seq_offsets.size() >= 1 && seq_offsets.i32()[0] == 0);
  FATHOM_CHECK(seq_offsets.i32()[seq_offsets.size() - 1] == in.q.rows());
}

}  // namespace fathom::attention
