#include "ops/gqa_attention.h"

#include <cmath>

#include "base/arithmetic.h"
#include "ops/attention_blocks.h"
#include "ops/grain.h"

namespace fathom {
namespace {

using namespace attention;

constexpr int64_t kGroup = 64;   // queries (pairs of token and head, heads innermost) that share one reading of rows
constexpr int64_t kChunk = 256;  // rows whose part of a result is made by itself and merged in order
constexpr int64_t kPanel = 16;   // queries whose transposes lie together: [head_dim, kPanel], a cache line a row
constexpr int64_t kGroupStride = kGroup | 16;
static_assert(kCachePageRows % kBlock == 0 && kChunk % kBlock == 0);  // a tile's rows lie in one page

// Up to kGroup queries of one sequence that read one head of keys and values.
struct Group {
  const LatentCacheView* sequence;
  int64_t first_row;  // of q: the sequence's first new token
  int64_t kv_head;
  int64_t first, n;  // queries, counted from the first of the sequence's new tokens
};

struct Inputs {
  Tensor q;
  GqaDims dims;
  float scale;

  // Rows that a group's last query sees.
  int64_t n_keys(const Group& g) const {
    return g.sequence->length - g.sequence->n_new + (g.first + g.n - 1) / dims.heads_of_group() + 1;
  }
  int64_t token(const Group& g, int64_t i) const { return g.first_row + (g.first + i) / dims.heads_of_group(); }
  int64_t head(const Group& g, int64_t i) const {
    return g.kv_head * dims.heads_of_group() + (g.first + i) % dims.heads_of_group();
  }
};

// A part of what queries sum up.
struct Partial {
  float *largest, *sum;  // [queries]
  float* out;            // [queries, head_dim]
};

// Of a thread.
struct Scratch {
  float* queries;        // [queries, head_dim]
  float* panels;         // [queries / kPanel, head_dim, kPanel], scaled
  float* scores;         // [keys, queries]
  float* correction;     // [queries]
  float *keys, *values;  // [keys, head_dim], of caches in other formats than f32
  Partial total, part;
};

// A head's part of rows key .. key + n, in place or in `memory`.
struct Rows {
  const float* data;
  int64_t stride;
};
Rows part_of_rows(const LatentCacheView& sequence, const LatentRowLayout& layout, int64_t part, int64_t key, int64_t n,
                  float* memory) {
  const char* const stored = sequence.row(key, latent_row_bytes(layout));
  const int64_t dim = layout.kv_lora_rank;
  if (layout.format == Format::f32) return {reinterpret_cast<const float*>(stored) + part * dim, layout.dim()};
  read_latent_parts(layout, part, memory, stored, n);
  return {memory, dim};
}

// Asks for a head's parts of rows key .. key + kBlock: rows lie far apart, and the processor foresees none of them.
void fetch_rows(const Inputs& in, const Group& group, int64_t key) {
  const LatentCacheView& sequence = *group.sequence;
  const int64_t n = std::min(kBlock, sequence.length - key);
  if (n <= 0) return;
  const LatentRowLayout layout = in.dims.cached_row(sequence.format);
  const int64_t row_bytes = latent_row_bytes(layout), part_bytes = row_bytes / layout.parts;
  const char* row = sequence.row(key, row_bytes) + group.kv_head * part_bytes;
  const int64_t to_values = in.dims.n_kv_heads * part_bytes;
  for (int64_t i = 0; i < n; ++i, row += row_bytes) {
    for (int64_t byte = 0; byte < part_bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
    for (int64_t byte = 0; byte < part_bytes; byte += 64) __builtin_prefetch(row + to_values + byte, 0, 2);
  }
}

void fill_panels(const Inputs& in, const Group& group, const Scratch& s) {
  const int64_t dim = in.dims.head_dim;
  for (int64_t i = 0; i < group.n; ++i) {
    std::copy_n(in.q.f32_row(in.token(group, i)) + in.head(group, i) * dim, dim, s.queries + i * dim);
  }
  for (int64_t i = 0; i < group.n; i += kPanel) {
    transpose_padded(s.panels + i * dim, kPanel, s.queries + i * dim, dim, std::min(kPanel, group.n - i), dim,
                     in.scale);
  }
}

// What a thread probably reads behind a chunk.
struct NextChunk {
  const Group* group;  // or none
  int64_t first_key;
};

// Overwrites `out` with the part of the chunk at first_key. The group's panels are in s.
void attend(const Inputs& in, const Group& group, int64_t first_key, const NextChunk& next, const Partial& out,
            const Scratch& s) {
  const cpu::AttentionKernels& k = kernels();
  const int64_t dim = in.dims.head_dim, group_heads = in.dims.heads_of_group();
  const int64_t n_padded = padded(group.n), cached = group.sequence->length - group.sequence->n_new;
  const int64_t last = std::min(first_key + kChunk, in.n_keys(group));
  const LatentRowLayout layout = in.dims.cached_row(group.sequence->format);
  std::fill_n(out.largest, n_padded, kLowest);
  std::fill_n(out.sum, n_padded, 0.0f);
  for (int64_t key = first_key; key < last; key += kBlock) {
    const int64_t n_keys = std::min(kBlock, last - key);
    if (key + kBlock < last) {
      fetch_rows(in, group, key + kBlock);
    } else if (next.group != nullptr) {
      fetch_rows(in, *next.group, next.first_key);
    }
    const Rows keys = part_of_rows(*group.sequence, layout, group.kv_head, key, n_keys, s.keys);
    const Rows values =
        part_of_rows(*group.sequence, layout, in.dims.n_kv_heads + group.kv_head, key, n_keys, s.values);
    for (int64_t i = 0; i < n_padded; i += kPanel) {
      k.multiply({n_keys, kPanel, dim}, {keys.data, keys.stride}, {s.panels + i * dim, kPanel},
                 {s.scores + i, kGroupStride}, false);
    }
    for (int64_t j = std::max<int64_t>(0, cached + 1 - key); j < n_keys; ++j) {
      // Queries of the new tokens before this key.
      const int64_t n_masked = (key + j - cached) * group_heads - group.first;
      std::fill_n(s.scores + j * kGroupStride, std::clamp<int64_t>(n_masked, 0, group.n), kMasked);
    }
    k.online_softmax(s.scores, kGroupStride, n_keys, n_padded, out.largest, out.sum, s.correction);
    for (int64_t i = 0; i < group.n && key != first_key; ++i) {
      if (s.correction[i] != 1) k.scale_and_add(out.out + i * dim, s.correction[i], nullptr, 0, dim);
    }
    k.multiply({group.n, dim, n_keys}, {s.scores, 1, kGroupStride}, {values.data, values.stride}, {out.out, dim},
               key != first_key);
  }
}

void clear(const Partial& total, int64_t n, int64_t dim) {
  std::fill_n(total.largest, n, kLowest);
  std::fill_n(total.sum, n, 0.0f);
  std::fill_n(total.out, n * dim, 0.0f);
}

// total = total + part, of n queries
void merge(const Partial& total, const Partial& part, int64_t n, int64_t dim) {
  for (int64_t i = 0; i < n; ++i) {
    const float largest = std::max(total.largest[i], part.largest[i]);
    const float factor = std::exp(total.largest[i] - largest), weight = std::exp(part.largest[i] - largest);
    kernels().scale_and_add(total.out + i * dim, factor, part.out + i * dim, weight, dim);
    total.sum[i] = total.sum[i] * factor + part.sum[i] * weight;
    total.largest[i] = largest;
  }
}

void finish(const Inputs& in, const Group& group, const Partial& total, Tensor o, Tensor lse) {
  const int64_t dim = in.dims.head_dim;
  for (int64_t i = 0; i < group.n; ++i) {
    const int64_t token = in.token(group, i), head = in.head(group, i);
    float* const out = o.f32_row(token) + head * dim;
    std::copy_n(total.out + i * dim, dim, out);
    kernels().scale_and_add(out, 1 / total.sum[i], nullptr, 0, dim);
    if (lse) lse.f32(token, head) = total.largest[i] + std::log(total.sum[i]);
  }
}

Partial new_partial(Context& ctx, int64_t dim) {
  return {new_floats(ctx, kGroup), new_floats(ctx, kGroup), new_floats(ctx, kGroup * dim)};
}

std::vector<Scratch> new_scratch(Context& ctx, int64_t dim) {
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < ctx.pool.size(); ++thread) {
    scratch.push_back({.queries = new_floats(ctx, kGroup * dim),
                       .panels = new_floats(ctx, kGroup * dim),
                       .scores = new_floats(ctx, kBlock * kGroupStride),
                       .correction = new_floats(ctx, kGroup),
                       .keys = new_floats(ctx, kBlock * dim),
                       .values = new_floats(ctx, kBlock * dim),
                       .total = new_partial(ctx, dim),
                       .part = new_partial(ctx, dim)});
  }
  return scratch;
}

// Many groups: a task is a group with all its chunks, the longest first.
void attend_groups(Context& ctx, const Inputs& in, std::vector<Group> groups, Tensor o, Tensor lse) {
  std::stable_sort(groups.begin(), groups.end(),
                   [&](const Group& a, const Group& b) { return in.n_keys(a) > in.n_keys(b); });
  const std::vector<Scratch> scratch = new_scratch(ctx, in.dims.head_dim);
  ctx.pool.run(std::ssize(groups), [&](int64_t i, int thread) {
    const Group& group = groups[static_cast<size_t>(i)];
    const Scratch& s = scratch[static_cast<size_t>(thread)];
    fill_panels(in, group, s);
    clear(s.total, group.n, in.dims.head_dim);
    for (int64_t key = 0; key < in.n_keys(group); key += kChunk) {
      attend(in, group, key, {&group, key + kChunk}, s.part, s);
      merge(s.total, s.part, group.n, in.dims.head_dim);
    }
    finish(in, group, s.total, o, lse);
  });
}

struct Chunk {
  size_t group;
  int64_t first_key;
};

// Of each sequence the chunks of all groups at the same rows stand together: heads' parts of a row lie in one page of
// memory, so that what one has read of it the next finds sooner.
std::vector<Chunk> chunks_of(const Inputs& in, const std::vector<Group>& groups) {
  std::vector<Chunk> chunks;
  for (size_t first = 0, end = 0; first < groups.size(); first = end) {
    int64_t longest = 0;
    for (; end < groups.size() && groups[end].sequence == groups[first].sequence; ++end) {
      longest = std::max(longest, in.n_keys(groups[end]));
    }
    for (int64_t key = 0; key < longest; key += kChunk) {
      for (size_t g = first; g < end; ++g) {
        if (key < in.n_keys(groups[g])) chunks.push_back({g, key});
      }
    }
  }
  return chunks;
}

// Few groups: a task is a chunk.
void attend_chunks(Context& ctx, const Inputs& in, const std::vector<Group>& groups, Tensor o, Tensor lse) {
  const int64_t dim = in.dims.head_dim;
  const std::vector<Chunk> chunks = chunks_of(in, groups);
  std::vector<Partial> totals;
  for (size_t g = 0; g < groups.size(); ++g) {
    totals.push_back(new_partial(ctx, dim));
    clear(totals.back(), groups[g].n, dim);
  }
  const size_t wave = std::min(chunks.size(), static_cast<size_t>(16 * ctx.pool.size()));
  std::vector<Partial> parts;
  for (size_t i = 0; i < wave; ++i) parts.push_back(new_partial(ctx, dim));
  const std::vector<Scratch> scratch = new_scratch(ctx, dim);
  for (size_t begin = 0; begin < chunks.size(); begin += wave) {
    const size_t end = std::min(begin + wave, chunks.size());
    ctx.pool.run(static_cast<int64_t>(end - begin), [&](int64_t i, int thread) {
      const Chunk& chunk = chunks[begin + static_cast<size_t>(i)];
      const Scratch& s = scratch[static_cast<size_t>(thread)];
      fill_panels(in, groups[chunk.group], s);
      const size_t behind = begin + static_cast<size_t>(i) + static_cast<size_t>(ctx.pool.size());
      const bool known = behind < chunks.size();
      const NextChunk next{known ? &groups[chunks[behind].group] : nullptr, known ? chunks[behind].first_key : 0};
      attend(in, groups[chunk.group], chunk.first_key, next, parts[static_cast<size_t>(i)], s);
    });
    ctx.pool.run(std::ssize(groups), [&](int64_t g, int) {
      for (size_t i = begin; i < end; ++i) {
        if (chunks[i].group != static_cast<size_t>(g)) continue;
        merge(totals[static_cast<size_t>(g)], parts[i - begin], groups[static_cast<size_t>(g)].n, dim);
      }
    });
  }
  ctx.pool.run(std::ssize(groups), [&](int64_t g, int) {
    finish(in, groups[static_cast<size_t>(g)], totals[static_cast<size_t>(g)], o, lse);
  });
}

void check_shapes(Tensor o, Tensor q, const GqaDims& dims) {
  FATHOM_CHECK(dims.n_kv_heads > 0 && dims.n_heads % dims.n_kv_heads == 0);
  FATHOM_CHECK(q.cols() == dims.n_heads * dims.head_dim && o.cols() == q.cols() && o.rows() == q.rows());
}

}  // namespace

// Chunks begin at the same rows for every query and are merged in order, so that the result of a query has the same
// bits whatever is computed beside it, and by however many threads.
void gqa_attention(Context& ctx, Tensor o, Tensor q, std::span<const LatentCacheView> sequences, const GqaDims& dims,
                   float scale, Tensor lse) {
  FATHOM_CHECK(ctx.device == nullptr);
  check_shapes(o, q, dims);
  std::vector<Group> groups;
  int64_t row = 0;
  for (const LatentCacheView& sequence : sequences) {
    FATHOM_CHECK(sequence.n_new >= 0 && sequence.n_new <= sequence.length);
    const int64_t n_queries = sequence.n_new * dims.heads_of_group();
    for (int64_t kv_head = 0; kv_head < dims.n_kv_heads; ++kv_head) {
      for (int64_t first = 0; first < n_queries; first += kGroup) {
        groups.push_back({&sequence, row, kv_head, first, std::min(kGroup, n_queries - first)});
      }
    }
    row += sequence.n_new;
  }
  FATHOM_CHECK(row == q.rows());
  if (groups.empty()) return;
  const ArenaScope scope(ctx.arena);
  const Inputs in{q, dims, scale};
  constexpr int64_t kGroupsOfThread = 8;  // so that the last ones to end are waited for shortly
  if (std::ssize(groups) >= kGroupsOfThread * ctx.pool.size()) {
    attend_groups(ctx, in, std::move(groups), o, lse);
  } else {
    attend_chunks(ctx, in, groups, o, lse);
  }
}

// As multi-head attention of heads that have their own keys and values, copies of their group's; the gradients of the
// copies add up in the order of the heads.
void gqa_attention_backward(Context& ctx, Tensor dq, Tensor dkv, Tensor d_o, Tensor o, Tensor q, Tensor kv, Tensor lse,
                            Tensor seq_offsets, const GqaDims& dims, float scale) {
  const auto [n_heads, n_kv_heads, dim] = dims;
  const int64_t tokens = q.rows(), group = dims.heads_of_group(), width = 2 * dim, n_keys = n_kv_heads * dim;
  check_shapes(o, q, dims);
  FATHOM_CHECK(kv.rows() == tokens && kv.cols() == dims.row() && dkv.rows() == tokens && dkv.cols() == dims.row());
  const ArenaScope scope(ctx.arena);
  const MlaDims of_heads{n_heads, dim, 0, dim, 0};
  const Tensor copies = new_f32(ctx, {tokens, n_heads * width}), d_copies = new_f32(ctx, {tokens, n_heads * width});
  const int64_t grain = row_grain(n_heads * width), heads = n_heads, head_dim = dim;
  ctx.pool.parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const float* const keys = kv.f32_row(t) + h / group * head_dim;
        float* const copy = copies.f32_row(t) + h * width;
        std::copy_n(keys, head_dim, copy);
        std::copy_n(keys + n_keys, head_dim, copy + head_dim);
      }
    }
  });
  const Tensor no_key = new_f32(ctx, {tokens, 0}), d_no_key = new_f32(ctx, {tokens, 0});
  mla_attention_backward(ctx, dq, d_copies, d_no_key, d_o, o, q, copies, no_key, lse, seq_offsets, of_heads, scale);
  ctx.pool.parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* const sums = dkv.f32_row(t);
      std::fill_n(sums, dims.row(), 0.0f);
      for (int64_t h = 0; h < heads; ++h) {
        const float* const d_copy = d_copies.f32_row(t) + h * width;
        float *const d_keys = sums + h / group * head_dim, *const d_values = d_keys + n_keys;
        for (int64_t d = 0; d < head_dim; ++d) d_keys[d] += d_copy[d];
        for (int64_t d = 0; d < head_dim; ++d) d_values[d] += d_copy[head_dim + d];
      }
    }
  });
}

}  // namespace fathom
