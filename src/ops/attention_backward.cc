// The backward pass of the expanded form: scores are computed again, tile by tile, from the saved log-sum-exp.
//   P = exp(S - lse), dV = P^T dO, dP = dO V^T, D = rowsum(dO O), dS = P (dP - D), dQ = scale dS K, dK = scale dS^T Q
#include "ops/attention_blocks.h"
#include "ops/device.h"
#include "ops/grain.h"

namespace fathom {
namespace {

using namespace attention;

struct Gradients {
  Tensor dq, dkv;
  float* dk_rope_of_head;  // [tokens, heads, rope]
};

struct Inputs : ExpandedInputs {
  Tensor d_o, lse;
  const float* delta;  // [tokens, heads]: D
  float scale;
  SeenKeys seen{};
};

struct Scratch {
  float *keys, *keys_transposed;  // [keys, key_dim] scaled, [key_dim, keys] as they are
  float* values_transposed;       // [v, keys]
  float *queries, *d_out;         // [queries, key_dim] scaled, [queries, v]
  float *p, *ds;                  // [queries, keys]
  float *d_keys, *d_values;       // [keys, key_dim], [keys, v]
};

constexpr int64_t kScoreStride = kBlock | 16;
constexpr int64_t kQueriesOfTask = 4 * kBlock;  // where dQ is a task of its own

// One sequence in one head, and what of it a task sweeps: blocks of keys, and for each the blocks of queries that see
// it. A gradient is summed over blocks in their order, so a sweep over a part of the queries has for their dQ the same
// bits as a sweep over all, and so has one over a part of the keys for their dK and dV.
struct Sweep {
  int64_t head, sequence_begin;
  int64_t query_begin, query_end, key_begin, key_end;  // begins are whole blocks behind sequence_begin
  bool want_dq, want_dkv;

  // In tiles' products: 2 for S and dP, 1 for dQ, 2 for dK and dV.
  int64_t cost() const {
    int64_t tiles = 0;
    for (int64_t key = key_begin; key < key_end; key += kBlock) {
      tiles += (query_end - std::max(query_begin, key) + kBlock - 1) / kBlock;
    }
    return tiles * (2 + (want_dq ? 1 : 0) + (want_dkv ? 2 : 0));
  }
};

void sweep(const Inputs& in, const Sweep& task, const Gradients& out, const Scratch& s) {
  const cpu::AttentionKernels& k = kernels();
  const int64_t heads = in.dims.n_heads, nope = in.dims.qk_nope_head_dim, rope = in.dims.qk_rope_head_dim;
  const int64_t key_dim = in.key_dim(), key_stride = block_stride(key_dim);
  const int64_t v_dim = in.dims.v_head_dim, v_stride = block_stride(v_dim);
  const int64_t head = task.head;

  for (int64_t key = task.key_begin; key < task.key_end; key += kBlock) {
    const int64_t n_keys = std::min(kBlock, task.key_end - key), n_padded = padded(n_keys);
    in.copy_keys(s.keys, key_stride, key, head, n_keys);
    transpose_padded(s.keys_transposed, kScoreStride, s.keys, key_stride, n_keys, key_dim, 1);
    transpose_padded(s.values_transposed, kScoreStride, in.value(key, head), in.kv.row_stride, n_keys, v_dim, 1);
    k.copy(s.keys, key_stride, s.keys, key_stride, n_keys, key_dim, in.scale);

    const int64_t first_query = std::max(task.query_begin, key);
    for (int64_t query = first_query; query < task.query_end; query += kBlock) {
      const int64_t n_queries = std::min(kBlock, task.query_end - query);
      const int64_t word = (key - task.sequence_begin) / kBlock;
      k.copy(s.queries, key_stride, in.query(query, head), in.q.row_stride, n_queries, key_dim, in.scale);
      copy_rows(s.d_out, v_stride, in.d_o.f32_row(query) + head * v_dim, in.d_o.row_stride, n_queries, v_dim);

      const bool diagonal = query == key;
      const int64_t strip = diagonal ? kStrip : kBlock;
      for (int64_t i = 0; i < n_queries; i += strip) {
        const int64_t n = std::min(strip, n_queries - i), n_seen = diagonal ? std::min(n_padded, i + kStrip) : n_padded;
        float *p = s.p + i * kScoreStride, *ds = s.ds + i * kScoreStride;
        k.multiply({n, n_seen, key_dim}, {s.queries + i * key_stride, key_stride}, {s.keys_transposed, kScoreStride},
                   {p, kScoreStride}, false);
        for (int64_t row = 0; row < n && diagonal; ++row) {
          std::fill(p + row * kScoreStride + std::min(i + row + 1, n_seen), p + row * kScoreStride + n_seen, kMasked);
        }
        if (in.seen.bits != nullptr) {
          k.mask_queries(p, kScoreStride, n, n_seen, in.seen.row(query + i) + word, in.seen.words);
        }
        k.probabilities(p, kScoreStride, n, n_seen, in.lse.f32_row(query + i) + head, in.lse.row_stride);
        k.multiply({n, n_seen, v_dim}, {s.d_out + i * v_stride, v_stride}, {s.values_transposed, kScoreStride},
                   {ds, kScoreStride}, false);
        k.score_gradients(ds, p, kScoreStride, n, n_seen, in.delta + (query + i) * heads + head, heads);
        if (task.want_dq) {
          k.multiply({n, key_dim, std::min(n_seen, n_keys)}, {ds, kScoreStride}, {s.keys, key_stride},
                     {out.dq.f32_row(query + i) + head * key_dim, out.dq.row_stride}, key != task.sequence_begin);
        }
      }
      for (int64_t j = 0; j < n_keys && task.want_dkv; j += strip) {
        const bool accumulate = query != first_query;
        const int64_t n = std::min(strip, n_keys - j), i = diagonal ? j : 0;  // the first query that sees key j
        const cpu::BlockIn p = {s.p + i * kScoreStride + j, 1, kScoreStride},
                           ds = {s.ds + i * kScoreStride + j, 1, kScoreStride};
        k.multiply({n, v_dim, n_queries - i}, p, {s.d_out + i * v_stride, v_stride},
                   {s.d_values + j * v_stride, v_stride}, accumulate);
        k.multiply({n, key_dim, n_queries - i}, ds, {s.queries + i * key_stride, key_stride},
                   {s.d_keys + j * key_stride, key_stride}, accumulate);
      }
    }
    if (task.want_dkv) {
      float* d_nope = out.dkv.f32_row(key) + head * in.kv_dim();
      copy_rows(d_nope, out.dkv.row_stride, s.d_keys, key_stride, n_keys, nope);
      copy_rows(d_nope + nope, out.dkv.row_stride, s.d_values, v_stride, n_keys, v_dim);
      copy_rows(out.dk_rope_of_head + (key * heads + head) * rope, heads * rope, s.d_keys + nope, key_stride, n_keys,
                rope);
    }
  }
}

void sort_by_cost(std::vector<Sweep>& tasks) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const Sweep& a, const Sweep& b) { return a.cost() > b.cost(); });
}

// One task a sequence and head computes every score once. Where that leaves threads idle, dQ by blocks of queries and
// dK, dV by blocks of keys are tasks of their own: 7 products instead of 5 a tile, for the same bits.
std::vector<Sweep> make_tasks(Tensor seq_offsets, int64_t n_heads, int n_threads) {
  std::vector<Sweep> whole, parts;
  for (int64_t s = 0; s + 1 < seq_offsets.size(); ++s) {
    const int64_t begin = seq_offsets.i32()[s], end = seq_offsets.i32()[s + 1];
    if (begin == end) continue;
    for (int64_t head = 0; head < n_heads; ++head) {
      whole.push_back({head, begin, begin, end, begin, end, true, true});
      for (int64_t query = begin; query < end; query += kQueriesOfTask) {
        const int64_t query_end = std::min(query + kQueriesOfTask, end);
        parts.push_back({head, begin, query, query_end, begin, query_end, true, false});
      }
      for (int64_t key = begin; key < end; key += kBlock) {
        parts.push_back({head, begin, key, end, key, std::min(key + kBlock, end), false, true});
      }
    }
  }
  sort_by_cost(whole);
  // How long the whole tasks take when each goes to the thread that is free first, against perfectly shared parts.
  std::vector<int64_t> busy(static_cast<size_t>(n_threads), 0);
  for (const Sweep& task : whole) *std::min_element(busy.begin(), busy.end()) += task.cost();
  int64_t parts_cost = 0;
  for (const Sweep& task : parts) parts_cost += task.cost();
  if (*std::max_element(busy.begin(), busy.end()) <= parts_cost / n_threads) return whole;
  sort_by_cost(parts);
  return parts;
}

}  // namespace

void mla_attention_backward(Context& ctx, Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q,
                            Tensor kv, Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims& dims, float scale,
                            Tensor selected, Precision precision) {
  const int64_t n_tokens = q.rows(), heads = dims.n_heads, rope = dims.qk_rope_head_dim, v_dim = dims.v_head_dim;
  FATHOM_CHECK(lse && lse.rows() == n_tokens && lse.cols() == heads);
  if (ctx.device != nullptr) {
    check_shapes({q, kv, k_rope, dims}, o);
    FATHOM_CHECK(!selected);
    return ctx.device->operators.mla_attention_backward(ctx, dq, dkv, dk_rope, d_o, o, q, kv, k_rope, lse, seq_offsets,
                                                        dims, scale, precision);
  }
  const ArenaScope scope(ctx.arena);
  float* delta = new_floats(ctx, n_tokens * heads);
  Inputs in = {{q, kv, k_rope, dims}, d_o, lse, delta, scale};
  check_expanded(in, o, seq_offsets);
  if (selected) in.seen = seen_keys(ctx, selected, longest_sequence(seq_offsets));
  const Gradients out = {dq, dkv, new_floats(ctx, n_tokens * heads * rope)};

  ctx.pool.parallel_for(0, n_tokens, row_grain(heads * v_dim), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        kernels().multiply_transposed(1, 1, v_dim, d_o.f32_row(t) + h * v_dim, 0, o.f32_row(t) + h * v_dim, 0,
                                      delta + t * heads + h, 0);
      }
    }
  });

  std::vector<Scratch> scratch;
  for (int thread = 0; thread < ctx.pool.size(); ++thread) {
    const int64_t key_block = kBlock * block_stride(in.key_dim()), v_block = kBlock * block_stride(v_dim);
    scratch.push_back({.keys = new_floats(ctx, key_block),
                       .keys_transposed = new_floats(ctx, in.key_dim() * kScoreStride),
                       .values_transposed = new_floats(ctx, v_dim * kScoreStride),
                       .queries = new_floats(ctx, key_block),
                       .d_out = new_floats(ctx, v_block),
                       .p = new_floats(ctx, kBlock * kScoreStride),
                       .ds = new_floats(ctx, kBlock * kScoreStride),
                       .d_keys = new_floats(ctx, key_block),
                       .d_values = new_floats(ctx, v_block)});
  }
  const std::vector<Sweep> tasks = make_tasks(seq_offsets, heads, ctx.pool.size());
  ctx.pool.run(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    sweep(in, tasks[static_cast<size_t>(i)], out, scratch[static_cast<size_t>(thread)]);
  });

  // One rotary key serves all heads.
  ctx.pool.parallel_for(0, n_tokens, row_grain(heads * rope), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* sum = dk_rope.f32_row(t);
      std::fill_n(sum, rope, 0.0f);
      for (int64_t h = 0; h < heads; ++h) {
        const float* part = out.dk_rope_of_head + (t * heads + h) * rope;
        for (int64_t d = 0; d < rope; ++d) sum[d] += part[d];
      }
    }
  });
}

}  // namespace fathom
