#include "infer/batching.h"

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>
#include <tuple>

#include "base/arithmetic.h"
#include "base/terminal.h"
#include "infer/passes.h"

namespace fathom {
namespace {

constexpr int64_t kLogprobRows = 64;  // of a prompt: so many rows of logits at a time

bool has_drafts(const Model& model, const BatchingOptions& options) {
  return options.draft_tokens > 0 && !model.weights.mtp.empty();
}

// Who drafts leaves pages that the module has read too.
std::string salt_of_pages(const BatchRequest& request, bool drafts) {
  return request.cache_salt + (drafts && request.options.draft_tokens > 0 ? "+drafts" : "");
}

// Of the page behind those that have one.
void add_page_name(const PageStore& store, std::vector<PageStore::Name>& names, const std::string& salt,
                   std::span<const int32_t> prompt, bool drafts) {
  constexpr auto kPage = static_cast<size_t>(kCachePageRows);
  const PageStore::Name* const before = names.empty() ? nullptr : &names.back();
  names.push_back(store.name(before, salt, prompt.subspan(names.size() * kPage, kPage + (drafts ? 1 : 0))));
}

}  // namespace

std::vector<PageStore::Name> page_names(const PageStore& store, const BatchRequest& request, bool drafts) {
  const std::string salt = salt_of_pages(request, drafts);
  std::vector<PageStore::Name> names;
  while ((std::ssize(names) + 1) * kCachePageRows < std::ssize(request.prompt)) {
    add_page_name(store, names, salt, request.prompt, drafts);
  }
  return names;
}

Timings timings_of(const Generation& g) {
  return {g.prompt_tokens, g.cached_tokens, std::ssize(g.ids), g.drafted,
          g.accepted,      g.queue_s,       g.prefill_s,       g.decode_s};
}

void PassSizes::add(int64_t n) {
  const auto bits = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(n, 1) - 1)));
  ++counts[std::min(bits, counts.size() - 1)];
  sum += n;
}

// A request with what of it is in caches.
struct Batching::Running {
  Id id;
  BatchRequest request;
  Output output;
  LatentCache cache, mtp_cache;
  std::vector<PageId> pages;                 // those of the caches
  std::vector<Draft> drafts;                 // of what comes behind `previous`
  std::vector<PageStore::Name> store_names;  // of the prompt's first pages
  bool skipped = false;                      // for now: somebody reads its prompt already
  bool preempted = false;                    // once: what is found again was not asked for again
  bool ended = false;                        // in this pass
  std::string error;                         // why, if it failed
  int64_t n_shared = 0;                      // of these, from the first on
  int64_t first_position = 0;                // of what this pass reads
  int64_t n_told = -1;                       // of the prompt, as read
  double start_s, admitted_s = 0, first_token_s = 0;

  // Of `previous`: what the caches do not hold.
  int64_t unread() const { return std::ssize(output.previous()) - cache.length; }
  bool reads_prompt() const { return cache.length < output.n_prompt(); }
  bool drafts_wanted() const { return request.options.draft_tokens > 0; }
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
      drafts_(has_drafts(model, options)),
      pacing_(options.pass_s, options.long_pass_s),
      // The module's row for a page's last token knows the token behind it.
      pool_(page_bytes(model, options), kCachePageRows, std::max<int64_t>(1, options.cache_tokens / kCachePageRows),
            drafts_ ? 1 : 0) {
  FATHOM_CHECK(ctx.device == nullptr);
  counts_.accepted_at.resize(drafts_ ? static_cast<size_t>(options.draft_tokens) : 0);
  counts_.expert_tokens.resize(static_cast<size_t>(model.config.num_hidden_layers));
  for (int64_t l = 0; l < model.config.num_hidden_layers; ++l) {
    if (model.config.is_moe(l)) {
      counts_.expert_tokens[static_cast<size_t>(l)].resize(static_cast<size_t>(model.config.router.n_routed_experts));
    }
  }
  options_.context =
      std::min({options.context, model.config.max_position_embeddings, pool_.n_pages() * kCachePageRows});
}

Batching::~Batching() = default;

int64_t Batching::page_bytes(const Model& model, const BatchingOptions& options) {
  const int64_t layers = model.config.num_hidden_layers + (has_drafts(model, options) ? 1 : 0);
  return cache_page_bytes(model.config, layers, options.kv_type);
}

Batching::Id Batching::add(BatchRequest request) {
  check_prompt(model_, options_.context, request.prompt);
  Output output(tokenizer_, request.options, request.prompt);
  request.cache_salt = salt_of_pages(request, drafts_);
  waiting_.push_back(std::make_unique<Running>(Running{.id = ++n_added_,
                                                       .request = std::move(request),
                                                       .output = std::move(output),
                                                       .cache = make_paged_cache(model_.config, options_.kv_type),
                                                       .mtp_cache = make_paged_cache(model_.config, options_.kv_type),
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
  sequence.drafts.clear();
  for (LatentCache* cache : {&sequence.cache, &sequence.mtp_cache}) {
    cache->pages.clear();
    cache->capacity = cache->length = 0;
  }
  sequence.n_shared = 0;
}

// The module's rows are those behind the model's in a page.
void Batching::add_page(Running& sequence, PageId page) {
  char* const data = pool_.data(page);
  sequence.pages.push_back(page);
  sequence.cache.pages.push_back(data);
  sequence.cache.capacity += kCachePageRows;
  if (!drafts_) return;
  sequence.mtp_cache.pages.push_back(data + model_.config.num_hidden_layers * sequence.cache.layer_bytes);
  sequence.mtp_cache.capacity += kCachePageRows;
}

// Whether somebody is reading more of this prompt than there is in pages: it will be there soon.
bool Batching::is_read_already(const Running& sequence, int64_t n_found) const {
  const auto& prompt = sequence.request.prompt;
  const int64_t n_page = (n_found + 1) * kCachePageRows, n_key = n_page + (drafts_ ? 1 : 0);
  if (std::ssize(prompt) <= n_page || std::ssize(prompt) < n_key || sequence.wants_prompt_logprobs()) return false;
  return std::any_of(running_.begin(), running_.end(), [&](const std::unique_ptr<Running>& other) {
    const auto& read = other->request.prompt;
    return other->reads_prompt() && other->request.cache_salt == sequence.request.cache_salt &&
           std::ssize(read) >= n_key && std::equal(read.begin(), read.begin() + n_key, prompt.begin());
  });
}

Batching::Admission Batching::admit(std::unique_ptr<Running>& waiting) {
  Running& sequence = *waiting;
  std::vector<PageId> found;
  if (!sequence.wants_prompt_logprobs()) found = pool_.find(sequence.request.cache_salt, sequence.request.prompt);
  const int64_t needed = ceil_div(std::ssize(sequence.output.previous()), kCachePageRows) - std::ssize(found);
  const bool fits =
      running_.empty() || (n_running() < options_.max_sequences && needed <= pool_.n_pages() - pool_.n_held());
  const bool comes_later = is_read_already(sequence, std::ssize(found));
  if (!fits || comes_later) {
    for (const PageId page : found) pool_.release(page);
    return comes_later ? Admission::later : Admission::no_room;
  }
  for (const PageId page : found) add_page(sequence, page);
  sequence.n_shared = std::ssize(found);
  sequence.cache.length = sequence.n_shared * kCachePageRows;
  if (drafts_) sequence.mtp_cache.length = sequence.cache.length;
  Generation& result = sequence.output.result;
  if (sequence.admitted_s == 0) {
    sequence.admitted_s = monotonic_s();
    result.queue_s = sequence.admitted_s - sequence.start_s;
    result.cached_tokens = sequence.cache.length;
    counts_.cached_tokens += sequence.cache.length;
    counts_.asked_tokens += result.prompt_tokens;
  }
  running_.push_back(std::move(waiting));
  return Admission::done;
}

// How many sequences run.
struct Batching::Shares {
  std::map<std::string_view, int64_t> of_owner;
  std::map<int64_t, int64_t> of_group;
  explicit Shares(const std::list<std::unique_ptr<Running>>& running) {
    for (const auto& sequence : running) {
      ++of_owner[sequence->request.owner];
      ++of_group[sequence->request.group];
    }
  }
};

// The next to be admitted: of the owner of whom the fewest sequences run, then of a request of which nothing runs, then
// of that of which the fewest have been admitted, the oldest of equals. Every eighth of an owner's is its oldest, so
// that requests that come do not put off the rest of one before for ever.
std::deque<std::unique_ptr<Batching::Running>>::iterator Batching::next_waiting(bool for_others_place,
                                                                                const std::set<std::string>& not_of) {
  const Shares shares(running_);
  const auto count_of = [](const auto& counts, const auto& key) {
    const auto found = counts.find(key);
    return found == counts.end() ? 0 : found->second;
  };
  auto best = waiting_.end();
  std::tuple<int64_t, bool, int64_t> least;
  for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
    const BatchRequest& request = (*it)->request;
    const bool runs = shares.of_group.contains(request.group);
    if ((*it)->skipped || (for_others_place && (runs || not_of.contains(request.owner)))) continue;
    const bool is_due = count_of(admitted_of_owner_, request.owner) % 8 == 7;
    const std::tuple cost(count_of(shares.of_owner, request.owner), runs && !is_due,
                          is_due ? 0 : count_of(admitted_of_group_, request.group));
    if (best == waiting_.end() || cost < least) {
      best = it;
      least = cost;
    }
  }
  return best;
}

// For the sake of a request of which nothing runs, one of which several do puts its youngest sequence back, or an owner
// of whom two more run than of the request's. Returns whether one did.
bool Batching::give_way_to(const Running& waiting) {
  Shares shares(running_);
  if (shares.of_group[waiting.request.group] > 0) return false;
  const int64_t n_own = shares.of_owner[waiting.request.owner];
  Running* most = nullptr;
  std::pair<int64_t, int64_t> largest;
  for (const auto& sequence : running_) {
    const std::pair share(shares.of_owner[sequence->request.owner], shares.of_group[sequence->request.group]);
    const bool may = sequence->request.owner == waiting.request.owner ? share.second > 1 : share.first > n_own + 1;
    if (!may || (most != nullptr && share < largest)) continue;
    most = sequence.get();
    largest = share;
  }
  if (most != nullptr) put_back(*most);
  return most != nullptr;
}

// Where there is no room for the next one, and nobody to give way, it waits, and all others.
void Batching::admit() {
  for (auto& sequence : waiting_) sequence->skipped = false;
  std::set<std::string> in_vain;  // owners for whom nobody gives way
  for (;;) {
    const bool is_full = n_running() >= options_.max_sequences;
    const auto next = next_waiting(is_full, in_vain);
    if (next == waiting_.end()) break;
    Running& sequence = **next;
    const Admission admission = admit(*next);
    if (admission == Admission::done) {
      ++admitted_of_group_[sequence.request.group];
      ++admitted_of_owner_[sequence.request.owner];
      waiting_.erase(next);
    } else if (admission == Admission::later) {
      sequence.skipped = true;
    } else if (!give_way_to(sequence)) {
      if (!is_full) break;
      in_vain.insert(sequence.request.owner);
    }
  }
  // Of those of whom nothing waits, nothing needs to be known.
  const auto forget = [&](auto& counts, auto BatchRequest::*key) {
    if (std::ssize(counts) <= 2 * n_waiting()) return;
    std::set<typename std::decay_t<decltype(counts)>::key_type> kept;
    for (const auto& sequence : waiting_) kept.insert(sequence->request.*key);
    std::erase_if(counts, [&](const auto& count) { return !kept.contains(count.first); });
  };
  forget(admitted_of_group_, &BatchRequest::group);
  forget(admitted_of_owner_, &BatchRequest::owner);
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
  sequence.preempted = true;
  if (const auto admitted = admitted_of_group_.find(sequence.request.group); admitted != admitted_of_group_.end()) {
    --admitted->second;
  }
  waiting_.push_front(leave(sequence));
  ++n_preempted_;
}

// The youngest give way to older ones: the oldest always goes on.
bool Batching::make_room(Running& sequence, int64_t n) {
  while (sequence.cache.length + n > sequence.cache.capacity) {
    if (const auto page = pool_.take()) {
      add_page(sequence, *page);
      continue;
    }
    Running& youngest = *running_.back();
    put_back(youngest);
    if (&youngest == &sequence) return false;
  }
  return true;
}

const PageStore::Name& Batching::store_name(Running& sequence, size_t page) {
  std::vector<PageStore::Name>& names = sequence.store_names;
  while (names.size() <= page) {
    add_page_name(*options_.store, names, sequence.request.cache_salt, sequence.request.prompt, drafts_);
  }
  return names[page];
}

// Takes pages of the prompt from files instead of computing them, as long as there is time. Returns whether the next is
// in a file too.
bool Batching::load_pages(Running& sequence, double until_s) {
  while (sequence.cache.length == std::ssize(sequence.pages) * kCachePageRows &&
         sequence.n_shared == std::ssize(sequence.pages) && !sequence.wants_prompt_logprobs()) {
    const auto i = sequence.pages.size();
    const int64_t end = sequence.cache.length + kCachePageRows;
    // As PagePool::find(): something must be left to compute, the token that the module's last row knows among it.
    if (end >= sequence.output.n_prompt()) return false;
    const PageStore::Name name = store_name(sequence, i);
    if (!options_.store->has(name)) return false;
    if (monotonic_s() > until_s) return true;
    const std::optional<PageId> page = pool_.take();
    if (!page) return false;
    if (!options_.store->read(name, {pool_.data(*page), static_cast<size_t>(pool_.page_bytes())})) {
      pool_.release(*page);
      return false;
    }
    add_page(sequence, *page);
    sequence.cache.length = end;
    if (drafts_) sequence.mtp_cache.length = end;
    share_pages(sequence);
    if (sequence.preempted) continue;
    sequence.output.result.cached_tokens += kCachePageRows;
    counts_.cached_tokens += kCachePageRows;
    counts_.loaded_tokens += kCachePageRows;
  }
  return false;
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
  if (options_.store != nullptr) {
    const double until_s = monotonic_s() + options_.pass_s;
    std::erase_if(reading, [&](Running* sequence) { return load_pages(*sequence, until_s); });
  }
  int64_t n_unread = 0;
  for (const Running* sequence : reading) n_unread += sequence->unread();
  PromptRoom room = pacing_.room(std::ssize(generating), n_unread, options_.pass_tokens);
  if (room.whole_only) {
    std::stable_sort(reading.begin(), reading.end(),
                     [](const Running* a, const Running* b) { return a->unread() < b->unread(); });
    const auto ends_later = [&, left = room.tokens](const Running* s) mutable { return (left -= s->unread()) < 0; };
    reading.erase(std::find_if(reading.begin(), reading.end(), ends_later), reading.end());
  }
  std::vector<Piece> pieces;
  const auto add = [&](Running* sequence, int64_t n) {
    const bool still_runs =
        std::any_of(running_.begin(), running_.end(), [&](const auto& s) { return s.get() == sequence; });
    const bool whole = n == sequence->unread();
    if (!whole) sequence->drafts.clear();
    const int64_t n_drafts = std::ssize(sequence->drafts);
    if (!still_runs || !make_room(*sequence, n + n_drafts)) return;
    pieces.push_back({sequence, n, n_drafts, whole});
  };
  for (Running* sequence : generating) add(sequence, std::min(sequence->unread(), options_.pass_tokens));
  for (const auto& [sequence, n] : shares_of(reading, room.tokens)) add(sequence, n);
  // Whoever was put back for the sake of one behind it in this list.
  std::erase_if(pieces, [](const Piece& piece) { return piece.sequence->pages.empty(); });
  return pieces;
}

// Pages of prompts alone, and those of which all is known: what a sequence generates it computes in another form than a
// prompt that repeats it.
void Batching::share_pages(Running& sequence) {
  const auto prompt = std::span<const int32_t>(sequence.request.prompt);
  const int64_t ahead = drafts_ ? 1 : 0;
  int64_t n_full = std::min(sequence.cache.length, sequence.output.n_prompt() - ahead) / kCachePageRows;
  if (sequence.drafts_wanted()) n_full = std::min(n_full, sequence.mtp_cache.length / kCachePageRows);
  for (int64_t& n = sequence.n_shared; n < n_full; ++n) {
    const auto i = static_cast<size_t>(n);
    const auto before = n > 0 ? std::optional(sequence.pages[i - 1]) : std::nullopt;
    const auto ids = prompt.subspan(i * kCachePageRows, static_cast<size_t>(kCachePageRows + ahead));
    sequence.pages[i] = pool_.share(sequence.request.cache_salt, before, ids, sequence.pages[i]);
    char* const data = pool_.data(sequence.pages[i]);
    if (options_.store != nullptr) {
      options_.store->write(store_name(sequence, i), {data, static_cast<size_t>(pool_.page_bytes())});
    }
    sequence.cache.pages[i] = data;
    if (drafts_) {
      sequence.mtp_cache.pages[i] = data + model_.config.num_hidden_layers * sequence.cache.layer_bytes;
    }
  }
}

// What was put back is read again without a word until there is more of it than before.
void Batching::tell_progress(Running& sequence) {
  const int64_t n_read = std::min(sequence.cache.length, sequence.output.n_prompt());
  const Generation& result = sequence.output.result;
  if (!sequence.request.on_progress || n_read <= sequence.n_told || n_read < result.cached_tokens) return;
  sequence.n_told = n_read;
  sequence.request.on_progress(
      {result.prompt_tokens, result.cached_tokens, n_read, monotonic_s() - sequence.admitted_s});
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
  const int64_t before = output.n_generated(), accepted = output.result.accepted;
  try {
    text = output.take(logits, sequence.drafts);
  } catch (const GrammarError& e) {
    error = e.what();
    output.result.refused = true;
  } catch (const BrokenLogits& e) {
    error = e.what();
    ++counts_.corrupted;
  } catch (const Error& e) {
    error = e.what();
  }
  counts_.generated_tokens += output.n_generated() - before;
  if (!sequence.drafts.empty()) ++counts_.drafts;
  counts_.drafted += std::ssize(sequence.drafts);
  counts_.accepted += output.result.accepted - accepted;
  for (int64_t i = 0; i < output.result.accepted - accepted; ++i) ++counts_.accepted_at[static_cast<size_t>(i)];
  sequence.drafts.clear();
  // The last token of the output has not been read, whether it was drafted or not.
  sequence.cache.length = std::min(sequence.cache.length, std::ssize(output.previous()) - 1);
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
  if (before == 0 && sequence.request.on_prompt && sequence.request.prompt_top_logprobs >= 0)
    sequence.request.on_prompt(output.result.prompt_logprobs);
  if (sequence.request.on_tokens && (!ids.empty() || !text.empty())) {
    take_times(sequence);
    sequence.request.on_tokens(text, ids, logprobs, timings_of(output.result));
  }
  sequence.ended = !goes_on;
  sequence.error = std::move(error);
}

void Batching::take_times(Running& sequence) const {
  Generation& result = sequence.output.result;
  const double now_s = monotonic_s(), first_s = result.ids.empty() ? now_s : sequence.first_token_s;
  result.prefill_s = first_s - sequence.start_s;
  result.decode_s = now_s - first_s;
}

void Batching::end(Running& sequence, const std::string& error) {
  take_times(sequence);
  release_pages(sequence);
  const std::unique_ptr<Running> ended = leave(sequence);
  if (ended->request.on_end) ended->request.on_end(ended->output.result, error);
}

bool Batching::step() {
  admit();
  const std::vector<Piece> pieces = next_pieces();
  for (const auto& sequence : running_) tell_progress(*sequence);  // what was found of prompts
  if (!pieces.empty()) {
    run(pieces);
  } else if (options_.together != nullptr) {
    options_.together->join_pass(ctx_);
    join_drafts();
  }
  return !running_.empty() || !waiting_.empty();
}

void Batching::fail_all(const std::string& error) {
  for (; !waiting_.empty(); waiting_.pop_front()) running_.push_back(std::move(waiting_.front()));
  while (!running_.empty()) end(*running_.front(), error);
}

Tensor Batching::read_module(Tensor hidden, std::span<const MtpPiece> pieces, size_t expand_from) {
  if (options_.together != nullptr) options_.together->any(true);
  return read_mtp(ctx_, model_, hidden, pieces, expand_from);
}

// As long as another process' module reads.
void Batching::join_drafts() {
  while (drafts_ && options_.together != nullptr && options_.together->any(false)) options_.together->join_module(ctx_);
}

// The module reads what the model has just read, and proposes what comes next: its cache is as long as the model's
// then. first_rows: where in `hidden` each piece begins; the first n_generating pieces generate.
void Batching::make_drafts(const std::vector<Piece>& pieces, const std::vector<int64_t>& first_rows, Tensor hidden,
                           size_t n_generating) {
  std::vector<MtpPiece> read;
  std::vector<Running*> drafting;
  std::vector<int32_t> last_rows;  // of those, in what the module returns
  size_t n_absorbed = 0;
  int64_t n_rows = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    Running& s = *pieces[i].sequence;
    if (!s.drafts_wanted()) continue;
    const std::vector<int32_t>& previous = s.output.previous();
    const int64_t from = s.mtp_cache.length, to = std::min(s.cache.length, std::ssize(previous) - 1);
    if (to <= from) continue;
    FATHOM_CHECK(from == s.first_position);
    const int64_t row = first_rows[i];
    read.push_back({&s.mtp_cache, row, {previous.begin() + from + 1, previous.begin() + to + 1}});
    if (i < n_generating) ++n_absorbed;
    n_rows += to - from;
    if (!pieces[i].whole || s.ended) continue;
    drafting.push_back(&s);
    last_rows.push_back(static_cast<int32_t>(n_rows - 1));
  }
  if (read.empty()) return;
  Tensor state = read_module(hidden, read, n_absorbed);
  if (drafting.empty() || std::ssize(drafting) > options_.draft_sequences) return;

  const auto wanted = [&](const Running& s) {
    const Output& output = s.output;
    const int64_t room =
        std::min(output.options().max_tokens - output.n_generated(), options_.context - s.cache.length) - 1;
    // Deeper proposals are rows of the module's cache until they are judged.
    return std::min(
        {output.options().draft_tokens, options_.draft_tokens, room, s.mtp_cache.capacity - s.cache.length + 1});
  };
  // Who has all that it wants reads nothing deeper: its cache may have no room.
  const auto drop_done = [&] {
    for (size_t i = drafting.size(); i-- > 0;) {
      if (std::ssize(drafting[i]->drafts) < wanted(*drafting[i])) continue;
      drafting.erase(drafting.begin() + static_cast<ptrdiff_t>(i));
      last_rows.erase(last_rows.begin() + static_cast<ptrdiff_t>(i));
    }
  };
  for (drop_done(); !drafting.empty();) {
    const Tensor logits = logits_of_rows(ctx_, model_, state, last_rows);
    for (size_t i = 0; i < drafting.size(); ++i) {
      Running& s = *drafting[i];
      std::vector<int32_t> previous = s.output.previous();
      for (const Draft& draft : s.drafts) previous.push_back(draft.id);
      const int64_t n_generated = s.output.n_generated() + std::ssize(s.drafts);
      const auto row = static_cast<int64_t>(i);
      Distribution q = distribution({logits.f32_row(row), static_cast<size_t>(logits.cols())}, previous, n_generated,
                                    s.output.options().sampler);
      const int32_t id = draw(q, s.output.rng());
      s.drafts.push_back({id, std::move(q)});
    }
    drop_done();
    if (drafting.empty()) break;
    std::vector<MtpPiece> deeper;
    for (size_t i = 0; i < drafting.size(); ++i) {
      deeper.push_back({&drafting[i]->mtp_cache, last_rows[i], {drafting[i]->drafts.back().id}});
    }
    state = read_module(state, deeper, kExpandNone);
    std::iota(last_rows.begin(), last_rows.end(), 0);
  }
  for (const Piece& piece : pieces) {
    Running& s = *piece.sequence;
    s.mtp_cache.length = std::min(s.mtp_cache.length, s.cache.length);
  }
}

void Batching::run(const std::vector<Piece>& pieces) {
  const double begin_s = monotonic_s();
  const ArenaScope scope(ctx_.arena);
  std::vector<std::vector<int32_t>> ids;
  std::vector<LatentCache*> caches;
  std::vector<int64_t> positions, first_rows;
  std::vector<int32_t> rows;  // whose logits are wanted
  size_t n_generating = 0;
  int64_t n_tokens = 0, n_prompt_tokens = 0;
  for (const auto& [sequence, n, n_drafts, whole] : pieces) {
    const auto next = sequence->output.previous().begin() + sequence->cache.length;
    std::vector<int32_t>& of_piece = ids.emplace_back(next, next + n);
    for (const Draft& draft : sequence->drafts) of_piece.push_back(draft.id);
    caches.push_back(&sequence->cache);
    positions.push_back(sequence->cache.length);
    sequence->first_position = sequence->cache.length;
    first_rows.push_back(n_tokens);
    n_tokens += n + n_drafts;
    for (int64_t row = n_tokens - n_drafts - 1; whole && sequence->output.goes_on() && row < n_tokens; ++row) {
      rows.push_back(static_cast<int32_t>(row));
    }
    if (sequence->reads_prompt()) {
      n_prompt_tokens += n;
    } else {
      ++n_generating;
    }
    ++sequence->output.result.main_passes;
  }
  // To which expert each row went: of all, and of those that generate for who asks.
  size_t moe_layer = 0;
  const LayerVisit count = [&](int64_t l, const LayerSaved& layer) {
    if (!layer.moe.topk_ids) return;
    std::vector<int64_t>& all = counts_.expert_tokens[static_cast<size_t>(l)];
    const std::span<const int32_t> ids_of_all(layer.moe.topk_ids.i32(),
                                              static_cast<size_t>(n_tokens * layer.moe.topk_ids.cols()));
    for (const int32_t e : ids_of_all) ++all[static_cast<size_t>(e)];
    for (size_t i = 0; i < n_generating; ++i) {
      if (!pieces[i].sequence->request.count_experts) continue;
      ExpertLoad& load = pieces[i].sequence->output.result.expert_load;
      if (load.size() <= moe_layer) load.emplace_back(static_cast<size_t>(model_.config.router.n_routed_experts));
      const int32_t* chosen = layer.moe.topk_ids.i32() + first_rows[i] * layer.moe.topk_ids.cols();
      for (int64_t k = 0; k < (pieces[i].n + pieces[i].n_drafts) * layer.moe.topk_ids.cols(); ++k)
        ++load[moe_layer][static_cast<size_t>(chosen[k])];
    }
    ++moe_layer;
  };
  const Tensor hidden = forward(ctx_, model_, make_batch(ctx_, ids, positions),
                                {.caches = caches, .expand_from = n_generating, .on_layer = &count});
  const Tensor logits = rows.empty() ? Tensor() : logits_of_rows(ctx_, model_, hidden, rows);
  pacing_.took(static_cast<int64_t>(n_generating), n_prompt_tokens, monotonic_s() - begin_s);
  ++counts_.passes;
  counts_.tokens.add(n_tokens);
  counts_.sequences.add(std::ssize(pieces));
  counts_.prompt_tokens += n_prompt_tokens;
  int64_t row = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [sequence, n, n_drafts, whole] = pieces[i];
    tell_progress(*sequence);
    if (sequence->wants_prompt_logprobs())
      take_prompt_logprobs(*sequence, positions[i], hidden.slice(first_rows[i], n));
    if (!whole) continue;
    if (sequence->output.goes_on()) {
      take_logits(*sequence, logits.slice(row, n_drafts + 1));
      row += n_drafts + 1;
    } else {  // nothing was to be generated
      sequence->ended = true;
    }
  }
  if (drafts_) make_drafts(pieces, first_rows, hidden, n_generating);
  join_drafts();
  for (const Piece& piece : pieces) {
    share_pages(*piece.sequence);
    if (piece.sequence->ended) end(*piece.sequence, piece.sequence->error);
  }
}

}  // namespace fathom
