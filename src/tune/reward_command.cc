#include "tune/reward_command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/terminal.h"

extern char** environ;  // NOLINT: of the C library

namespace fathom::tune {
namespace {

constexpr size_t kMaxReply = size_t{1} << 20;
constexpr double kLastSeconds = 1;  // that it has to end by itself

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw Error("cannot make a pipe: {}", std::strerror(errno));
    read = ends[0];
    write = ends[1];
  }
};

void close_end(int& fd) {
  if (fd >= 0) close(std::exchange(fd, -1));
}

std::string line_of(const RewardRequest& request) {
  nlohmann::ordered_json line{{"id", request.id}, {"question", request.question}, {"answer", nullptr}};
  if (request.answer) line["answer"] = *request.answer;
  line["completion"] = request.completion;
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

RewardCommand::RewardCommand(std::string command, double timeout_s)
    : command_(std::move(command)), timeout_s_(timeout_s) {
  Pipe in, out;
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_adddup2(&actions, in.read, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out.write, STDOUT_FILENO);
  sigset_t defaults;
  sigemptyset(&defaults);
  for (const int signal : {SIGPIPE, SIGXFSZ, SIGINT, SIGTERM}) sigaddset(&defaults, signal);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  std::string shell = "/bin/sh", option = "-c";
  char* const arguments[] = {shell.data(), option.data(), command_.data(), nullptr};
  const int failed = posix_spawn(&pid_, shell.c_str(), &actions, &attributes, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(in.read);
  close(out.write);
  to_ = in.write;
  from_ = out.read;
  if (failed != 0) {
    pid_ = -1;
    stop();
    throw Error("{}: cannot be started: {}", name(), std::strerror(failed));
  }
  for (const int fd : {to_, from_}) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

RewardCommand::~RewardCommand() { stop(); }

std::string RewardCommand::name() const { return fmt::format("--reward-command {}", printable(command_, 100)); }

void RewardCommand::stop() noexcept {
  if (broken_ && pid_ > 0) kill(-pid_, SIGTERM);  // left in the middle, which it need not complain about
  close_end(to_);
  close_end(from_);
  if (pid_ < 0) return;
  const double begin_s = monotonic_s();
  while (waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (monotonic_s() - begin_s > kLastSeconds) {
      kill(-pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
      break;
    }
    usleep(5000);
  }
  pid_ = -1;
}

// Its output is closed: it has ended, or is about to.
void RewardCommand::tell_end() {
  close_end(to_);
  close_end(from_);
  int status = 0;
  const double begin_s = monotonic_s();
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (monotonic_s() - begin_s > kLastSeconds) throw Error("{}: has closed its standard output", name());
    usleep(2000);
  }
  pid_ = -1;
  if (WIFSIGNALED(status)) throw Error("{}: was ended by signal {}", name(), WTERMSIG(status));
  throw Error("{}: ended with exit code {} while it was asked; it must go on until its standard input ends", name(),
              WEXITSTATUS(status));
}

// What is there of its output goes into unread_. False where it is closed.
bool RewardCommand::hear() {
  char block[1 << 14];
  const ssize_t n = read(from_, block, sizeof block);
  if (n < 0 && errno != EAGAIN && errno != EINTR) throw Error("{}: {}", name(), std::strerror(errno));
  if (n > 0) unread_.append(block, static_cast<size_t>(n));
  return n != 0;
}

// Every later reward would be another answer's.
void RewardCommand::refuse_unasked() const {
  if (unread_.empty()) return;
  throw Error("{}: has said more lines than it was asked: {}", name(),
              printable(std::string_view(unread_).substr(0, unread_.find('\n'))));
}

std::optional<std::vector<double>> RewardCommand::ask(std::span<const RewardRequest> requests,
                                                      const std::function<bool()>& interrupted) {
  if (broken_) throw Error("{}: has failed before", name());
  broken_ = true;  // until all is said
  if (!hear()) tell_end();
  refuse_unasked();
  std::vector<double> rewards;
  std::string unsent;
  size_t n_sent = 0, at = 0;  // requests in `unsent` or gone; bytes of `unsent` that are gone
  double heard_s = monotonic_s();
  const auto take_lines = [&] {
    for (size_t end; (end = unread_.find('\n')) != std::string::npos;) {
      if (rewards.size() >= n_sent - (at < unsent.size() ? 1 : 0)) refuse_unasked();
      const std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      double reward = 0;
      try {
        const JsonDocument reply = JsonDocument::parse(line, "its reply");
        if (reply.root()["reward"].get_double().get(reward) != simdjson::SUCCESS || !std::isfinite(reward)) {
          throw Error("it must be {{\"reward\": NUMBER}}");
        }
      } catch (const Error& error) {
        throw Error("{}: replied to {} with {}: {}", name(), printable(requests[rewards.size()].id), printable(line),
                    error.what());
      }
      rewards.push_back(reward);
      heard_s = monotonic_s();
    }
    if (unread_.size() > kMaxReply) throw Error("{}: a line of more than 1 MiB", name());
  };
  while (take_lines(), rewards.size() < requests.size()) {
    if (interrupted && interrupted()) return std::nullopt;
    if (at == unsent.size() && n_sent < requests.size()) {
      unsent = line_of(requests[n_sent++]);
      at = 0;
    }
    pollfd ends[] = {{from_, POLLIN, 0}, {at < unsent.size() ? to_ : -1, POLLOUT, 0}};
    if (poll(ends, 2, 100) < 0 && errno != EINTR) throw Error("{}: {}", name(), std::strerror(errno));
    if ((ends[1].revents & (POLLOUT | POLLERR)) != 0) {
      const ssize_t n = write(to_, unsent.data() + at, unsent.size() - at);
      if (n < 0 && errno == EPIPE) {  // the last replies may still be there
        at = unsent.size();
        n_sent = requests.size();
      } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
        throw Error("{}: {}", name(), std::strerror(errno));
      }
      if (n > 0) at += static_cast<size_t>(n);
    }
    if ((ends[0].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
      if (!hear()) tell_end();
    } else if (monotonic_s() - heard_s > timeout_s_) {
      throw Error("{}: has said nothing about {} for {} s; give a larger --reward-timeout", name(),
                  printable(requests[rewards.size()].id), timeout_s_);
    }
  }
  hear();  // it may end once it has answered all
  refuse_unasked();
  broken_ = false;
  return rewards;
}

}  // namespace fathom::tune
