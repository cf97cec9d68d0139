#include "tune/traces.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <set>
#include <thread>

#include "base/checksum.h"
#include "base/error.h"
#include "base/file.h"
#include "base/terminal.h"
#include "text/answer_parser.h"
#include "tune/trace_journal.h"

namespace fathom::tune {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// What decides what a teacher says: a line of JSON, the journal's first.
std::string settings_of(std::span<const AskedQuestion> questions, const TraceOptions& o) {
  Xxh3 sum;
  const auto add = [&](const std::string& text) {
    sum.update(text.data(), text.size());
    sum.update("", 1);
  };
  for (const AskedQuestion& q : questions) {
    add(dump(q.messages));
    add(q.answer.value_or(""));
    sum.update(&q.tests_xxh3, sizeof q.tests_xxh3);
  }
  Json thinking = nullptr;
  if (o.thinking) thinking = *o.thinking;
  Json settings{{"format", "fathom-traces"},
                {"version", 1},
                {"teacher", o.teacher},
                {"questions", questions.size()},
                {"questions_xxh3", fmt::format("{:016x}", sum.value())},
                {"samples", o.samples},
                {"temperature", o.temperature},
                {"top_p", o.top_p},
                {"top_k", o.top_k},
                {"max_tokens", o.max_tokens},
                {"thinking", thinking},
                {"system", o.system},
                {"seed", o.seed}};
  // What it says of answers, too, is kept.
  if (have_tests(questions)) settings["code_timeout"] = o.limits.cpu_s;
  return dump(settings);
}

Json with_system(const Json& messages, const std::string& system) {
  if (system.empty() || messages.front()["role"] == "system") return messages;
  Json all = messages;
  all.insert(all.begin(), Json{{"role", "system"}, {"content", system}});
  return all;
}

bool came_to_an_end(const eval::Answer& answer) {
  return answer.error.empty() && answer.finish != "length" && !(answer.text.empty() && answer.reasoning.empty()) &&
         behind_thoughts(answer.text).has_value();
}

struct Making {
  std::span<const AskedQuestion> questions;
  eval::Answerer& teacher;
  const TraceOptions& options;
  const VerifyTrace& verify;
  const eval::Interrupted& interrupted;
  TraceJournal& journal;

  bool is_interrupted() const { return interrupted && interrupted(); }

  // Whether a question needs no more answers.
  bool is_done(size_t question) const {
    if (options.keep != KeepTraces::first_verified) return false;
    const auto& answers = journal.answers();
    for (auto a = answers.lower_bound({question, 0}); a != answers.end() && a->first.first == question; ++a) {
      if (a->second.verdict && a->second.verdict->right == true) return true;
    }
    return false;
  }

  // Samples [begin, end) of all questions that need them.
  void ask(int64_t begin, int64_t end) {
    std::vector<eval::Question> asked;
    int64_t n = 0, n_before = 0;
    std::vector<bool> wanted;
    for (size_t q = 0; q < questions.size(); ++q) {
      wanted.push_back(!is_done(q));
      asked.push_back({.id = questions[q].id,
                       .messages = with_system(questions[q].messages, options.system),
                       .thinking = options.thinking,
                       .temperature = options.temperature,
                       .top_p = options.top_p,
                       .top_k = options.top_k,
                       .max_tokens = options.max_tokens,
                       .samples = end,
                       .seed = options.seed});
      for (int64_t s = begin; wanted[q] && s < end; ++s, ++n) n_before += journal.has({q, s});
    }
    if (n == n_before) return;
    int64_t done = n_before, tokens = 0;
    Progress progress("answers", n, n_before);
    eval::answer_questions(
        teacher, asked,
        [&](size_t q, int64_t s, eval::Answer answer) {
          tokens += answer.tokens;
          journal.add({q, s}, std::move(answer));
          progress.update(++done, fmt::format("{} tokens", human_count(static_cast<double>(tokens))));
        },
        interrupted,
        [&](size_t q, int64_t s) {
          return s < begin || !wanted[q] || journal.has({q, s});
        });
    progress.finish();
  }

  // What has not been verified yet, some at a time, told in order.
  void verify_all() {
    std::vector<TraceJournal::Key> keys;
    for (const auto& [key, answer] : journal.answers()) {
      if (!answer.verdict && came_to_an_end(answer.answer)) keys.push_back(key);
    }
    if (keys.empty()) return;
    Progress progress("verifying", std::ssize(keys));
    constexpr size_t kTogether = 256;
    for (size_t first = 0; first < keys.size() && !is_interrupted(); first += kTogether) {
      const size_t end = std::min(keys.size(), first + kTogether);
      std::vector<std::optional<TraceVerdict>> verdicts(end - first);
      std::atomic<size_t> next{first};
      std::exception_ptr failure;
      std::mutex failing;
      const auto work = [&] {
        for (size_t i = next++; i < end && !is_interrupted(); i = next++) {
          try {
            const TraceAnswer& answer = journal.answers().at(keys[i]);
            verdicts[i - first] = verify(questions[keys[i].first], answer.answer, options.limits);
          } catch (...) {
            const std::lock_guard lock(failing);
            failure = std::current_exception();
            next = end;
          }
        }
      };
      std::vector<std::thread> threads;
      for (int t = 1; t < options.at_a_time; ++t) threads.emplace_back(work);
      work();
      for (std::thread& thread : threads) thread.join();
      if (failure) std::rethrow_exception(failure);
      for (size_t i = first; i < end; ++i) {
        if (auto& verdict = verdicts[i - first]) journal.verify(keys[i], std::move(*verdict));
      }
      progress.update(static_cast<int64_t>(end));
    }
    progress.finish();
  }
};

Json trace_of(const AskedQuestion& question, const eval::Answer& answer, const TraceOptions& o) {
  Json messages = o.keeps_system ? with_system(question.messages, o.system) : question.messages;
  Json said{{"role", "assistant"}, {"content", answer.text}};
  if (!answer.reasoning.empty()) said["reasoning_content"] = answer.reasoning;
  messages.push_back(said);
  Json line{{"id", question.id}, {"messages", messages}};
  if (!answer.reasoning.empty() || o.thinking) line["thinking"] = !answer.reasoning.empty();
  if (question.answer) line["answer"] = *question.answer;
  return line;
}

// The answers of one question that stay, by their samples.
std::vector<const TraceAnswer*> kept_of(std::vector<const TraceAnswer*> whole, const TraceOptions& o) {
  if (o.keep != KeepTraces::all) {
    std::erase_if(whole, [](const TraceAnswer* a) { return !a->verdict || a->verdict->right != true; });
  }
  const auto keep_first = [&](int64_t n) {
    if (std::ssize(whole) > n) whole.erase(whole.begin() + n, whole.end());
  };
  if (o.keep == KeepTraces::first_verified) keep_first(1);
  if (o.keep == KeepTraces::shortest && whole.size() > 1) {
    const auto size = [](const TraceAnswer* a) {
      return std::pair(a->answer.tokens, a->answer.text.size() + a->answer.reasoning.size());
    };
    whole = {*std::ranges::min_element(whole, {}, size)};
  }
  if (o.max_per_question > 0) keep_first(o.max_per_question);
  return whole;
}

TraceCounts write_traces(std::span<const AskedQuestion> questions, const TraceJournal& journal, const TraceOptions& o) {
  TraceCounts counts{.questions = std::ssize(questions)};
  std::set<std::string> told;
  AtomicFile file(o.out);
  for (size_t q = 0; q < questions.size(); ++q) {
    std::vector<const TraceAnswer*> whole;
    const auto& answers = journal.answers();
    for (auto a = answers.lower_bound({q, 0}); a != answers.end() && a->first.first == q; ++a) {
      const eval::Answer& answer = a->second.answer;
      ++counts.asked;
      counts.prompt_tokens += answer.prompt_tokens;
      counts.tokens += answer.tokens;
      if (!answer.error.empty()) {
        ++counts.refused;
      } else if (!came_to_an_end(answer)) {
        ++counts.cut;
      } else {
        ++counts.answered;
        const std::optional<bool> right = a->second.verdict ? a->second.verdict->right : std::nullopt;
        ++(right ? *right ? counts.right : counts.wrong : counts.unknown);
        if (told.insert(dump({questions[q].messages, answer.reasoning, answer.text})).second) {
          whole.push_back(&a->second);
        } else {
          ++counts.twice;
        }
      }
    }
    const std::vector<const TraceAnswer*> kept = kept_of(std::move(whole), o);
    counts.kept_questions += !kept.empty();
    for (const TraceAnswer* answer : kept) {
      ++counts.kept;
      counts.kept_tokens += answer->answer.tokens;
      file.write(dump(trace_of(questions[q], answer->answer, o)) + "\n");
    }
  }
  if (counts.kept > 0) file.commit();
  return counts;
}

}  // namespace

KeepTraces keep_traces_named(const std::string& name) {
  if (name == "all") return KeepTraces::all;
  if (name == "verified") return KeepTraces::verified;
  if (name == "first-verified") return KeepTraces::first_verified;
  if (name == "shortest") return KeepTraces::shortest;
  throw UsageError("--keep {}: must be all, verified, first-verified or shortest", printable(name));
}

nlohmann::ordered_json TraceCounts::json() const {
  return {{"questions", questions},
          {"asked", asked},
          {"refused", refused},
          {"cut", cut},
          {"answered", answered},
          {"right", right},
          {"wrong", wrong},
          {"not_verified", unknown},
          {"duplicates", twice},
          {"kept", kept},
          {"kept_questions", kept_questions},
          {"prompt_tokens", prompt_tokens},
          {"answer_tokens", tokens},
          {"kept_tokens", kept_tokens}};
}

std::optional<TraceCounts> make_traces(std::span<const AskedQuestion> questions, eval::Answerer& teacher,
                                       const TraceOptions& o, const VerifyTrace& verify,
                                       const eval::Interrupted& interrupted) {
  const bool verifies = o.keep != KeepTraces::all;
  if (verifies && std::ranges::none_of(questions, [](const AskedQuestion& q) { return q.answer || q.tests; })) {
    throw UsageError(
        "no question has an \"answer\" or \"tests\", by which right answers are told from wrong ones: keep all of "
        "them, or none");
  }
  for (const AskedQuestion& q : questions) {
    if (q.messages.back()["role"] == "user") continue;
    throw Error("{}: the last of \"messages\" must be the user's, for the teacher to answer", q.where);
  }
  fs::path journal_path = o.out;
  journal_path += ".answers";
  if (path_exists(o.out) && !path_exists(journal_path)) {
    throw UsageError("{}: is there already, and was not made here; give another --out", printable(o.out.native()));
  }
  std::optional<NewDirectory> made;
  if (o.out.has_parent_path()) made.emplace(o.out.parent_path());
  TraceJournal journal(journal_path, settings_of(questions, o), questions.size(), o.samples);
  Making making{questions, teacher, o, verify, interrupted, journal};
  // One sample of each at a time where the first right one is enough.
  const int64_t together = o.keep == KeepTraces::first_verified ? 1 : o.samples;
  for (int64_t begin = 0; begin < o.samples; begin += together) {
    making.ask(begin, std::min(begin + together, o.samples));
    if (making.is_interrupted()) return std::nullopt;
    if (verifies) making.verify_all();
    if (making.is_interrupted()) return std::nullopt;
  }
  TraceCounts counts = write_traces(questions, journal, o);
  if (counts.kept == 0) {
    throw Error(
        "{}: no trace is left to keep: of {} answers {} came to no end within --max-tokens {}, {} were refused, {} are "
        "wrong and {} could not be verified; all are in {}",
        printable(o.out.native()), counts.asked, counts.cut, o.max_tokens, counts.refused, counts.wrong, counts.unknown,
        printable(journal_path.native()));
  }
  return counts;
}

}  // namespace fathom::tune
