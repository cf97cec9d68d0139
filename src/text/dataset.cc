#include "text/dataset.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/rng.h"
#include "base/terminal.h"
#include "text/fim.h"

namespace fathom {
namespace {

constexpr uint64_t kShuffleStream = 0x77696e646f7773;  // apart from all other uses of the seed

constexpr size_t kBatchBytesPerThread = size_t{1} << 20;
constexpr size_t kMinBatchBytes = size_t{4} << 20;

// Documents that are encoded together.
struct Batch {
  std::vector<Document> documents;
  uint64_t bytes_read = 0;
};

Batch read_batch(DocumentReader& reader, size_t bytes) {
  Batch batch;
  Document document;
  for (size_t read = 0; read < bytes && reader.next(document);) {
    read += document.text.size() + sizeof(Document);
    batch.documents.push_back(std::move(document));
  }
  batch.bytes_read = reader.bytes_read();
  return batch;
}

// As dataset.json names them.
std::vector<TextFile> sources_of(std::vector<TextFile> files) {
  constexpr size_t kLongestPath = 1 << 16;
  for (TextFile& file : files) file.path = printable(file.path.native(), kLongestPath);
  return files;
}

DatasetInfo info_before_tokenizing(const Tokenizer& tokenizer, const std::vector<TextFile>& files,
                                   const TokenizeOptions& options) {
  DatasetInfo info = dataset_for(tokenizer, options.tokenizer_name);
  info.fim_rate = options.fim_rate;
  info.fim_seed = options.fim_rate > 0 ? options.seed : 0;
  info.sources = sources_of(files);
  return info;
}

// The dataset in `directory` if it is whole, and what tokenizing would make.
std::optional<TokenDataset> reuse(const DatasetInfo& wanted, const std::filesystem::path& directory, ThreadPool& pool) {
  if (!is_token_dataset(directory)) return std::nullopt;
  try {
    const DatasetInfo made = read_dataset_info(directory);
    const bool same = made.tokenizer_xxh3 == wanted.tokenizer_xxh3 && made.vocab_size == wanted.vocab_size &&
                      made.eos_id == wanted.eos_id && made.fim_rate == wanted.fim_rate &&
                      made.fim_seed == wanted.fim_seed && made.sources == wanted.sources;
    if (same) return open_token_dataset(directory, pool);
    log("{}: was made of other text or with other options; the text is tokenized again", printable(directory.native()));
  } catch (const Error& error) {
    log("{}; the text is tokenized again", error.what());
  }
  return std::nullopt;
}

// A permutation of [0, n) that needs no table: four Feistel rounds over the next power of four, walked until inside.
class Permutation {
 public:
  Permutation(uint64_t n, Rng& rng) : n_(n) {
    while (uint64_t{1} << (2 * half_bits_) < n) ++half_bits_;
    for (uint64_t& key : keys_) key = rng.next();
  }
  uint64_t operator()(uint64_t i) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    do {
      uint64_t left = i >> half_bits_, right = i & mask;
      for (const uint64_t key : keys_) {
        const uint64_t mixed = left ^ (mix(right ^ key) & mask);
        left = right;
        right = mixed;
      }
      i = left << half_bits_ | right;
    } while (i >= n_);
    return i;
  }

 private:
  static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
  }
  uint64_t n_;
  unsigned half_bits_ = 0;
  std::array<uint64_t, 4> keys_{};
};

}  // namespace

DatasetInfo tokenize_files(const Tokenizer& tokenizer, const std::vector<TextFile>& files,
                           const std::filesystem::path& directory, const TokenizeOptions& options, ThreadPool& pool) {
  const Fim fim(tokenizer, options.fim_rate, options.seed);
  DatasetWriter writer(directory, info_before_tokenizing(tokenizer, files, options), options.max_shard_bytes);
  DocumentReader reader(files, options.limits);
  const size_t batch_bytes = std::max(kMinBatchBytes, kBatchBytesPerThread * static_cast<size_t>(pool.size()));
  Progress progress("tokenizing", static_cast<int64_t>(reader.bytes_total()));
  Batch batch = read_batch(reader, batch_bytes), next;
  while (!batch.documents.empty()) {
    if (options.check) options.check();
    std::vector<std::vector<int32_t>> ids(batch.documents.size());
    // Beside the encoding one thread reads on.
    pool.run(static_cast<int64_t>(ids.size()) + 1, [&](int64_t i, int) {
      if (i == 0) {
        next = read_batch(reader, batch_bytes);
        return;
      }
      const auto at = static_cast<size_t>(i - 1);
      const Document& document = batch.documents[at];
      ids[at] = errors_at(document.where,
                          [&] { return fim.encode(tokenizer, document.text, writer.info().n_documents + i - 1); });
      if (tokenizer.eos_id() >= 0) ids[at].push_back(tokenizer.eos_id());
    });
    for (const std::vector<int32_t>& document : ids) writer.append(document);
    if (!next.documents.empty()) {  // else what becomes of it is told
      progress.update(static_cast<int64_t>(batch.bytes_read),
                      human_count(static_cast<double>(writer.info().n_tokens)) + " tokens");
    }
    batch = std::exchange(next, {});
  }
  progress.finish();
  if (options.accept) options.accept(writer.info().n_tokens);
  return writer.commit();
}

TokenDataset open_training_data(const Tokenizer& tokenizer, std::span<const std::filesystem::path> data,
                                const std::filesystem::path& kept, const TokenizeOptions& options, ThreadPool& pool) {
  if (data.size() == 1 && is_token_dataset(data[0])) {
    const std::string name = printable(data[0].native());
    TokenDataset dataset = open_token_dataset(data[0], pool);
    check_tokenizer(dataset.info, tokenizer, name);
    if (options.fim_rate > 0 && options.fim_rate != dataset.info.fim_rate) {
      throw UsageError("--fim-rate {}: {} is tokenized, with a rate of {}; leave the option out, or make it anew",
                       options.fim_rate, name, dataset.info.fim_rate);
    }
    if (options.accept) options.accept(dataset.info.n_tokens);
    return dataset;
  }
  const std::vector<TextFile> files = find_text_files(data);
  if (std::optional<TokenDataset> made = reuse(info_before_tokenizing(tokenizer, files, options), kept, pool)) {
    if (options.accept) options.accept(made->info.n_tokens);
    return std::move(*made);
  }
  tokenize_files(tokenizer, files, kept, options, pool);
  return open_token_dataset(kept, pool);
}

WindowSampler::WindowSampler(int64_t n_ids, int64_t seq_len, uint64_t seed)
    : n_ids_(n_ids), seq_len_(seq_len), seed_(seed) {
  FATHOM_CHECK(seq_len > 0);
  if (n_ids <= seq_len) {
    throw Error(
        "the training data has {} tokens, too few for one sequence of {} + 1; give more data or a shorter --seq-len",
        n_ids, seq_len);
  }
  // An offset below seq_len costs a window unless there is just one.
  windows_ = std::max<int64_t>(1, (n_ids - 1) / seq_len - 1);
}

int64_t WindowSampler::start(int64_t index) const {
  FATHOM_CHECK(index >= 0);
  const int64_t epoch = index / windows_, in_epoch = index % windows_;
  Rng rng(seed_, kShuffleStream + static_cast<uint64_t>(epoch));
  const int64_t slack = n_ids_ - 1 - windows_ * seq_len_;  // ids that no window of an epoch reaches
  const auto offset = static_cast<int64_t>(rng.below(static_cast<uint64_t>(slack) + 1));
  const Permutation shuffled(static_cast<uint64_t>(windows_), rng);
  return offset + static_cast<int64_t>(shuffled(static_cast<uint64_t>(in_epoch))) * seq_len_;
}

std::vector<Window> sequential_windows(int64_t n_ids, int64_t seq_len) {
  FATHOM_CHECK(seq_len > 0);
  if (n_ids < 2) throw Error("the validation data has {} tokens, at least 2 are needed", n_ids);
  std::vector<Window> windows;
  for (int64_t start = 0; start + 1 < n_ids; start += seq_len) {
    windows.push_back({start, std::min(seq_len + 1, n_ids - start)});
  }
  return windows;
}

}  // namespace fathom
