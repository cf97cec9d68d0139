// Many requests generated together: every pass gives each sequence that generates its next token and reads a piece of
// the prompts that wait ("continuous batching", "chunked prefill"). Caches lie in pages, which requests that begin
// alike share. A request's tokens are those that generate() gives it alone, whatever runs beside it: prompts are read
// in the expanded form of attention and output in the absorbed one, always, and no operator mixes the rows of a pass.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "infer/draft.h"
#include "infer/output.h"
#include "infer/pacing.h"
#include "infer/page_pool.h"
#include "infer/page_store.h"

namespace fathom {

// Where the experts of a model are spread over processes, each of which has sequences of its own, they run their passes
// together (parallel/spread_experts.h): who has nothing to compute in one joins it.
struct PassesTogether {
  std::function<void(Context&ctx)> join_pass, join_module;  // of the model; of its first MTP module
  std::function<bool(bool mine)> any;                       // whether it is so in any process
};

struct BatchingOptions {
  int64_t max_sequences = 64;       // at a time
  int64_t pass_tokens = 512;        // of prompts in a pass at most
  double pass_s = 0.25;             // beside sequences that generate a pass with prompts takes about so long,
  double long_pass_s = 2;           // and now and then so long (pacing.h)
  int64_t cache_tokens = 64 << 10;  // that all caches hold together
  int64_t context = 32 << 10;       // tokens of one sequence at most
  Format kv_type = Format::f32;
  int64_t draft_tokens = 0;     // that the MTP module may propose for a sequence and pass; 0, or no module: none
  int64_t draft_sequences = 4;  // no drafts while more generate: passes are not worth saving then
  PageStore* store = nullptr;   // for prompts longer than memory or the program lasts; of page_bytes()
  const PassesTogether* together = nullptr;
};

// Of a sequence so far, or of its end.
struct Timings {
  int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0, drafted = 0, accepted = 0;
  double queue_s = 0, prefill_s = 0, decode_s = 0;  // as Generation's
};
Timings timings_of(const Generation& generation);

// How far a prompt has been read.
struct PromptProgress {
  int64_t total = 0, cached = 0, read = 0;  // tokens; read: of `total`, those found in the cache included
  double seconds = 0;                       // since it was begun
};

struct BatchRequest {
  std::vector<int32_t> prompt;
  GenerationOptions options;  // max_tokens may be 0. With drafts the same distribution, and when greedy the same tokens
  std::string cache_salt;     // only requests with the same share pages
  std::string owner{};        // who asks, and
  int64_t group = 0;          // with which request: those of whom less runs go first
  bool count_experts = false;        // tell which the output used
  int64_t prompt_top_logprobs = -1;  // >= 0: as options.top_logprobs, of the prompt; all of it is computed then
  // In front of the first tokens, where the prompt's log probabilities are asked for: those from its second token on.
  std::function<void(std::span<const TokenLogprobs> logprobs)> on_prompt{};
  // Once its reading begins, and behind each pass that read more of the prompt.
  std::function<void(const PromptProgress& progress)> on_progress{};
  // Behind each pass that gave tokens: what may be shown of them, the tokens, and their log probabilities if asked for.
  std::function<void(std::string_view text, std::span<const int32_t> ids, std::span<const TokenLogprobs> logprobs,
                     const Timings& timings)>
      on_tokens;
  // Once, unless the request was cancelled: the whole, or why it failed.
  std::function<void(const Generation& result, const std::string& error)> on_end;
};

// By what files of a request's pages are found: its first page, that and the second, ... Of all that may be shared.
// drafts: whether a module drafts for requests that want it.
std::vector<PageStore::Name> page_names(const PageStore& store, const BatchRequest& request, bool drafts);

// How many of something passes had: [i] no more than 2^i and more than 2^(i - 1), the last any more.
struct PassSizes {
  std::array<int64_t, 17> counts{};
  int64_t sum = 0;
  void add(int64_t n);
};

// Since the beginning.
struct PassCounts {
  int64_t passes = 0;
  PassSizes tokens, sequences;                   // of a pass
  int64_t asked_tokens = 0;                      // of prompts, each once
  int64_t prompt_tokens = 0, cached_tokens = 0;  // computed; found in shared pages
  int64_t loaded_tokens = 0;                     // of the found: in files
  int64_t generated_tokens = 0;
  int64_t drafts = 0, drafted = 0, accepted = 0;  // times that something was proposed; tokens
  std::vector<int64_t> accepted_at{};             // [place in its draft]
  int64_t corrupted = 0;                          // outputs that ended since logits were not finite
  ExpertLoad expert_tokens{};                     // [layer][expert], nothing for layers without experts
};

// Not thread-safe, and its functions are not to be called from the callbacks.
class Batching {
 public:
  using Id = int64_t;

  // tokenizer may be null, as for generate().
  Batching(Context& ctx, const Model& model, const Tokenizer* tokenizer, const BatchingOptions& options);
  ~Batching();

  // Error for a prompt that cannot be read.
  Id add(BatchRequest request);
  void cancel(Id id);  // nothing where it has ended
  // One pass. Returns whether there is more to do. What it throws (a file of the model that cannot be read any more, no
  // memory) leaves all requests where they cannot go on: fail_all() is due then. With `together` all processes call it
  // as often, whether they have something to do or not, and none can go on without the others.
  bool step();
  void fail_all(const std::string& error);

  int64_t n_running() const { return std::ssize(running_); }
  int64_t n_waiting() const { return std::ssize(waiting_); }
  int64_t n_preempted() const { return n_preempted_; }
  const PassCounts& counts() const { return counts_; }
  int64_t context() const { return options_.context; }  // as far as the model and the pages go
  const PagePool& pages() const { return pool_; }
  static int64_t page_bytes(const Model& model, const BatchingOptions& options);

 private:
  struct Running;
  struct Piece {
    Running* sequence;
    int64_t n;         // tokens read in this pass
    int64_t n_drafts;  // and behind them
    bool whole;        // to the end: logits are wanted
  };

  // for_others_place: all are taken; of a request of which nothing runs, and of none of these owners.
  std::deque<std::unique_ptr<Running>>::iterator next_waiting(bool for_others_place,
                                                              const std::set<std::string>& not_of);
  void admit();
  // done: moved to running_; later: somebody reads its prompt already.
  enum class Admission { done, later, no_room };
  Admission admit(std::unique_ptr<Running>& sequence);
  struct Shares;
  bool give_way_to(const Running& waiting);
  bool is_read_already(const Running& sequence, int64_t n_found) const;
  void add_page(Running& sequence, PageId page);
  bool load_pages(Running& sequence, double until_s);
  const PageStore::Name& store_name(Running& sequence, size_t page);
  static std::vector<std::pair<Running*, int64_t>> shares_of(const std::vector<Running*>& reading, int64_t room);
  std::vector<Piece> next_pieces();
  void run(const std::vector<Piece>& pieces);
  bool make_room(Running& sequence, int64_t n);  // false: the sequence itself has been put back
  void put_back(Running& sequence);
  std::unique_ptr<Running> leave(const Running& sequence);  // running_
  void share_pages(Running& sequence);
  static void tell_progress(Running& sequence);
  void take_prompt_logprobs(Running& sequence, int64_t first_position, Tensor hidden);
  void take_logits(Running& sequence, Tensor logits);
  void make_drafts(const std::vector<Piece>& pieces, const std::vector<int64_t>& first_rows, Tensor hidden,
                   size_t n_generating);
  Tensor read_module(Tensor hidden, std::span<const MtpPiece> pieces, size_t expand_from);
  void join_drafts();
  void take_times(Running& sequence) const;
  void end(Running& sequence, const std::string& error);  // the sequence is gone then
  void release_pages(Running& sequence);

  Context& ctx_;
  const Model& model_;
  const Tokenizer* tokenizer_;
  BatchingOptions options_;
  const bool drafts_;
  Pacing pacing_;
  PagePool pool_;
  std::deque<std::unique_ptr<Running>> waiting_;  // the next first
  std::list<std::unique_ptr<Running>> running_;   // the oldest first
  std::map<int64_t, int64_t> admitted_of_group_;  // and of the owner: as long as some of theirs wait
  std::map<std::string, int64_t> admitted_of_owner_;
  Id n_added_ = 0;
  int64_t n_preempted_ = 0;
  PassCounts counts_;
};

}  // namespace fathom
