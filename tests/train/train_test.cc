// The trainer's laws: schedules, balancing, checkpoints that survive damage, and the same bits however a run is cut.
#include "train/train.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <utility>

#include "base/file.h"
#include "base/rng.h"
#include "checkpoint/safetensors.h"
#include "train/balance.h"
#include "train/metrics.h"
#include "train/saver.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = R"({
  "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 258, "hidden_size": 16,
  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": null, "kv_lora_rank": 8,
  "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "intermediate_size": 24, "moe_intermediate_size": 8,
  "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
  "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
  "norm_topk_prob": true, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 1, "hidden_act": "silu",
  "attention_bias": false, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
  "initializer_range": 0.05, "tie_word_embeddings": false})";

class Train : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("fathom-train-{}-{}", getpid(),
                                                      testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream(folder_ / "config.json") << kConfig;
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 60; ++i) text << "line " << i << " of the text that the model learns from\n";
  }
  void TearDown() override { fs::remove_all(folder_); }

  TrainOptions options(const std::string& out) const {
    TrainOptions o;
    o.model_config = folder_ / "config.json";
    o.data = o.val_data = {folder_ / "text.txt"};
    o.tokenizer = "bytes";
    o.out = folder_ / out;
    o.steps = 6;
    o.seq_len = 17;
    o.batch_size = 4;
    o.lr.peak = 1e-2;
    o.lr.warmup = 2;
    return o;
  }
  TrainResult run(const TrainOptions& o, int threads = 1, int64_t stop_after = 0) const {
    ThreadPool pool(threads);
    int64_t steps = 0;
    return train(o, pool, [&] { return ++steps == stop_after; });
  }
  std::string weights(const std::string& out) const {
    return read_file(folder_ / out / "model.safetensors", size_t{1} << 30);
  }
  fs::path folder_;
};

TEST(LearningRate, EachScheduleHasItsShape) {
  LearningRate rate{Schedule::constant, 2.0, 0.5, 10, 110, 0.5};
  EXPECT_DOUBLE_EQ(learning_rate(rate, 1), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(rate, 10), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate(rate, 110), 2.0);
  rate.schedule = Schedule::cosine;
  EXPECT_NEAR(learning_rate(rate, 60), 1.25, 1e-12);
  EXPECT_NEAR(learning_rate(rate, 110), 0.5, 1e-12);
  rate.schedule = Schedule::wsd;
  EXPECT_DOUBLE_EQ(learning_rate(rate, 55), 2.0);
  EXPECT_LT(learning_rate(rate, 56), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate(rate, 110), 0.5);
  EXPECT_THROW(schedule_named("linear"), UsageError);
}

TEST(Balance, BiasesFollowTheSignOfTheLoadError) {
  float biases[] = {0, 0, 0, 1};
  float gate[4] = {};
  ModelWeights w;
  w.layers.resize(2);  // a dense layer, then an MoE layer
  w.layers[1].moe.gate = Tensor(gate, Format::f32, {4, 1});
  w.layers[1].moe.e_score_correction_bias = Tensor(biases, Format::f32, {4});
  const ExpertLoad load = {{1, 9, 5, 5}};
  update_biases(w, load, 0.25);
  EXPECT_FLOAT_EQ(biases[0], 0.25f);
  EXPECT_FLOAT_EQ(biases[1], -0.25f);
  EXPECT_FLOAT_EQ(biases[2], 0);
  EXPECT_FLOAT_EQ(biases[3], 1);
  EXPECT_DOUBLE_EQ(max_violation(load), 0.8);
  EXPECT_THAT(max_violations({{1, 9, 5, 5}, {0, 0}, {3, 1}}), testing::ElementsAre(testing::DoubleEq(0.8), 0, 0.5));
  EXPECT_EQ(max_violation({}), 0);
  ASSERT_EQ(bias_ranges(w).size(), 1U);
  EXPECT_EQ(bias_ranges(w)[0], (std::array<float, 2>{-0.25f, 1}));
}

TEST_F(Train, BiasesStayInTheFrozenPart) {
  for (const double freeze : {0.0, 0.5, 1.0}) {
    TrainOptions o = options(fmt::format("out{}", freeze));
    o.bias_freeze = freeze;
    o.bias_update_speed = 0.25;
    o.save_every = 1;
    run(o);
    const auto biases = [&](int64_t step) {
      ThreadPool pool(1);
      const LoadedModel model = load_model(checkpoint_directory(o.out, step), pool);
      return bias_ranges(model.parameters.weights);
    };
    EXPECT_EQ(biases(3) == std::vector(2, std::array<float, 2>{0, 0}), freeze == 1);
    EXPECT_EQ(biases(3) == biases(6), freeze > 0) << freeze;
    const StepMetrics last = read_metrics(o.out / "train.jsonl").back();
    EXPECT_EQ(last.bias_ranges, biases(6));
    EXPECT_EQ(last.layer_violations.size(), 2U);
    EXPECT_GT(last.val_max_violation, 0);
  }
}

TEST(Guard, StepsThatAreNoNumbersOrSpikesAreSkipped) {
  const double nan = std::nan(""), inf = INFINITY;
  LossGuard guard;
  for (const auto& [loss, mtp, norm] :
       {std::array{nan, 1., 1.}, {inf, 1., 1.}, {1., nan, 1.}, {1., 1., nan}, {1., 1., inf}}) {
    EXPECT_NE(reason_to_skip(guard, loss, mtp, norm, 10), "");
    EXPECT_NE(reason_to_skip(guard, loss, mtp, norm, 0), "");
  }
  EXPECT_EQ(reason_to_skip(guard, 1e9, 1, 1, 10), "") << "nothing is usual yet";
  Rng rng(1);
  for (int i = 0; i < 500; ++i) {
    const double loss = 3 + 0.1 * rng.normal();
    EXPECT_EQ(reason_to_skip(guard, loss, 1, 1, 10), "") << i;
    guard.skipped = 3;
    count_taken(guard, loss);
    EXPECT_EQ(guard.skipped, 0);
  }
  EXPECT_NEAR(guard.mean, 3, 0.05);
  EXPECT_NEAR(std::sqrt(guard.variance), 0.1, 0.03);
  EXPECT_EQ(reason_to_skip(guard, 3.5, 1, 1, 10), "");
  EXPECT_NE(reason_to_skip(guard, 4.5, 1, 1, 10), "");
  EXPECT_EQ(reason_to_skip(guard, 4.5, 1, 1, 0), "");
  guard.variance = 0;
  EXPECT_EQ(reason_to_skip(guard, 1.19 * guard.mean, 1, 1, 10), "") << "within a fifth";
}

TEST_F(Train, LearnsAndWritesAModelWithItsReport) {
  TrainOptions o = options("out");
  o.steps = 40;
  o.sample_every = 20;
  o.sample = [](Context&, const Model&, const Tokenizer& tokenizer, std::span<const int32_t> prompt, int64_t step) {
    return tokenizer.decode(prompt) + fmt::to_string(step);
  };
  const TrainResult result = run(o);
  ASSERT_TRUE(result.val_loss);
  EXPECT_LT(*result.val_loss, 4.5);  // log(258) is 5.55
  const auto steps = read_metrics(o.out / "train.jsonl");
  ASSERT_EQ(steps.size(), 40u);
  EXPECT_TRUE(steps[39].mtp_loss && steps[39].val_loss);
  EXPECT_EQ(steps[39].sample, "\n40");
  EXPECT_GT(steps[0].grad_norm, 0);
  const std::string report = read_file(o.out / "report.html", size_t{1} << 26);
  EXPECT_NE(report.find("</html>"), std::string::npos);
  ThreadPool pool(1);
  EXPECT_EQ(load_model(o.out, pool).config.hidden_size, 16);
}

TEST_F(Train, ExtensionKeepsTheTokensOfAStepAndResumes) {
  TrainOptions o = options("whole");
  o.seq_len = 10;
  o.batch_size = 6;
  o.micro_batch = 2;
  o.extend_seq_len = 20;
  o.extend_at = 3;
  run(o);
  for (const StepMetrics& m : read_metrics(o.out / "train.jsonl")) EXPECT_EQ(m.tokens, m.step * 60);
  TrainOptions plain = o;
  plain.out = folder_ / "plain";
  plain.extend_seq_len = plain.extend_at = 0;
  run(plain);
  EXPECT_EQ(read_metrics(plain.out / "train.jsonl")[2].loss, read_metrics(o.out / "train.jsonl")[2].loss);
  EXPECT_NE(read_metrics(plain.out / "train.jsonl")[3].loss, read_metrics(o.out / "train.jsonl")[3].loss);
  // A loss is a spike of those of as long sequences.
  const auto losses_known = [](const TrainOptions& run) {
    const std::string state = read_file(checkpoint_directory(run.out, run.steps) / "trainer.json", 1 << 20);
    return std::stoi(state.substr(state.find("\"taken\":") + 8));
  };
  EXPECT_EQ(losses_known(plain), 6);
  EXPECT_EQ(losses_known(o), 3);
  o.out = folder_ / "cut";
  run(o, 2, 4);
  o.resume = true;
  run(o, 1);
  EXPECT_TRUE(weights("whole") == weights("cut"));
  for (const auto& [seq_len, at] : {std::pair{20, 0}, {20, 6}, {0, 3}, {7, 3}, {60, 3}}) {
    o.extend_seq_len = seq_len;
    o.extend_at = at;
    EXPECT_THROW(run(o), UsageError) << seq_len << " at " << at;
  }
}

TEST_F(Train, MatricesAloneDecay) {
  TrainOptions o = options("without");
  o.steps = 1;
  o.lr.warmup = 0;
  o.lr.min = o.lr.peak;
  o.weight_decay = 0;
  run(o);
  o.out = folder_ / "with";
  o.weight_decay = 10;
  run(o);
  ThreadPool pool(1);
  const LoadedModel without = load_model(folder_ / "without", pool), with = load_model(o.out, pool);
  std::map<std::string, std::vector<float>> plain;
  const auto values = [](const NamedTensor& t) { return std::vector(t.view.f32(), t.view.f32() + t.view.size()); };
  for_each_tensor(without.parameters.weights, without.config, [&](const NamedTensor& t) { plain[t.name] = values(t); });
  for_each_tensor(with.parameters.weights, with.config, [&](const NamedTensor& t) {
    const bool decays = t.view.rank >= 2 && t.name != "model.embed_tokens.weight";
    EXPECT_EQ(plain[t.name] != values(t), decays) << t.name;
  });
}

TEST_F(Train, BatchGrowsAndResumesInTheMiddleOfTheRamp) {
  TrainOptions o = options("whole");
  o.seq_len = 10;
  o.batch_size = 8;
  o.micro_batch = 2;
  o.batch_start = 2;
  o.batch_ramp = 4;
  run(o);
  std::vector<int64_t> tokens;
  for (const StepMetrics& m : read_metrics(o.out / "train.jsonl")) tokens.push_back(m.tokens);
  EXPECT_THAT(tokens, testing::ElementsAre(20, 40, 80, 140, 220, 300));
  o.out = folder_ / "cut";
  run(o, 1, 4);  // asked between micro-batches too: in the third step
  o.resume = true;
  run(o);
  EXPECT_TRUE(weights("whole") == weights("cut"));
  for (const auto& [start, ramp] : {std::pair{2, 0}, {0, 4}, {3, 4}, {10, 4}, {2, 7}}) {
    o.batch_start = start;
    o.batch_ramp = ramp;
    EXPECT_THROW(run(o), UsageError) << start << " over " << ramp;
  }
}

TEST_F(Train, RecomputingChangesNoBit) {
  TrainOptions o = options("none");
  run(o);
  for (const auto& [name, recompute] : {std::pair{"selective", Recompute::selective}, {"full", Recompute::full}}) {
    o.out = folder_ / name;
    o.recompute = recompute;
    run(o);
    EXPECT_TRUE(weights("none") == weights(name)) << name;
  }
}

TEST_F(Train, AveragedWeightsFollowAndResume) {
  TrainOptions o = options("one");
  o.steps = 1;
  o.lr.warmup = 0;
  o.ema_decay = 0.9;
  run(o);
  ThreadPool pool(1);
  const LoadedModel trained = load_model(o.out, pool), average = load_model(o.out / "average", pool);
  Parameters first = allocate_parameters(trained.config);
  initialize(first, trained.config, o.seed);
  const std::span<float> w0 = first.all(), w1 = trained.parameters.all(), a1 = average.parameters.all();
  for (size_t i = 0; i < w0.size(); ++i) ASSERT_NEAR(a1[i], w0[i] + 9.0f / 11 * (w1[i] - w0[i]), 1e-6f);

  o = options("whole");
  o.ema_decay = 0.9;
  const TrainResult whole = run(o);
  const StepMetrics last = read_metrics(o.out / "train.jsonl").back();
  ASSERT_TRUE(last.val_loss_average);
  EXPECT_GT(*last.val_loss_average, *whole.val_loss) << "it lags behind";
  EXPECT_LT(*last.val_loss_average, 5.55);
  o.out = folder_ / "cut";
  run(o, 1, 3);
  o.resume = true;
  run(o);
  EXPECT_TRUE(weights("whole") == weights("cut"));
  EXPECT_TRUE(weights("whole/average") == weights("cut/average"));
  o.ema_decay = 0.8;
  EXPECT_THROW(run(o), Error);
}

TEST_F(Train, MtpHasAnotherWeightLate) {
  TrainOptions o = options("always");
  run(o);
  const auto losses = [&](const std::string& out) {
    std::vector<double> all;
    for (const StepMetrics& m : read_metrics(folder_ / out / "train.jsonl")) all.push_back(m.loss);
    return all;
  };
  o.out = folder_ / "late";
  o.mtp_late_at = 3;
  o.mtp_weight_late = 0;
  run(o);
  for (size_t i = 0; i < 6; ++i)
    EXPECT_EQ(losses("always")[i] == losses("late")[i], i < 4) << i;  // the fourth's update
  const auto steps = read_metrics(o.out / "train.jsonl");
  EXPECT_TRUE(steps[2].mtp_loss && !steps[3].mtp_loss);
}

// A step whose documents are masked is the step whose sequences are the documents.
TEST_F(Train, MaskedDocumentsDoNotMeet) {
  std::ofstream jsonl(folder_ / "documents.jsonl");
  for (int i = 0; i < 40; ++i) jsonl << fmt::format("{{\"text\": \"document {}\"}}\n", i);
  jsonl.close();
  TrainOptions o = options("masked");
  o.data = o.val_data = {folder_ / "documents.jsonl"};
  o.seq_len = 50;
  o.mask_documents = true;
  run(o);
  const auto masked = read_metrics(o.out / "train.jsonl");
  o.out = folder_ / "plain";
  o.mask_documents = false;
  run(o);
  const auto plain = read_metrics(o.out / "train.jsonl");
  EXPECT_EQ(plain[0].tokens, 200);
  EXPECT_LT(masked[0].tokens, 190) << "what follows an end token is no target";
  EXPECT_GT(masked[0].tokens, 170);
  EXPECT_NE(masked[5].loss, plain[5].loss);
}

TEST_F(Train, SameBitsForAnyNumberOfThreads) {
  run(options("one"), 1);
  run(options("two"), 2);
  EXPECT_TRUE(weights("one") == weights("two"));
}

TEST_F(Train, ResumedRunHasTheBitsOfAnUninterruptedOne) {
  run(options("whole"));
  TrainOptions o = options("cut");
  EXPECT_TRUE(run(o, 1, 3).stopped);
  EXPECT_FALSE(fs::exists(o.out / "model.safetensors"));
  const double seconds_before = read_metrics(o.out / "train.jsonl").back().seconds;
  EXPECT_GT(seconds_before, 0);
  std::ofstream(o.out / "train.jsonl", std::ios::app) << R"({"step": 4, "loss": 1, "seconds": 1000})"
                                                      << "\n{\"step\": 5, \"lo";
  o.resume = true;
  run(o, 2);
  EXPECT_TRUE(weights("whole") == weights("cut"));
  const auto steps = read_metrics(o.out / "train.jsonl");
  ASSERT_EQ(steps.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(steps[i].step, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(steps[i].steps, 6);
  }
  EXPECT_GE(steps[3].seconds, seconds_before);  // of both parts together
  EXPECT_LT(steps[5].seconds, 1000);            // and not of what was dropped
}

TEST_F(Train, EveryPrecisionLearnsAndResumesWithTheSameBits) {
  std::vector<std::string> all;
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8, Precision::fp8_per_tensor}) {
    const std::string name = precision_name(precision);
    EXPECT_EQ(precision_named(name), precision);
    TrainOptions whole = options(name), cut = options(name + "-cut");
    for (TrainOptions* o : {&whole, &cut}) {
      o->precision = precision;
      o->moments = Format::bf16;
      o->steps = 20;
    }
    const TrainResult result = run(whole);
    EXPECT_LT(result.loss, 5) << name;  // log(258) is 5.55
    EXPECT_TRUE(run(cut, 2, 7).stopped);
    const SafetensorsFile moments(checkpoint_directory(cut.out, 7) / "optimizer.safetensors");
    EXPECT_EQ(moments.find("second_moment")->format, Format::bf16);
    cut.resume = true;
    run(cut, 1);
    EXPECT_TRUE(weights(name) == weights(name + "-cut")) << name;
    for (const std::string& other : all) EXPECT_FALSE(weights(name) == other) << name;
    all.push_back(weights(name));
    cut.precision = precision == Precision::f32 ? Precision::bf16 : Precision::f32;
    EXPECT_THROW(run(cut), Error) << name;
    cut.precision = precision;
    cut.moments = Format::f32;
    EXPECT_THROW(run(cut), Error) << name;
  }
  EXPECT_THROW(precision_named("fp16"), UsageError);
}

TEST_F(Train, ResumePassesOverDamagedCheckpoints) {
  TrainOptions o = options("out");
  o.save_every = 2;
  run(o);
  const std::string whole = weights("out");
  const fs::path newest = checkpoint_directory(o.out, 6), middle = checkpoint_directory(o.out, 4);
  fs::resize_file(newest / "optimizer.safetensors", fs::file_size(newest / "optimizer.safetensors") - 1);
  std::fstream damaged(middle / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  damaged.seekp(-1, std::ios::end);
  damaged.put('\x55');
  damaged.close();
  fs::create_directories(o.out / "checkpoints/step-9.partial");
  o.resume = true;
  run(o);
  EXPECT_EQ(read_metrics(o.out / "train.jsonl").size(), 6u);
  EXPECT_TRUE(weights("out") == whole);
}

TEST_F(Train, KeepsTheNewestCheckpoints) {
  TrainOptions o = options("out");
  o.save_every = 1;
  o.saver.keep.newest = 2;
  run(o);
  EXPECT_FALSE(fs::exists(checkpoint_directory(o.out, 4)));
  EXPECT_TRUE(fs::exists(checkpoint_directory(o.out, 5)));
  EXPECT_TRUE(fs::exists(checkpoint_directory(o.out, 6)));
}

TEST_F(Train, MicroBatchesAddUpToTheBatch) {
  TrainOptions o = options("micro");
  o.micro_batch = 2;
  run(options("whole"));
  run(o);
  const auto a = read_metrics(folder_ / "whole/train.jsonl"), b = read_metrics(folder_ / "micro/train.jsonl");
  ASSERT_EQ(a.size(), b.size());
  EXPECT_NEAR(a[0].loss, b[0].loss, 1e-6);
  EXPECT_NEAR(a[0].grad_norm, b[0].grad_norm, 1e-4 * a[0].grad_norm);
}

TEST_F(Train, LossThatIsNotFiniteStopsAndNamesTheStep) {
  TrainOptions o = options("out");
  o.lr.peak = 100;
  o.clip = 0;
  o.eps = 1e-30;
  o.steps = 200;
  o.weight_decay = 100;
  o.max_skips = 3;
  o.save_every = 1;
  o.saver.keep.newest = 1;
  std::string why;
  try {
    run(o);
    FAIL() << "weights multiplied by -9999 a step stayed finite";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("not finite"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("number 4 in a row"), std::string::npos) << e.what();
    why = e.what();
  }
  const auto steps = read_metrics(o.out / "train.jsonl");
  const auto first =
      std::find_if(steps.begin(), steps.end(), [](const StepMetrics& m) { return m.skipped.has_value(); });
  ASSERT_EQ(steps.end() - first, 4);
  // Named is the newest checkpoint that a step was taken from: not that of the last step taken, whose weights are those
  // that failed.
  const fs::path good = checkpoint_directory(o.out, first->step - 2);
  EXPECT_NE(why.find("The last good checkpoint is " + good.string()), std::string::npos) << why;
  ThreadPool pool(1);
  const LoadedModel kept = load_model(good, pool);
  for (const float w : kept.parameters.trained()) ASSERT_TRUE(std::isfinite(w));
  EXPECT_FALSE(fs::exists(checkpoint_directory(o.out, first->step))) << "nothing is saved while steps are skipped";
}

TEST_F(Train, ABiasThatIsNotFiniteIsSeen) {
  for (const auto& [value, save_every] : {std::pair(std::nanf(""), 2), {INFINITY, 2}, {-INFINITY, 2}, {INFINITY, 1}}) {
    TrainOptions o = options(fmt::format("out{}-{}", value, save_every));
    o.max_skips = 1;
    o.save_every = save_every;
    o.saver.mode = SaveMode::sync;
    o.sample_every = 1;
    o.sample = [broken = value](Context&, const Model& model, const Tokenizer&, std::span<const int32_t>,
                                int64_t step) {
      if (step == 3) model.weights.layers[1].moe.e_score_correction_bias.f32()[2] = broken;
      return std::string();
    };
    try {
      run(o);
      FAIL() << "nobody saw it";
    } catch (const Error& e) {
      const std::string_view what = e.what();
      const char* why = save_every == 1
                            ? "no checkpoint of step 3: model.layers.1.mlp.gate.e_score_correction_bias is not finite"
                            : "step 5: a correction bias of the router is not finite";
      EXPECT_EQ(what.find(why), 0) << what;
      EXPECT_NE(what.find("step-2"), what.npos) << what;
    }
  }
}

// A bit of a weight, wherever, flips behind a step. With FATHOM_FAULTS=full also: how many are seen without the check,
// by numbers that are not finite and losses that jump.
TEST_F(Train, BitsThatFlipInMemoryAreFound) {
  const char* const asked = std::getenv("FATHOM_FAULTS");
  const bool full = asked != nullptr && std::string_view(asked) == "full";
  const int flips = full ? 1000 : 40;
  Rng rng(1);
  int n = 0;
  // Whether the run sees it, at that step.
  const auto is_found = [&](bool check, int64_t at) {
    TrainOptions o = options(fmt::format("out{}", n++));
    o.check_memory = check;
    o.steps = at + 2;
    o.max_skips = 0;
    o.val_every = 0;
    o.save_every = at / 2;
    o.sample_every = at;
    o.sample = [&](Context&, const Model& model, const Tokenizer&, std::span<const int32_t>, int64_t step) {
      if (step != at) return std::string();
      std::vector<float*> weights;
      for_each_tensor(model.weights, model.config, [&](const NamedTensor& named) {
        for (int64_t r = 0; r < named.view.rows(); ++r) {
          for (int64_t c = 0; c < named.view.cols(); ++c) weights.push_back(named.view.f32_row(r) + c);
        }
      });
      float& weight = *weights[rng.below(weights.size())];
      weight = std::bit_cast<float>(std::bit_cast<uint32_t>(weight) ^ uint32_t{1} << rng.below(32));
      return std::string();
    };
    bool found = false;
    try {
      run(o);
    } catch (const Error& e) {
      found = std::string_view(e.what()).starts_with(fmt::format("step {}: ", at + 1));
      if (check) {
        EXPECT_NE(std::string_view(e.what()).find("the memory has lost bits"), std::string::npos) << e.what();
        EXPECT_NE(std::string_view(e.what()).find(fmt::format("step-{}:", at / 2)), std::string::npos) << e.what();
      }
    }
    fs::remove_all(o.out);
    return found;
  };
  for (int i = 0; i < flips; ++i) EXPECT_TRUE(is_found(true, 2 + 2 * (i % 2)));
  if (!full) return;
  int seen = 0;
  for (int i = 0; i < flips; ++i) seen += is_found(false, 104);
  std::cout << flips << " bits flipped, all found; " << seen << " without the check\n";
}

TEST_F(Train, MemoryThatIsSoundIsNotSuspected) {
  for (const Precision precision : {Precision::f32, Precision::fp8}) {
    TrainOptions o = options(fmt::format("out{}", static_cast<int>(precision)));
    o.precision = precision;
    o.ema_decay = 0.9;
    o.steps = 8;
    o.save_every = 3;
    run(o);
    const std::string without = read_file(o.out / "model.safetensors", size_t{1} << 30);
    o.out += "-checked";
    o.check_memory = true;
    run(o);
    EXPECT_EQ(read_file(o.out / "model.safetensors", size_t{1} << 30), without);
  }
}

TEST_F(Train, ARunThatLearnsNothingFails) {
  TrainOptions o = options("out");
  o.max_skips = 100;
  o.lr.warmup = 0;
  o.sample_every = 0;
  o.init = o.out.parent_path() / "broken";
  {
    ModelConfig config = read_model_config(o.model_config);
    Parameters p = allocate_parameters(config);
    initialize(p, config, 1);
    std::ranges::fill(std::span(p.weights.embed.f32(), static_cast<size_t>(p.weights.embed.size())), 1e25F);
    save_model(o.init, config, p.weights, {.format = Format::f32});
  }
  o.model_config.clear();
  EXPECT_THROW(run(o), Error);
}

// A number becomes NaN or infinite in the middle of step 4 and is mended after step 5: both are skipped, with all that
// is kept as step 3 left it, and neither is saved while it is there.
TEST_F(Train, StepsThatAreNotFiniteChangeNothingThatIsKept) {
  int n = 0;
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8, Precision::fp8_per_tensor}) {
    for (const float value : {std::nanf(""), INFINITY}) {
      TrainOptions o = options(fmt::format("out{}", n++));
      o.precision = precision;
      o.moments = Format::bf16;
      o.micro_batch = 2;
      o.save_every = o.sample_every = 1;
      o.steps = 5;  // which is saved though it is skipped: no other comes
      o.saver = {SaveMode::async, SaveFailure::warn, {}};
      float* number = nullptr;
      o.sample = [&](Context&, const Model& model, const Tokenizer&, std::span<const int32_t>, int64_t) {
        number = model.weights.layers[1].moe.gate.f32_row(n % 4) + 5;
        return std::string();
      };
      float before = 0;
      int64_t asked = 0;  // between the two micro-batches of a step, and behind it
      ThreadPool pool(1);
      train(o, pool, [&] {
        ++asked;
        if (asked == 2 * 3 + 1) before = std::exchange(*number, value);
        if (asked == 2 * 5) *number = before;
        return false;
      });
      const auto kept = [&](int64_t step, const char* name) {
        return read_file(checkpoint_directory(o.out, step) / name, size_t{1} << 30);
      };
      for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
        EXPECT_TRUE(kept(3, name) == kept(5, name)) << name;
        EXPECT_FALSE(kept(2, name) == kept(3, name)) << name;
      }
      EXPECT_FALSE(fs::exists(checkpoint_directory(o.out, 4)));
      for (const StepMetrics& m : read_metrics(o.out / "train.jsonl")) {
        EXPECT_EQ(m.skipped.has_value(), m.step == 4 || m.step == 5) << m.step;
      }
    }
  }
}

TEST_F(Train, SavingWaitsForNoneOrAll) {
  for (const SaveMode mode : {SaveMode::automatic, SaveMode::async, SaveMode::sync}) {
    TrainOptions o = options(fmt::format("out{}", static_cast<int>(mode)));
    o.save_every = 1;
    o.saver = {mode, SaveFailure::stop, {.newest = 2, .every = 3}};
    run(o);
    for (int64_t step = 1; step <= 6; ++step) {
      EXPECT_EQ(fs::exists(checkpoint_directory(o.out, step)), step == 3 || step >= 5) << step;
    }
    EXPECT_TRUE(weights(o.out) == weights("out0"));
  }
  TrainOptions o = options("pointless");
  o.saver.keep.every = 3;
  EXPECT_THROW(run(o), UsageError);
}

TEST(SaveMode, IsSyncWhereMemoryForACopyIsShort) {
  EXPECT_EQ(resolve_save_mode(SaveMode::automatic, 10, 10), SaveMode::async);
  EXPECT_EQ(resolve_save_mode(SaveMode::automatic, 10, 9), SaveMode::sync);
  EXPECT_EQ(resolve_save_mode(SaveMode::async, 10, 10), SaveMode::async);
  EXPECT_THROW(resolve_save_mode(SaveMode::async, 10, -9), Error);
  EXPECT_EQ(resolve_save_mode(SaveMode::sync, 10, 10), SaveMode::sync);
  EXPECT_EQ(resolve_save_mode(SaveMode::sync, 10, 9), SaveMode::sync);
}

TEST_F(Train, WhatAKilledRunLeftIsRemoved) {
  TrainOptions o = options("out");
  const fs::path checkpoints = o.out / "checkpoints";
  for (const char* name : {"step-4.partial", "step-5.removed"}) {
    fs::create_directories(checkpoints / name);
    std::ofstream(checkpoints / name / "model.safetensors") << "half";
  }
  fs::create_directories(checkpoints / "mine.partial");
  testing::internal::CaptureStderr();
  run(o);
  const std::string log = testing::internal::GetCapturedStderr();
  for (const char* name : {"step-4.partial", "step-5.removed"}) {
    EXPECT_FALSE(fs::exists(checkpoints / name));
    EXPECT_NE(log.find("removing " + (checkpoints / name).native()), std::string::npos) << log;
  }
  EXPECT_TRUE(fs::exists(checkpoints / "mine.partial"));
  EXPECT_NE(log.find("step 6: saved in"), std::string::npos) << log;
}

TEST_F(Train, AStepCutBetweenItsMicroBatchesIsDoneAgain) {
  TrainOptions whole = options("whole"), o = options("cut");
  whole.micro_batch = o.micro_batch = 1;
  run(whole);
  // Asked thrice inside of a step and once behind it: the sixth time is inside of the second.
  EXPECT_TRUE(run(o, 1, 6).stopped);
  EXPECT_TRUE(fs::exists(checkpoint_directory(o.out, 1)));
  EXPECT_FALSE(fs::exists(checkpoint_directory(o.out, 2)));
  EXPECT_EQ(read_metrics(o.out / "train.jsonl").size(), 1u);
  o.resume = true;
  run(o);
  EXPECT_TRUE(weights("whole") == weights("cut"));
  // Before the first step is whole there is nothing to save.
  TrainOptions early = options("early");
  early.micro_batch = 1;
  EXPECT_TRUE(run(early, 1, 2).stopped);
  EXPECT_FALSE(has_checkpoints(early.out));
}

TEST_F(Train, AFinishedRunThatIsResumedTellsItsLosses) {
  TrainOptions o = options("out");
  const TrainResult first = run(o);
  o.resume = true;
  const TrainResult again = run(o);
  EXPECT_EQ(again.step, o.steps);
  EXPECT_EQ(again.loss, first.loss);
  EXPECT_GT(again.loss, 0);
  ASSERT_TRUE(again.val_loss.has_value() && first.val_loss.has_value());
  EXPECT_EQ(*again.val_loss, *first.val_loss);
}

TEST_F(Train, ResumingWithAnotherModelNamesTheDifference) {
  TrainOptions o = options("out");
  EXPECT_TRUE(run(o, 1, 2).stopped);
  std::string config = kConfig;
  config.replace(config.find("\"num_experts_per_tok\": 2"), 24, "\"num_experts_per_tok\": 3");
  std::ofstream(folder_ / "config.json") << config;
  o.resume = true;
  try {
    run(o);
    FAIL() << "went on with another model";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("num_experts_per_tok is 3 now and was 2"), std::string::npos) << e.what();
  }
}

TEST_F(Train, NothingThatIsReadIsWrittenOver) {
  const std::string text = read_file(folder_ / "text.txt", 1 << 20);
  fs::create_symlink("text.txt", folder_ / "link");
  for (const char* log : {"text.txt", "./text.txt", "link", "config.json"}) {
    TrainOptions o = options("out");
    o.log = folder_ / log;
    EXPECT_THROW(run(o), UsageError) << log;
  }
  TrainOptions o = options("");
  EXPECT_THROW(run(o), UsageError);  // its config.json
  o = options("out");
  run(o);
  TrainOptions on_itself = options("out");
  on_itself.model_config.clear();
  on_itself.init = folder_ / "out/.";
  EXPECT_THROW(run(on_itself), UsageError);
  EXPECT_EQ(read_file(folder_ / "text.txt", 1 << 20), text);
  EXPECT_EQ(read_file(folder_ / "config.json", 1 << 20), kConfig);
}

TEST_F(Train, ABatchThatCannotFitIsRefused) {
  TrainOptions o = options("out");
  o.batch_size = 2'000'000'000;
  try {
    run(o);
    FAIL() << "found the memory for it";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("--micro-batch"), std::string::npos) << e.what();
  }
  EXPECT_FALSE(fs::exists(o.out));
}

TEST_F(Train, RefusesWhatMakesNoSense) {
  TrainOptions o = options("out");
  o.micro_batch = 3;
  EXPECT_THROW(run(o), UsageError);
  o = options("out");
  o.model_config.clear();
  EXPECT_THROW(run(o), UsageError);
  o = options("out");
  o.seq_len = 65;
  EXPECT_THROW(run(o), Error);
  o = options("out");
  o.lr.peak = std::nan("");
  EXPECT_THROW(run(o), UsageError);
  for (const double alpha : {std::nan(""), 1e30, static_cast<double>(INFINITY), -2.0}) {
    o = options("out");
    o.balance_alpha = alpha;
    EXPECT_THROW(run(o), UsageError) << alpha;
  }
  o = options("out");
  run(o);
  EXPECT_THROW(run(o), UsageError);  // would write over the run
  o.resume = true;
  o.beta2 = 0.9;
  EXPECT_THROW(run(o), Error);  // another run's settings
}

}  // namespace
}  // namespace fathom
