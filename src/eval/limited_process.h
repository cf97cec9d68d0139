// A process with limits, from its start to its end: what sandbox.cc runs bubblewrap, or a program without one, by.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "eval/sandbox.h"

namespace fathom::eval {

// A descriptor that is closed with its owner.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      number_ = std::exchange(other.number_, -1);
    }
    return *this;
  }
  int get() const { return number_; }
  void reset();

 private:
  int number_ = -1;
};

// Reading from it never waits.
struct Pipe {
  Descriptor read, write;
};
Pipe make_pipe();

// A file in memory that holds `content` and that nobody can change.
Descriptor file_in_memory(std::string_view content);

struct ProcessPlan {
  std::vector<std::string> command, environment;  // the program's whole path first; NAME=value
  std::string folder;                             // its current one
  std::string_view input;                         // its stdin
  std::vector<int> kept;                          // descriptors that it gets under their numbers, beside 0, 1 and 2
  std::optional<uid_t> user;                      // user and group that it becomes; needs root
  int64_t file_bytes = 0;                         // RLIMIT_FSIZE
  SandboxLimits limits;
  // Of bubblewrap: a pipe on which it tells the process that its sandbox lives and dies with, which is killed in place
  // of it. -1: the process, and all of its session's group, is killed.
  int status = -1;
};

struct ProcessEnd {
  SandboxResult result;
  std::optional<int> inner_code;  // what bubblewrap said of the command's end
};

// Starts it and waits until it has ended or passed a limit, and was killed. The start takes as long whatever memory
// this process has (vfork). Error where it cannot be started.
ProcessEnd run_process(const ProcessPlan& plan);

}  // namespace fathom::eval
