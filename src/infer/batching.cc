#include "infer/batching.h"

#include <algorithm>
#include <numeric>

#include "base/arithmetic.h"
#include "base/terminal.h"
#include "infer/passes.h"

namespace fathom {
namespace {

constexpr int64_t kLeastPiece = 16;   // of a prompt in a pass, however slow the machine
constexpr int64_t kLogprobRows = 64;  // of a prompt: so many rows of logits at a time

}  // namespace

// A request with what of it is in caches.
struct Batching::Running {
  Id id;
  BatchRequest request;
  Output output;
  LatentCache cache;
  std::vector<PageId> pages;  // those of the cache
  int64_t n_shared = 0;       // of these, from the first on
  double start_s, admitted_s = 0, first_token_s = 0;

  // Of `previous`: what the caches do not hold.
  int64_t unread() const { return std::ssize(output.previous()) - cache.length; }
  bool reads_prompt() const { return cache.length < output.n_prompt(); }
  // Tokens of the prompt whose log probabilities are still to be told.
  bool wants_prompt_logprobs() const {
    return request.prompt_top_logprobs >= 0 && std::ssize(output.result.prompt_logprobs) + 1 < output.n_prompt();
  }
};

Batching::Batching(Context& ctx, const Model& model, const Tokenizer* tokenizer, const BatchingOptions& options)
    : ctx_(ctx),
      model_(model),
      tokenizer_(tokenizer),
      options_(options),
      pool_(cache_page_bytes(model.config, model.config.num_hidden_layers, options.kv_type), kCachePageRows,
            std::max<int64_t>(1, options.cache_tokens / kCachePageRows)) {
  FATHOM_CHECK(ctx.device == nullptr);
  options_.context =
      std::min({options.context, model.config.max_position_embeddings, pool_.n_pages() * kCachePageRows});
}

Batching::~Batching() = default;

Batching::Id Batching::add(BatchRequest request) {
  check_prompt(model_, options_.context, request.prompt);
  Output output(tokenizer_, request.options, request.prompt);
  waiting_.push_back(std::make_unique<Running>(Running{.id = ++n_added_,
                                                       .request = std::move(request),
                                                       .output = std::move(output),
                                                       .cache = make_paged_cache(model_.config, options_.kv_type),
                                                       .start_s = monotonic_s()}));
  return n_added_;
}

void Batching::cancel(Id id) {
  const auto is_it = [&](const std::unique_ptr<Running>& sequence) { return sequence->id == id; };
  std::erase_if(waiting_, is_it);
  const auto found = std::find_if(running_.begin(), running_.end(), is_it);
  if (found == running_.end()) return;
  release_pages(**found);
  running_.erase(found);
}

void Batching::release_pages(Running& sequence) {
  for (const PageId page : sequence.pages) pool_.release(page);
  sequence.pages.clear();
  sequence.cache.pages.clear();
  sequence.cache.capacity = sequence.cache.length = sequence.n_shared = 0;
}

// Whether somebody is reading more of this prompt than there is in pages: it will be there soon.
bool Batching::is_read_already(const Running& sequence, int64_t n_found) const {
  const auto& prompt = sequence.request.prompt;
  const auto n_wanted = static_cast<size_t>((n_found + 1) * kCachePageRows);
  if (prompt.size() <= n_wanted || sequence.wants_prompt_logprobs()) return false;
  return std::any_of(running_.begin(), running_.end(), [&](const std::unique_ptr<Running>& other) {
    const auto& read = other->request.prompt;
    return other->reads_prompt() && other->request.cache_salt == sequence.request.cache_salt &&
           read.size() >= n_wanted &&
           std::equal(read.begin(), read.begin() + static_cast<int64_t>(n_wanted), prompt.begin());
  });
}

bool Batching::admit(std::unique_ptr<Running>& waiting) {
  Running& sequence = *waiting;
  std::vector<PageId> found;
  if (!sequence.wants_prompt_logprobs()) found = pool_.find(sequence.request.cache_salt, sequence.request.prompt);
  const int64_t needed = ceil_div(std::ssize(sequence.output.previous()), kCachePageRows) - std::ssize(found);
  const bool fits = running_.empty() || needed <= pool_.n_pages() - pool_.n_held();
  if (!fits || is_read_already(sequence, std::ssize(found))) {
    for (const PageId page : found) pool_.release(page);
    return fits;
  }
  sequence.pages = found;
  for (const PageId page : found) sequence.cache.pages.push_back(pool_.data(page));
  sequence.n_shared = std::ssize(found);
  sequence.cache.length = sequence.cache.capacity = sequence.n_shared * kCachePageRows;
  Generation& result = sequence.output.result;
  if (sequence.admitted_s == 0) {
    sequence.admitted_s = monotonic_s();
    result.queue_s = sequence.admitted_s - sequence.start_s;
    result.cached_tokens = sequence.cache.length;
    counts_.cached_tokens += sequence.cache.length;
  }
  running_.push_back(std::move(waiting));
  return true;
}

// Where there is no room for the next one's prompt beside what runs, it waits, and all behind it.
void Batching::admit() {
  for (auto& waiting : waiting_) {
    if (n_running() >= options_.max_sequences || !admit(waiting)) break;
  }
  std::erase(waiting_, nullptr);
}

std::unique_ptr<Batching::Running> Batching::leave(const Running& sequence) {
  const auto found =
      std::find_if(running_.begin(), running_.end(), [&](const auto& s) { return s.get() == &sequence; });
  std::unique_ptr<Running> left = std::move(*found);
  running_.erase(found);
  return left;
}

void Batching::put_back(Running& sequence) {
  release_pages(sequence);
  waiting_.push_front(leave(sequence));
  ++n_preempted_;
}

// The youngest give way to older ones: the oldest always goes on.
bool Batching::make_room(Running& sequence, int64_t n) {
  while (sequence.cache.length + n > sequence.cache.capacity) {
    if (const auto page = pool_.take()) {
      sequence.pages.push_back(*page);
      sequence.cache.pages.push_back(pool_.data(*page));
      sequence.cache.capacity += kCachePageRows;
      continue;
    }
    Running& youngest = *running_.back();
    put_back(youngest);
    if (&youngest == &sequence) return false;
  }
  return true;
}

// Of `room` tokens of prompts, half goes to those with the least to read, so that a short one does not wait for a long
// one, and the rest to the oldest. Those that get something, in their order.
std::vector<std::pair<Batching::Running*, int64_t>> Batching::shares_of(const std::vector<Running*>& reading,
                                                                        int64_t room) {
  std::vector<std::pair<Running*, int64_t>> shares;
  std::vector<size_t> by_need(reading.size());
  std::iota(by_need.begin(), by_need.end(), size_t{0});
  for (Running* sequence : reading) shares.emplace_back(sequence, 0);
  const auto need = [&](size_t i) {
    return reading[i]->output.n_prompt() - reading[i]->cache.length - shares[i].second;
  };
  const auto give = [&](size_t i, int64_t& of) {
    const int64_t n = std::min(need(i), of);
    shares[i].second += n;
    of -= n;
  };
  std::stable_sort(by_need.begin(), by_need.end(), [&](size_t a, size_t b) { return need(a) < need(b); });
  int64_t for_short = room / 2;
  room -= for_short;
  for (const size_t i : by_need) give(i, for_short);
  room += for_short;
  for (size_t i = 0; i < reading.size(); ++i) give(i, room);
  std::erase_if(shares, [](const auto& share) { return share.second == 0; });
  return shares;
}

// Those that generate first, then prompts, as far as one pass goes.
std::vector<Batching::Piece> Batching::next_pieces() {
  std::vector<Running*> generating, reading;
  for (const auto& sequence : running_) (sequence->reads_prompt() ? reading : generating).push_back(sequence.get());
  int64_t room = options_.pass_tokens;
  if (!generating.empty() && prompt_token_s_ > 0) {
    room = std::clamp(static_cast<int64_t>(options_.pass_s / prompt_token_s_), kLeastPiece, room);
  }
  std::vector<Piece> pieces;
  const auto add = [&](Running* sequence, int64_t n) {
    const bool still_runs =
        std::any_of(running_.begin(), running_.end(), [&](const auto& s) { return s.get() == sequence; });
    if (!still_runs || !make_room(*sequence, n)) return;
    pieces.push_back({sequence, n, n == sequence->unread()});
  };
  for (Running* sequence : generating) add(sequence, std::min(sequence->unread(), options_.pass_tokens));
  for (const auto& [sequence, n] : shares_of(reading, room)) add(sequence, n);
  // Whoever was put back for the sake of one behind it in this list.
  std::erase_if(pieces, [](const Piece& piece) { return piece.sequence->pages.empty(); });
  return pieces;
}

// Pages of prompts alone: what a sequence generates it computes in another form than a prompt that repeats it.
void Batching::share_pages(Running& sequence) {
  const auto prompt = std::span<const int32_t>(sequence.request.prompt);
  const int64_t n_full = std::min(sequence.cache.length, sequence.output.n_prompt()) / kCachePageRows;
  for (int64_t& n = sequence.n_shared; n < n_full; ++n) {
    const auto i = static_cast<size_t>(n);
    const auto before = n > 0 ? std::optional(sequence.pages[i - 1]) : std::nullopt;
    const auto ids = prompt.subspan(i * kCachePageRows, kCachePageRows);
    sequence.pages[i] = pool_.share(sequence.request.cache_salt, before, ids, sequence.pages[i]);
    sequence.cache.pages[i] = pool_.data(sequence.pages[i]);
  }
}

// hidden: [n, hidden_size], of the tokens from first_position on that were read in this pass.
void Batching::take_prompt_logprobs(Running& sequence, int64_t first_position, Tensor hidden) {
  const auto& prompt = sequence.request.prompt;
  std::vector<TokenLogprobs>& told = sequence.output.result.prompt_logprobs;
  while (sequence.wants_prompt_logprobs() && std::ssize(told) < first_position + hidden.rows()) {
    const ArenaScope scope(ctx_.arena);
    const int64_t begin = std::ssize(told) - first_position;
    const int64_t n = std::min({kLogprobRows, hidden.rows() - begin, std::ssize(prompt) - 1 - std::ssize(told)});
    const Tensor logits = head_logits(ctx_, model_, hidden.slice(begin, n));
    for (int64_t i = 0; i < n; ++i) {
      told.push_back(token_logprobs({logits.f32_row(i), static_cast<size_t>(logits.cols())}, prompt[told.size() + 1],
                                    sequence.request.prompt_top_logprobs));
    }
  }
}

void Batching::take_logits(Running& sequence, Tensor logits) {
  Output& output = sequence.output;
  std::string text, error;
  const int64_t before = output.n_generated();
  try {
    text = output.take(logits);
  } catch (const Error& e) {
    error = e.what();
  }
  if (before == 0) sequence.first_token_s = monotonic_s();
  bool goes_on = error.empty() && output.goes_on();
  if (goes_on && std::ssize(output.previous()) > options_.context) {
    output.result.finish = FinishReason::context;
    goes_on = false;
  }
  if (!goes_on) text += output.finish();
  const auto ids = std::span<const int32_t>(output.result.ids).subspan(static_cast<size_t>(before));
  const auto& all_logprobs = output.result.logprobs;
  const auto logprobs = std::span(all_logprobs).subspan(std::min(static_cast<size_t>(before), all_logprobs.size()));
  if (sequence.request.on_tokens && (!ids.empty() || !text.empty())) sequence.request.on_tokens(text, ids, logprobs);
  if (!goes_on) end(sequence, error);
}

void Batching::end(Running& sequence, const std::string& error) {
  Generation& result = sequence.output.result;
  const double now_s = monotonic_s(), first_s = result.ids.empty() ? now_s : sequence.first_token_s;
  result.prefill_s = first_s - sequence.start_s;
  result.decode_s = now_s - first_s;
  release_pages(sequence);
  const std::unique_ptr<Running> ended = leave(sequence);
  if (ended->request.on_end) ended->request.on_end(result, error);
}

bool Batching::step() {
  admit();
  if (const std::vector<Piece> pieces = next_pieces(); !pieces.empty()) run(pieces);
  return !running_.empty() || !waiting_.empty();
}

void Batching::fail_all(const std::string& error) {
  for (; !waiting_.empty(); waiting_.pop_front()) running_.push_back(std::move(waiting_.front()));
  while (!running_.empty()) end(*running_.front(), error);
}

void Batching::run(const std::vector<Piece>& pieces) {
  const double begin_s = monotonic_s();
  const ArenaScope scope(ctx_.arena);
  std::vector<std::vector<int32_t>> ids;
  std::vector<LatentCache*> caches;
  std::vector<int64_t> positions;
  std::vector<int32_t> rows;  // whose logits are wanted
  size_t n_generating = 0;
  int64_t n_tokens = 0, n_prompt_tokens = 0;
  for (const auto& [sequence, n, whole] : pieces) {
    const auto next = sequence->output.previous().begin() + sequence->cache.length;
    ids.emplace_back(next, next + n);
    caches.push_back(&sequence->cache);
    positions.push_back(sequence->cache.length);
    n_tokens += n;
    if (whole && sequence->output.goes_on()) rows.push_back(static_cast<int32_t>(n_tokens - 1));
    if (sequence->reads_prompt()) {
      n_prompt_tokens += n;
    } else {
      ++n_generating;
    }
    ++sequence->output.result.main_passes;
  }
  const Tensor hidden =
      forward(ctx_, model_, make_batch(ctx_, ids, positions), {.caches = caches, .expand_from = n_generating});
  const Tensor logits = rows.empty() ? Tensor() : logits_of_rows(ctx_, model_, hidden, rows);
  if (n_prompt_tokens > n_tokens / 2) {
    const double measured = (monotonic_s() - begin_s) / static_cast<double>(n_prompt_tokens);
    prompt_token_s_ = prompt_token_s_ == 0 ? measured : 0.8 * prompt_token_s_ + 0.2 * measured;
  }
  ++counts_.passes;
  counts_.prompt_tokens += n_prompt_tokens;
  counts_.generated_tokens += std::ssize(rows);
  int64_t row = 0, first = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [sequence, n, whole] = pieces[i];
    share_pages(*sequence);
    if (sequence->wants_prompt_logprobs()) take_prompt_logprobs(*sequence, positions[i], hidden.slice(first, n));
    first += n;
    if (!whole) continue;
    if (sequence->output.goes_on()) {
      take_logits(*sequence, logits.slice(row++, 1));
    } else {  // nothing was to be generated
      end(*sequence, {});
    }
  }
}

}  // namespace fathom
