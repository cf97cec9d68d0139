// Sparse attention's two stages (V3.2 section 2.1.1): indexers alone beside dense attention, then everything.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "checkpoint/hf_model.h"
#include "refusal.h"
#include "temporary_directory.h"
#include "train/metrics.h"
#include "train/train.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = R"({
  "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 258, "hidden_size": 16,
  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8,
  "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "intermediate_size": 24, "moe_intermediate_size": 8,
  "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
  "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
  "norm_topk_prob": true, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 1, "hidden_act": "silu",
  "attention_bias": false, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
  "initializer_range": 0.1, "tie_word_embeddings": false})";

using Values = std::map<std::string, std::vector<float>>;

bool is_of_indexer(const std::string& name) { return name.find(".indexer.") != std::string::npos; }

class SparseStages : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(folder() / "config.json") << kConfig;
    std::ofstream text(folder() / "text.txt");
    for (int i = 0; i < 60; ++i) text << "line " << i << " of the text that the model learns from\n";
  }

  const fs::path& folder() const { return folder_.path(); }

  // From a checkpoint, or without one a new model.
  TrainOptions options(const std::string& out, const std::string& init) const {
    TrainOptions o;
    if (init.empty()) {
      o.model_config = folder() / "config.json";
    } else {
      o.init = folder() / init;
    }
    o.data = o.val_data = {folder() / "text.txt"};
    o.tokenizer = "bytes";
    o.out = folder() / out;
    o.steps = 8;
    o.seq_len = 40;
    o.batch_size = 4;
    o.micro_batch = 2;
    o.lr.peak = 1e-2;
    o.lr.warmup = 2;
    o.indexer = {2, 8, 6};
    return o;
  }
  TrainOptions warmup(const std::string& out, const std::string& init = "dense") const {
    TrainOptions o = options(out, init);
    o.dsa = Dsa::warmup;
    return o;
  }
  // A model whose attention is not that of random weights.
  void train_dense() const {
    TrainOptions o = options("dense", "");
    o.steps = 30;
    run(o);
  }
  void train_warmup() const {
    train_dense();
    run(warmup("warm"));
  }

  TrainResult run(const TrainOptions& o, int threads = 1, int64_t stop_after = 0) const {
    ThreadPool pool(threads);
    int64_t steps = 0;
    return train(o, pool, [&] { return ++steps == stop_after; });
  }
  std::string refusal(const TrainOptions& o) const {
    return fathom::refusal([&] { run(o); });
  }
  std::string weights(const std::string& out) const {
    return read_file(folder() / out / "model.safetensors", size_t{1} << 30);
  }
  std::vector<StepMetrics> metrics(const std::string& out) const {
    return read_metrics(folder() / out / "train.jsonl");
  }
  Values values(const std::string& out) const {
    ThreadPool pool(1);
    const LoadedModel model = load_model(folder() / out, pool);
    Values all;
    for_each_tensor(model.parameters.weights, model.config,
                    [&](const NamedTensor& t) { all[t.name].assign(t.view.f32(), t.view.f32() + t.view.size()); });
    return all;
  }
  nlohmann::json config(const std::string& out) const {
    return nlohmann::json::parse(read_file(folder() / out / "config.json", 1 << 20));
  }

 private:
  test::TemporaryDirectory folder_;
};

TEST_F(SparseStages, WarmupMovesTheNewIndexersAlone) {
  train_dense();
  TrainOptions o = warmup("warm");
  o.steps = 60;
  o.ema_decay = 0.9;
  run(o);
  EXPECT_EQ(config("warm")["model_type"], "deepseek_v32");
  EXPECT_EQ(config("warm")["index_n_heads"], 2);
  EXPECT_EQ(config("warm")["index_head_dim"], 8);
  EXPECT_EQ(config("warm")["index_topk"], 6);
  const Values before = values("dense"), after = values("warm"), average = values("warm/average");
  int n_new = 0;
  for (const auto& [name, now] : after) {
    const auto old = before.find(name);
    EXPECT_EQ(old == before.end(), is_of_indexer(name)) << name;
    if (old == before.end()) {
      ++n_new;
      EXPECT_NE(now, average.at(name)) << name;
    } else {
      EXPECT_EQ(now, old->second) << name;
      EXPECT_EQ(average.at(name), old->second) << name;
    }
  }
  EXPECT_EQ(n_new, 3 * 5) << "the MTP module's too";
  EXPECT_EQ(after.size(), before.size() + 15);

  const std::vector<StepMetrics> steps = metrics("warm");
  ASSERT_EQ(steps.size(), 60u);
  for (const StepMetrics& m : steps) ASSERT_TRUE(m.indexer_loss && m.indexer_recall && m.mtp_loss);
  EXPECT_LT(*steps[59].indexer_loss, 0.7 * *steps[0].indexer_loss);
  EXPECT_GT(*steps[59].indexer_recall, *steps[0].indexer_recall + 0.05);
  EXPECT_LE(*steps[59].indexer_recall, 1);
  EXPECT_EQ(*steps[59].val_loss, *metrics("dense").back().val_loss) << "dense attention is as it was";
  const std::string report = read_file(o.out / "report.html", size_t{1} << 26);
  EXPECT_NE(report.find("\"indexer_loss\":"), std::string::npos);
  EXPECT_NE(report.find("\"indexer_recall\":"), std::string::npos);
}

TEST_F(SparseStages, SparseStageMovesAll) {
  train_warmup();
  TrainOptions o = options("sparse", "warm");
  o.steps = 40;
  o.dsa = Dsa::sparse;
  run(o);
  const Values before = values("warm"), after = values("sparse");
  for (const auto& [name, now] : after) EXPECT_NE(now, before.at(name)) << name;
  const std::vector<StepMetrics> steps = metrics("sparse");
  EXPECT_LT(steps.back().loss, steps[0].loss - 0.1);
  EXPECT_TRUE(steps.back().indexer_loss && steps.back().indexer_recall);
  EXPECT_GT(*steps.back().indexer_recall, 0.3);
  // A model with indexers is trained so unless it is told otherwise.
  o.out = folder() / "automatic";
  o.dsa = Dsa::automatic;
  run(o);
  EXPECT_TRUE(weights("automatic") == weights("sparse"));
}

TEST_F(SparseStages, OffLeavesIndexersAsTheyAre) {
  train_warmup();
  TrainOptions o = options("off", "warm");
  o.dsa = Dsa::off;
  run(o);
  const Values before = values("warm"), after = values("off");
  for (const auto& [name, now] : after) EXPECT_EQ(now == before.at(name), is_of_indexer(name)) << name;
  EXPECT_FALSE(metrics("off")[0].indexer_loss);
  // It is the training of the model without them.
  o = options("plain", "dense");
  run(o);
  const Values plain = values("plain");
  for (const auto& [name, now] : plain) EXPECT_EQ(now, after.at(name)) << name;
}

TEST_F(SparseStages, BitsDoNotDependOnThreadsStopsOrRecomputing) {
  train_warmup();
  for (const Dsa stage : {Dsa::warmup, Dsa::sparse}) {
    TrainOptions o = stage == Dsa::warmup ? warmup("whole-w") : options("whole-s", "warm");
    o.dsa = stage;
    run(o);
    const std::string whole = read_file(o.out / "model.safetensors", size_t{1} << 30);
    const auto expect_same = [&](const std::string& name) {
      EXPECT_TRUE(read_file(o.out / "model.safetensors", size_t{1} << 30) == whole)
          << name << " in stage " << static_cast<int>(stage);
    };
    const std::string suffix = stage == Dsa::warmup ? "-w" : "-s";
    o.out = folder() / ("threads" + suffix);
    run(o, 4);
    expect_same("threads");
    o.out = folder() / ("recompute" + suffix);
    o.recompute = Recompute::full;
    run(o);
    expect_same("recompute");
    o.recompute = Recompute::none;
    o.out = folder() / ("cut" + suffix);
    EXPECT_TRUE(run(o, 2, 5).stopped);  // asked between micro-batches too
    o.resume = true;
    run(o);
    expect_same("cut");
    EXPECT_EQ(metrics("cut" + suffix).size(), 8u);
  }
}

TEST_F(SparseStages, ResumesInTheSameStageOnly) {
  train_warmup();
  TrainOptions o = options("out", "warm");
  EXPECT_TRUE(run(o, 1, 3).stopped);
  o.resume = true;
  for (const Dsa other : {Dsa::off, Dsa::warmup}) {
    o.dsa = other;
    EXPECT_THAT(refusal(o), testing::HasSubstr("dsa is"));
  }
  o.dsa = Dsa::sparse;
  EXPECT_FALSE(run(o).stopped);
  // From a model without indexers that the first stage gave some.
  o = warmup("new");
  EXPECT_TRUE(run(o, 1, 3).stopped);
  o.resume = true;
  o.indexer.topk = 7;
  EXPECT_THAT(refusal(o), testing::HasSubstr("index_topk is 7 now and was 6"));
  o.dsa = Dsa::automatic;
  EXPECT_THAT(refusal(o), testing::HasSubstr("now"));
}

TEST_F(SparseStages, RefusesWhatHasNoMeaning) {
  train_warmup();
  TrainOptions o = options("out", "dense");
  o.dsa = Dsa::sparse;
  EXPECT_THAT(refusal(o), testing::HasSubstr("--dsa warmup"));
  o = options("out", "");
  o.dsa = Dsa::warmup;
  EXPECT_THAT(refusal(o), testing::HasSubstr("--init"));
  // Of other sizes than it has.
  o = warmup("out", "warm");
  o.indexer.n_heads = 3;
  EXPECT_THAT(refusal(o), testing::HasSubstr("has an indexer already, of 2 heads of 8 that choose 6 tokens"));
  for (const auto& [heads, dim, topk] : {std::array<int64_t, 3>{0, 8, 6}, {2, 0, 6}, {2, 8, 0}, {2, 8, -1}}) {
    o = warmup("out");
    o.indexer = {heads, dim, topk};
    EXPECT_THAT(refusal(o), testing::HasSubstr("--index-"));
  }
  for (const auto& [heads, dim] : {std::array<int64_t, 2>{70000, 8}, {2, 70000}, {2, 3}}) {
    o = warmup("out");
    o.indexer = {heads, dim, 6};
    EXPECT_THAT(refusal(o), testing::HasSubstr("index_"));
  }
  // Without a query's latent, and of another kind.
  std::string config = kConfig;
  config.replace(config.find("\"q_lora_rank\": 8"), 16, "\"q_lora_rank\": null");
  std::ofstream(folder() / "config.json") << config;
  o = options("latentless", "");
  o.steps = 1;
  run(o);
  EXPECT_THAT(refusal(warmup("out", "latentless")), testing::HasSubstr("q_lora_rank"));
  EXPECT_FALSE(fs::exists(folder() / "out"));
}

TEST_F(SparseStages, YarnIsThatOfV3) {
  train_dense();
  TrainOptions o = options("long", "dense");
  o.steps = 2;
  o.yarn_factor = 2.5;
  o.seq_len = 150;
  run(o);
  const nlohmann::json scaling = config("long")["rope_scaling"];
  EXPECT_EQ(config("long")["max_position_embeddings"], 160);
  EXPECT_EQ(scaling["type"], "yarn");
  EXPECT_EQ(scaling["factor"], 2.5);
  EXPECT_EQ(scaling["original_max_position_embeddings"], 64);
  EXPECT_EQ(scaling["beta_fast"], 32);
  EXPECT_EQ(scaling["beta_slow"], 1);
  EXPECT_EQ(scaling["mscale"], 1);
  EXPECT_EQ(scaling["mscale_all_dim"], 1);
  // Of what is extended already it must be told from where.
  o = options("longer", "long");
  o.steps = 1;
  o.yarn_factor = 4;
  EXPECT_THAT(refusal(o), testing::HasSubstr("--yarn-original"));
  o.yarn_original = 64;
  run(o);
  EXPECT_EQ(config("longer")["max_position_embeddings"], 256);
  EXPECT_EQ(config("longer")["rope_scaling"]["factor"], 4);
  EXPECT_EQ(config("longer")["rope_scaling"]["original_max_position_embeddings"], 64);
  // With it both stages are at once: the V3.2 of 64 tokens' model.
  o = warmup("both");
  o.steps = 1;
  o.yarn_factor = 2;
  o.seq_len = 128;
  run(o);
  EXPECT_EQ(config("both")["model_type"], "deepseek_v32");
  EXPECT_EQ(config("both")["max_position_embeddings"], 128);
  for (const double factor : {0.5, -1.0, 2e6, std::nan(""), static_cast<double>(INFINITY)}) {
    o = options("out", "dense");
    o.yarn_factor = factor;
    EXPECT_THAT(refusal(o), testing::HasSubstr("--yarn-factor")) << factor;
  }
  for (const int64_t original : {INT64_MAX, int64_t{1} << 33, int64_t{-1}}) {
    o = options("out", "dense");
    o.yarn_factor = 40;
    o.yarn_original = original;
    EXPECT_THAT(refusal(o), testing::HasSubstr("--yarn-")) << original;
  }
  o = options("out", "");
  o.yarn_factor = 2;
  EXPECT_THAT(refusal(o), testing::HasSubstr("--init"));
}

// What would be chosen from longer sequences takes no memory where none are longer.
TEST_F(SparseStages, AnIndexerThatChoosesAllFits) {
  train_dense();
  TrainOptions o = warmup("all");
  o.steps = 2;
  o.indexer.topk = int64_t{1} << 31;
  run(o);
  EXPECT_FALSE(metrics("all")[0].indexer_recall) << "there is no choice";
  EXPECT_TRUE(metrics("all")[0].indexer_loss);
  o = options("all-sparse", "all");
  o.steps = 2;
  run(o);
}

}  // namespace
}  // namespace fathom
