// The power goes away at any moment of a save: what is there then loads as the checkpoint before or the new one.
#include "faults/power_loss.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <unordered_set>

#include "base/terminal.h"
#include "faults/small_state.h"

namespace fathom::test {
namespace {

namespace fs = std::filesystem;

// Calls, and how many of them had been made when each piece of work was done.
struct Log {
  Tree before;
  std::vector<FileCall> calls;
  std::vector<size_t> done;
};

template <class Work>
Log record(const fs::path& root, int n, const Work& work) {
  Log log{read_tree(root), {}, {}};
  const Recording recording(root);
  for (int i = 0; i < n; ++i) {
    work(i);
    log.done.push_back(recording.calls().size());
  }
  log.calls = recording.calls();
  return log;
}

// The log without the first n calls that sync files, or folders.
Log without_syncs(const Log& log, bool of_files, int n = INT_MAX) {
  Log changed{log.before, {}, {}};
  std::map<int, bool> is_file;  // saving opens files to write them alone
  for (size_t k = 0; k < log.calls.size(); ++k) {
    const FileCall& call = log.calls[k];
    if (call.call == Call::open) is_file[call.fd] = call.created || call.emptied;
    const bool drop = call.call == Call::fsync && is_file[call.fd] == of_files && n-- > 0;
    if (!drop) changed.calls.push_back(call);
    if (std::count(log.done.begin(), log.done.end(), k + 1) > 0) changed.done.push_back(changed.calls.size());
  }
  return changed;
}

struct Outcome {
  int64_t states = 0, distinct = 0, bad = 0;
};

// Every prefix of the log, and of each the states in which all, nothing, the names alone or the data alone of what was
// not synced are there, and so many by chance. judge(folder, n): whether its state is right when n works were done.
template <class Judge>
Outcome lose_power(const Log& log, const fs::path& root, int by_chance, const Judge& judge) {
  Outcome outcome;
  const TemporaryDirectory scratch(scratch_root());
  TreeDirectory directory(scratch.path());
  Disk disk(root, log.before);
  Rng rng(1);
  std::unordered_set<size_t> known;
  for (size_t k = 0; k <= log.calls.size(); ++k) {
    if (k > 0) disk.apply(log.calls[k - 1]);
    const auto done =
        static_cast<int>(std::count_if(log.done.begin(), log.done.end(), [&](size_t end) { return end <= k; }));
    for (int i = 0; i < by_chance + 4; ++i) {
      const double parts[] = {0, 0.1, 0.5, 0.9, 1};
      Disk::Luck luck{parts[rng.below(5)], parts[rng.below(5)], parts[rng.below(4)]};
      if (i < 4) luck = {i % 2 == 0 ? 0. : 1., i < 2 ? 0. : 1., 0};
      const Tree tree = disk.after_power_loss(luck, rng);
      ++outcome.states;
      std::string all = std::to_string(done);
      for (const auto& [path, content] : tree) all += "\n" + path + "\n" + content.value_or("");
      if (!known.insert(std::hash<std::string>()(all)).second) continue;
      ++outcome.distinct;
      directory.hold(tree);
      if (!judge(scratch.path(), done)) ++outcome.bad;
      if (outcome.distinct % 97 == 0) {  // and the next run works there
        remove_leftovers(scratch.path());
        save_and_clean(scratch.path(), state_of(99, small_config()), Tokenizer::load("bytes"), {}, {});
        ThreadPool pool(1);
        if (loaded_step(scratch.path(), pool) != 99) ++outcome.bad;
        directory.forget();
      }
    }
  }
  return outcome;
}

int by_chance() { return full_run() ? 150 : 16; }

void tell(const char* what, const Log& log, const Outcome& o) {
  std::printf("%s: %zu calls, %ld states, %ld of them distinct, %ld bad\n", what, log.calls.size(),
              static_cast<long>(o.states), static_cast<long>(o.distinct), static_cast<long>(o.bad));
}

class PowerLoss : public testing::Test {
 protected:
  void SetUp() override { set_quiet(true); }
  void TearDown() override { set_quiet(false); }

  // Step 1 is there; so many more are saved, and each takes the place of the one before.
  Log saves(int n) {
    const auto save = [&](int64_t step) {
      save_and_clean(root(), state_of(step, small_config()), tokenizer_, {}, {.newest = 1});
    };
    save(1);
    return record(root(), n, [&](int i) { save(i + 2); });
  }
  // So that what was acknowledged is there, or what came after it.
  Outcome lose_power_in_saves(const Log& log, int64_t before) {
    return lose_power(log, root(), by_chance(), [&](const fs::path& folder, int done) {
      return loaded_step(folder, pool_) >= std::max<int64_t>(before + done, 0);
    });
  }
  const fs::path& root() const { return scratch_.path(); }

  TemporaryDirectory scratch_{scratch_root()};
  Tokenizer tokenizer_ = Tokenizer::load("bytes");
  ThreadPool pool_{1};
};

TEST_F(PowerLoss, LeavesTheOldCheckpointOrTheNewOne) {
  const Log log = saves(full_run() ? 50 : 4);
  const Outcome outcome = lose_power_in_saves(log, 1);
  tell("saves", log, outcome);
  EXPECT_EQ(outcome.bad, 0);
  EXPECT_GE(outcome.distinct, full_run() ? 50'000 : 1500);
}

TEST_F(PowerLoss, LeavesNothingOrTheFirstCheckpoint) {
  const Log log =
      record(root(), 1, [&](int) { save_and_clean(root(), state_of(1, small_config()), tokenizer_, {}, {}); });
  const Outcome outcome = lose_power_in_saves(log, 0);
  tell("the first save", log, outcome);
  EXPECT_EQ(outcome.bad, 0);
}

// A model's directory is the old model, the new one, or no model until all of it is written.
TEST_F(PowerLoss, NeverMixesTwoModels) {
  const TrainedState states[] = {state_of(1, small_config()), state_of(2, small_config())};
  const auto save = [&](int i) {  // in two files
    save_model(root(), states[i].config, states[i].parameters.weights, {.max_shard_bytes = 7000});
  };
  save(0);
  const Log log = record(root(), 1, [&](int) { save(1); });
  const auto right = [&](const fs::path& folder, int done) {
    try {
      const LoadedModel model = load_model(folder, pool_);
      const auto is = [&](int i) { return same_bits(model.parameters.memory, states[i].parameters.memory); };
      return is(1) || (done == 0 && is(0));
    } catch (const Error&) {
      return done == 0;
    }
  };
  const Outcome outcome = lose_power(log, root(), 4 * by_chance(), right);
  tell("a model over another", log, outcome);
  EXPECT_EQ(outcome.bad, 0);
  // What syncs the removal of config.json is needed.
  const Log changed = without_syncs(log, /*of_files=*/false, /*n=*/1);
  const Outcome mixed = lose_power(changed, root(), 4 * by_chance(), right);
  tell("the same, config.json's removal not synced", changed, mixed);
  EXPECT_GT(mixed.bad, 0);
}

// That the above can fail: the same saves, with the calls that sync left out.
TEST_F(PowerLoss, WithoutSyncingStatesAreLost) {
  const Log log = saves(2);
  for (const bool of_files : {false, true}) {
    const Log changed = without_syncs(log, of_files);
    ASSERT_LT(changed.calls.size(), log.calls.size());
    const Outcome outcome = lose_power_in_saves(changed, 1);
    tell(of_files ? "without syncing files" : "without syncing folders", changed, outcome);
    EXPECT_GT(outcome.bad, 0);
  }
}

}  // namespace
}  // namespace fathom::test
