#include "train/parallel_train.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "base/file.h"
#include "base/terminal.h"
#include "checkpoint/hf_model.h"
#include "parallel/in_process_ranks.h"
#include "sanitized.h"
#include "temporary_directory.h"
#include "train/metrics.h"
#include "train/sharded_state.h"

namespace fathom {
namespace {

using test::TemporaryDirectory;

constexpr int kSteps = 6;

class ParallelTrain : public testing::Test {
 protected:
  ParallelTrain() {
    set_quiet(true);
    const nlohmann::json config{{"model_type", "deepseek_v3"},
                                {"vocab_size", 258},
                                {"hidden_size", 32},
                                {"num_hidden_layers", 4},
                                {"num_attention_heads", 2},
                                {"num_key_value_heads", 2},
                                {"q_lora_rank", 16},
                                {"kv_lora_rank", 16},
                                {"qk_nope_head_dim", 8},
                                {"qk_rope_head_dim", 8},
                                {"v_head_dim", 8},
                                {"intermediate_size", 48},
                                {"moe_intermediate_size", 16},
                                {"n_routed_experts", 8},
                                {"n_shared_experts", 1},
                                {"num_experts_per_tok", 2},
                                {"first_k_dense_replace", 1},
                                {"n_group", 4},
                                {"topk_group", 2},
                                {"topk_method", "noaux_tc"},
                                {"scoring_func", "sigmoid"},
                                {"norm_topk_prob", true},
                                {"routed_scaling_factor", 1.0},
                                {"num_nextn_predict_layers", 1},
                                {"max_position_embeddings", 64},
                                {"rope_theta", 10000.0},
                                {"rms_norm_eps", 1e-6},
                                {"initializer_range", 0.1}};
    options_.model_config = folder_.write("config.json", config.dump());
    std::mt19937 random(1);
    std::string text;
    for (int i = 0; i < 4000; ++i) text += static_cast<char>('a' + random() % 20);
    options_.data = {folder_.write("train.txt", text)};
    options_.val_data = {folder_.write("val.txt", text.substr(0, 700))};
    options_.tokenizer = "bytes";
    options_.steps = kSteps;
    options_.seq_len = 16;
    options_.batch_size = 16;
    options_.micro_batch = 1;
    options_.lr = {.schedule = Schedule::cosine, .peak = 3e-3, .min = 3e-4, .warmup = 2, .steps = kSteps};
    options_.val_every = 3;
    options_.save_every = 3;
    options_.saver.mode = SaveMode::automatic;
  }

  ~ParallelTrain() override { set_quiet(false); }

  std::vector<StepMetrics> run_alone(const std::string& name) {
    options_.out = folder_.path() / name;
    ThreadPool pool(1);
    TrainOptions options = options_;
    options.saver.mode = SaveMode::sync;
    train(options, pool, {});
    return read_metrics(options_.out / "train.jsonl");
  }

  // In one process, stopped in the middle of a step.
  void begin_alone(const std::string& name) {
    options_.out = folder_.path() / name;
    ThreadPool pool(1);
    int n = 0;
    train(options_, pool, [&] { return ++n == 40; });
  }

  std::vector<StepMetrics> run_on(const std::string& name, const ParallelLayout& layout, int stop_after = 0) {
    options_.out = folder_.path() / name;
    test::on_ranks(layout.n_ranks(), [&](Communicator& comm) {
      ThreadPool pool(1);
      int n = 0;
      train_on_ranks(options_, layout, comm, pool, [&] { return stop_after > 0 && ++n == stop_after; });
    });
    return read_metrics(options_.out / "train.jsonl");
  }

  static void expect_same(const std::vector<StepMetrics>& ours, const std::vector<StepMetrics>& expected) {
    ASSERT_EQ(ours.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(ours[i].loss, expected[i].loss, 1e-5 * expected[i].loss) << "step " << expected[i].step;
      EXPECT_NEAR(ours[i].grad_norm, expected[i].grad_norm, 1e-4 * expected[i].grad_norm);
      EXPECT_EQ(ours[i].tokens, expected[i].tokens);
      ASSERT_EQ(ours[i].val_loss.has_value(), expected[i].val_loss.has_value());
      if (expected[i].val_loss) {
        EXPECT_NEAR(*ours[i].val_loss, *expected[i].val_loss, 1e-5 * *expected[i].val_loss);
      }
    }
  }

  TemporaryDirectory folder_;
  TrainOptions options_;
};

TEST_F(ParallelTrain, LossesAreThoseOfOneProcess) {
  const std::vector<StepMetrics> expected = run_alone("alone");
  ASSERT_EQ(expected.size(), kSteps);
  int n = 0;
  for (const ParallelLayout& layout :
       {ParallelLayout{}, ParallelLayout{.dp = 4}, ParallelLayout{.pp = 2, .schedule = ScheduleKind::zb1p},
        ParallelLayout{.pp = 2, .ep = 2, .dp = 2, .schedule = ScheduleKind::dualpipe},
        ParallelLayout{.pp = 2, .ep = 2, .dp = 4, .schedule = ScheduleKind::dualpipev},
        ParallelLayout{.ep = 8, .ranks_per_node = 2}}) {
    SCOPED_TRACE(n);
    if (n++ % 2 == 0 && test::kSanitized) continue;
    expect_same(run_on("out" + std::to_string(n), layout), expected);
    // The model that comes out is whole, and the same but for the order of sums.
    ThreadPool pool(1);
    const LoadedModel ours = load_model(options_.out, pool), alone = load_model(folder_.path() / "alone", pool);
    ASSERT_EQ(ours.parameters.n_total, alone.parameters.n_total);
    for (size_t i = 0; i < ours.parameters.all().size(); ++i) {
      ASSERT_NEAR(ours.parameters.all()[i], alone.parameters.all()[i], 2e-3);
    }
  }
}

TEST_F(ParallelTrain, GoesOnWithAnotherLayout) {
  const std::vector<StepMetrics> expected = run_alone("alone");
  const ParallelLayout layouts[] = {{.pp = 2, .ep = 2, .dp = 2, .schedule = ScheduleKind::dualpipe},
                                    {.ep = 4, .dp = 4},
                                    {.pp = 4, .schedule = ScheduleKind::one_f_one_b},
                                    {}};
  for (size_t first = 0; first < 3; ++first) {
    SCOPED_TRACE(first);
    const std::string out = "out" + std::to_string(first);
    options_.resume = false;
    run_on(out, layouts[first], 2);
    options_.resume = true;
    expect_same(run_on(out, layouts[first + 1]), expected);
  }
  // From many to one process, and from one to many.
  options_.resume = false;
  run_on("to-one", layouts[0], 4);
  options_.resume = true;
  expect_same(run_alone("to-one"), expected);
  options_.resume = false;
  begin_alone("to-many");
  options_.resume = true;
  expect_same(run_on("to-many", layouts[0]), expected);
}

TEST_F(ParallelTrain, TheSameLayoutGoesOnWithTheSameBits) {
  const ParallelLayout layout{.pp = 2, .ep = 2, .dp = 2, .schedule = ScheduleKind::dualpipe};
  const std::vector<StepMetrics> whole = run_on("whole", layout);
  run_on("cut", layout, 3);
  options_.resume = true;
  const std::vector<StepMetrics> cut = run_on("cut", layout);
  ASSERT_EQ(cut.size(), whole.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(cut[i].loss, whole[i].loss);
    EXPECT_EQ(cut[i].grad_norm, whole[i].grad_norm);
  }
}

TEST_F(ParallelTrain, AveragedWeightsAreThoseOfOneProcess) {
  options_.ema_decay = 0.9;
  options_.bias_update_speed = 0.01;
  const auto files_of = [&](const std::string& name) {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path() / name / "average")) {
      files[entry.path().filename().string()] = read_file(entry.path(), size_t{1} << 30);
    }
    return files;
  };
  const auto expect_same_average = [&](const std::string& name) {
    ThreadPool pool(1);
    const LoadedModel ours = load_model(folder_.path() / name / "average", pool),
                      alone = load_model(folder_.path() / "alone" / "average", pool);
    ASSERT_EQ(ours.parameters.n_total, alone.parameters.n_total);
    for (size_t i = 0; i < ours.parameters.all().size(); ++i) {
      ASSERT_NEAR(ours.parameters.all()[i], alone.parameters.all()[i], 1e-3);
    }
    const StepMetrics last = read_metrics(folder_.path() / name / "train.jsonl").back(),
                      expected = read_metrics(folder_.path() / "alone" / "train.jsonl").back();
    EXPECT_NEAR(*last.val_loss_average, *expected.val_loss_average, 1e-5 * *expected.val_loss_average);
    EXPECT_NE(*last.val_loss_average, *last.val_loss);
  };
  run_alone("alone");
  const ParallelLayout layouts[] = {{.pp = 2, .ep = 2, .dp = 2, .schedule = ScheduleKind::dualpipe},
                                    {.ep = 4, .dp = 4},
                                    {.pp = 4, .schedule = ScheduleKind::one_f_one_b}};
  for (size_t i = 0; i < (test::kSanitized ? 1 : std::size(layouts)); ++i) {
    SCOPED_TRACE(i);
    options_.resume = false;
    const std::string whole = "whole" + std::to_string(i), cut = "cut" + std::to_string(i);
    run_on(whole, layouts[i]);
    expect_same_average(whole);
    run_on(cut, layouts[i], 3);
    options_.resume = true;
    run_on(cut, layouts[i]);
    EXPECT_TRUE(files_of(whole) == files_of(cut));
    // Another layout goes on, and one process.
    options_.resume = false;
    const std::string other = "other" + std::to_string(i);
    run_on(other, layouts[i], 2);
    options_.resume = true;
    run_on(other, layouts[(i + 1) % std::size(layouts)], 2);
    run_alone(other);
    expect_same_average(other);
  }
  options_.resume = false;
  begin_alone("to-many");
  options_.resume = true;
  run_on("to-many", layouts[0]);
  expect_same_average("to-many");
}

TEST_F(ParallelTrain, MemoryThatIsSoundIsNotSuspected) {
  const ParallelLayout layout{.pp = 2, .ep = 2, .dp = 2, .schedule = ScheduleKind::dualpipe};
  options_.ema_decay = 0.9;
  const std::vector<StepMetrics> expected = run_on("unchecked", layout);
  options_.check_memory = true;
  const std::vector<StepMetrics> checked = run_on("checked", layout);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(checked[i].loss, expected[i].loss);
}

TEST_F(ParallelTrain, RecomputingChangesNoBit) {
  const ParallelLayout layout{.pp = 2, .ep = 2, .dp = 2, .schedule = ScheduleKind::dualpipe};
  const std::vector<StepMetrics> expected = run_on("none", layout);
  for (const auto& [name, recompute] : {std::pair{"selective", Recompute::selective}, {"full", Recompute::full}}) {
    options_.recompute = recompute;
    const std::vector<StepMetrics> ours = run_on(name, layout);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(ours[i].loss, expected[i].loss);
      EXPECT_EQ(ours[i].grad_norm, expected[i].grad_norm);
    }
  }
}

TEST_F(ParallelTrain, SavesBesideTheTrainingAreTheSame) {
  const ParallelLayout layout{.pp = 2, .ep = 2, .dp = 2, .schedule = ScheduleKind::dualpipe};
  options_.save_every = 1;
  options_.saver.keep = {.newest = 2, .every = 3};
  const std::vector<StepMetrics> expected = run_on("sync", layout);
  options_.saver.mode = SaveMode::async;
  const auto expect_saved = [&](const std::string& name) {
    const std::vector<StepMetrics> ours = read_metrics(folder_.path() / name / "train.jsonl");
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(ours[i].loss, expected[i].loss);
    for (int64_t step = 1; step <= kSteps; ++step) {
      const std::filesystem::path saved = checkpoint_directory(folder_.path() / name, step);
      EXPECT_EQ(std::filesystem::exists(saved), step == 3 || step >= 5) << step;
      if (!std::filesystem::exists(saved)) continue;
      verify_checkpoint(saved);
      for (const auto& entry : std::filesystem::directory_iterator(saved)) {
        const std::filesystem::path name_of_file = entry.path().filename();
        EXPECT_EQ(read_file(entry.path(), size_t{1} << 30),
                  read_file(checkpoint_directory(folder_.path() / "sync", step) / name_of_file, size_t{1} << 30))
            << name_of_file;
      }
    }
  };
  run_on("async", layout);
  expect_saved("async");
  run_on("cut", layout, 4);
  options_.resume = true;
  run_on("cut", layout);
  expect_saved("cut");
}

TEST_F(ParallelTrain, WhatIsForOneProcessIsRefused) {
  const auto refused = [&](auto change) {
    TrainOptions before = options_;
    change();
    EXPECT_THROW(run_on("refused", {.dp = 2}), UsageError);
    options_ = before;
  };
  refused([&] { options_.sample_every = 1; });
  refused([&] { options_.batch_size = 15; });
  EXPECT_THROW(run_on("refused", {.ep = 3}), UsageError);
}

// After spikes a run ends as that of one process does: the weights before them are saved.
TEST_F(ParallelTrain, SpikesLeaveTheWeightsBeforeThem) {
  const ParallelLayout layout{.pp = 2};
  run_on("out", layout, 3);
  // A checkpoint of a run whose losses were far lower.
  const std::filesystem::path step_3 = checkpoint_directory(options_.out, 3);
  const auto trainer = nlohmann::json::parse(std::ifstream(step_3 / "trainer.json"));
  TrainedState numbers = read_trainer(step_3, trainer["settings"].get<Settings>());
  numbers.step = 4;
  numbers.guard = {.mean = 0.1, .variance = 0, .taken = 100, .skipped = 0};
  const std::filesystem::path partial = begin_checkpoint(options_.out, 4);
  std::filesystem::copy(step_3, partial, std::filesystem::copy_options::recursive);
  std::filesystem::remove(partial / "manifest.json");
  write_trainer(partial, numbers, trainer["settings"].get<Settings>());
  finish_checkpoint(options_.out, 4);
  options_.resume = true;
  options_.max_skips = 0;
  try {
    run_on("out", layout);
    FAIL() << "nobody saw it";
  } catch (const FailedTogether& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("is a spike"), what.npos) << what;
    EXPECT_NE(what.find("saved in " + checkpoint_directory(options_.out, 5).string()), what.npos) << what;
  }
  verify_checkpoint(checkpoint_directory(options_.out, 5));
}

// What one rank cannot write all of them end with, and the checkpoint before stays.
TEST_F(ParallelTrain, AnErrorOfOneRankIsAllRanks) {
  const ParallelLayout layout{.pp = 2};
  options_.steps = 3;
  options_.lr.steps = 3;
  run_on("out", layout);
  options_.resume = true;
  options_.steps = kSteps;
  // A directory where a file of the second rank's checkpoint would be... is removed with what a killed run left; one
  // where the model of rank 1 goes at the end is not.
  std::filesystem::remove(options_.out / "model-00002-of-00002.safetensors");
  std::filesystem::create_directory(options_.out / "model-00002-of-00002.safetensors");
  std::ofstream(options_.out / "model-00002-of-00002.safetensors" / "x") << "x";
  int n_errors = 0;
  std::mutex mutex;
  test::on_ranks(2, [&](Communicator& comm) {
    ThreadPool pool(1);
    try {
      train_on_ranks(options_, layout, comm, pool, {});
    } catch (const FailedTogether& error) {
      const std::lock_guard lock(mutex);
      EXPECT_EQ(error.tells, comm.rank() == 1) << error.what();
      ++n_errors;
    }
  });
  EXPECT_EQ(n_errors, 2);
  verify_checkpoint(checkpoint_directory(options_.out, kSteps));
}

}  // namespace
}  // namespace fathom
