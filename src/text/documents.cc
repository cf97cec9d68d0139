#include "text/documents.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/terminal.h"
#include "base/utf8.h"
#include "text/token_shards.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr size_t kHeadBytes = 4096;  // by which a file that is no text is told before the work begins

// Behind the end that says how the file is compressed.
bool is_jsonl(const fs::path& path) {
  return (compression_of(path) == Compression::none ? path : path.stem()).extension() == ".jsonl";
}

// "byte 7", where that is not a place in the file as it is stored.
std::string place(const fs::path& path, uint64_t byte) {
  return fmt::format("byte {}{}", byte, compression_of(path) == Compression::none ? "" : " of what it unpacks to");
}

// Zero bytes are valid UTF-8, but archives and UTF-16 have them and text has not.
void check_bytes(std::string_view text, uint64_t offset, const fs::path& path) {
  const std::string name = printable(path.native());
  if (const size_t at = first_invalid_utf8(text); at != kNoPosition) {
    throw Error("{}: not UTF-8 at {}; training data must be UTF-8 text or .jsonl, as it is or as .gz or .zst", name,
                place(path, offset + at));
  }
  if (const size_t at = text.find('\0'); at != std::string_view::npos && !is_jsonl(path)) {
    throw Error("{}: {} is zero, so that this is no text; training data must be UTF-8 text or .jsonl", name,
                place(path, offset + at));
  }
}

TextFile inspect(const fs::path& path) {
  std::string head(kHeadBytes, '\0');
  head.resize(UnpackedFile(path).read(head.data(), head.size()));
  if (head.size() == kHeadBytes) {  // the last character may go on behind it
    size_t whole = head.size();
    for (size_t back = 1; back <= 3; ++back) {
      if (utf8_unit(std::string_view(head).substr(head.size() - back)).incomplete) whole = head.size() - back;
    }
    head.resize(whole);
  }
  if (!is_jsonl(path)) check_bytes(head, 0, path);
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    throw Error("{}: cannot look at it: {}", printable(path.native()), std::strerror(errno));
  }
  constexpr int64_t kNsPerS = 1'000'000'000;
  return {path, static_cast<uint64_t>(info.st_size), info.st_mtim.tv_sec * kNsPerS + info.st_mtim.tv_nsec};
}

// `seen`: directories, so that links in a circle come to an end.
void find_below(const fs::path& directory, std::set<fs::path>& seen, std::vector<fs::path>& found) {
  if (is_token_dataset(directory)) {
    throw Error("{}: is a dataset of tokens, not text; give it to --data alone", printable(directory.native()));
  }
  std::error_code error;
  if (!seen.insert(fs::canonical(directory, error)).second) return;
  for (const fs::path& path : list_directory(directory)) {
    if (path.filename().native().starts_with('.')) continue;
    if (path_is_directory(path)) {
      find_below(path, seen, found);
    } else {
      found.push_back(path);
    }
  }
}

}  // namespace

std::vector<TextFile> find_text_files(std::span<const fs::path> data) {
  std::vector<TextFile> files;
  for (const fs::path& path : data) {
    if (!path_is_directory(path)) {
      files.push_back(inspect(path));
      continue;
    }
    std::set<fs::path> seen;
    std::vector<fs::path> found;
    find_below(path, seen, found);
    if (found.empty()) throw Error("{}: there are no files in this directory", printable(path.native()));
    std::ranges::sort(found, {}, &fs::path::native);
    for (const fs::path& file : found) files.push_back(inspect(file));
  }
  return files;
}

DocumentReader::DocumentReader(std::vector<TextFile> files, const DocumentLimits& limits)
    : files_(std::move(files)), limits_(limits), buffer_(kBufferBytes) {}

uint64_t DocumentReader::bytes_read() const { return bytes_before_ + (file_ ? file_->stored_read() : 0); }

uint64_t DocumentReader::bytes_total() const {
  uint64_t total = 0;
  for (const TextFile& file : files_) total += file.bytes;
  return total;
}

// False when all have been.
bool DocumentReader::open_next() {
  if (n_opened_ == files_.size()) return false;
  const fs::path& path = files_[n_opened_++].path;
  file_.emplace(path);
  name_ = printable(path.native());
  begin_ = end_ = 0;
  line_number_ = 0;
  offset_ = 0;
  line_.clear();
  return true;
}

void DocumentReader::close_file() {
  bytes_before_ += file_->stored_read();
  file_.reset();
}

bool DocumentReader::next(Document& document) {
  for (;;) {
    if (!file_ && !open_next()) return false;
    if (is_jsonl(files_[n_opened_ - 1].path)) {
      while (read_line()) {
        if (parse_line(document)) return true;
      }
    } else {
      read_text(document);
    }
    close_file();
    if (!is_jsonl(files_[n_opened_ - 1].path) && !document.text.empty()) return true;
  }
}

bool DocumentReader::next_line(Document& document) {
  for (;;) {
    if (!file_ && !open_next()) return false;
    const fs::path& path = files_[n_opened_ - 1].path;
    if (!is_jsonl(path)) throw Error("{}: is no .jsonl, with one object a line (nor .jsonl.gz or .jsonl.zst)", name_);
    while (read_line()) {
      if (line_.find_first_not_of(" \t\r") == std::string::npos) continue;
      check_bytes(line_, offset_, path);
      document.text = line_;
      document.where = fmt::format("{}: line {}", name_, line_number_);
      return true;
    }
    close_file();
  }
}

// The next line, without its end, into line_; false at the end of the file.
bool DocumentReader::read_line() {
  offset_ += line_.size() + (line_number_ > 0 ? 1 : 0);
  ++line_number_;
  line_.clear();
  for (;;) {
    if (begin_ == end_) {
      begin_ = 0;
      end_ = file_->read(buffer_.data(), buffer_.size());
      if (end_ == 0) return !line_.empty();
    }
    const char* const begin = buffer_.data() + begin_;
    const auto* const found = static_cast<const char*>(std::memchr(begin, '\n', end_ - begin_));
    const size_t bytes = found != nullptr ? static_cast<size_t>(found - begin) : end_ - begin_;
    if (line_.size() + bytes > limits_.line_bytes) {
      throw Error("{}: line {}: longer than {}, more than a document may have; cut it into several", name_,
                  line_number_, human_bytes(static_cast<double>(limits_.line_bytes)));
    }
    line_.append(begin, bytes);
    begin_ += bytes + (found != nullptr ? 1 : 0);
    if (found != nullptr) return true;
  }
}

// False for a blank line.
bool DocumentReader::parse_line(Document& document) {
  if (line_.find_first_not_of(" \t\r") == std::string::npos) return false;
  check_bytes(line_, offset_, files_[n_opened_ - 1].path);
  const JsonDocument json = JsonDocument::parse(line_, fmt::format("{}: line {}", name_, line_number_));
  std::string_view text;
  if (json.root()["text"].get(text)) throw Error("{}: no \"text\" that is a string", json.where());
  document.text = text;
  document.where = json.where();
  return true;
}

void DocumentReader::read_text(Document& document) {
  const TextFile& file = files_[n_opened_ - 1];
  const auto refuse = [&] {
    throw Error("{}: {} more than {}, too long for one document; cut it into several files, or make it .jsonl", name_,
                compression_of(file.path) == Compression::none ? "has" : "unpacks to",
                human_bytes(static_cast<double>(limits_.text_bytes)));
  };
  document.where = name_;
  std::string& text = document.text;
  text.clear();
  if (compression_of(file.path) == Compression::none) {
    if (file.bytes > limits_.text_bytes) refuse();
    text.reserve(file.bytes);
  }
  for (size_t n = 1; n > 0;) {
    n = file_->read(buffer_.data(), buffer_.size());
    if (text.size() + n > limits_.text_bytes) refuse();
    text.append(buffer_.data(), n);
  }
  check_bytes(text, 0, file.path);
}

}  // namespace fathom
