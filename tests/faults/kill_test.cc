// kill -9 at any moment of saving: what was acknowledged is there, bit for bit, and nothing that is half.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <thread>

#include "base/rng.h"
#include "base/terminal.h"
#include "faults/small_state.h"

namespace fathom::test {
namespace {

namespace fs = std::filesystem;

struct Life {
  int64_t acknowledged = 0;  // the last step
  int64_t n = 0;
};

// Runs save_loop from `first` on until it has acknowledged so many steps and then some microseconds more.
Life run_and_kill(const fs::path& out, int64_t first, uint64_t steps, uint64_t microseconds) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) throw Error("no pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string program = FATHOM_SAVE_LOOP, folder = out, from = std::to_string(first);
  std::array<char*, 4> arguments{program.data(), folder.data(), from.data(), nullptr};
  pid_t pid = 0;
  if (posix_spawn(&pid, program.c_str(), &actions, nullptr, arguments.data(), environ) != 0) throw Error("no process");
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  Life life;
  int64_t step = 0;
  const auto receive = [&] {
    const bool whole = read(ends[0], &step, sizeof step) == sizeof step;
    if (whole) life = {step, life.n + 1};
    return whole;
  };
  while (static_cast<uint64_t>(life.n) < steps && receive()) continue;
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
  kill(pid, SIGKILL);
  while (receive()) continue;  // what it still said
  close(ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status)) << "ended by itself, with " << WEXITSTATUS(status);
  return life;
}

TEST(Kill, NothingTornAndNothingAcknowledgedLost) {
  const int kills = full_run() ? 10'000 : 300;
  const TemporaryDirectory scratch(scratch_root());
  set_quiet(true);
  ThreadPool pool(1);
  Rng rng(1);
  int64_t saved = 0, acknowledged = 0, cut_off = 0;
  const double begin_s = monotonic_s();
  for (int i = 0; i < kills; ++i) {
    const Life life = run_and_kill(scratch.path(), saved + 1, rng.below(5), rng.below(20'000));
    for (const auto& entry : fs::directory_iterator(scratch.path() / "checkpoints")) {
      const bool half = entry.path().extension() == ".partial" || entry.path().extension() == ".removed";
      cut_off += half ? 1 : 0;
      if (half) continue;
      EXPECT_NO_THROW(verify_checkpoint(entry.path())) << entry.path() << " is torn";
    }
    const int64_t found = loaded_step(scratch.path(), pool);
    ASSERT_GE(found, std::max(life.acknowledged, saved)) << "kill " << i;
    acknowledged += life.n;
    saved = found;
  }
  // Milestones stay, whole.
  for (int64_t step = 250; step <= saved; step += 250) verify_checkpoint(checkpoint_directory(scratch.path(), step));
  set_quiet(false);
  std::printf("%d kills, %ld of them in the middle of a save or of a removal, %ld saves acknowledged, %.0f s\n", kills,
              static_cast<long>(cut_off), static_cast<long>(acknowledged), monotonic_s() - begin_s);
  EXPECT_GT(cut_off, kills / 10);
}

}  // namespace
}  // namespace fathom::test
