#include "eval/limited_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <sstream>

#include "base/error.h"

namespace fathom::eval {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kMemoryCheckS = 0.05;
constexpr double kKillS = 5;  // for bubblewrap to tell whom to kill, when it must be killed while it starts
constexpr size_t kReadBytes = 64 << 10;
constexpr size_t kStatusBytes = 4 << 10;

[[noreturn]] void fail(const char* what) {
  throw Error("a process for a program cannot be made: {}: {}", what, strerror(errno));
}

int made(int number, const char* what) {
  if (number < 0) fail(what);
  if (number > 2) return number;
  const int higher = fcntl(number, F_DUPFD_CLOEXEC, 3);  // where this process has no stdin, stdout or stderr
  close(number);
  if (higher < 0) fail(what);
  return higher;
}

// What the child does, all of it made before: it shares this process's memory, and may call the kernel alone.
struct Start {
  const char* const* command;
  const char* const* environment;
  const char* folder;
  int in, out, err;
  const int* kept;
  size_t n_kept;
  bool become_user;
  uid_t user;
  std::array<std::pair<int, rlim_t>, 12> limits;
  pid_t parent;
  volatile int error = 0;  // of the child, where it could not
};

int limit_to(int resource, rlim_t most) {
  rlimit now{};
  if (getrlimit(static_cast<__rlimit_resource>(resource), &now) != 0) return -1;
  // A second more of CPU time for who catches SIGXCPU, which tells this end from others.
  now.rlim_max = std::min(resource == RLIMIT_CPU ? most + 1 : most, now.rlim_max);
  now.rlim_cur = std::min(most, now.rlim_max);
  return setrlimit(static_cast<__rlimit_resource>(resource), &now);
}

// The raw calls: those of the C library would change all threads of the process that this one shares its memory with.
int become(uid_t user) {
  if (syscall(SYS_setgroups, 0, nullptr) != 0) return -1;
  if (syscall(SYS_setresgid, user, user, user) != 0) return -1;
  return static_cast<int>(syscall(SYS_setresuid, user, user, user));
}

void close_all_at_exec() {
  if (syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) == 0) return;
  const long most = std::min(sysconf(_SC_OPEN_MAX), 1L << 16);  // Linux before 5.11
  for (int number = 3; number < most; ++number) fcntl(number, F_SETFD, FD_CLOEXEC);
}

[[noreturn, gnu::noinline]] void become_program(Start& start) {
  const auto check = [&start](bool done) {
    if (done) return;
    start.error = errno;
    _exit(127);
  };
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  check(setsid() >= 0);
  check(dup2(start.in, 0) >= 0 && dup2(start.out, 1) >= 0 && dup2(start.err, 2) >= 0);
  close_all_at_exec();
  for (size_t i = 0; i < start.n_kept; ++i) check(fcntl(start.kept[i], F_SETFD, 0) == 0);
  for (const auto& [resource, most] : start.limits) check(limit_to(resource, most) == 0);
  if (start.become_user) check(become(start.user) == 0);
  check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  // After the user's change, which would clear it. The thread that called run_process is the parent meant.
  check(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0);
  errno = ECANCELED;
  check(getppid() == start.parent);
  check(chdir(start.folder) == 0);
  sigset_t none;
  sigemptyset(&none);
  check(sigprocmask(SIG_SETMASK, &none, nullptr) == 0);
  execve(start.command[0], const_cast<char* const*>(start.command), const_cast<char* const*>(start.environment));
  check(false);
  _exit(127);
}

pid_t start_process(Start& start) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // no handler of this process may run in the child
  // posix_spawn, which a checker asks for, knows neither users nor limits.
  const pid_t pid = vfork();            // NOLINT(clang-analyzer-security.insecureAPI.vfork)
  if (pid == 0) become_program(start);  // NOLINT(clang-analyzer-unix.Vfork): calls of the kernel alone
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return pid;
}

std::vector<const char*> pointers(const std::vector<std::string>& texts) {
  std::vector<const char*> out;
  out.reserve(texts.size() + 1);
  for (const std::string& text : texts) out.push_back(text.c_str());
  out.push_back(nullptr);
  return out;
}

// Reads what there is into `out`, no more than `most` bytes of it. False: there was more. Closes a pipe that has ended.
bool read_some(Descriptor& from, std::string& out, size_t most) {
  std::array<char, kReadBytes> buffer;
  while (from.get() >= 0) {
    const ssize_t n = read(from.get(), buffer.data(), buffer.size());
    if (n == 0) from.reset();
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) from.reset();
    if (n <= 0) break;
    const size_t fits = std::min(static_cast<size_t>(n), most - out.size());
    out.append(buffer.data(), fits);
    if (fits < static_cast<size_t>(n)) return false;
  }
  return true;
}

// What a file of /proc says, and nothing where its process has ended, be it while it is read.
std::string proc_text(const std::string& path) {
  constexpr size_t kMost = size_t{1} << 20;
  std::string text;
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  read_some(file, text, kMost);
  return text;
}

pid_t number_behind(std::string_view text, std::string_view name) {
  const size_t at = text.find(name);
  if (at == std::string_view::npos) return -1;
  size_t begin = at + name.size();
  while (begin < text.size() && text[begin] == ' ') ++begin;
  pid_t number = -1;
  std::from_chars(text.data() + begin, text.data() + text.size(), number);
  return number;
}

// The parent of a process, and 0 where there is no such process.
pid_t parent_of(pid_t pid) {
  const std::string text = proc_text(fmt::format("/proc/{}/stat", pid));
  const size_t name_end = text.rfind(") ");
  if (name_end == std::string::npos || name_end + 4 > text.size()) return 0;
  return number_behind(std::string_view(text).substr(name_end + 3), " ");
}

// kB of a line of /proc/PID/status, and 0 where it has none.
int64_t kilobytes(std::string_view status, std::string_view name) {
  return std::max<pid_t>(number_behind(status, name), 0);
}

// Bytes of memory that the process and all that descend from it have for themselves, in the machine or swapped out, by
// /proc; what is not there any more has none. Where the kernel does not list children it is that of the process alone.
int64_t memory_of(pid_t pid, int depth = 0) {
  const std::string status = proc_text(fmt::format("/proc/{}/status", pid));
  int64_t bytes = (kilobytes(status, "\nRssAnon:\t") + kilobytes(status, "\nVmSwap:\t")) * 1024;
  if (depth > 256) return bytes;
  const std::string tasks = fmt::format("/proc/{}/task", pid);
  DIR* folder = opendir(tasks.c_str());
  if (folder == nullptr) return bytes;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] == '.') continue;
    std::istringstream children(proc_text(fmt::format("{}/{}/children", tasks, entry->d_name)));
    for (pid_t child = 0; children >> child;) bytes += memory_of(child, depth + 1);
  }
  closedir(folder);
  return bytes;
}

// Whom to kill, and how.
class Victim {
 public:
  Victim(pid_t pid, bool has_inner) : pid_(pid), has_inner_(has_inner) {}

  // bubblewrap's child, the first process of the sandbox, with which all others of it die. bubblewrap, which waits for
  // it, is never killed itself, or its child might be left.
  void take_inner(pid_t pid) {
    Descriptor inner(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (inner.get() >= 0 && parent_of(pid) == pid_) {  // else its number is another's by now
      inner_ = std::move(inner);
      inner_pid_ = pid;
    }
  }
  pid_t inner() const { return inner_pid_; }

  // False: not yet.
  bool kill() const {
    if (!has_inner_) return ::kill(-pid_, SIGKILL) == 0;
    return inner_.get() >= 0 && syscall(SYS_pidfd_send_signal, inner_.get(), SIGKILL, nullptr, 0) == 0;
  }
  void kill_outer() const { ::kill(pid_, SIGKILL); }

 private:
  pid_t pid_, inner_pid_ = 0;
  bool has_inner_;
  Descriptor inner_;
};

ProcessEnd watch(pid_t pid, const ProcessPlan& plan, Descriptor out, Descriptor err, Clock::time_point begin) {
  ProcessEnd end;
  SandboxResult& result = end.result;
  const auto seconds = [begin] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  const Descriptor ended(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  Descriptor status(plan.status < 0 ? -1 : fcntl(plan.status, F_DUPFD_CLOEXEC, 3));
  const bool has_inner = status.get() >= 0;
  Victim victim(pid, has_inner);
  std::string told;
  const size_t most = static_cast<size_t>(std::max<int64_t>(plan.limits.output_bytes, 0));
  bool passed = false, killed = false;
  double passed_s = 0, next_memory_s = kMemoryCheckS;
  const auto pass = [&](SandboxResult::End why) {
    if (passed) return;
    passed = true;
    passed_s = seconds();
    result.end = why;
  };
  for (bool running = true; running;) {
    const double now = seconds();
    if (now >= plan.limits.wall_s) pass(SandboxResult::out_of_time);
    if (plan.limits.stopped != nullptr && *plan.limits.stopped) pass(SandboxResult::stopped);
    if (now >= next_memory_s) {
      const pid_t first = has_inner ? victim.inner() : pid;
      if (first > 0 && memory_of(first) > plan.limits.memory_bytes) pass(SandboxResult::out_of_memory);
      next_memory_s = now + kMemoryCheckS;
    }
    if (passed && !killed) {
      killed = victim.kill();
      if (!killed && now > passed_s + kKillS) {
        victim.kill_outer();
        killed = true;
      }
    }
    double wait_s = std::min(kMemoryCheckS, std::max(plan.limits.wall_s - now, 0.001));
    if (passed) wait_s = killed ? 1 : 0.005;
    std::array<pollfd, 4> polled = {pollfd{ended.get(), POLLIN, 0}, pollfd{passed ? -1 : out.get(), POLLIN, 0},
                                    pollfd{passed ? -1 : err.get(), POLLIN, 0}, pollfd{status.get(), POLLIN, 0}};
    poll(polled.data(), polled.size(), static_cast<int>(std::ceil(wait_s * 1000)));
    if (!read_some(status, told, kStatusBytes)) status.reset();
    if (has_inner && victim.inner() == 0) {
      if (const pid_t inner = number_behind(told, "\"child-pid\":"); inner > 0) victim.take_inner(inner);
    }
    siginfo_t info{};
    waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT);
    running = info.si_pid == 0;
    if (!passed && (!read_some(out, result.out, most) || !read_some(err, result.err, most))) {
      pass(SandboxResult::too_much_output);
    }
  }
  if (!has_inner) victim.kill();  // what is left of its group; its number is nobody else's until it is waited for
  int code = 0;
  while (waitpid(pid, &code, 0) < 0 && errno == EINTR) {
  }
  read_some(status, told, kStatusBytes);
  if (!passed && (!read_some(out, result.out, most) || !read_some(err, result.err, most))) {
    result.end = SandboxResult::too_much_output;
    passed = true;
  }
  if (const int inner = number_behind(told, "\"exit-code\":"); inner >= 0) end.inner_code = inner;
  if (!passed) {
    result.end = WIFSIGNALED(code) ? SandboxResult::signalled : SandboxResult::exited;
    result.code = WIFSIGNALED(code) ? WTERMSIG(code) : WEXITSTATUS(code);
  }
  result.seconds = seconds();
  return end;
}

}  // namespace

void Descriptor::reset() {
  if (number_ >= 0) close(number_);
  number_ = -1;
}

Pipe make_pipe() {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) fail("pipe");
  Pipe pipe{Descriptor(made(ends[0], "pipe")), Descriptor(made(ends[1], "pipe"))};
  fcntl(pipe.read.get(), F_SETFL, O_NONBLOCK);
  return pipe;
}

Descriptor file_in_memory(std::string_view content) {
  Descriptor file(made(memfd_create("input", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create"));
  for (size_t done = 0; done < content.size();) {
    const ssize_t n = write(file.get(), content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("write to memory");
    done += static_cast<size_t>(n);
  }
  lseek(file.get(), 0, SEEK_SET);
  if (fcntl(file.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) fail("seal");
  return file;
}

ProcessEnd run_process(const ProcessPlan& plan) {
  const std::vector<const char*> command = pointers(plan.command), environment = pointers(plan.environment);
  const Descriptor input = file_in_memory(plan.input);
  Pipe out = make_pipe(), err = make_pipe();
  const auto bytes = [](int64_t n) { return static_cast<rlim_t>(std::max<int64_t>(n, 0)); };
  Start start{.command = command.data(),
              .environment = environment.data(),
              .folder = plan.folder.c_str(),
              .in = input.get(),
              .out = out.write.get(),
              .err = err.write.get(),
              .kept = plan.kept.data(),
              .n_kept = plan.kept.size(),
              .become_user = plan.user.has_value(),
              .user = plan.user.value_or(0),
              .limits = {{{RLIMIT_AS, bytes(plan.limits.memory_bytes)},
                          {RLIMIT_CPU, static_cast<rlim_t>(std::max(std::ceil(plan.limits.cpu_s), 1.0))},
                          {RLIMIT_FSIZE, bytes(plan.file_bytes)},
                          {RLIMIT_NOFILE, bytes(plan.limits.descriptors)},
                          {RLIMIT_CORE, 0},
                          {RLIMIT_STACK, 8 << 20},
                          {RLIMIT_MEMLOCK, 0},
                          {RLIMIT_MSGQUEUE, 0},
                          {RLIMIT_SIGPENDING, 256},
                          {RLIMIT_RTPRIO, 0},
                          {RLIMIT_NICE, 0},
                          {RLIMIT_LOCKS, RLIM_INFINITY}}},
              .parent = getpid()};
  const auto begin = Clock::now();
  const pid_t pid = start_process(start);
  if (pid < 0) fail("vfork");
  if (start.error != 0) {
    waitpid(pid, nullptr, 0);
    throw Error("{} cannot be started: {}", printable(plan.command[0]), strerror(start.error));
  }
  out.write.reset();
  err.write.reset();
  return watch(pid, plan, std::move(out.read), std::move(err.read), begin);
}

}  // namespace fathom::eval
