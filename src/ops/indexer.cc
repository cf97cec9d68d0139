// Scores are made and forgotten: a task takes some queries and a chunk of a sequence's keys, block after block, and
// keeps of each query's scores those that may still be among its topk. What the chunks of a query leave is chosen from
// at last. Every choice is exact, so that it does not matter how the keys were shared out.
#include "ops/indexer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/arithmetic.h"
#include "number/formats.h"
#include "ops/attention.h"
#include "ops/cpu/indexer_variants.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/rounding_kernels.h"
#include "ops/grain.h"

namespace fathom {
namespace {

constexpr int64_t kQuad = 4;
constexpr int64_t kPairs = 512;      // of query and head that go over a block of keys while it lies in the cache
constexpr int64_t kMaxQueries = 32;  // of a group
constexpr int64_t kTasksPerThread = 3;
constexpr int64_t kTaskPairs = 32768;  // of key and head that a task has at the least: some microseconds
constexpr int64_t kSlack = 16;         // numbers that kernels write behind those they count
constexpr int32_t kBelowAll = std::numeric_limits<int32_t>::min();

const cpu::IndexerKernels& kernels() {
  static const cpu::IndexerKernels& chosen = cpu::indexer_kernels_of(cpu_isa());
  return chosen;
}

const cpu::RoundingKernels& rounding() {
  return cpu::choose(cpu::baseline::rounding_kernels, cpu::avx2::rounding_kernels, cpu::avx512::rounding_kernels);
}

// Neighbouring queries of one sequence, each of which sees one row more than the one before.
struct Group {
  const LatentCacheView* sequence;
  int64_t row, n;         // rows of q
  int64_t first_visible;  // rows that the first query sees
  int64_t prepared = 0;   // the first query's place among those of the round
  int64_t chunk_rows = 0, n_chunks = 1;
  int64_t first_candidate = 0;  // among those of the round, where there are several chunks

  int64_t n_visible() const { return first_visible + n - 1; }
  // Room for what the chunks leave of one query.
  int64_t candidates_of_chunk(int64_t topk) const { return std::min(topk, chunk_rows); }
  int64_t candidates_of_query(int64_t topk) const { return n_chunks * candidates_of_chunk(topk) + kSlack; }
};

struct Chunk {
  size_t group;
  int64_t index;
};

// Queries as the kernels want them.
struct Queries {
  IndexKeyLayout layout;
  int64_t n_heads;
  const char* q;
  int64_t q_stride, head_stride;  // bytes
  const float* w;
  int64_t w_stride;
  const int32_t* offsets;
  bool as_given;  // rows are those of the operator's q, else those prepared for the round

  int64_t row(const Group& group) const { return as_given ? group.row : group.prepared; }
};

struct Scratch {
  float* scores;  // [queries, kIndexBlock]
  float* tiles;   // of an f8 block's floats
};

float* new_floats(Context& ctx, int64_t n) { return new_f32(ctx, {n}).f32(); }
int32_t* new_ints(Context& ctx, int64_t n) { return new_i32(ctx, {n}).i32(); }

void check(Tensor q, Tensor w, std::span<const LatentCacheView> sequences, const IndexerDims& dims) {
  FATHOM_CHECK(dims.n_heads > 0 && dims.head_dim > 0 && dims.topk > 0);
  FATHOM_CHECK(q.cols() == dims.n_heads * dims.head_dim && w.cols() == dims.n_heads && w.rows() == q.rows());
  int64_t n = 0;
  for (const LatentCacheView& sequence : sequences) {
    FATHOM_CHECK(sequence.n_new >= 0 && sequence.n_new <= sequence.length);
    FATHOM_CHECK(sequence.index_keys.head_dim == dims.head_dim);
    FATHOM_CHECK(sequence.index_keys == sequences[0].index_keys);
    n += sequence.n_new;
  }
  FATHOM_CHECK(n == q.rows());
}

// Rounds x as a key of f8 is rounded; returns 1, or NaN where a number is not finite.
float round_f8(float* x, int64_t n) {
  const float largest = kernels().largest(x, n);
  if (std::isnan(largest)) {
    std::fill_n(x, n, 0.0f);
    return largest;
  }
  int exponent;  // scale = fraction * 2^exponent, fraction in [0.5, 1)
  const float fraction = std::frexp(std::max(largest, kActivationAmaxFloor) / kF8Max, &exponent);
  rounding().scaled(x, x, n, std::ldexp(1.0f, fraction == 0.5f ? exponent - 1 : exponent), cpu::kE4m3);
  return 1;
}

// The queries of some groups, in i8 and f8 transformed and rounded.
Queries prepare(Context& ctx, const IndexKeyLayout& layout, const IndexerDims& dims, Tensor q, Tensor w,
                std::span<Group> groups) {
  const int64_t heads = dims.n_heads, dim = dims.head_dim;
  if (layout.format == IndexFormat::f32) {
    return {layout,  heads, reinterpret_cast<const char*>(q.f32()), q.row_stride * 4, dim * 4, w.f32(), w.row_stride,
            nullptr, true};
  }
  std::vector<int64_t> rows;
  for (Group& group : groups) {
    group.prepared = static_cast<int64_t>(rows.size());
    for (int64_t i = 0; i < group.n; ++i) rows.push_back(group.row + i);
  }
  const auto n = static_cast<int64_t>(rows.size());
  const bool i8 = layout.format == IndexFormat::i8;
  const int64_t code_bytes = i8 ? round_up(dim, kQuad) : dim * 4;  // of a head
  char* const codes = static_cast<char*>(ctx.arena.allocate(static_cast<size_t>(n * heads * code_bytes)));
  float* const weights = new_floats(ctx, n * heads);
  int32_t* const offsets = i8 ? new_ints(ctx, n * heads) : nullptr;
  float* const transformed = i8 ? new_floats(ctx, ctx.pool.size() * dim) : nullptr;
  const int64_t grain = row_grain(4 * dim);
  ctx.pool.run(ceil_div(n * heads, grain), [&](int64_t task, int thread) {
    for (int64_t i = task * grain; i < std::min(n * heads, (task + 1) * grain); ++i) {
      const int64_t row = rows[static_cast<size_t>(i / heads)], head = i % heads;
      char* const code = codes + i * code_bytes;
      float* const x = i8 ? transformed + thread * dim : reinterpret_cast<float*>(code);
      std::copy_n(q.f32_row(row) + head * dim, dim, x);
      hadamard(x, dim);
      float scale;
      if (i8) {
        int32_t sum;
        scale = kernels().round_i8(reinterpret_cast<int8_t*>(code), &sum, x, dim);
        offsets[i] = -128 * sum;
      } else {
        scale = round_f8(x, dim);
      }
      weights[i] = w.f32(row, head) * scale;
    }
  });
  return {layout, heads, codes, heads * code_bytes, code_bytes, weights, heads, offsets, false};
}

// Scores of a group's queries for a block of keys, into s.scores. `next`: the block to be fetched meanwhile.
void score(const Queries& queries, const Group& group, int64_t block, int64_t next, const Scratch& s) {
  const IndexKeyLayout& layout = queries.layout;
  const int64_t bytes = index_block_bytes(layout), row = queries.row(group), quads = ceil_div(layout.head_dim, kQuad);
  const char* const keys = group.sequence->index_block(block, bytes);
  const char* const scales = keys + kIndexBlock * quads * kQuad;
  const cpu::IndexerKernels& k = kernels();
  cpu::IndexProduct p = {keys,
                         layout.head_dim,
                         group.n,
                         queries.n_heads,
                         queries.q + row * queries.q_stride,
                         queries.q_stride,
                         queries.head_stride,
                         queries.w + row * queries.w_stride,
                         queries.w_stride,
                         s.scores,
                         group.sequence->index_block(next, bytes),
                         bytes,
                         nullptr,
                         nullptr};
  if (layout.format == IndexFormat::i8) {
    p.dim = quads;
    p.offsets = queries.offsets + row * queries.n_heads;
    p.scales = scales;
    return k.score_i8(p);
  }
  if (layout.format == IndexFormat::f8) {
    k.widen_f8(s.tiles, reinterpret_cast<const uint8_t*>(keys), reinterpret_cast<const uint8_t*>(scales),
               layout.head_dim);
    p.keys = s.tiles;
  }
  k.score_f32(p);
}

// Calls f(block, next) for the blocks of a chunk that the group sees.
template <class F>
void each_block(const Group& group, int64_t chunk, const F& f) {
  const int64_t begin = chunk * group.chunk_rows, end = std::min(begin + group.chunk_rows, group.n_visible());
  const int64_t last = ceil_div(end, kIndexBlock) - 1;
  for (int64_t block = begin / kIndexBlock; block <= last; ++block) f(block, std::min(block + 1, last));
}

// The rows that query i of a group sees in a block.
int64_t visible_in(const Group& group, int64_t i, int64_t block) {
  return std::clamp<int64_t>(group.first_visible + i - block * kIndexBlock, 0, kIndexBlock);
}

std::vector<Group> make_groups(std::span<const LatentCacheView> sequences, const IndexerDims& dims, int64_t least) {
  const int64_t of_group = std::clamp<int64_t>(kPairs / dims.n_heads, 1, kMaxQueries);
  std::vector<Group> groups;
  int64_t row = 0;
  for (const LatentCacheView& sequence : sequences) {
    const int64_t cached = sequence.length - sequence.n_new;
    // Queries that see fewer rows need no scores.
    for (int64_t i = std::clamp<int64_t>(least - cached - 1, 0, sequence.n_new); i < sequence.n_new; i += of_group) {
      groups.push_back({&sequence, row + i, std::min(of_group, sequence.n_new - i), cached + i + 1});
    }
    row += sequence.n_new;
  }
  return groups;
}

// Shares out the keys of some groups among the threads.
std::vector<Chunk> make_chunks(std::span<Group> groups, int64_t n_heads, int n_threads) {
  int64_t pairs = 0;  // of key and head
  for (const Group& group : groups) pairs += group.n_visible() * group.n * n_heads;
  const int64_t of_task = n_threads == 1 ? pairs : std::max(kTaskPairs, pairs / (kTasksPerThread * n_threads));
  std::vector<Chunk> chunks;
  for (size_t g = 0; g < groups.size(); ++g) {
    Group& group = groups[g];
    group.n_chunks = ceil_div(group.n_visible(), std::max<int64_t>(1, of_task / (group.n * n_heads)));
    group.chunk_rows = round_up(ceil_div(group.n_visible(), group.n_chunks), kIndexBlock);
    group.n_chunks = ceil_div(group.n_visible(), group.chunk_rows);
    for (int64_t i = 0; i < group.n_chunks; ++i) chunks.push_back({g, i});
  }
  return chunks;
}

std::vector<Scratch> make_scratch(Context& ctx, const Queries& queries, int64_t of_group) {
  std::vector<Scratch> scratch;
  const int64_t tiles = queries.layout.format == IndexFormat::f8 ? kIndexBlock * queries.layout.head_dim : 0;
  for (int i = 0; i < ctx.pool.size(); ++i) {
    scratch.push_back({new_floats(ctx, of_group * kIndexBlock), new_floats(ctx, tiles)});
  }
  return scratch;
}

// Calls f for as many groups at a time as keep all threads busy, so that memory stays bounded.
template <class F>
void each_round(Context& ctx, std::vector<Group>& groups, const F& f) {
  const size_t of_round = std::max<size_t>(4, 2 * static_cast<size_t>(ctx.pool.size()));
  for (size_t begin = 0; begin < groups.size(); begin += of_round) {
    const ArenaScope scope(ctx.arena);
    f(std::span(groups).subspan(begin, std::min(of_round, groups.size() - begin)));
  }
}

// ---- The largest

// Scores, as integers of the same order, and their rows, ascending.
struct Candidates {
  int32_t *orders, *rows;

  Candidates from(int64_t i) const { return {orders + i, rows + i}; }
};

Candidates new_candidates(Context& ctx, int64_t n) { return {new_ints(ctx, n), new_ints(ctx, n)}; }

float score_of(int32_t order) {
  return std::bit_cast<float>(order < 0 ? order ^ std::numeric_limits<int32_t>::max() : order);
}

int32_t order_of(float score) {
  const auto bits = std::bit_cast<int32_t>(score);
  return bits < 0 ? bits ^ std::numeric_limits<int32_t>::max() : bits;
}

// Between low and high, where a part of the scores between them would lie below if they were spread evenly.
int32_t part_way(int32_t low, int32_t high, double part) {
  const double from = score_of(low), to = score_of(high), at = from + part * (to - from);
  return std::isfinite(at) ? std::clamp(order_of(static_cast<float>(at)), low + 1, high - 1) : low + 1;
}

// The k-th largest of n >= k, by narrowing the interval that it is in. `picked`, of n / 4 + kSlack, takes those that
// are in it when they are few.
int32_t kth_largest(const int32_t* orders, int64_t n, int64_t k, int32_t* picked) {
  constexpr int64_t kFew = 32;
  const cpu::IndexerKernels& kernel = kernels();
  int32_t least, high;
  kernel.range(orders, n, &least, &high);
  int32_t low = least - 1;                     // it is in (low, high]
  int64_t n_low = n, n_high = 0, n_above = 0;  // larger than low, than high, than all of the n looked at
  bool guesses = true;
  for (int64_t step = 0; low + int64_t{1} < high; ++step) {
    // A guess aims a little below and a little above by turns, so that both ends close in. One that was bad is followed
    // by a halving, which needs as many steps as an order has bits at the most.
    const int64_t within = n_low - n_high;
    const double aim = static_cast<double>(n_low - k) + static_cast<double>(within) * (step % 2 == 0 ? -0.06 : 0.06);
    const int32_t middle = guesses ? part_way(low, high, aim / static_cast<double>(within))
                                   : static_cast<int32_t>((static_cast<int64_t>(low) + high) >> 1);
    const int64_t above = n_above + kernel.count_above(orders, n, middle);
    (above >= k ? low : high) = middle;
    (above >= k ? n_low : n_high) = above;
    guesses = !guesses || (n_low - n_high) * 2 < within;
    if ((n_low - n_high) * 4 > n) continue;
    n = kernel.pick(picked, orders, n, low, high);
    n_above = n_high;
    orders = picked;
    if (n > kFew) continue;
    std::sort(picked, picked + n);
    return picked[n - (k - n_above)];
  }
  return high;
}

// Leaves the topk largest of n > topk, of equal ones the first, and returns the least of them.
int32_t keep_largest(Candidates all, int64_t n, int64_t topk, int32_t* picked) {
  const int32_t least = kth_largest(all.orders, n, topk, picked);
  const int64_t n_equal = topk - kernels().count_above(all.orders, n, least);
  FATHOM_CHECK(kernels().keep(all.orders, all.rows, n, least, n_equal) == topk);
  return least;
}

// Of each query of a group the topk largest of a chunk, or all that it sees of a smaller one: kept[i] gets their
// number. candidates: `room` for each query.
void search(const Queries& queries, const Group& group, int64_t chunk, int64_t topk, const Scratch& scratch,
            Candidates candidates, int64_t room, int32_t* picked, int64_t* kept) {
  int32_t bounds[kMaxQueries];  // only what is larger may still be among the topk, since rows come in order
  std::fill_n(bounds, group.n, kBelowAll);
  std::fill_n(kept, group.n, 0);
  each_block(group, chunk, [&](int64_t block, int64_t next) {
    score(queries, group, block, next, scratch);
    for (int64_t i = 0; i < group.n; ++i) {
      const Candidates own = candidates.from(i * room);
      if (kept[i] + kIndexBlock + kSlack > room) {
        bounds[i] = keep_largest(own, kept[i], topk, picked);
        kept[i] = topk;
      }
      kept[i] = kernels().append(own.orders, own.rows, kept[i], scratch.scores + i * kIndexBlock,
                                 visible_in(group, i, block), static_cast<int32_t>(block * kIndexBlock), bounds[i]);
    }
  });
  for (int64_t i = 0; i < group.n; ++i) {
    if (kept[i] <= topk) continue;
    keep_largest(candidates.from(i * room), kept[i], topk, picked);
    kept[i] = topk;
  }
}

void select_round(Context& ctx, Tensor selected, Tensor q, Tensor w, std::span<Group> groups, const IndexerDims& dims) {
  const int64_t topk = dims.topk;
  const std::vector<Chunk> chunks = make_chunks(groups, dims.n_heads, ctx.pool.size());
  const Queries queries = prepare(ctx, groups[0].sequence->index_keys, dims, q, w, groups);

  int64_t n_candidates = 0, most_rows = 0, of_group = 0, n_picked = 0;
  for (Group& group : groups) {
    most_rows = std::max(most_rows, group.chunk_rows);
    of_group = std::max(of_group, group.n);
    if (group.n_chunks == 1) continue;
    group.first_candidate = n_candidates;
    n_candidates += group.n * group.candidates_of_query(topk);
    n_picked = std::max(n_picked, group.candidates_of_query(topk));
  }
  const Candidates left = new_candidates(ctx, n_candidates);
  // Of a query while its chunk is searched.
  const int64_t room = std::min(std::max(2 * topk, topk + 1024), most_rows) + kIndexBlock + kSlack;
  const std::vector<Scratch> scratch = make_scratch(ctx, queries, of_group);
  std::vector<Candidates> own;
  std::vector<int32_t*> picked;
  for (int i = 0; i < ctx.pool.size(); ++i) {
    own.push_back(new_candidates(ctx, of_group * room));
    picked.push_back(new_ints(ctx, std::max(n_picked, room) / 4 + kSlack));
  }
  const auto row_of = [&](const Group& group, int64_t i) {
    return selected.i32() + (group.row + i) * selected.row_stride;
  };

  ctx.pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t task, int thread) {
    const Chunk& chunk = chunks[static_cast<size_t>(task)];
    const Group& group = groups[chunk.group];
    const auto t = static_cast<size_t>(thread);
    int64_t kept[kMaxQueries];
    search(queries, group, chunk.index, topk, scratch[t], own[t], room, picked[t], kept);
    for (int64_t i = 0; i < group.n; ++i) {
      const Candidates from = own[t].from(i * room);
      if (group.n_chunks == 1) {
        std::copy_n(from.rows, topk, row_of(group, i));
        continue;
      }
      const Candidates to = left.from(group.first_candidate + i * group.candidates_of_query(topk) +
                                      chunk.index * group.candidates_of_chunk(topk));
      std::copy_n(from.orders, kept[i], to.orders);
      std::copy_n(from.rows, kept[i], to.rows);
    }
  });

  if (n_candidates == 0) return;
  ctx.pool.run(static_cast<int64_t>(groups.size()) * of_group, [&](int64_t task, int thread) {
    const Group& group = groups[static_cast<size_t>(task / of_group)];
    const int64_t i = task % of_group, visible = group.first_visible + i;
    if (group.n_chunks == 1 || i >= group.n) return;
    const Candidates all = left.from(group.first_candidate + i * group.candidates_of_query(topk));
    // All chunks but the last that the query sees leave the same number.
    const int64_t n =
        visible / group.chunk_rows * group.candidates_of_chunk(topk) + std::min(topk, visible % group.chunk_rows);
    if (n > topk) keep_largest(all, n, topk, picked[static_cast<size_t>(thread)]);
    std::copy_n(all.rows, topk, row_of(group, i));
  });
}

}  // namespace

void select_keys(Context& ctx, Tensor selected, Tensor q, Tensor w, std::span<const LatentCacheView> sequences,
                 const IndexerDims& dims) {
  check(q, w, sequences, dims);
  FATHOM_CHECK(selected.cols() == dims.topk && selected.rows() == q.rows());
  int64_t row = 0;
  for (const LatentCacheView& sequence : sequences) {
    const int64_t cached = sequence.length - sequence.n_new;
    const int64_t n = std::clamp<int64_t>(dims.topk - cached, 0, sequence.n_new);  // queries that see topk or fewer
    ctx.pool.parallel_for(0, n, row_grain(dims.topk), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int32_t* const rows = selected.i32() + (row + i) * selected.row_stride;
        std::iota(rows, rows + cached + i + 1, 0);
        std::fill(rows + cached + i + 1, rows + dims.topk, -1);
      }
    });
    row += sequence.n_new;
  }
  std::vector<Group> groups = make_groups(sequences, dims, dims.topk + 1);
  each_round(ctx, groups, [&](std::span<Group> some) { select_round(ctx, selected, q, w, some, dims); });
}

void index_scores(Context& ctx, Tensor scores, Tensor q, Tensor w, std::span<const LatentCacheView> sequences,
                  const IndexerDims& dims) {
  check(q, w, sequences, dims);
  FATHOM_CHECK(scores.rows() == q.rows());
  for (const LatentCacheView& sequence : sequences) FATHOM_CHECK(sequence.length <= scores.cols());
  std::vector<Group> groups = make_groups(sequences, dims, 1);
  each_round(ctx, groups, [&](std::span<Group> some) {
    const std::vector<Chunk> chunks = make_chunks(some, dims.n_heads, ctx.pool.size());
    const Queries queries = prepare(ctx, some[0].sequence->index_keys, dims, q, w, some);
    const std::vector<Scratch> scratch = make_scratch(ctx, queries, kMaxQueries);
    ctx.pool.run(static_cast<int64_t>(chunks.size()), [&](int64_t task, int thread) {
      const Chunk& chunk = chunks[static_cast<size_t>(task)];
      const Group& group = some[chunk.group];
      const Scratch& own = scratch[static_cast<size_t>(thread)];
      each_block(group, chunk.index, [&](int64_t block, int64_t next) {
        score(queries, group, block, next, own);
        for (int64_t i = 0; i < group.n; ++i) {
          std::copy_n(own.scores + i * kIndexBlock, visible_in(group, i, block),
                      scores.f32_row(group.row + i) + block * kIndexBlock);
        }
      });
    });
    for (const Group& group : some) {
      for (int64_t i = 0; i < group.n; ++i) {
        float* const row = scores.f32_row(group.row + i);
        std::fill(row + group.first_visible + i, row + group.sequence->length, -std::numeric_limits<float>::infinity());
      }
    }
  });
}

}  // namespace fathom
