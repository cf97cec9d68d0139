// Training data: documents -> one sequence of ids, and which windows of it a step sees.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "text/documents.h"
#include "text/token_shards.h"
#include "text/tokenizer.h"

namespace fathom {

struct TokenizeOptions {
  std::string tokenizer_name;  // for people
  double fim_rate = 0;         // of documents that are to be filled in (text/fim.h)
  uint64_t seed = 0;           // of which, and where they are cut
  DocumentLimits limits;
  int64_t max_shard_bytes = kMaxTokenShardBytes;
  std::function<void()> check;                   // called now and then, may throw to give up
  std::function<void(int64_t n_tokens)> accept;  // called before the dataset appears, may throw to refuse it
};

// Tokenizes the files into a dataset, a few megabytes for each thread at a time. Documents follow each other in order,
// each with the tokenizer's end token behind it where it has one; text is never parsed for special tokens. The same
// bytes for any number of threads.
DatasetInfo tokenize_files(const Tokenizer& tokenizer, const std::vector<TextFile>& files,
                           const std::filesystem::path& directory, const TokenizeOptions& options, ThreadPool& pool);

// The ids of `data`: of a dataset, which it may name alone, or of text, which is tokenized into the dataset `kept`
// unless that has been made of the same files (paths, sizes, times) with the same tokenizer and options.
TokenDataset open_training_data(const Tokenizer& tokenizer, std::span<const std::filesystem::path> data,
                                const std::filesystem::path& kept, const TokenizeOptions& options, ThreadPool& pool);

// Windows of seq_len + 1 ids (inputs and their targets) that step seq_len ids at a time. Training goes through shuffled
// epochs: each shifts all windows by an offset of its own, and sees every window once. Nothing is kept between calls,
// so a resumed run continues with the same windows.
class WindowSampler {
 public:
  // Error when n_ids is too few for one window.
  WindowSampler(int64_t n_ids, int64_t seq_len, uint64_t seed);

  // First id of the window that the training's sequence `index` sees, counted from 0 over all steps.
  int64_t start(int64_t index) const;
  int64_t windows_per_epoch() const { return windows_; }

 private:
  int64_t n_ids_, seq_len_, windows_;
  uint64_t seed_;
};

// Windows for validation: they follow each other and their targets cover every id but the first once. All have length
// seq_len + 1 but the last, which may be shorter. Error when there are fewer than two ids.
struct Window {
  int64_t start, n_ids;
};
std::vector<Window> sequential_windows(int64_t n_ids, int64_t seq_len);

}  // namespace fathom
