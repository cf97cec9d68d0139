// A program of the user's that says what answers are worth. It is started once and asked on its standard input, a JSON
// object a line:   {"id": "...", "question": "...", "answer": "..." or null, "completion": "..."}
// and says for each, in their order, on its standard output:   {"reward": x}
// Several lines may come before it has said anything. What it writes to stderr goes to ours.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace fathom::tune {

struct RewardRequest {
  std::string id, question;
  std::optional<std::string> answer;
  std::string completion;
};

// SIGPIPE must be ignored, as the program does.
class RewardCommand {
 public:
  // Runs `command` by /bin/sh, in a process group of its own, so that a ^C for us does not end it before us. timeout_s:
  // without a reply for so long the command is taken for stuck.
  RewardCommand(std::string command, double timeout_s);
  ~RewardCommand();  // ends it: first its standard input is closed, then it is killed
  RewardCommand(const RewardCommand&) = delete;
  RewardCommand& operator=(const RewardCommand&) = delete;

  // Its rewards, finite numbers. Error when it ends, says something else, a line that nothing asked for, or nothing for
  // timeout_s; it is not started again. Nothing when `interrupted`, asked some times a second, is true: then nothing
  // more may be asked.
  std::optional<std::vector<double>> ask(std::span<const RewardRequest> requests,
                                         const std::function<bool()>& interrupted = {});

 private:
  std::string name() const;  // for errors
  bool hear();
  void refuse_unasked() const;
  [[noreturn]] void tell_end();
  void stop() noexcept;

  std::string command_;
  double timeout_s_;
  int to_ = -1, from_ = -1;  // its standard input and output
  int pid_ = -1;
  std::string unread_;  // what it said beyond the last reply
  bool broken_ = false;
};

}  // namespace fathom::tune
