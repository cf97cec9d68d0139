#include "tune/sft.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "base/checksum.h"
#include "base/terminal.h"
#include "checkpoint/hf_config.h"
#include "ops/cross_entropy.h"
#include "text/documents.h"
#include "train/reading.h"
#include "train/step.h"
#include "train/teacher_logits.h"
#include "tune/packing.h"

namespace fathom::tune {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kDefaultSeqLen = 4096;
constexpr uint64_t kPackStream = 0x5F700000;  // of the seed, one an epoch
constexpr int64_t kLinesPerThread = 64;

// Clips what is longer than `limit` ids. False where nothing is left to learn.
bool cut(TrainingSequence& sequence, int64_t limit) {
  sequence.ids.resize(static_cast<size_t>(limit));
  std::erase_if(sequence.spans, [&](const auto& span) { return span.begin >= limit; });
  for (auto& span : sequence.spans) span.end = std::min(span.end, limit);
  return !sequence.spans.empty();
}

void append(TrainingSet& set, const TrainingSequence& sequence) {
  set.sequences.push_back(
      {std::ssize(set.ids), std::ssize(sequence.ids), std::ssize(set.spans), std::ssize(sequence.spans)});
  set.ids.insert(set.ids.end(), sequence.ids.begin(), sequence.ids.end());
  set.spans.insert(set.spans.end(), sequence.spans.begin(), sequence.spans.end());
  ++set.counts.sequences;
  set.counts.tokens += std::ssize(sequence.ids);
  for (const auto& span : sequence.spans) set.counts.trained_tokens += span.end - std::max<int64_t>(span.begin, 1);
}

// Of one line.
struct Encoded {
  std::vector<TrainingSequence> sequences;
  std::string error;
};

void add(TrainingSet& set, Encoded encoded, const std::string& where, const SftOptions& o) {
  if (!encoded.error.empty()) {
    if (set.counts.bad == o.skip_bad) throw Error("{}", encoded.error);
    ++set.counts.bad;
    log("{}; passed over", encoded.error);
    return;
  }
  ++set.counts.conversations;
  if (encoded.sequences.empty()) ++set.counts.without_answer;
  for (TrainingSequence& sequence : encoded.sequences) {
    const int64_t limit = o.train.seq_len, n = std::ssize(sequence.ids);
    if (n <= limit) {
      append(set, sequence);
      continue;
    }
    if (o.too_long == TooLong::refuse) {
      throw Error("{}: has {} tokens, --seq-len is {}; give a greater one, or --too-long drop or cut", where, n, limit);
    }
    if (o.too_long == TooLong::cut && cut(sequence, limit)) {
      ++set.counts.cut;
      append(set, sequence);
    } else {
      ++set.counts.dropped;
    }
  }
}

// The rows of one epoch after the other.
class Rows {
 public:
  Rows(const TrainingSet& set, int64_t room, bool packs, uint64_t seed) : room_(room), packs_(packs), seed_(seed) {
    for (const auto& sequence : set.sequences) lengths_.push_back(sequence.n_ids);
    begin_epoch(0);
  }
  int64_t per_epoch() const { return std::ssize(rows_); }
  // Row i, counted over all epochs.
  const std::vector<int64_t>& row(int64_t i) {
    if (i / per_epoch() != epoch_) begin_epoch(i / per_epoch());
    return rows_[static_cast<size_t>(i % per_epoch())];
  }

 private:
  void begin_epoch(int64_t epoch) {
    Rng rng(seed_, kPackStream + static_cast<uint64_t>(epoch));
    epoch_ = epoch;
    rows_ = packs_ ? pack_best_fit(lengths_, room_, rng) : rows_of_one(std::ssize(lengths_), rng);
  }
  std::vector<int64_t> lengths_;
  int64_t room_;
  bool packs_;
  uint64_t seed_;
  int64_t epoch_ = -1;
  std::vector<std::vector<int64_t>> rows_;
};

// What the source of a run holds.
struct Material {
  TrainingSet train, val;
  Rows rows;
  std::vector<std::vector<int64_t>> val_rows;
  int64_t total_rows;  // of all epochs; 0: no end
  int64_t batch_size, micro_batch, steps, val_sequences;

  std::pair<int64_t, int64_t> rows_of_step(int64_t step) const {
    const int64_t first = (step - 1) * batch_size, end = first + batch_size;
    return {first, total_rows > 0 ? std::clamp(total_rows, first + 1, end) : end};
  }
};

std::vector<Examples> step_examples(Material& m, int64_t step) {
  const auto [first, end] = m.rows_of_step(step);
  std::vector<Examples> parts;
  for (int64_t i = first; i < end; ++i) {
    if ((i - first) % m.micro_batch == 0) parts.emplace_back();
    for (const int64_t sequence : m.rows.row(i)) m.train.add_to(parts.back(), sequence);
  }
  return parts;
}

void visit_validation(const Material& m, int64_t step, const std::function<void(const Examples&)>& visit) {
  const int64_t n = std::ssize(m.val_rows);
  const int64_t used = step == m.steps || m.val_sequences == 0 ? n : std::min(n, m.val_sequences);
  for (int64_t first = 0; first < used; first += m.micro_batch) {
    Examples part;
    for (int64_t i = first; i < std::min(first + m.micro_batch, used); ++i) {
      for (const int64_t sequence : m.val_rows[static_cast<size_t>(i * n / used)]) m.val.add_to(part, sequence);
    }
    visit(part);
  }
}

ExampleSource source_of(const std::shared_ptr<Material>& material, const SftOptions& o) {
  ExampleSource source;
  source.examples = [material](Context&, const Model&, int64_t step) { return step_examples(*material, step); };
  if (!material->val_rows.empty()) {
    source.validation = [material](int64_t step, const std::function<void(const Examples&)>& visit) {
      visit_validation(*material, step, visit);
    };
  }
  const SftCounts& counts = material->train.counts;
  source.settings = {{"data", fmt::format("{} sequences of conversations, {} ids, xxh3 {:016x}", counts.sequences,
                                          counts.tokens, material->train.checksum())},
                     {"packing", o.packs ? "best-fit" : "none"}};
  source.contents =
      fmt::format("{} tokens of {} conversations, {} of them to learn", human_count(static_cast<double>(counts.tokens)),
                  counts.conversations, human_count(static_cast<double>(counts.trained_tokens)));
  source.describe = [material](StepMetrics& m) {
    const int64_t done = material->rows_of_step(m.step).second;
    m.of_source.emplace_back("epoch", static_cast<double>(done) / static_cast<double>(material->rows.per_epoch()));
  };
  return source;
}

void tell_counts(const SftCounts& c, const fs::path& data) {
  const std::string name = printable(data.native());
  if (c.cut > 0) log("{}: {} of {} sequences were longer than --seq-len and are cut", name, c.cut, c.sequences);
  if (c.dropped > 0) log("{}: {} sequences were longer than --seq-len and are left out", name, c.dropped);
  if (c.without_answer > 0) log("{}: {} conversations have no answer to learn", name, c.without_answer);
}

TrainingSet read_all(const std::vector<fs::path>& data, const Tokenizer& tokenizer,
                     const ConversationTemplate& told_with, const SftOptions& o, ThreadPool& pool) {
  TrainingSet set = read_training_set(data, tokenizer, told_with, o, pool);
  tell_counts(set.counts, data[0]);
  if (set.sequences.empty()) {
    throw Error(
        "{}: nothing is left to learn from: of {} conversations {} have no answer to learn, {} sequences are "
        "longer than --seq-len {}",
        printable(data[0].native()), set.counts.conversations, set.counts.without_answer, set.counts.dropped,
        o.train.seq_len);
  }
  return set;
}

// What the answers end with, in the model that is made.
std::vector<int32_t> end_ids(const ModelConfig& config, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  if (tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());
  for (const int32_t id : config.eos_token_ids) {
    const bool is_known = id >= 0 && id < tokenizer.vocab_size() && !tokenizer.token_bytes(id).empty();
    if (is_known && std::ranges::find(ids, id) == ids.end()) ids.push_back(id);
  }
  if (ids.empty()) throw Error("sft: the tokenizer has no end token, so that no answer could end");
  return ids;
}

// The number of steps, once the rows are known.
void set_steps(TrainOptions& o, const SftOptions& given, Material& m) {
  if (given.train.steps == 0) {
    const double rows = std::ceil(given.epochs * static_cast<double>(m.rows.per_epoch()) - 1e-9);
    m.total_rows = std::max<int64_t>(1, static_cast<int64_t>(rows));
    o.steps = (m.total_rows + o.batch_size - 1) / o.batch_size;
  }
  m.steps = o.steps;
}

// What can be refused before anything is read.
void check_before(const SftOptions& given, TrainOptions o) {
  constexpr int64_t kMostSteps = int64_t{1} << 31;
  if (o.steps == 0) o.steps = kMostSteps;
  if (!(given.epochs > 0 && given.epochs <= 1e6)) {
    throw UsageError("sft: --epochs is {}, must be above 0 and at most 10^6", given.epochs);
  }
  if (o.device != nullptr && !given.teacher.logits.empty()) {
    throw UsageError("sft: --teacher-logits are learned on the CPU alone so far: leave --device out");
  }
  check_options(o);
  check_files(o);
}

// What options leave open.
SftOptions completed(SftOptions options) {
  TrainOptions& o = options.train;
  o.command = "sft";
  if (o.micro_batch == 0) o.micro_batch = 1;
  if (o.seq_len == 0) {
    const int64_t longest = o.init.empty() && o.model_config.empty()
                                ? kDefaultSeqLen
                                : read_model_config(o.init.empty() ? o.model_config : o.init).max_position_embeddings;
    o.seq_len = std::min(kDefaultSeqLen, longest);
  }
  return options;
}

// What conversations of a run are told with.
struct Told {
  Tokenizer tokenizer;
  ConversationTemplate with;
};
Told told_of(const SftOptions& options) {
  const TrainOptions& o = options.train;
  Tokenizer tokenizer = Tokenizer::load(o.tokenizer.empty() ? o.init : fs::path(o.tokenizer));
  if (o.chat_template) tokenizer.set_chat_template(*o.chat_template);
  const ModelConfig config = trained_config(o, tokenizer);
  check_fit(o, config, tokenizer);
  ConversationTemplate with{
      options.chat_template, {}, end_ids(config, tokenizer), options.thinking, options.only_last_answer};
  if (tokenizer.bos_id() >= 0) with.chat.bos_token = tokenizer.token_bytes(tokenizer.bos_id());
  if (tokenizer.eos_id() >= 0) with.chat.eos_token = tokenizer.token_bytes(tokenizer.eos_id());
  return {std::move(tokenizer), std::move(with)};
}

// A source whose examples say what a teacher says of them, too.
ExampleSource taught(ExampleSource source, const std::shared_ptr<const TeacherLogits>& teacher,
                     const TeacherOptions& o) {
  source.settings["teacher logits"] = fmt::format("{} of {} sequences, k {}, xxh3 {:016x}", teacher->info().teacher,
                                                  teacher->n_sequences(), teacher->info().k, teacher->checksum());
  source.settings["distill weight"] = fmt::format("{}", o.weight);
  source.settings["distill temperature"] = fmt::format("{}", o.temperature);
  source.contents +=
      fmt::format(", with {} likeliest tokens by {}", teacher->info().k, printable(teacher->info().teacher));
  source.examples = [examples = std::move(source.examples), teacher, o](Context& ctx, const Model& model,
                                                                        int64_t step) {
    std::vector<Examples> parts = examples(ctx, model, step);
    for (Examples& part : parts) teacher->teach(part, o.temperature, o.weight);
    return parts;
  };
  return source;
}

// Opened before anything is trained, and asked for every sequence.
std::shared_ptr<const TeacherLogits> open_teacher(const TeacherOptions& o, const Tokenizer& tokenizer,
                                                  const TrainingSet& set) {
  if (o.logits.empty()) return nullptr;
  if (!(o.weight >= 0 && o.weight <= 1)) {
    throw UsageError("sft: --distill-weight is {}, must be between 0 and 1", o.weight);
  }
  auto teacher = std::make_shared<const TeacherLogits>(o.logits, tokenizer);
  for (int64_t s = 0; s < std::ssize(set.sequences); ++s) {
    Examples one;
    set.add_to(one, s);
    teacher->teach(one, o.temperature, o.weight);
  }
  return teacher;
}

}  // namespace

TooLong too_long_named(const std::string& name) {
  if (name == "drop") return TooLong::drop;
  if (name == "cut") return TooLong::cut;
  if (name == "error") return TooLong::refuse;
  throw UsageError("sft: --too-long {}: must be drop, cut or error", printable(name));
}

void TrainingSet::add_to(Examples& examples, int64_t sequence) const {
  const Sequence& s = sequences[static_cast<size_t>(sequence)];
  const auto first = ids.begin() + s.begin;
  examples.sequences.emplace_back(first, first + s.n_ids);
  const auto at = std::ssize(examples.next);
  examples.next.resize(static_cast<size_t>(at + s.n_ids), kNoTarget);
  for (int64_t i = s.first_span; i < s.first_span + s.n_spans; ++i) {
    const TrainingSequence::Span& span = spans[static_cast<size_t>(i)];
    for (int64_t t = std::max<int64_t>(span.begin, 1); t < span.end; ++t) {
      examples.next[static_cast<size_t>(at + t - 1)] = *(first + t);
      ++examples.n_main;
    }
  }
}

uint64_t TrainingSet::checksum() const {
  Xxh3 sum;
  const auto update = [&](const auto& items) { sum.update(items.data(), items.size() * sizeof(items[0])); };
  update(ids);
  update(sequences);
  update(spans);
  return sum.value();
}

TrainingSet read_training_set(std::span<const fs::path> data, const Tokenizer& tokenizer,
                              const ConversationTemplate& told_with, const SftOptions& options, ThreadPool& pool) {
  const std::string untellable = told_with.chat_template.empty()
                                     ? "has messages, and the model no chat template: give one with --template FILE"
                                     : why_deaf(told_with.chat_template, told_with.chat);
  TrainingSet set;
  DocumentReader reader(find_text_files(data));
  Progress progress("reading conversations", static_cast<int64_t>(reader.bytes_total()));
  std::vector<Document> lines;
  for (bool more = true; more;) {
    if (options.train.check) options.train.check();
    lines.clear();
    const auto most = static_cast<size_t>(kLinesPerThread * pool.size());
    for (Document line; lines.size() < most && (more = reader.next_line(line));) lines.push_back(std::move(line));
    std::vector<Encoded> encoded(lines.size());
    pool.run(std::ssize(lines), [&](int64_t i, int) {
      const Document& line = lines[static_cast<size_t>(i)];
      Encoded& of_line = encoded[static_cast<size_t>(i)];
      try {
        const TrainingConversation conversation = parse_conversation(line.text, line.where);
        try {
          if (!conversation.prompt && !untellable.empty()) throw Error("{}", untellable);
          of_line.sequences = encode_conversation(tokenizer, told_with, conversation);
        } catch (const Error& error) {
          throw Error("{}: {}", line.where, error.what());
        }
      } catch (const Error& error) {
        of_line.error = error.what();
      }
    });
    for (size_t i = 0; i < lines.size(); ++i) add(set, std::move(encoded[i]), lines[i].where, options);
    progress.update(static_cast<int64_t>(reader.bytes_read()));
  }
  progress.finish();
  return set;
}

void check_sft_options(const SftOptions& given) {
  const SftOptions options = completed(given);
  check_before(options, options.train);
}

LearnedData read_learned_data(const SftOptions& given, ThreadPool& pool) {
  const SftOptions options = completed(given);
  Told told = told_of(options);
  TrainingSet set = read_all(options.train.data, told.tokenizer, told.with, options, pool);
  return {std::move(told.tokenizer), std::move(set)};
}

SftResult fine_tune(const SftOptions& given, ThreadPool& pool, const std::function<bool()>& stop_requested) {
  SftOptions options = completed(given);
  TrainOptions& o = options.train;
  check_before(options, o);
  const Told told = told_of(options);
  const Tokenizer& tokenizer = told.tokenizer;
  const ConversationTemplate& told_with = told.with;
  if (o.sample_every > 0 && !options.chat_template.empty() && o.prompt_ids.empty()) {
    ChatOptions chat = told_with.chat;
    if (options.thinking) chat.kwargs["thinking"] = chat.kwargs["enable_thinking"] = *options.thinking;
    o.prompt_ids = encode_chat(tokenizer, options.chat_template,
                               nlohmann::ordered_json::array({{{"role", "user"}, {"content", o.prompt}}}), chat)
                       .ids;
  }

  TrainingSet train_set = read_all(o.data, tokenizer, told_with, options, pool);
  TrainingSet val_set;
  std::vector<std::vector<int64_t>> val_rows;
  if (!o.val_data.empty()) {
    val_set = read_all(o.val_data, tokenizer, told_with, options, pool);
    Rows rows(val_set, o.seq_len, options.packs, 0);
    for (int64_t i = 0; i < rows.per_epoch(); ++i) val_rows.push_back(rows.row(i));
  }
  const std::shared_ptr<const TeacherLogits> teacher = open_teacher(options.teacher, tokenizer, train_set);
  Rows rows(train_set, o.seq_len, options.packs, o.seed);
  const auto material = std::make_shared<Material>(Material{.train = std::move(train_set),
                                                            .val = std::move(val_set),
                                                            .rows = std::move(rows),
                                                            .val_rows = std::move(val_rows),
                                                            .total_rows = 0,
                                                            .batch_size = o.batch_size,
                                                            .micro_batch = o.micro_batch,
                                                            .steps = 0,
                                                            .val_sequences = o.val_sequences});
  set_steps(o, given, *material);
  SftResult result;
  result.counts = material->train.counts;
  result.counts.rows = material->rows.per_epoch();
  result.steps = o.steps;
  log("{} conversations make {} sequences in {} rows of up to {} tokens: {} steps of {} rows",
      result.counts.conversations, result.counts.sequences, result.counts.rows, o.seq_len, o.steps, o.batch_size);
  const OpenSource open = [&](const TrainOptions&, const ModelConfig&, const Tokenizer&, ThreadPool&) {
    ExampleSource source = source_of(material, options);
    return teacher ? taught(std::move(source), teacher, options.teacher) : source;
  };
  result.train = train(o, open, pool, stop_requested);
  return result;
}

}  // namespace fathom::tune
