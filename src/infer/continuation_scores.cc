#include "infer/continuation_scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/arithmetic.h"
#include "infer/passes.h"
#include "ops/log_softmax.h"

namespace fathom {
namespace {

constexpr int64_t kPassTokens = 2048;  // of several sequences in a pass
constexpr int64_t kLogitRows = 64;     // at a time: a row may have 129,280 numbers
constexpr size_t kMostSequences = 64;  // in a pass

// Pages of caches, of which a branch shares those that are full with what it branches from.
struct Pages {
  const ModelConfig& config;
  int64_t bytes = cache_page_bytes(config, config.num_hidden_layers, Format::f32);
  std::vector<Buffer> buffers{};
  std::vector<char*> free{};

  char* take() {
    if (free.empty()) {
      buffers.emplace_back(static_cast<size_t>(bytes));
      free.push_back(static_cast<char*>(buffers.back().data()));
    }
    char* const page = free.back();
    free.pop_back();
    return page;
  }
};

// A sequence as far as it is in its cache: the first n_shared pages are another's.
struct Branch {
  LatentCache cache;
  size_t n_shared = 0;
};

void make_room(Pages& pages, Branch& branch, int64_t tokens) {
  while (branch.cache.capacity < branch.cache.length + tokens) {
    branch.cache.pages.push_back(pages.take());
    branch.cache.capacity += kCachePageRows;
  }
}

void drop(Pages& pages, Branch& branch) {
  LatentCache& cache = branch.cache;
  pages.free.insert(pages.free.end(), cache.pages.begin() + static_cast<int64_t>(branch.n_shared), cache.pages.end());
  cache.pages.clear();
  cache.capacity = cache.length = 0;
  branch.n_shared = 0;
}

// What goes on behind the first `length` tokens of `from`, which has to live as long.
Branch branch_of(Pages& pages, const Branch& from, int64_t length) {
  const auto n_full = static_cast<size_t>(length / kCachePageRows);
  Branch branch{make_paged_cache(pages.config, Format::f32), n_full};
  branch.cache.pages.assign(from.cache.pages.begin(), from.cache.pages.begin() + static_cast<int64_t>(n_full));
  branch.cache.length = length;
  branch.cache.capacity = static_cast<int64_t>(n_full) * kCachePageRows;
  if (length % kCachePageRows != 0) {
    make_room(pages, branch, 1);
    std::copy_n(from.cache.pages[n_full], pages.bytes, branch.cache.pages[n_full]);
  }
  return branch;
}

void check(const ModelConfig& config, size_t element, const ScoredContinuations& e) {
  const auto check_ids = [&](std::span<const int32_t> ids, const char* what) {
    if (ids.empty()) throw Error("element {} to score has an empty {}", element, what);
    for (const int32_t id : ids) {
      if (id >= 0 && id < config.vocab_size) continue;
      throw Error("element {} to score has the token id {}, outside the vocabulary of {}", element, id,
                  config.vocab_size);
    }
  };
  check_ids(e.context, "context");
  for (const auto& continuation : e.continuations) {
    check_ids(continuation, "continuation");
    // The last token is only predicted.
    if (const int64_t n = std::ssize(e.context) + std::ssize(continuation) - 1; n > config.max_position_embeddings) {
      throw Error("element {} to score has {} tokens, more than the model's context of {}", element, n + 1,
                  config.max_position_embeddings);
    }
  }
}

int64_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  const auto n = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + static_cast<int64_t>(n), b.begin()).first - a.begin();
}

// One token more of a continuation, by the logits in front of it.
void add_token(ContinuationScore& score, std::span<const float> row, int32_t id) {
  const LogSoftmax log_softmax(row);
  const double logprob = log_softmax[id];
  if (!std::isfinite(log_softmax.max) || std::isnan(logprob)) {
    throw Error("the model gives logits that are not finite: its weights are broken or overflow");
  }
  score.logprob += logprob;
  score.greedy &= row[static_cast<size_t>(id)] == row[static_cast<size_t>(log_softmax.best)];
}

struct ChoiceScoring {
  Context& ctx;
  const Model& model;
  std::span<const ScoredContinuations> elements;
  const std::function<void(size_t, std::span<const ContinuationScore>)>& tell;
  const std::function<bool()>& interrupted;
  Pages pages;
  Branch trunk{};
  std::vector<int32_t> trunk_ids{};

  bool ends() const { return interrupted && interrupted(); }

  // One pass over what comes behind these branches, none of which has been read further. on_row(i, position, logits)
  // for each token of sequence i from first_row[i] on.
  void read(std::vector<std::vector<int32_t>> sequences, const std::vector<Branch*>& branches,
            const std::vector<int64_t>& first_row,
            const std::function<void(size_t, int64_t, std::span<const float>)>& on_row) {
    const ArenaScope scope(ctx.arena);
    // Short ones first: for these attention is cheaper in the absorbed form.
    std::vector<size_t> order(sequences.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return sequences[a].size() < sequences[b].size(); });
    std::vector<std::vector<int32_t>> ordered;
    std::vector<LatentCache*> caches;
    std::vector<int64_t> positions;
    size_t expand_from = 0;
    for (const size_t i : order) {
      make_room(pages, *branches[i], std::ssize(sequences[i]));
      positions.push_back(branches[i]->cache.length);
      expand_from += std::ssize(sequences[i]) < kExpandFrom;
      caches.push_back(&branches[i]->cache);
      ordered.push_back(std::move(sequences[i]));
    }
    const Batch batch = make_batch(ctx, ordered, positions);
    const Tensor hidden = forward(ctx, model, batch, {.caches = caches, .expand_from = expand_from});
    std::vector<int32_t> rows;
    std::vector<std::pair<size_t, int64_t>> whose;
    const auto tell_rows = [&] {
      if (rows.empty()) return;
      const ArenaScope rows_scope(ctx.arena);
      const Tensor logits = logits_of_rows(ctx, model, hidden, rows);
      for (size_t r = 0; r < rows.size(); ++r) {
        on_row(whose[r].first, whose[r].second,
               {logits.f32_row(static_cast<int64_t>(r)), static_cast<size_t>(logits.cols())});
      }
      rows.clear();
      whose.clear();
    };
    for (size_t s = 0; s < order.size(); ++s) {
      const int64_t begin = sequence_begin(batch, static_cast<int64_t>(s));
      const int64_t n = sequence_begin(batch, static_cast<int64_t>(s) + 1) - begin;
      for (int64_t row = first_row[order[s]]; row < n; ++row) {
        rows.push_back(static_cast<int32_t>(begin + row));
        whose.emplace_back(order[s], row);
        if (std::ssize(rows) == kLogitRows) tell_rows();
      }
    }
    tell_rows();
  }

  // Makes the trunk what these ids are, of which it keeps what it has.
  bool grow_trunk(std::span<const int32_t> ids) {
    const int64_t kept = common_prefix(trunk_ids, ids);
    Branch grown = branch_of(pages, trunk, kept);
    // The pages that stay are the trunk's own.
    for (size_t i = grown.n_shared; i < trunk.cache.pages.size(); ++i) pages.free.push_back(trunk.cache.pages[i]);
    grown.n_shared = 0;
    trunk = std::move(grown);
    trunk_ids.resize(static_cast<size_t>(kept));
    while (std::ssize(trunk_ids) < std::ssize(ids)) {
      if (ends()) return false;
      const auto part = ids.subspan(trunk_ids.size(), std::min(ids.size() - trunk_ids.size(), size_t{kPrefillTokens}));
      const int64_t no_rows = std::ssize(part);
      read({{part.begin(), part.end()}}, {&trunk}, {no_rows}, {});
      trunk_ids.insert(trunk_ids.end(), part.begin(), part.end());
    }
    return true;
  }

  // Elements whose contexts begin with the trunk.
  bool score_group(std::span<const size_t> group) {
    std::vector<std::vector<ContinuationScore>> scores;
    std::vector<Branch> contexts;
    std::vector<Branch*> branches;
    std::vector<std::vector<int32_t>> sequences;
    std::vector<int64_t> first_row;
    for (const size_t e : group) {
      const auto rest = std::span(elements[e].context).subspan(trunk_ids.size());
      scores.emplace_back(elements[e].continuations.size(), ContinuationScore{0, true});
      contexts.push_back(branch_of(pages, trunk, trunk.cache.length));
      sequences.emplace_back(rest.begin(), rest.end());
      first_row.push_back(std::ssize(rest) - 1);
    }
    for (Branch& context : contexts) branches.push_back(&context);
    read(std::move(sequences), branches, first_row, [&](size_t i, int64_t, std::span<const float> row) {
      const auto& continuations = elements[group[i]].continuations;
      for (size_t c = 0; c < continuations.size(); ++c) add_token(scores[i][c], row, continuations[c][0]);
    });
    const bool goes_on = score_longer(group, contexts, scores);
    for (Branch& context : contexts) drop(pages, context);
    if (!goes_on) return false;
    for (size_t i = 0; i < group.size(); ++i) tell(group[i], scores[i]);
    return true;
  }

  // What continuations have behind their first tokens.
  bool score_longer(std::span<const size_t> group, const std::vector<Branch>& contexts,
                    std::vector<std::vector<ContinuationScore>>& scores) {
    std::vector<std::pair<size_t, size_t>> longer;  // in group, in its continuations
    for (size_t i = 0; i < group.size(); ++i) {
      for (size_t c = 0; c < elements[group[i]].continuations.size(); ++c) {
        if (elements[group[i]].continuations[c].size() > 1) longer.emplace_back(i, c);
      }
    }
    const auto ids_of = [&](const std::pair<size_t, size_t>& one) -> const std::vector<int32_t>& {
      return elements[group[one.first]].continuations[one.second];
    };
    for (size_t begin = 0; begin < longer.size();) {
      if (ends()) return false;
      std::vector<Branch> tails;
      std::vector<std::vector<int32_t>> sequences;
      int64_t tokens = 0;
      size_t end = begin;
      while (end < longer.size() && tails.size() < kMostSequences) {
        const std::vector<int32_t>& ids = ids_of(longer[end]);
        if (end > begin && tokens + std::ssize(ids) > kPassTokens) break;
        tokens += std::ssize(ids);
        const Branch& context = contexts[longer[end].first];
        tails.push_back(branch_of(pages, context, context.cache.length));
        sequences.emplace_back(ids.begin(), ids.end() - 1);
        ++end;
      }
      std::vector<Branch*> branches;
      for (Branch& tail : tails) branches.push_back(&tail);
      read(std::move(sequences), branches, std::vector<int64_t>(tails.size(), 0),
           [&](size_t i, int64_t position, std::span<const float> row) {
             const auto& one = longer[begin + i];
             add_token(scores[one.first][one.second], row, ids_of(one)[static_cast<size_t>(position) + 1]);
           });
      for (Branch& tail : tails) drop(pages, tail);
      begin = end;
    }
    return true;
  }
};

}  // namespace

void score_continuations(Context& ctx, const Model& model, std::span<const ScoredContinuations> elements,
                         const std::function<void(size_t, std::span<const ContinuationScore>)>& tell,
                         const std::function<bool()>& interrupted) {
  for (size_t e = 0; e < elements.size(); ++e) check(model.config, e, elements[e]);
  std::vector<size_t> order(elements.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return elements[a].context < elements[b].context; });
  ChoiceScoring scoring{ctx, model, elements, tell, interrupted, {model.config}};
  scoring.trunk.cache = make_paged_cache(model.config, Format::f32);
  for (size_t begin = 0; begin < order.size();) {
    // As many as a pass is full of, where sharing saves more than it costs. Each has a token of its own to read.
    const std::vector<int32_t>& first = elements[order[begin]].context;
    int64_t shared = std::ssize(first) - 1, tokens = std::ssize(first);
    size_t end = begin + 1;
    for (; end < order.size() && end - begin < kMostSequences; ++end) {
      const std::vector<int32_t>& next = elements[order[end]].context;
      const int64_t now = std::min({shared, common_prefix(first, next), std::ssize(next) - 1});
      const auto n = static_cast<int64_t>(end - begin);
      // Sharing less makes each of those before read so much more.
      if (tokens + std::ssize(next) - (n + 1) * now > kPassTokens || (now < shared && n * (shared - now) > now)) break;
      shared = now;
      tokens += std::ssize(next);
    }
    const auto group = std::span(order).subspan(begin, end - begin);
    if (!scoring.grow_trunk(std::span(first).first(static_cast<size_t>(shared)))) return;
    if (scoring.ends() || !scoring.score_group(group)) return;
    begin = end;
  }
}

}  // namespace fathom
