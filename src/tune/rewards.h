// What answers are worth: by rules, by tests of code, by a program of the user's (R1 section 2.2: accuracy and format,
// no model judges).
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "eval/sandbox.h"
#include "tune/questions.h"
#include "tune/reward_command.h"

namespace fathom::tune {

enum class RewardKind {
  exact,   // 1 where the final answer means the expected one (eval/answers.h)
  format,  // 1 where it has the form <think>...</think> and then an answer, each mark once
  code,    // 1 where the program in it passes all tests (eval/code_tests.h)
  command  // what the command says
};
inline constexpr size_t kRewardKinds = 4;
const char* reward_name(RewardKind kind);

// "exact=1,format=0.1": a kind without a number counts once. UsageError for an unknown or repeated one, or a number
// that is not finite.
struct RewardWeights {
  std::array<double, kRewardKinds> of{};  // 0: it is not asked for
  double operator[](RewardKind kind) const { return of[static_cast<size_t>(kind)]; }
};
RewardWeights parse_reward_weights(const std::string& text);
std::string to_string(const RewardWeights& weights);

struct RewardOptions {
  RewardWeights weights;
  std::string command{};
  double command_timeout_s = 60;
  // Off an answer's reward: nothing up to length_free tokens, from there on linearly more, all of length_penalty at
  // max_tokens and for an answer that was cut there.
  double length_penalty = 0;
  int64_t length_free = 0, max_tokens = 0;
  eval::SandboxLimits limits{};  // of a test
};

struct Completion {
  const Question* question;
  std::string text;  // with the marks that are special tokens, without the token that ends it
  int64_t tokens = 0;
  bool cut = false;  // at max_tokens
};

struct Reward {
  double total = 0;
  std::array<std::optional<double>, kRewardKinds> parts{};  // of the kinds that are asked for, before their weights
  double length = 0;                                        // what was taken off
  std::string why{};                                        // of code: the verdict
};

// What is said behind the thoughts, and these; without </think> all is said.
struct AnswerParts {
  std::string_view thoughts, said;
};
AnswerParts parts_of(std::string_view completion, bool begun_thoughts);
bool has_format(std::string_view completion, bool begun_thoughts);
// Whether the final answer of what is said means `expected`, as data have it: the answer, or a whole solution.
bool is_exact(std::string_view completion, bool begun_thoughts, const std::string& expected);

// Of one run.
class Rewards {
 public:
  // UsageError where nothing is asked for, or the command is missing; Error where code cannot be run here, a question
  // lacks what a reward needs of it, or the command cannot be started.
  Rewards(const RewardOptions& options, std::span<const Question> questions);

  // On as many threads as the pool has, but for the command. Nothing when interrupted.
  std::optional<std::vector<Reward>> judge(ThreadPool& pool, std::span<const Completion> completions,
                                           const std::function<bool()>& interrupted = {});

 private:
  Reward by_rules(const Completion& completion) const;
  void by_code(int at_a_time, std::span<const Completion> completions, std::span<Reward> rewards,
               const std::function<bool()>& interrupted) const;

  RewardOptions options_;
  std::unique_ptr<RewardCommand> command_;
};

}  // namespace fathom::tune
