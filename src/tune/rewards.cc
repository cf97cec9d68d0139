#include "tune/rewards.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "eval/answers.h"
#include "eval/code_tests.h"
#include "text/answer_parser.h"

namespace fathom::tune {
namespace {

constexpr const char* kNames[kRewardKinds] = {"exact", "format", "code", "command"};

int64_t count(std::string_view text, std::string_view mark) {
  int64_t n = 0;
  for (size_t at = text.find(mark); at != std::string_view::npos; at = text.find(mark, at + mark.size())) ++n;
  return n;
}

}  // namespace

const char* reward_name(RewardKind kind) { return kNames[static_cast<size_t>(kind)]; }

RewardWeights parse_reward_weights(const std::string& text) {
  RewardWeights weights;
  std::array<bool, kRewardKinds> seen{};
  for (std::string_view left = text; !left.empty();) {
    const size_t end = std::min(left.find(','), left.size());
    const std::string_view item = stripped(left.substr(0, end));
    left.remove_prefix(std::min(end + 1, left.size()));
    const size_t equals = std::min(item.find('='), item.size());
    const std::string_view name = stripped(item.substr(0, equals));
    const auto* const found = std::ranges::find(kNames, name);
    if (found == std::end(kNames)) {
      throw UsageError("--reward {}: '{}' is none of {}", printable(text), printable(name), fmt::join(kNames, ", "));
    }
    const auto kind = static_cast<size_t>(found - std::begin(kNames));
    if (std::exchange(seen[kind], true)) throw UsageError("--reward {}: {} stands there twice", printable(text), name);
    double weight = 1;
    if (equals < item.size()) {
      const std::string_view number = stripped(item.substr(equals + 1));
      const auto [rest, error] = std::from_chars(number.data(), number.data() + number.size(), weight);
      if (error != std::errc() || rest != number.data() + number.size() || !std::isfinite(weight)) {
        throw UsageError("--reward {}: '{}' is no finite number", printable(text), printable(number));
      }
    }
    weights.of[kind] = weight;
  }
  return weights;
}

std::string to_string(const RewardWeights& weights) {
  std::string text;
  for (size_t i = 0; i < kRewardKinds; ++i) {
    if (weights.of[i] != 0) text += fmt::format("{}{}={}", text.empty() ? "" : ",", kNames[i], weights.of[i]);
  }
  return text;
}

AnswerParts parts_of(std::string_view completion, bool begun_thoughts) {
  const size_t end = completion.rfind(kEndThink);
  if (end == std::string_view::npos) return {{}, completion};
  size_t begin = begun_thoughts ? 0 : completion.find(kThink);
  begin = begin == std::string_view::npos || begin > end ? 0 : begin + (begun_thoughts ? 0 : kThink.size());
  return {completion.substr(begin, end - begin), completion.substr(end + kEndThink.size())};
}

bool has_format(std::string_view completion, bool begun_thoughts) {
  const std::string_view text = stripped(completion);
  if (count(text, kThink) != (begun_thoughts ? 0 : 1) || count(text, kEndThink) != 1) return false;
  if (!begun_thoughts && !text.starts_with(kThink)) return false;
  const AnswerParts parts = parts_of(text, begun_thoughts);
  return !stripped(parts.thoughts).empty() && !stripped(parts.said).empty();
}

bool is_exact(std::string_view completion, bool begun_thoughts, const std::string& expected) {
  // Who is cut within the thoughts has said nothing.
  if (begun_thoughts && completion.find(kEndThink) == std::string_view::npos) return false;
  const std::optional<std::string> said = eval::final_answer(parts_of(completion, begun_thoughts).said);
  return said && eval::same_answer(*said, eval::expected_answer(expected));
}

Rewards::Rewards(const RewardOptions& options, std::span<const Question> questions) : options_(options) {
  const RewardWeights& w = options.weights;
  if (std::ranges::all_of(w.of, [](double weight) { return weight == 0; })) {
    throw UsageError(
        "give --reward, what answers are worth: exact, format, code or command, such as "
        "exact=1,format=0.1");
  }
  if (w[RewardKind::command] != 0 && options.command.empty()) {
    throw UsageError("--reward command needs --reward-command CMD");
  }
  if (w[RewardKind::code] != 0) {
    if (const std::string why = eval::why_no_sandbox(); !why.empty()) {
      throw Error("--reward code: programs cannot be run here: {}", why);
    }
  }
  for (const Question& q : questions) {
    const auto lacks = [&](const char* what, RewardKind kind) {
      throw Error("question {} has no \"{}\", which --reward {} needs", printable(q.id), what, reward_name(kind));
    };
    if (w[RewardKind::exact] != 0 && !q.answer) lacks("answer", RewardKind::exact);
    if (w[RewardKind::code] != 0 && q.tests == nullptr) lacks("tests", RewardKind::code);
  }
  if (w[RewardKind::command] != 0) {
    command_ = std::make_unique<RewardCommand>(options.command, options.command_timeout_s);
  }
}

Reward Rewards::by_rules(const Completion& c) const {
  const RewardWeights& w = options_.weights;
  const bool begun = c.question->begun_thoughts;
  Reward reward;
  const auto set = [&](RewardKind kind, double value) { reward.parts[static_cast<size_t>(kind)] = value; };
  if (w[RewardKind::exact] != 0) set(RewardKind::exact, is_exact(c.text, begun, *c.question->answer) ? 1 : 0);
  if (w[RewardKind::format] != 0) set(RewardKind::format, has_format(c.text, begun) ? 1 : 0);
  if (options_.length_penalty != 0) {
    const auto room = static_cast<double>(std::max<int64_t>(options_.max_tokens - options_.length_free, 1));
    const double over = std::clamp(static_cast<double>(c.tokens - options_.length_free) / room, 0.0, 1.0);
    reward.length = options_.length_penalty * (c.cut ? 1 : over);
  }
  return reward;
}

void Rewards::by_code(int at_a_time, std::span<const Completion> completions, std::span<Reward> rewards,
                      const std::function<bool()>& interrupted) const {
  std::vector<std::string> programs;
  std::vector<eval::CodeAnswer> answers;
  for (const Completion& c : completions) {
    const auto said = behind_thoughts(c.text, c.question->begun_thoughts);
    programs.push_back(said ? eval::extract_code(*said) : std::string());
  }
  for (size_t i = 0; i < completions.size(); ++i) {
    answers.push_back({completions[i].question->tests.get(), programs[i]});
  }
  const std::vector<eval::CodeVerdict> verdicts =
      eval::judge_many(answers, at_a_time, options_.limits, eval::Containment::sandbox, interrupted);
  for (size_t i = 0; i < completions.size(); ++i) {
    rewards[i].parts[static_cast<size_t>(RewardKind::code)] = verdicts[i].passed ? 1 : 0;
    rewards[i].why = verdicts[i].why;
  }
}

std::optional<std::vector<Reward>> Rewards::judge(ThreadPool& pool, std::span<const Completion> completions,
                                                  const std::function<bool()>& interrupted) {
  std::vector<Reward> rewards(completions.size());
  pool.run(std::ssize(completions),
           [&](int64_t i, int) { rewards[static_cast<size_t>(i)] = by_rules(completions[static_cast<size_t>(i)]); });
  if (options_.weights[RewardKind::code] != 0) {
    by_code(pool.size(), completions, rewards, interrupted);
  }
  if (interrupted && interrupted()) return std::nullopt;
  if (command_) {
    std::vector<RewardRequest> requests;
    for (const Completion& c : completions) {
      requests.push_back({c.question->id, c.question->text, c.question->answer, c.text});
    }
    const auto said = command_->ask(requests, interrupted);
    if (!said) return std::nullopt;
    for (size_t i = 0; i < rewards.size(); ++i) {
      rewards[i].parts[static_cast<size_t>(RewardKind::command)] = (*said)[i];
    }
  }
  for (Reward& reward : rewards) {
    for (size_t k = 0; k < kRewardKinds; ++k) reward.total += options_.weights.of[k] * reward.parts[k].value_or(0);
    reward.total -= reward.length;
  }
  return rewards;
}

}  // namespace fathom::tune
