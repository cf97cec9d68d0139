// The absorbed form. After W_UK every head's query has the width of a cached row, so that all heads and new tokens of a
// sequence are queries of one attention with one shared key: a row of the cache, whose first part is its value.
#include <cmath>

#include "base/arithmetic.h"
#include "ops/attention_gathered.h"
#include "ops/panel_linear.h"

namespace fathom {
namespace {

using namespace attention;

constexpr int64_t kGroup = 64;    // queries (pairs of token and head, heads innermost) that share one reading of rows
constexpr int64_t kChunk = 256;   // rows of the cache in one task
constexpr int64_t kRound = 8192;  // queries in memory at a time, or one token's
constexpr int64_t kGroupStride = kGroup | 16;
constexpr int64_t kPanel = 16;  // queries whose transposes lie together: [row_dim, kPanel], a cache line a row
static_assert(kCachePageRows % kBlock == 0 && kChunk % kBlock == 0);  // a tile's rows lie in one page
static_assert(kChunk == cpu::kGatheredRows && kPanel == cpu::kQueryPanel);

// Up to kGroup queries of one sequence; of one token, where each token has keys of its own.
struct Group {
  const LatentCacheView* sequence;
  int64_t first, n;                     // queries first .. first + n of this round
  int64_t first_of_sequence;            // the same query counted from the first of its sequence's new tokens
  std::span<const int32_t> selected{};  // the rows that they see, instead of all up to their own
  int64_t n_keys(int64_t heads) const {
    if (!selected.empty()) return std::ssize(selected);
    return sequence->length - sequence->n_new + (first_of_sequence + n - 1) / heads + 1;
  }
  Gathering gathering(const MlaDims& dims) const {
    return selected.empty() ? Gathering::copied : gathering_of(dims.cached_row(sequence->format));
  }
  // Those that are chosen, from `key` on to the end of its chunk.
  ChosenRows chosen(int64_t key) const {
    const auto begin = static_cast<size_t>(key);
    return {sequence, selected.subspan(begin, std::min(selected.size() - begin, static_cast<size_t>(kChunk)))};
  }
};

struct Chunk {
  size_t group;
  int64_t first_key;
};

// Of a thread.
struct Scratch {
  float* scores;      // [keys, queries]
  float* correction;  // [queries]
  float* rows;        // [keys, rank + rope], of caches in other formats than f32
  Gatherer gatherer;
};

// Rows of a group's keys key .. key + n, [n, rank + rope], in place or in `memory`.
const float* rows_of(const Group& group, const LatentRowLayout& layout, int64_t key, int64_t n, float* memory) {
  const int64_t row_bytes = latent_row_bytes(layout);
  if (group.selected.empty()) {
    const char* stored = group.sequence->row(key, row_bytes);
    if (layout.format == Format::f32) return reinterpret_cast<const float*>(stored);
    read_latent_rows(layout, memory, stored, n);
    return memory;
  }
  constexpr int64_t kRowsAhead = 4;  // they lie anywhere, and the processor foresees none of them
  const auto stored = [&](int64_t i) {
    return group.sequence->row(group.selected[static_cast<size_t>(key + i)], row_bytes);
  };
  const int64_t n_ahead = std::ssize(group.selected) - key;
  for (int64_t i = 0; i < n; ++i) {
    if (i + kRowsAhead < n_ahead) {
      const char* const ahead = stored(i + kRowsAhead);
      for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(ahead + byte);
    }
    read_latent_rows(layout, memory + i * layout.dim(), stored(i), 1);
  }
  return memory;
}

// The queries of a group in panels, [queries / kPanel, rank + rope, kPanel], scaled; of bf16, where they meet such
// rows. q_rows: [queries of the round, rank + rope]
void fill_panels(float* panels, const Group& group, const float* q_rows, const MlaDims& dims, float scale) {
  const int64_t row_dim = dims.kv_lora_rank + dims.qk_rope_head_dim;
  for (int64_t j = 0; j < group.n; j += kPanel) {
    transpose_padded(panels + j * row_dim, kPanel, q_rows + (group.first + j) * row_dim, row_dim,
                     std::min(kPanel, group.n - j), row_dim, scale);
  }
  pack_panels(panels, padded(group.n) / kPanel, row_dim, group.gathering(dims));
}

// A chunk that this thread probably takes next.
struct NextChunk {
  const Group* group;  // or none
  int64_t first_key;   // may be behind the last
};

// Overwrites `out` with a chunk's part.
void attend(const Group& group, int64_t first_key, const NextChunk& next_chunk, const float* q_panels,
            const MlaDims& dims, const Partial& out, Scratch& s) {
  if (group.gathering(dims) != Gathering::copied) {
    const Group* const ahead = next_chunk.group;
    const bool known = ahead != nullptr && next_chunk.first_key < std::ssize(ahead->selected);
    return s.gatherer.attend(out, group.chosen(first_key), q_panels, group.n,
                             known ? ahead->chosen(next_chunk.first_key) : ChosenRows{});
  }
  const cpu::AttentionKernels& k = kernels();
  const int64_t rank = dims.kv_lora_rank, row_dim = rank + dims.qk_rope_head_dim;
  const int64_t n_padded = padded(group.n), cached = group.sequence->length - group.sequence->n_new;
  const int64_t last = std::min(first_key + kChunk, group.n_keys(dims.n_heads));
  const LatentRowLayout layout = dims.cached_row(group.sequence->format);
  const int64_t row_bytes = latent_row_bytes(layout);
  std::fill_n(out.largest, n_padded, kLowest);
  std::fill_n(out.sum, n_padded, 0.0f);
  for (int64_t key = first_key; key < last; key += kBlock) {
    const int64_t n_keys = std::min(kBlock, last - key);
    const float* rows = rows_of(group, layout, key, n_keys, s.rows);
    cpu::Ahead ahead{};
    if (group.selected.empty()) {
      const int64_t next = key + kBlock < last ? key + kBlock : next_chunk.first_key;
      const char* const fetched = group.sequence->row(std::min(next, group.sequence->length - 1), row_bytes);
      ahead = {fetched, fetched + std::clamp<int64_t>(group.sequence->length - next, 0, kBlock) * row_bytes};
    }
    for (int64_t i = 0; i < n_padded; i += kPanel) {
      k.multiply_fetching({n_keys, kPanel, row_dim}, {rows, row_dim}, {q_panels + i * row_dim, kPanel},
                          {s.scores + i, kGroupStride}, false, ahead);
    }
    for (int64_t j = std::max<int64_t>(0, cached + 1 - key); group.selected.empty() && j < n_keys; ++j) {
      // Queries of the new tokens before this key.
      const int64_t n_masked = (key + j - cached) * dims.n_heads - group.first_of_sequence;
      std::fill_n(s.scores + j * kGroupStride, std::clamp<int64_t>(n_masked, 0, group.n), kMasked);
    }
    k.online_softmax(s.scores, kGroupStride, n_keys, n_padded, out.largest, out.sum, s.correction);
    for (int64_t i = 0; i < group.n && key != first_key; ++i) {
      if (s.correction[i] != 1) k.scale_and_add(out.out + i * rank, s.correction[i], nullptr, 0, rank);
    }
    k.multiply_fetching({group.n, rank, n_keys}, {s.scores, 1, kGroupStride}, {rows, row_dim}, {out.out, rank},
                        key != first_key, ahead);
  }
}

// total = total + part, of n queries
void merge(const Partial& total, const Partial& part, int64_t begin, int64_t end, int64_t rank) {
  for (int64_t i = begin; i < end; ++i) {
    const float largest = std::max(total.largest[i], part.largest[i]);
    const float factor = std::exp(total.largest[i] - largest), weight = std::exp(part.largest[i] - largest);
    kernels().scale_and_add(total.out + i * rank, factor, part.out + i * rank, weight, rank);
    total.sum[i] = total.sum[i] * factor + part.sum[i] * weight;
    total.largest[i] = largest;
  }
}

Partial new_partial(Context& ctx, int64_t n, int64_t rank) {
  return {new_floats(ctx, n), new_floats(ctx, n), new_floats(ctx, n * rank)};
}

// What all rounds' groups are given: queries, and the sums that become their results.
struct Round {
  const std::vector<Group>& groups;
  const MlaDims& dims;
  const float* q_rows;  // [queries, rank + rope]
  float scale;
  Partial totals;  // [queries]

  Partial totals_of(const Group& group) const {
    return {totals.largest + group.first, totals.sum + group.first, totals.out + group.first * dims.kv_lora_rank};
  }
  void clear(const Group& group) const {
    const Partial total = totals_of(group);
    std::fill_n(total.largest, group.n, kLowest);
    std::fill_n(total.sum, group.n, 0.0f);
    std::fill_n(total.out, group.n * dims.kv_lora_rank, 0.0f);
  }
};

std::vector<Scratch> new_scratch(Context& ctx, const Round& round) {
  const int64_t row_dim = round.dims.kv_lora_rank + round.dims.qk_rope_head_dim;
  const bool converts = std::any_of(round.groups.begin(), round.groups.end(), [&](const Group& group) {
    return group.gathering(round.dims) == Gathering::bf16 && group.sequence->format != Format::bf16;
  });
  std::vector<Scratch> scratch;
  scratch.reserve(static_cast<size_t>(ctx.pool.size()));
  for (int thread = 0; thread < ctx.pool.size(); ++thread) {
    scratch.push_back({new_floats(ctx, kBlock * kGroupStride), new_floats(ctx, kGroup),
                       new_floats(ctx, kBlock * row_dim), Gatherer(ctx, round.dims, kGroup, converts)});
  }
  return scratch;
}

// Many groups of chosen rows: a task is a group with all its chunks.
void attend_groups(Context& ctx, const Round& round) {
  const std::vector<Group>& groups = round.groups;
  const int64_t rank = round.dims.kv_lora_rank, row_dim = rank + round.dims.qk_rope_head_dim;
  std::vector<Scratch> scratch = new_scratch(ctx, round);
  std::vector<Partial> partials;
  std::vector<float*> panels;
  for (int thread = 0; thread < ctx.pool.size(); ++thread) {
    partials.push_back(new_partial(ctx, kGroup, rank));
    panels.push_back(new_floats(ctx, kGroup * row_dim));
  }
  ctx.pool.run(std::ssize(groups), [&](int64_t i, int thread) {
    const Group& group = groups[static_cast<size_t>(i)];
    const auto t = static_cast<size_t>(thread), next = static_cast<size_t>(i + ctx.pool.size());
    const int64_t n_keys = group.n_keys(round.dims.n_heads);
    fill_panels(panels[t], group, round.q_rows, round.dims, round.scale);
    round.clear(group);
    for (int64_t key = 0; key < n_keys; key += kChunk) {
      const bool last = key + kChunk >= n_keys;
      const Group* const ahead = !last ? &group : next < groups.size() ? &groups[next] : nullptr;
      attend(group, key, {ahead, last ? 0 : key + kChunk}, panels[t], round.dims, partials[t], scratch[t]);
      merge(round.totals_of(group), partials[t], 0, group.n, rank);
    }
  });
}

// A task is a chunk.
void attend_chunks(Context& ctx, const Round& round) {
  const std::vector<Group>& groups = round.groups;
  const int64_t rank = round.dims.kv_lora_rank, row_dim = rank + round.dims.qk_rope_head_dim;
  std::vector<float*> q_panels;
  q_panels.reserve(groups.size());
  for (const Group& group : groups) q_panels.push_back(new_floats(ctx, row_dim * padded(group.n)));
  ctx.pool.run(std::ssize(groups), [&](int64_t i, int) {
    const Group& group = groups[static_cast<size_t>(i)];
    fill_panels(q_panels[static_cast<size_t>(i)], group, round.q_rows, round.dims, round.scale);
    round.clear(group);
  });

  std::vector<Chunk> chunks;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (int64_t key = 0; key < groups[g].n_keys(round.dims.n_heads); key += kChunk) chunks.push_back({g, key});
  }
  const size_t wave = std::min(chunks.size(), static_cast<size_t>(8 * ctx.pool.size()));
  std::vector<Partial> partials;
  partials.reserve(wave);
  for (size_t i = 0; i < wave; ++i) partials.push_back(new_partial(ctx, kGroup, rank));
  std::vector<Scratch> scratch = new_scratch(ctx, round);

  for (size_t begin = 0; begin < chunks.size(); begin += wave) {
    const size_t end = std::min(begin + wave, chunks.size());
    ctx.pool.run(static_cast<int64_t>(end - begin), [&](int64_t i, int thread) {
      const Chunk& chunk = chunks[begin + static_cast<size_t>(i)];
      const Group& group = groups[chunk.group];
      attend(group, chunk.first_key, {&group, chunk.first_key + ctx.pool.size() * kChunk}, q_panels[chunk.group],
             round.dims, partials[static_cast<size_t>(i)], scratch[static_cast<size_t>(thread)]);
    });
    const size_t first_group = chunks[begin].group, n_groups = chunks[end - 1].group + 1 - first_group;
    constexpr int64_t kQueriesOfTask = 8;
    constexpr int64_t kTasksOfGroup = kGroup / kQueriesOfTask;
    ctx.pool.run(static_cast<int64_t>(n_groups) * kTasksOfGroup, [&](int64_t task, int) {
      const size_t g = first_group + static_cast<size_t>(task / kTasksOfGroup);
      const int64_t first = task % kTasksOfGroup * kQueriesOfTask, last = std::min(first + kQueriesOfTask, groups[g].n);
      for (size_t i = begin; i < end; ++i) {
        if (chunks[i].group == g) merge(round.totals_of(groups[g]), partials[i - begin], first, last, rank);
      }
    });
  }
}

// All chunks of all groups, into totals. Chunks begin at the same rows for every query and are merged in order, so that
// the result of a query has the same bits whatever is computed beside it, and by however many threads.
void attend_all(Context& ctx, const Round& round) {
  const bool chosen =
      std::none_of(round.groups.begin(), round.groups.end(), [](const Group& group) { return group.selected.empty(); });
  constexpr int64_t kGroupsOfThread = 8;  // so that the last ones to end are waited for shortly
  if (chosen && std::ssize(round.groups) >= kGroupsOfThread * ctx.pool.size()) {
    attend_groups(ctx, round);
  } else {
    attend_chunks(ctx, round);
  }
}

// Rows first, first + step, ... of an input.
LinearInput every(const LinearInput& input, int64_t first, int64_t step) {
  const auto thin = [&](Tensor t) {
    if (!t) return t;
    Tensor part(t.at(first * t.row_stride), t.format, {t.rows() / step, t.cols()});
    part.row_stride = step * t.row_stride;
    return part;
  };
  LinearInput part = thin(input.x);
  for (const auto form : kInputForms) part.*form = thin(input.*form);
  return part;
}

// y[t, h] = w(h) x[t, h] for weights in panels. x: [tokens * heads, in], y: [tokens, heads] with y_stride floats from
// head to head.
template <class WeightOfHead>
void linear_of_heads(Context& ctx, float* y, int64_t y_stride, Tensor x, int64_t heads, const WeightOfHead& weight) {
  const int64_t tokens = x.rows() / heads;
  const LinearInput input = make_linear_input(ctx, x, {weight(0)});
  std::vector<PanelCall> calls;
  for (int64_t h = 0; h < heads; ++h) {
    const Tensor w = weight(h);
    Tensor out(y + h * y_stride, Format::f32, {tokens, w.rows()});
    out.row_stride = heads * y_stride;
    calls.push_back({out, every(input, h, heads), w});
  }
  panel_linear(ctx, calls);
}

// q_c: q_nope of each head times W_UK. q_rows: [tokens, heads, rank + rope], whose first `rank` it is.
void absorb_queries(Context& ctx, float* q_rows, Tensor q, Tensor kv_b, Tensor k_b, const MlaDims& dims) {
  const int64_t heads = dims.n_heads, nope = dims.qk_nope_head_dim, rope = dims.qk_rope_head_dim;
  const int64_t v_dim = dims.v_head_dim, rank = dims.kv_lora_rank, row_dim = rank + rope, n_tokens = q.rows();
  if (kv_b.panels) {
    FATHOM_CHECK(q.contiguous());
    Tensor q_nope(q.data, Format::f32, {n_tokens * heads, nope});
    q_nope.row_stride = nope + rope;
    return linear_of_heads(ctx, q_rows, row_dim, q_nope, heads, [&](int64_t h) { return k_b[h]; });
  }
  constexpr int64_t kColumns = 128;  // of a task
  const int64_t tasks_of_head = ceil_div(rank, kColumns);
  ctx.pool.run(heads * tasks_of_head, [&](int64_t task, int) {
    const int64_t h = task / tasks_of_head, column = task % tasks_of_head * kColumns;
    kernels().multiply({n_tokens, std::min(kColumns, rank - column), nope}, {q.f32() + h * (nope + rope), q.row_stride},
                       {kv_b.f32_row(h * (nope + v_dim)) + column, kv_b.row_stride},
                       {q_rows + h * row_dim + column, heads * row_dim}, false);
  });
}

// o[t, h] = W_UV latents[t, h] / sums[t, h]
void project_values(Context& ctx, Tensor o, float* latents, const float* sums, Tensor kv_b, const MlaDims& dims) {
  const int64_t heads = dims.n_heads, nope = dims.qk_nope_head_dim, v_dim = dims.v_head_dim, rank = dims.kv_lora_rank;
  const int64_t n_tokens = o.rows(), rows_of_head = nope + v_dim;
  const cpu::AttentionKernels& k = kernels();
  if (kv_b.panels) {
    FATHOM_CHECK(o.contiguous());
    ctx.pool.parallel_for(0, n_tokens * heads, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) k.scale_and_add(latents + i * rank, 1 / sums[i], nullptr, 0, rank);
    });
    const Tensor x(latents, Format::f32, {n_tokens * heads, rank});
    return linear_of_heads(ctx, o.f32(), v_dim, x, heads,
                           [&](int64_t h) { return kv_b.slice(h * rows_of_head + nope, v_dim); });
  }
  ctx.pool.run(heads, [&](int64_t h, int) {
    k.multiply_transposed(n_tokens, v_dim, rank, latents + h * rank, heads * rank,
                          kv_b.f32_row(h * rows_of_head + nope), kv_b.row_stride, o.f32() + h * v_dim, o.row_stride);
    for (int64_t t = 0; t < n_tokens; ++t) {
      k.scale_and_add(o.f32_row(t) + h * v_dim, 1 / sums[t * heads + h], nullptr, 0, v_dim);
    }
  });
}

// Tokens of one round: rows first .. first + n of q and o.
void attend_round(Context& ctx, Tensor o, Tensor q, Tensor kv_b, Tensor k_b, const std::vector<Group>& groups,
                  const MlaDims& dims, float scale) {
  const ArenaScope scope(ctx.arena);
  const int64_t heads = dims.n_heads, nope = dims.qk_nope_head_dim, rope = dims.qk_rope_head_dim;
  const int64_t rank = dims.kv_lora_rank, row_dim = rank + rope, n_tokens = q.rows();

  // q_c, and q_rope behind it: [tokens, heads, rank + rope]
  float* q_rows = new_floats(ctx, n_tokens * heads * row_dim);
  absorb_queries(ctx, q_rows, q, kv_b, k_b, dims);
  ctx.pool.parallel_for(0, n_tokens * heads, kGroup, [&](int64_t begin, int64_t end) {
    for (int64_t query = begin; query < end; ++query) {
      const float* q_rope = q.f32_row(query / heads) + query % heads * (nope + rope) + nope;
      std::copy_n(q_rope, rope, q_rows + query * row_dim + rank);
    }
  });

  const Partial totals = new_partial(ctx, n_tokens * heads, rank);
  attend_all(ctx, {groups, dims, q_rows, scale, totals});
  project_values(ctx, o, totals.out, totals.sum, kv_b, dims);
}

// A token's rows of `selected`, which all are in the cache.
std::span<const int32_t> rows_seen(Tensor selected, int64_t token, int64_t length) {
  const int32_t* const rows = selected.i32() + token * selected.row_stride;
  const int64_t n = std::find(rows, rows + selected.cols(), -1) - rows;
  FATHOM_CHECK(n > 0 && std::all_of(rows, rows + n, [&](int32_t row) { return row >= 0 && row < length; }));
  return {rows, static_cast<size_t>(n)};
}

}  // namespace

void mla_attention_absorbed(Context& ctx, Tensor o, Tensor q, Tensor kv_b, Tensor k_b,
                            std::span<const LatentCacheView> sequences, const MlaDims& dims, float scale,
                            Tensor selected) {
  const int64_t heads = dims.n_heads, tokens_of_round = std::max<int64_t>(1, kRound / heads);
  FATHOM_CHECK(q.cols() == heads * (dims.qk_nope_head_dim + dims.qk_rope_head_dim));
  FATHOM_CHECK(o.cols() == heads * dims.v_head_dim && o.rows() == q.rows());
  FATHOM_CHECK(kv_b.rows() == heads * (dims.qk_nope_head_dim + dims.v_head_dim) && kv_b.cols() == dims.kv_lora_rank);

  std::vector<Group> groups;
  int64_t row = 0, n_tokens = 0;  // the round's first row of q, and its tokens so far
  const auto finish_round = [&] {
    if (n_tokens > 0) attend_round(ctx, o.slice(row, n_tokens), q.slice(row, n_tokens), kv_b, k_b, groups, dims, scale);
    groups.clear();
    row += n_tokens;
    n_tokens = 0;
  };
  for (const LatentCacheView& sequence : sequences) {
    FATHOM_CHECK(sequence.n_new >= 0 && sequence.n_new <= sequence.length);
    for (int64_t token = 0; token < sequence.n_new;) {
      const int64_t n = std::min(sequence.n_new - token, tokens_of_round - n_tokens);
      const int64_t together = selected ? heads : n * heads;  // queries that may share a group
      for (int64_t begin = 0; begin < n * heads; begin += together) {
        for (int64_t query = begin; query < begin + together; query += kGroup) {
          Group& group = groups.emplace_back(Group{&sequence, n_tokens * heads + query,
                                                   std::min(kGroup, begin + together - query), token * heads + query});
          if (selected) group.selected = rows_seen(selected, row + n_tokens + begin / heads, sequence.length);
        }
      }
      token += n;
      n_tokens += n;
      if (n_tokens == tokens_of_round) finish_round();
    }
  }
  finish_round();
  FATHOM_CHECK(row == q.rows());
}

}  // namespace fathom
