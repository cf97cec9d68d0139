#include "eval/code_judges.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/json.h"
#include "eval/task_files.h"

namespace fathom::eval {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMostWaiting = 256;
constexpr size_t kMaxBytes = size_t{8} << 30;
constexpr auto kLook = std::chrono::milliseconds(50);

UntriedAnswer read_line(std::string_view line, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(line, where);
  const simdjson::dom::element root = document.root();
  if (!root.is_object()) throw Error("{}: is no object", where);
  const int64_t item = integer_field(root, "item", where);
  UntriedAnswer one{.item = static_cast<size_t>(item), .sample = integer_field(root, "sample", where)};
  one.answer.text = text_field(root, "answer", where);
  one.answer.reasoning = find_text(root, "reasoning").value_or("");
  one.answer.finish = find_text(root, "finish").value_or("");
  one.answer.prompt_tokens = integer_field(root, "prompt_tokens", where);
  one.answer.tokens = integer_field(root, "tokens", where);
  if (root["seconds"].get_double().get(one.answer.seconds)) one.answer.seconds = 0;
  return one;
}

ordered_json json_of(const UntriedAnswer& one) {
  return {{"item", one.item},
          {"sample", one.sample},
          {"answer", one.answer.text},
          {"reasoning", one.answer.reasoning},
          {"finish", one.answer.finish},
          {"prompt_tokens", one.answer.prompt_tokens},
          {"tokens", one.answer.tokens},
          {"seconds", one.answer.seconds}};
}

}  // namespace

CodeJudges::CodeJudges(int n, Judge judge) : judge_(std::move(judge)) {
  for (int i = 0; i < n; ++i) threads_.emplace_back([this] { work(); });
}

CodeJudges::~CodeJudges() { stop(); }

template <class Ready>
void CodeJudges::wait(std::unique_lock<std::mutex>& lock, const Interrupted& interrupted, const Ready& ready) {
  while (!failure_ && !ready() && !(interrupted && interrupted())) changed_.wait_for(lock, kLook);
}

void CodeJudges::add(UntriedAnswer one, const Interrupted& interrupted) {
  std::unique_lock lock(mutex_);
  wait(lock, interrupted, [this] { return waiting_.size() < kMostWaiting; });
  waiting_.push_back(std::move(one));
  wake_.notify_one();
  if (failure_) std::rethrow_exception(failure_);
}

void CodeJudges::finish(const Interrupted& interrupted) {
  std::unique_lock lock(mutex_);
  wait(lock, interrupted, [this] { return waiting_.empty() && n_busy_ == 0; });
  if (failure_) std::rethrow_exception(failure_);
}

std::vector<UntriedAnswer> CodeJudges::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    wake_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  std::vector<UntriedAnswer> left(std::make_move_iterator(waiting_.begin()), std::make_move_iterator(waiting_.end()));
  waiting_.clear();
  return left;
}

void CodeJudges::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopped_ || !waiting_.empty(); });
    if (stopped_) return;
    UntriedAnswer one = std::move(waiting_.front());
    waiting_.pop_front();
    ++n_busy_;
    lock.unlock();
    bool tried = false;
    std::exception_ptr failure;
    try {
      tried = judge_(one, stopped_);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    --n_busy_;
    if (!tried) waiting_.push_front(std::move(one));
    if (failure) {
      if (!failure_) failure_ = failure;
      stopped_ = true;
      wake_.notify_all();
    }
    changed_.notify_all();
  }
}

std::vector<UntriedAnswer> read_untried(const std::filesystem::path& path, size_t n_items, int64_t n_samples) {
  std::vector<UntriedAnswer> untried;
  if (path.empty() || !path_exists(path)) return untried;
  const std::string text = read_file(path, kMaxBytes);
  size_t number = 0;
  for (std::string_view left = text; !left.empty();) {
    const std::string_view line = left.substr(0, left.find('\n'));
    left.remove_prefix(std::min(line.size() + 1, left.size()));
    const std::string where = fmt::format("{}: line {}", printable(path.native()), ++number);
    UntriedAnswer one = read_line(line, where);
    if (one.item >= n_items || one.sample < 0 || one.sample >= n_samples) {
      throw Error("{}: is an answer to nothing that this run asks; remove the file", where);
    }
    untried.push_back(std::move(one));
  }
  return untried;
}

void write_untried(const std::filesystem::path& path, const std::vector<UntriedAnswer>& untried) {
  if (path.empty()) return;
  if (untried.empty()) {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    return;
  }
  std::string text;
  for (const UntriedAnswer& one : untried) {
    if (one.answer.error.empty())
      text += json_of(one).dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  }
  write_file_atomically(path, text);
}

}  // namespace fathom::eval
