// Where programs run that a model wrote: nothing that they do reaches this machine or outlives them (docs/sandbox.md).
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace fathom::eval {

struct SandboxLimits {
  double cpu_s = 10;                           // of each process, whole seconds, rounded up
  double wall_s = 20;                          // from the start, that of the sandbox included
  int64_t memory_bytes = 1 << 30;              // addresses of each process; memory of all together
  int64_t file_bytes = 16 << 20;               // one file
  int64_t folder_bytes = 64 << 20;             // the work folder
  int64_t output_bytes = 1 << 20;              // of stdout, and of stderr
  int processes = 64, descriptors = 64;        // processes and threads together, one the sandbox's; of each process
  const std::atomic<bool>* stopped = nullptr;  // once true, the program is killed
};

// Of programs that may compute for so long: twice that on the clock, where they share it with others, and 5 s more at
// least, for their start.
SandboxLimits limits_of_time(double cpu_s);

// Put into the work folder, which is the current one, under a plain name.
struct SandboxFile {
  std::string name, content;
};

struct SandboxResult {
  enum End { exited, signalled, out_of_time, too_much_output, out_of_memory, stopped } end = exited;
  // Exit code or signal; 0 for the other ends, which are the runner's doing. A program that exits with 128 + n cannot
  // be told from one that signal n ended.
  int code = 0;
  std::string out, err;  // no more than output_bytes each
  double seconds = 0;    // from the start to the end
};

// Why nothing can be run here ("bubblewrap is not installed: apt-get install bubblewrap", or what it says when it is
// tried, once in a process); empty where it can.
std::string why_no_sandbox();
// The same of a certain bubblewrap, tried anew.
std::string why_no_sandbox(const std::string& bubblewrap);

// Runs command (a program of /usr or /bin by its whole path, and its arguments) with `input` on its stdin, until it
// ends or a limit is passed, when all its processes are killed. It sees /usr read-only, an empty work folder with
// `files` in it, a few devices, its own processes, no network and no environment but a fixed one. When this returns, no
// process of it is left. Safe to call from many threads at a time; none may end before its call does. Error where there
// is no sandbox (why_no_sandbox), or files are not plainly named or larger than file_bytes.
SandboxResult run_sandboxed(std::span<const std::string> command, std::span<const SandboxFile> files,
                            std::string_view input, const SandboxLimits& limits);

// The same without a sandbox, for users who insist: a process in a session of its own and a temporary directory, with
// the limits of time, memory, files and output, but with all rights of this one; what it leaves behind in other
// sessions stays. `processes` and `folder_bytes` are not held.
SandboxResult run_unsandboxed(std::span<const std::string> command, std::span<const SandboxFile> files,
                              std::string_view input, const SandboxLimits& limits);

}  // namespace fathom::eval
