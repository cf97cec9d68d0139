// Training data: files -> one sequence of ids, and which windows of it a step sees.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "text/tokenizer.h"

namespace fathom {

// Tokenizes the files in order: a .jsonl file holds one document a line under "text", any other file is one document of
// UTF-8 text. Every document is followed by the tokenizer's end token where it has one. Text is never parsed for
// special tokens. Errors name the file and the byte or line.
std::vector<int32_t> read_dataset(const Tokenizer& tokenizer, std::span<const std::filesystem::path> files);

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
