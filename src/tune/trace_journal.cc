#include "tune/trace_journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/terminal.h"

namespace fathom::tune {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxBytes = size_t{64} << 30;

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// As it will be read again: UTF-8.
std::string as_written(const std::string& text) { return Json::parse(dump(Json(text))).get<std::string>(); }

template <class T>
T field(const JsonDocument& line, const char* key) {
  T value{};
  if (line.root()[key].get(value) != simdjson::SUCCESS) {
    throw Error("{}: {} is missing or wrong; remove the line, or the file to begin anew", line.where(), key);
  }
  return value;
}

std::string text_field(const JsonDocument& line, const char* key) {
  return std::string(field<std::string_view>(line, key));
}

}  // namespace

TraceJournal::TraceJournal(std::filesystem::path path, const std::string& settings, size_t n_questions,
                           int64_t n_samples)
    : path_(std::move(path)), n_questions_(n_questions), n_samples_(n_samples) {
  const std::string name = printable(path_.native());
  const auto fail = [&](const char* what) { throw Error("{}: {}: {}", name, what, std::strerror(errno)); };
  fd_ = open(path_.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("cannot write to it");
  try {
    if (flock(fd_, LOCK_EX | LOCK_NB) != 0) throw Error("{}: another process writes to it", name);
    std::string content = read_file(path_, kMaxBytes);
    const size_t whole = content.rfind('\n') == std::string::npos ? 0 : content.rfind('\n') + 1;
    if (whole < content.size()) {
      if (whole > 0) log("{}: its last line was cut off and is dropped", name);
      if (ftruncate(fd_, static_cast<off_t>(whole)) != 0) fail("cannot cut its last line off");
      content.resize(whole);
    }
    if (content.empty()) {
      write(Json::parse(settings));
      return;
    }
    int64_t number = 0;
    for (std::string_view left = content; !left.empty();) {
      const std::string_view line = left.substr(0, left.find('\n'));
      left.remove_prefix(line.size() + 1);
      if (++number > 1) {
        read_line(line, number);
      } else if (line != settings) {
        throw UsageError(
            "{}: holds answers to other questions, of another teacher or with other options ({}; now {}); give another "
            "--out, or remove it",
            name, printable(line, 1000), printable(settings, 1000));
      }
    }
  } catch (...) {
    close(fd_);
    throw;
  }
}

TraceJournal::~TraceJournal() { close(fd_); }

void TraceJournal::read_line(std::string_view text, int64_t number) {
  const JsonDocument line = JsonDocument::parse(text, fmt::format("{}: line {}", printable(path_.native()), number));
  const auto question = field<uint64_t>(line, "question");
  const auto sample = field<int64_t>(line, "sample");
  if (question >= n_questions_ || sample < 0 || sample >= n_samples_) {
    throw Error("{}: answers question {}, sample {}, of {} and {}; remove the file to begin anew", line.where(),
                question, sample, n_questions_, n_samples_);
  }
  const Key key{question, sample};
  simdjson::dom::element right;
  if (line.root()["right"].get(right) != simdjson::SUCCESS) {
    eval::Answer answer;
    answer.text = text_field(line, "text");
    answer.reasoning = text_field(line, "reasoning");
    answer.finish = text_field(line, "finish");
    answer.error = text_field(line, "error");
    answer.prompt_tokens = field<int64_t>(line, "prompt_tokens");
    answer.tokens = field<int64_t>(line, "tokens");
    answers_.insert_or_assign(key, TraceAnswer{std::move(answer), std::nullopt});
    return;
  }
  const auto found = answers_.find(key);
  if (found == answers_.end()) throw Error("{}: judges an answer that is not there", line.where());
  TraceVerdict verdict;
  if (bool is_right = false; right.get(is_right) == simdjson::SUCCESS) verdict.right = is_right;
  verdict.why = text_field(line, "why");
  found->second.verdict = std::move(verdict);
}

void TraceJournal::write(const Json& line) {
  const std::string text = dump(line) + "\n";
  for (std::string_view left = text; !left.empty();) {
    const ssize_t n = ::write(fd_, left.data(), left.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      throw Error("{}: cannot write to it: {}; what it holds is kept, run the same again when there is room",
                  printable(path_.native()), std::strerror(errno));
    }
    left.remove_prefix(static_cast<size_t>(n));
  }
}

void TraceJournal::add(const Key& key, eval::Answer answer) {
  answer.text = as_written(answer.text);
  answer.reasoning = as_written(answer.reasoning);
  write({{"question", key.first},
         {"sample", key.second},
         {"text", answer.text},
         {"reasoning", answer.reasoning},
         {"finish", answer.finish},
         {"error", answer.error},
         {"prompt_tokens", answer.prompt_tokens},
         {"tokens", answer.tokens}});
  answers_.insert_or_assign(key, TraceAnswer{std::move(answer), std::nullopt});
}

void TraceJournal::verify(const Key& key, TraceVerdict verdict) {
  Json right = nullptr;
  if (verdict.right) right = *verdict.right;
  write({{"question", key.first}, {"sample", key.second}, {"right", right}, {"why", verdict.why}});
  answers_.at(key).verdict = std::move(verdict);
}

}  // namespace fathom::tune
