// Fine-tuning: what a step reads, and the laws of a run: the same bits however it is cut and for any number of threads.
#include "tune/sft.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "base/file.h"
#include "checkpoint/hf_config.h"
#include "ops/cross_entropy.h"
#include "refusal.h"
#include "temporary_directory.h"
#include "tune/packing.h"

namespace fathom::tune {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr const char* kConfig = R"({
  "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 258, "hidden_size": 32,
  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": null, "kv_lora_rank": 16,
  "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "intermediate_size": 64, "moe_intermediate_size": 32,
  "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
  "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
  "norm_topk_prob": true, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 1, "hidden_act": "silu",
  "attention_bias": false, "max_position_embeddings": 96, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
  "initializer_range": 0.05, "tie_word_embeddings": false})";
constexpr const char* kTemplate =
    "{% for m in messages %}{% if m.role == 'user' %}Q{{ m.content }}{% else %}A{{ m.content }}{{ eos_token }}{% endif "
    "%}{% endfor %}{% if add_generation_prompt %}A{% endif %}";

TEST(Packing, EverySequenceIsInOneRowAndNoRowIsTooLong) {
  Rng lengths_rng(3);
  std::vector<int64_t> lengths;
  for (int i = 0; i < 500; ++i) lengths.push_back(1 + static_cast<int64_t>(lengths_rng.below(i % 7 == 0 ? 100 : 20)));
  std::set<size_t> n_rows;
  std::set<std::vector<std::vector<int64_t>>> packings;
  int64_t total = 0;
  for (const int64_t length : lengths) total += length;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    Rng rng(seed);
    const auto rows = pack_best_fit(lengths, 100, rng);
    std::set<int64_t> seen;
    for (const auto& row : rows) {
      int64_t sum = 0;
      for (const int64_t i : row) {
        EXPECT_TRUE(seen.insert(i).second);
        sum += lengths[static_cast<size_t>(i)];
      }
      EXPECT_LE(sum, 100);
    }
    EXPECT_EQ(seen.size(), lengths.size());
    n_rows.insert(rows.size());
    packings.insert(rows);
    Rng again(seed);
    EXPECT_EQ(pack_best_fit(lengths, 100, again), rows);
  }
  EXPECT_EQ(n_rows.size(), 1U);
  EXPECT_LE(*n_rows.begin(), static_cast<size_t>(total / 100 + 2));
  EXPECT_EQ(packings.size(), 5U);
}

class Sft : public testing::Test {
 protected:
  void SetUp() override {
    folder_.write("config.json", kConfig);
    std::string lines;
    for (int i = 0; i < 10; ++i) {
      lines += fmt::format(
          R"({{"messages":[{{"role":"user","content":"{}"}},{{"role":"assistant","content":"the answer {}"}}]}})", i,
          std::string(static_cast<size_t>(i % 4 + 1), static_cast<char>('a' + i)));
      lines += "\n";
    }
    folder_.write("chats.jsonl", lines);
  }

  SftOptions options(const std::string& out) const {
    SftOptions o;
    o.train.model_config = folder_.path() / "config.json";
    o.train.data = o.train.val_data = {folder_.path() / "chats.jsonl"};
    o.train.tokenizer = "bytes";
    o.train.out = folder_.path() / out;
    o.train.seq_len = 64;
    o.train.batch_size = 2;
    o.train.lr.peak = 1e-2;
    o.train.steps = 6;
    o.chat_template = kTemplate;
    o.train.chat_template = kTemplate;
    return o;
  }
  SftResult run(const SftOptions& o, int threads = 1, int64_t stop_after = 0) const {
    ThreadPool pool(threads);
    int64_t asked = 0;
    return fine_tune(o, pool, [&] { return ++asked == stop_after; });
  }
  std::string weights(const std::string& out) const {
    return read_file(folder_.path() / out / "model.safetensors", size_t{1} << 30);
  }
  TrainingSet read(const SftOptions& o) const {
    ThreadPool pool(2);
    const Tokenizer tokenizer = Tokenizer::bytes();
    const ConversationTemplate with{o.chat_template, {.eos_token = tokenizer.token_bytes(257)}, {257}, {}, false};
    return read_training_set(o.train.data, tokenizer, with, o, pool);
  }
  test::TemporaryDirectory folder_;
};

TEST_F(Sft, TargetsAreTheAnswersAndTheirEnds) {
  const TrainingSet set = read(options("out"));
  ASSERT_EQ(set.counts.sequences, 10);
  Examples examples;
  set.add_to(examples, 1);
  set.add_to(examples, 0);
  ASSERT_EQ(examples.n_sequences(), 2);
  std::string asked, learned;
  int64_t n = 0;
  for (size_t s = 0, t = 0; s < 2; ++s) {
    for (size_t i = 0; i < examples.sequences[s].size(); ++i, ++t) {
      asked += examples.sequences[s][i] < 256 ? static_cast<char>(examples.sequences[s][i]) : '$';
      if (examples.next[t] == kNoTarget) continue;
      learned += examples.next[t] < 256 ? static_cast<char>(examples.next[t]) : '$';
      ++n;
    }
  }
  EXPECT_EQ(asked, "Q1Athe answer bb$Q0Athe answer a$");
  EXPECT_EQ(learned, "the answer bb$the answer a$");
  EXPECT_EQ(examples.n_main, n);
  // Module 1 predicts them too: none is among the first two of its sequence.
  EXPECT_EQ(count_mtp_targets(examples, 1), n);
}

TEST_F(Sft, MtpModulesLeaveOutWhatTheTrunkLeavesOut) {
  const TrainingSet set = read(options("out"));
  Examples examples;
  for (int64_t i = 0; i < 3; ++i) set.add_to(examples, i);
  ThreadPool pool(1);
  Arena arena;
  Context ctx{pool, arena};
  for (const int64_t n_modules : {1, 2}) {
    ModelConfig config = read_model_config(folder_.path() / "config.json");
    config.num_nextn_predict_layers = n_modules;
    Parameters parameters = allocate_parameters(config), grads = allocate_parameters(config, /*with_bias=*/false);
    initialize(parameters, config, 1);
    const Model model = make_model(config, parameters.weights);
    const auto learned = [&](const Examples& part) {
      const Example example = make_example(ctx, part);
      return loss_and_gradients(ctx, model, grads.weights, example.batch, example.targets, {.mtp_weight = 1});
    };
    const LossResult masked = learned(examples);
    EXPECT_EQ(masked.main_targets, examples.n_main);
    EXPECT_EQ(masked.mtp_targets, count_mtp_targets(examples, n_modules));
    EXPECT_LT(masked.mtp_targets, count_mtp_targets(examples.sequences, n_modules));
    // The loss of each target is its own: what two masks learn that make up the whole adds up.
    Examples rest = examples;
    rest.n_main = 0;
    for (size_t s = 0, t = 0; s < rest.sequences.size(); ++s) {
      for (size_t i = 0; i < rest.sequences[s].size(); ++i, ++t) {
        const bool is_last = i + 1 == rest.sequences[s].size();
        rest.next[t] = rest.next[t] == kNoTarget && !is_last ? rest.sequences[s][i + 1] : kNoTarget;
        rest.n_main += rest.next[t] != kNoTarget;
      }
    }
    Examples whole = examples;
    for (size_t t = 0; t < whole.next.size(); ++t) whole.next[t] = std::max(whole.next[t], rest.next[t]);
    whole.n_main += rest.n_main;
    EXPECT_EQ(count_mtp_targets(whole, n_modules), count_mtp_targets(whole.sequences, n_modules));
    const double sum = masked.mtp_loss_sum + learned(rest).mtp_loss_sum;
    EXPECT_NEAR(sum, learned(whole).mtp_loss_sum, 1e-4 * sum);
  }
}

TEST_F(Sft, WhatIsTooLongIsDroppedOrCutOrRefused) {
  SftOptions o = options("out");
  o.train.seq_len = 16;  // Q0A + "the answer a" + end; of i = 1 one more
  EXPECT_EQ(read(o).counts.sequences, 3);
  EXPECT_EQ(read(o).counts.dropped, 7);
  o.too_long = TooLong::cut;
  const TrainingSet cut = read(o);
  EXPECT_EQ(cut.counts.cut, 7);
  EXPECT_EQ(cut.counts.sequences, 10);
  for (const auto& sequence : cut.sequences) EXPECT_LE(sequence.n_ids, 16);
  o.train.seq_len = 3;  // questions alone
  EXPECT_EQ(read(o).counts.dropped, 10);
  EXPECT_THAT(refusal([&] { run(o); }), HasSubstr("nothing is left to learn from"));
  o.train.seq_len = 16;
  o.too_long = TooLong::refuse;
  EXPECT_THAT(refusal([&] { read(o); }), HasSubstr("chats.jsonl: line 2: has 17 tokens, --seq-len is 16"));
}

TEST_F(Sft, BadLinesEndTheRunUnlessSoManyMayBePassedOver) {
  SftOptions o = options("out");
  o.train.data = {folder_.write("bad.jsonl",
                                "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
                                "\"content\":\"b\"}]}\n\n{\"a\":1}\n{\"b\":\n")};
  EXPECT_THAT(refusal([&] { read(o); }), HasSubstr("bad.jsonl: line 3: has neither"));
  o.skip_bad = 1;
  EXPECT_THAT(refusal([&] { read(o); }), HasSubstr("bad.jsonl: line 4: "));
  o.skip_bad = 2;
  EXPECT_EQ(read(o).counts.conversations, 1);
  EXPECT_EQ(read(o).counts.bad, 2);
  o.skip_bad = 0;
  o.chat_template = "constant";
  EXPECT_THAT(refusal([&] { read(o); }), HasSubstr("bad.jsonl: line 1: the chat template writes the same prompt"));
  o.train.data = {folder_.write("pair.jsonl", R"({"prompt": "a", "completion": "b"})")};  // which no template tells
  EXPECT_EQ(read(o).counts.conversations, 1);
  o.train.data = {folder_.write("text.txt", "words")};
  EXPECT_THAT(refusal([&] { read(o); }), HasSubstr("text.txt: is no .jsonl"));
}

TEST_F(Sft, ARunIsTheSameHoweverItIsCutAndForAnyNumberOfThreads) {
  const SftOptions whole = options("whole");
  run(whole);
  run(options("three threads"), 3);
  EXPECT_TRUE(weights("three threads") == weights("whole"));
  SftOptions cut = options("cut");
  EXPECT_TRUE(run(cut, 2, 3).train.stopped);
  cut.train.resume = true;
  EXPECT_EQ(run(cut).train.step, 6);
  EXPECT_TRUE(weights("cut") == weights("whole"));
  SftOptions other = options("other");
  other.train.seed = 1;
  run(other);
  EXPECT_FALSE(weights("other") == weights("whole"));
  cut.train.data = {folder_.write("more.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\"}\n")};
  EXPECT_THAT(refusal([&] { run(cut); }), HasSubstr("data"));
}

TEST_F(Sft, EpochsMakeTheSteps) {
  SftOptions o = options("out");
  o.train.steps = 0;
  o.epochs = 3;
  o.packs = false;
  o.train.batch_size = 4;
  const SftResult result = run(o);
  EXPECT_EQ(result.counts.rows, 10);
  EXPECT_EQ(result.steps, 8);  // 30 rows, the last step has two
  const std::string log = read_file(o.train.out / "train.jsonl", size_t{1} << 20);
  EXPECT_THAT(log, HasSubstr("\"epoch\":3.0"));
  EXPECT_EQ(result.train.tokens, 3 * result.counts.trained_tokens);
}

TEST_F(Sft, ATinySetIsLearnedByHeart) {
  SftOptions o = options("out");
  o.train.steps = 60;
  o.packs = false;
  o.train.batch_size = 10;
  o.train.micro_batch = 5;
  const SftResult result = run(o, 2);
  EXPECT_LT(result.train.loss, 0.1);
  EXPECT_LT(*result.train.val_loss, 0.1);
  EXPECT_EQ(Tokenizer::load(o.train.out).chat_template(), kTemplate);
  EXPECT_THAT(read_file(o.train.out / "generation_config.json", 1 << 16), HasSubstr("257"));
}

TEST_F(Sft, OptionsThatCannotBeAreRefusedInItsName) {
  SftOptions o = options("out");
  o.train.out.clear();
  EXPECT_THAT(refusal([&] { run(o); }), HasSubstr("sft: give --out"));
  o = options("out");
  o.epochs = 0;
  EXPECT_THAT(refusal([&] { run(o); }), HasSubstr("sft: --epochs is 0"));
  o = options("out");
  o.chat_template.clear();
  EXPECT_THAT(refusal([&] { run(o); }), HasSubstr("line 1: has messages, and the model no chat template"));
}

}  // namespace
}  // namespace fathom::tune
