#include "train/reading.h"

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "base/terminal.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// Of the data, before it is kept.
void check_length(const TrainOptions& o, int64_t n_ids) {
  for (const auto& [name, seq_len] :
       {std::pair("--seq-len", o.seq_len), std::pair("--extend-seq-len", o.extend_seq_len)}) {
    if (n_ids > seq_len) continue;
    throw Error("{}: the data has {} ids, a sequence of {} {} needs {}", printable(o.data[0].native()), n_ids, name,
                seq_len, seq_len + 1);
  }
}

Data open_data(const TrainOptions& o, const Tokenizer& tokenizer, ThreadPool& pool) {
  TokenizeOptions options;
  options.tokenizer_name = (o.tokenizer.empty() ? o.init : fs::path(o.tokenizer)).string();
  options.check = o.check;
  options.seed = o.seed;
  options.fim_rate = o.fim_rate;
  options.accept = [&](int64_t n_ids) { check_length(o, n_ids); };
  Data data{open_training_data(tokenizer, o.data, o.out / "data/train", options, pool), {}};
  if (o.val_data.empty()) return data;
  options.fim_rate = 0;
  options.accept = [&](int64_t n_ids) { sequential_windows(n_ids, o.seq_len); };
  data.val = open_training_data(tokenizer, o.val_data, o.out / "data/val", options, pool).ids;
  return data;
}

Phase make_phase(const TrainOptions& o, int64_t seq_len, const TokenIds& ids, const TokenIds& val_ids) {
  const int64_t micro_batch = (o.micro_batch > 0 ? o.micro_batch : o.batch_size) * o.seq_len / seq_len;
  Phase phase{seq_len, micro_batch, WindowSampler(ids.size(), seq_len, o.seed), {}};
  if (!o.val_data.empty()) phase.val_windows = sequential_windows(val_ids.size(), seq_len);
  return phase;
}

// Windows [first, first + n).
Examples cut_windows(const TokenIds& ids, int32_t separator, int64_t first, int64_t n,
                     const std::function<Window(int64_t)>& window) {
  Examples examples;
  std::vector<int32_t> of_window;
  for (int64_t i = first; i < first + n; ++i) {
    const Window w = window(i);
    of_window.resize(static_cast<size_t>(w.n_ids));
    ids.copy(w.start, of_window);
    add_window(examples, of_window, separator);
  }
  return examples;
}

}  // namespace

void check_fit(const TrainOptions& o, const ModelConfig& config, const Tokenizer& tokenizer) {
  if (tokenizer.vocab_size() > config.vocab_size) {
    throw Error("vocabulary mismatch: the tokenizer has {} ids and the model a vocab_size of {}; raise vocab_size",
                tokenizer.vocab_size(), config.vocab_size);
  }
  for (const auto& [name, seq_len] :
       {std::pair("--seq-len", o.seq_len), std::pair("--extend-seq-len", o.extend_seq_len)}) {
    if (seq_len > config.max_position_embeddings) {
      throw UsageError("{}: {} {} is above the model's max_position_embeddings {}", o.command, name, seq_len,
                       config.max_position_embeddings);
    }
  }
}

Reading::Sequences Reading::sequences(int64_t step) const {
  const int64_t to = phase(step).seq_len;
  return {(batch_sizes.before(step) * seq_len + to - 1) / to, batch_sizes.of(step) * seq_len / to};
}

Reading open_reading(const TrainOptions& o, const Tokenizer& tokenizer, ThreadPool& pool) {
  Reading reading{.data = open_data(o, tokenizer, pool),
                  .phases = {},
                  .extend_at = o.extend_at,
                  .seq_len = o.seq_len,
                  .steps = o.steps,
                  .val_sequences = o.val_sequences,
                  .batch_sizes = {o.batch_start, o.batch_size, o.batch_ramp, std::max<int64_t>(o.micro_batch, 1)},
                  .separator = o.mask_documents ? tokenizer.eos_id() : kNoSeparator};
  const TokenIds &ids = reading.data.train.ids, &val_ids = reading.data.val;
  reading.phases.push_back(make_phase(o, o.seq_len, ids, val_ids));
  if (o.extend_seq_len > 0) reading.phases.push_back(make_phase(o, o.extend_seq_len, ids, val_ids));
  return reading;
}

Settings settings_of(const Reading& reading) {
  const DatasetInfo& data = reading.data.train.info;
  return {{"data", fmt::format("{} ids, xxh3 {:016x}", data.n_tokens, data.ids_xxh3)}};
}

int64_t count_micro_batches(const Reading& reading, int64_t step) {
  const int64_t size = reading.phase(step).micro_batch;
  return (reading.sequences(step).n + size - 1) / size;
}

std::vector<Examples> step_examples(const Reading& reading, int64_t step) {
  std::vector<Examples> parts;
  const Phase& phase = reading.phase(step);
  const Reading::Sequences all = reading.sequences(step);
  const auto window = [&](int64_t i) { return Window{phase.sampler.start(all.first + i), phase.seq_len + 1}; };
  for (int64_t first = 0; first < all.n; first += phase.micro_batch) {
    parts.push_back(cut_windows(reading.data.train.ids, reading.separator, first,
                                std::min(phase.micro_batch, all.n - first), window));
  }
  return parts;
}

void for_each_validation(const Reading& reading, int64_t step, const std::function<void(const Examples&)>& visit) {
  const Phase& phase = reading.phase(step);
  const auto n = static_cast<int64_t>(phase.val_windows.size());
  const int64_t limit = reading.val_sequences;
  const int64_t used = step == reading.steps || limit == 0 ? n : std::min(n, limit);
  const auto window = [&](int64_t i) { return phase.val_windows[static_cast<size_t>(i * n / used)]; };
  for (int64_t first = 0; first < used; first += phase.micro_batch) {
    visit(cut_windows(reading.data.val, reading.separator, first, std::min(phase.micro_batch, used - first), window));
  }
}

ExampleSource open_text(const TrainOptions& options, const Tokenizer& tokenizer, ThreadPool& pool) {
  const auto reading = std::make_shared<const Reading>(open_reading(options, tokenizer, pool));
  ExampleSource source;
  source.examples = [reading](Context&, const Model&, int64_t step) { return step_examples(*reading, step); };
  if (!options.val_data.empty()) {
    source.validation = [reading](int64_t step, const std::function<void(const Examples&)>& visit) {
      for_each_validation(*reading, step, visit);
    };
  }
  source.settings = settings_of(*reading);
  source.contents = fmt::format("{} tokens of text", human_count(static_cast<double>(reading->data.train.ids.size())));
  return source;
}

}  // namespace fathom
