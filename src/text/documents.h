// Files and directories -> documents of text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "text/unpacking.h"

namespace fathom {

// A file to read documents from, and how to tell later that it is still the same.
struct TextFile {
  std::filesystem::path path;
  uint64_t bytes = 0;
  int64_t modified_ns = 0;  // since 1970
  bool operator==(const TextFile&) const = default;
};

// The files that `data` names, in its order: files themselves, and all below directories, sorted by path; hidden ones
// (.name) are passed over. What is no text (its first bytes tell) is refused by name, as are a directory without text
// and a dataset of tokens, which is no text any more.
std::vector<TextFile> find_text_files(std::span<const std::filesystem::path> data);

// More is refused, so that a small compressed file cannot fill the memory.
struct DocumentLimits {
  size_t line_bytes = size_t{64} << 20;  // of a .jsonl file
  size_t text_bytes = size_t{4} << 30;   // of a file that is one document
};

struct Document {
  std::string text;   // UTF-8
  std::string where;  // "corpus.jsonl.zst: line 3"
};

// Documents one after the other: a .jsonl file has one a line, under "text"; any other file that is not empty is one.
// Both may be compressed, as .gz or .zst. Errors name the file and the byte or line.
class DocumentReader {
 public:
  explicit DocumentReader(std::vector<TextFile> files, const DocumentLimits& limits = {});

  bool next(Document& document);  // false: there are no more
  // Instead of it, of .jsonl files alone (Error for others): the text of a document is a line that is not blank.
  bool next_line(Document& document);

  uint64_t bytes_read() const;   // of the files as they are stored
  uint64_t bytes_total() const;  // the same of all

 private:
  bool open_next();
  void close_file();
  bool read_line();
  bool parse_line(Document& document);
  void read_text(Document& document);

  std::vector<TextFile> files_;
  DocumentLimits limits_;
  size_t n_opened_ = 0;
  uint64_t bytes_before_ = 0;         // of files that have been read
  std::optional<UnpackedFile> file_;  // the one that is being read: files_[n_opened_ - 1]
  std::string name_;
  std::vector<char> buffer_;  // of a .jsonl file: [begin_, end_) has not been seen yet
  size_t begin_ = 0, end_ = 0;
  std::string line_;
  int64_t line_number_ = 0;
  uint64_t offset_ = 0;  // of the line in the unpacked file
};

}  // namespace fathom
