// Every call of a save fails once, the disk fills up, memory ends: a clear error, and the checkpoint before is there.
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstdio>
#include <new>
#include <optional>

#include "base/file.h"
#include "base/terminal.h"
#include "faults/failing_memory.h"
#include "faults/file_calls.h"
#include "faults/small_state.h"
#include "parallel/in_process_ranks.h"
#include "refusal.h"
#include "train/saver.h"
#include "train/sharded_saver.h"

namespace fathom::test {
namespace {

namespace fs = std::filesystem;

// Names of what lies beside whole checkpoints.
std::vector<std::string> debris(const fs::path& out) {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(out)) {
    const std::string extension = entry.path().extension();
    if (extension == ".partial" || extension == ".removed") names.push_back(entry.path());
  }
  return names;
}

class Failing : public testing::Test {
 protected:
  void SetUp() override { set_quiet(true); }
  void TearDown() override { set_quiet(false); }
  std::string save(const fs::path& out, int64_t step) const {
    return save_and_clean(out, state_of(step, small_config()), tokenizer_, {}, {.newest = 1});
  }
  int64_t loaded(const fs::path& out) { return loaded_step(out, pool_); }

  Tokenizer tokenizer_ = Tokenizer::load("bytes");
  ThreadPool pool_{1};
};

TEST_F(Failing, EveryCallOfASaveOnce) {
  const TemporaryDirectory scratch(scratch_root());
  const fs::path& out = scratch.path();
  const auto begin_anew = [&] {
    fs::remove_all(out / "checkpoints");
    save(out, 1);
  };
  begin_anew();
  int n_calls[kCalls] = {};
  {
    const Recording recording(out);
    save(out, 2);
    for (int c = 0; c < kCalls; ++c) n_calls[c] = recording.tried(static_cast<Call>(c));
  }
  constexpr int kShort = 0;
  int runs = 0, errors = 0;
  for (int c = 0; c < kCalls; ++c) {
    const Call call{c};
    std::vector<int> ways = {ENOSPC, EIO, EINTR};
    if (call == Call::write) ways.push_back(kShort);
    for (const int way : ways) {
      for (int i = 1; i <= n_calls[c]; ++i, ++runs) {
        begin_anew();
        SCOPED_TRACE(fmt::format("{} number {}: {}", name_of(call), i, std::strerror(way)));
        std::string error, trouble;
        {
          const Fault fault(out, call, i, way);
          try {
            trouble = save(out, 2);
          } catch (const Error& e) {
            error = e.what();
          }
          ASSERT_TRUE(fault.happened());
        }
        // Those of ours are tried again; the C++ library tries none again.
        const bool interrupted = way == EINTR && (call == Call::write || call == Call::fsync || call == Call::close);
        if (way == kShort || interrupted) {
          ASSERT_EQ(error, "");
        }
        if (error.empty()) {
          ASSERT_EQ(loaded(out), 2);
          ASSERT_TRUE(!trouble.empty() || debris(out).empty()) << debris(out)[0];
        } else {
          ++errors;
          ASSERT_NE(error.find(out.native()), std::string::npos) << error;
          ASSERT_NE(error.find(std::strerror(way)), std::string::npos) << error;
          ASSERT_EQ(error.find('\n'), std::string::npos);
          const int64_t step = loaded(out);  // the new one where only what follows its rename failed
          ASSERT_TRUE(step == 1 || (step == 2 && (call == Call::fsync || call == Call::open || call == Call::close)))
              << step;
        }
        remove_leftovers(out);
        ASSERT_EQ(save(out, 3), "");
        ASSERT_EQ(loaded(out), 3);
        ASSERT_TRUE(debris(out).empty()) << debris(out)[0];
      }
    }
  }
  std::printf("%d runs with one failing call each, %d of them errors\n", runs, errors);
  EXPECT_GT(errors, runs / 3);
}

TEST_F(Failing, FullDisk) {
  const TemporaryDirectory scratch(scratch_root());
  const fs::path& out = scratch.path();
  if (mount("tmpfs", out.c_str(), "tmpfs", 0, "size=4m") != 0) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  save(out, 1);
  write_file_atomically(out / "filler", std::string(size_t{3500} << 10, 'x'));
  const std::string too_full = refusal([&] { save(out, 2); });
  EXPECT_NE(too_full.find("the disk has"), std::string::npos) << too_full;
  fs::remove(out / "filler");
  // Full in the middle, by what is not foreseen.
  const std::string filled = refusal([&] {
    save_and_clean(out, state_of(2, small_config()), tokenizer_, {{"x", std::string(5 << 20, 'x')}}, {});
  });
  EXPECT_NE(filled.find(std::strerror(ENOSPC)), std::string::npos) << filled;
  EXPECT_EQ(loaded(out), 1);
  EXPECT_TRUE(debris(out).empty());
  EXPECT_EQ(save(out, 2), "");
  EXPECT_EQ(loaded(out), 2);
  umount(out.c_str());
}

TEST_F(Failing, SaverStopsOrWarnsAndTriesAgain) {
  for (const SaveMode mode : {SaveMode::sync, SaveMode::async}) {
    const TemporaryDirectory scratch(scratch_root());
    const fs::path& out = scratch.path();
    Saver warns(out, tokenizer_, {}, {mode, SaveFailure::warn, {}}, 0), stops(out, tokenizer_, {}, {mode}, 4);
    warns.save(state_of(1, small_config()));
    warns.wait();
    EXPECT_EQ(warns.saved_step(), 1);
    {
      const Fault fault(out, Call::write, 2, ENOSPC);
      warns.save(state_of(2, small_config()));
      warns.wait();
      EXPECT_TRUE(fault.happened());
    }
    EXPECT_EQ(warns.saved_step(), 1);
    EXPECT_EQ(loaded(out), 1);
    warns.save(state_of(3, small_config()));
    warns.save(state_of(4, small_config()));
    EXPECT_EQ(warns.saved_step(), mode == SaveMode::sync ? 4 : 3);
    warns.wait();
    EXPECT_EQ(loaded(out), 4);
    {
      const Fault fault(out, Call::fsync, 1, EIO);
      try {
        stops.save(state_of(5, small_config()));
        stops.wait();
        ADD_FAILURE() << "saved";
      } catch (const Error& e) {
        const std::string what = e.what();
        for (const char* part : {"no checkpoint of step 5", "Input/output error", "the last good one is", "step-4"}) {
          EXPECT_NE(what.find(part), std::string::npos) << what;
        }
      }
    }
    const Fault fault(out, Call::rename, 1, EIO);
    EXPECT_THROW(warns.save_last(state_of(5, small_config())), Error) << "nothing comes after it";
    EXPECT_TRUE(debris(out).empty());
  }
}

// A call of any rank's, in what each writes or in what makes it a checkpoint: none has it then, and no half is left.
TEST_F(Failing, RanksSaveTogetherOrNotAtAll) {
  int n_failed = 0;
  for (const SaveMode mode : {SaveMode::sync, SaveMode::async}) {
    for (const Call call : {Call::write, Call::fsync, Call::rename}) {
      for (const int n : {1, 2, 5}) {
        const TemporaryDirectory scratch(scratch_root());
        const fs::path& out = scratch.path();
        on_ranks(2, [&](Communicator& comm) {
          const auto state = make_rank_state(comm, {.dp = 2}, small_config(), 2, Format::f32, Precision::f32);
          initialize(state->stages[0].parameters, small_config(), 1);
          ShardedSaver saver(out, *state, tokenizer_, {}, {mode, SaveFailure::warn, {}}, 0);
          TrainedState numbers;
          const auto save = [&](int64_t step) {
            numbers.step = step;
            saver.save(numbers);
            saver.wait();
            barrier(state->all);
          };
          save(1);
          std::optional<Fault> fault;
          if (comm.rank() == 0) fault.emplace(out, call, n, EIO);
          barrier(state->all);
          save(2);
          if (comm.rank() == 0) {
            EXPECT_TRUE(fault->happened());
            fault.reset();
            const fs::path newest = newest_whole_checkpoint(out);
            // The new one where only what follows its rename failed.
            EXPECT_TRUE(newest == checkpoint_directory(out, 1) || call == Call::fsync) << newest;
            n_failed += newest == checkpoint_directory(out, 1);
            EXPECT_TRUE(debris(out).empty());
          }
          barrier(state->all);
          save(3);
          if (comm.rank() == 0) {
            EXPECT_EQ(newest_whole_checkpoint(out), checkpoint_directory(out, 3));
            fault.emplace(out, call, n, EIO);
          }
          barrier(state->all);
          numbers.step = 4;
          EXPECT_THROW(saver.save_last(numbers), FailedTogether) << "nothing comes after it";
          barrier(state->all);
        });
      }
    }
  }
  EXPECT_GE(n_failed, 12);
}

TEST_F(Failing, AStateThatIsNotFiniteIsNotSaved) {
  const TemporaryDirectory scratch(scratch_root());
  save(scratch.path(), 1);
  for (const float value : {std::nanf(""), -INFINITY}) {
    TrainedState state = state_of(2, small_config());
    state.parameters.weights.layers[1].moe.gate.f32_row(1)[3] = value;
    try {
      save_and_clean(scratch.path(), state, tokenizer_, {}, {.newest = 1});
      ADD_FAILURE() << "saved";
    } catch (const Error& e) {
      EXPECT_STREQ(e.what(), "model.layers.1.mlp.gate.weight is not finite after step 2");
    }
    EXPECT_EQ(loaded(scratch.path()), 1);
  }
}

TEST_F(Failing, EveryAllocationOfALoadOnce) {
  const TemporaryDirectory scratch(scratch_root());
  save(scratch.path(), 1);
  ASSERT_EQ(loaded(scratch.path()), 1);  // simdjson's choice of its code, once a process, may not run out of memory
  int64_t n = 0;
  for (bool loaded_it = false; !loaded_it; ++n) {
    ASSERT_LT(n, 100'000);
    allocations_left = n + 1;
    try {
      const int64_t step = loaded(scratch.path());
      loaded_it = allocations_left > 0;
      allocations_left = -1;
      EXPECT_EQ(step, 1) << "allocation " << n + 1;
    } catch (const std::bad_alloc&) {
      allocations_left = -1;
    } catch (const Error& e) {
      allocations_left = -1;
      EXPECT_NE(std::string(e.what()).find("memory"), std::string::npos) << e.what();
    }
  }
  std::printf("%ld allocations, each failed once\n", static_cast<long>(n - 1));
  EXPECT_GT(n, 100);
}

}  // namespace
}  // namespace fathom::test
