#include "tune/grpo.h"

#include <gmock/gmock.h>

#include <fstream>
#include <regex>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/hf_model.h"
#include "model/tiny_models.h"
#include "temporary_directory.h"
#include "tune/grpo_step.h"

namespace fathom::tune {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// The share of small letters.
constexpr const char* kLetters =
    "python3 -uc '\nimport json, sys\nfor line in sys.stdin:\n  c = json.loads(line)[\"completion\"]\n"
    "  print(json.dumps({\"reward\": sum(\"a\" <= x <= \"z\" for x in c) / max(len(c), 1)}))'";

class Grpo : public testing::Test {
 protected:
  fs::path model_directory(ModelConfig config = tiny_v3(), const std::string& name = "model") const {
    config.vocab_size = 258;
    config.initializer_range = 0.1;
    config.bos_token_id = 256;
    config.eos_token_ids = {257};
    Parameters parameters = allocate_parameters(config);
    initialize(parameters, config, 4);
    const fs::path directory = folder_.path() / name;
    fs::create_directories(directory);
    Tokenizer::bytes().save(directory);
    save_model(directory, config, parameters.weights, {.format = Format::f32});
    return directory;
  }
  GrpoOptions options(const std::string& out, const fs::path& model) const {
    GrpoOptions o;
    o.train.init = model;
    o.train.data = {
        folder_.write("q.jsonl",
                      "{\"question\": \"a\", \"answer\": \"7\"}\n{\"question\": \"bc\", \"answer\": \"7\"}\n"
                      "{\"question\": \"def\", \"answer\": \"7\"}\n")};
    o.train.out = folder_.path() / out;
    o.train.steps = 4;
    o.train.lr.peak = o.train.lr.min = 0.01;
    o.train.lr.schedule = Schedule::constant;
    o.train.weight_decay = 0;
    o.train.mtp_weight = 0;
    o.train.seed = 3;
    o.questions_a_step = 2;
    o.group_size = 6;
    o.rollout.max_tokens = 8;
    o.rewards.weights = parse_reward_weights("command");
    o.rewards.command = kLetters;
    return o;
  }
  GrpoResult run(const GrpoOptions& o, int n_threads = 2, const std::function<bool()>& stop = {}) const {
    ThreadPool pool(n_threads);
    return grpo(o, pool, stop);
  }
  static std::string error_of(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  static std::string file(const fs::path& path) { return read_file(path, size_t{1} << 26); }
  // The log without what depends on the clock, and without validations, which a stop may leave out.
  static std::string log_of(const GrpoOptions& o) {
    return std::regex_replace(
        file(o.train.out / "train.jsonl"),
        std::regex(
            ",\"(seconds|tokens_per_s|sampling_tokens_per_s|training_tokens_per_s|val_reward|val_exact)\":[^,}]*"),
        "");
  }
  static std::vector<double> column(const GrpoOptions& o, const std::string& name) {
    std::vector<double> values;
    std::istringstream lines(file(o.train.out / "train.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const JsonDocument object = JsonDocument::parse(line, "log");
      double value = NAN;
      if (object.root()[name].get_double().get(value) == simdjson::SUCCESS) values.push_back(value);
    }
    return values;
  }
  test::TemporaryDirectory folder_;
};

TEST_F(Grpo, LearnsWhatIsRewarded) {
  GrpoOptions o = options("out", model_directory());
  o.train.steps = 40;
  o.questions_a_step = 3;
  o.group_size = 16;
  const GrpoResult result = run(o);
  const std::vector<double> rewards = column(o, "reward");
  ASSERT_EQ(rewards.size(), 40u);
  EXPECT_LT(rewards.front(), 0.3);
  EXPECT_GT(rewards.back(), 0.8);
  EXPECT_EQ(result.reward, rewards.back());
  EXPECT_GT(result.tokens, 0);
  EXPECT_EQ(load_model(o.train.out, *std::make_unique<ThreadPool>(1)).config.vocab_size, 258);
  EXPECT_THAT(file(o.train.out / "report.html"), HasSubstr("Training report"));
}

// All that has a state: several updates, routing kept, a reference that is replaced, a mask, samples.
GrpoOptions with_everything(GrpoOptions o) {
  o.mini_batches = 3;
  o.inner_epochs = 2;
  o.pass_tokens = 40;
  o.loss.beta = 0.05;
  o.loss.mask_off_policy = 0.01;
  o.ref_every = 2;
  o.train.check_memory = true;
  o.rollout.sampler = {.temperature = 0.9, .top_k = 100, .top_p = 0.97};
  o.rewards.length_penalty = 0.1;
  o.save_samples = o.train.out.parent_path() / (o.train.out.filename().string() + ".samples");
  o.train.val_data = o.train.data;
  o.train.val_every = 2;
  o.train.save_every = 1;
  o.train.steps = 5;
  return o;
}

TEST_F(Grpo, SameBitsForAnyNumberOfThreadsWithAndWithoutInterruption) {
  const fs::path model = model_directory();
  const GrpoOptions whole = with_everything(options("whole", model));
  run(whole, 2);
  const std::string weights = file(whole.train.out / "model.safetensors");

  const GrpoOptions alone = with_everything(options("alone", model));
  run(alone, 1);
  EXPECT_EQ(file(alone.train.out / "model.safetensors"), weights);
  EXPECT_EQ(log_of(alone), log_of(whole));
  EXPECT_EQ(file(alone.save_samples), file(whole.save_samples));

  for (const int until : {1, 30, 60}) {  // looks at whether to stop, at each start
    GrpoOptions cut = with_everything(options(fmt::format("cut-{}", until), model));
    int n_stops = 0, looks = 0;
    while (run(cut, 2, [&] { return ++looks >= until; }).stopped) {
      cut.train.resume = true;
      ++n_stops;
      looks = n_stops > 3 ? -100'000 : -20 * n_stops;
    }
    EXPECT_GT(n_stops, 1);
    EXPECT_EQ(file(cut.train.out / "model.safetensors"), weights) << until;
    EXPECT_EQ(log_of(cut), log_of(whole)) << until;
    EXPECT_EQ(file(cut.save_samples), file(whole.save_samples)) << until;
  }
  EXPECT_EQ(column(whole, "val_reward").size(), 3u);
  EXPECT_EQ(column(whole, "val_exact").size(), 3u);
  EXPECT_GT(column(whole, "kl").back(), 0);
  // Behind step 4 the reference was the policy: of the first update's answers the divergence begins at 0.
  EXPECT_LT(column(whole, "kl")[4], column(whole, "kl")[3]);

  GrpoOptions other = with_everything(options("whole", model));
  other.train.resume = true;
  other.group_size = 3;
  EXPECT_THAT(error_of([&] { run(other); }), HasSubstr("group-size is 3 now and was 6"));
}

TEST_F(Grpo, WhatSamplingToldIsWhatTrainingComputes) {
  struct Case {
    const char* name;
    ModelConfig config;
    bool keep_routing;
    int64_t draft_tokens;
  };
  for (const Case& c :
       {Case{"moe", tiny_v3(), false, 0}, Case{"kept", tiny_v3(), true, 0}, Case{"drafts", tiny_v3(), true, 2},
        Case{"v2", tiny_v2(), true, 0}, Case{"dense", tiny_dense(), false, 0}, Case{"sparse", tiny_v32(), true, 0}}) {
    GrpoOptions o = options(fmt::format("out-{}", c.name), model_directory(c.config, c.name));
    o.keep_routing = c.keep_routing;
    o.rollout.draft_tokens = c.draft_tokens;
    o.rollout.sampler.top_p = 0.98;
    o.mini_batches = 2;
    o.train.balance = c.config.router.n_routed_experts == 0 ? Balance::none : Balance::automatic;
    run(o);
    EXPECT_THAT(column(o, "updates"), testing::Each(testing::Gt(0))) << c.name;
    EXPECT_THAT(column(o, "greatest_log_ratio"), testing::ElementsAre(0, 0, 0, 0)) << c.name;
    EXPECT_EQ(column(o, "draft_acceptance").size(), c.draft_tokens > 0 ? 4u : 0u) << c.name;
  }
}

TEST_F(Grpo, RoundedTrainingIsNotWhatSampled) {
  GrpoOptions o = options("out", model_directory());
  o.train.precision = Precision::bf16;
  run(o);
  EXPECT_EQ(column(o, "greatest_log_ratio").size(), 4u);
  for (const double ratio : column(o, "greatest_log_ratio")) {
    EXPECT_GT(ratio, 0);
    EXPECT_LT(ratio, 0.2);
  }
}

TEST_F(Grpo, StepsThatAreNotFiniteAreSkippedUntilItGivesUp) {
  GrpoOptions o = options("out", model_directory());
  o.rewards.command = "i=0; while read line; do i=$((i+1)); echo \"{\\\"reward\\\": ${i}e300}\"; done";
  o.train.max_skips = 2;
  EXPECT_THAT(error_of([&] { run(o); }), HasSubstr("skipped number 3 in a row"));
  EXPECT_THAT(log_of(o), HasSubstr("\"skipped\":\"the gradient is not finite\""));
}

TEST_F(Grpo, WhatCannotBeLearnedIsTold) {
  GrpoOptions o = options("out", model_directory());
  o.rewards.weights = parse_reward_weights("exact");
  o.rewards.command.clear();
  o.rollout.max_tokens = 1;
  o.train.steps = 1;
  o.train.data = {folder_.write("hard.jsonl", R"({"question": "a", "answer": "123456"})")};
  EXPECT_THAT(error_of([&] { run(o); }), HasSubstr("nothing was learned"));
  EXPECT_THAT(column(o, "groups_without_signal"), testing::ElementsAre(1));
  EXPECT_THAT(column(o, "updates"), testing::ElementsAre(0));
  EXPECT_THAT(column(o, "mean_log_ratio"), testing::IsEmpty());  // nothing was compared
  EXPECT_THAT(column(o, "greatest_log_ratio"), testing::IsEmpty());
}

TEST_F(Grpo, OptionsAreChecked) {
  const fs::path model = model_directory();
  const auto told = [&](const std::function<void(GrpoOptions&)>& change) {
    GrpoOptions o = options("out", model);
    change(o);
    return error_of([&] { run(o); });
  };
  EXPECT_THAT(told([](auto& o) { o.train.init.clear(); }), HasSubstr("--init"));
  EXPECT_THAT(told([](auto& o) { o.train.data.clear(); }), HasSubstr("--data"));
  EXPECT_THAT(told([](auto& o) { o.group_size = 1; }), HasSubstr("--group-size is 1"));
  EXPECT_THAT(told([](auto& o) { o.mini_batches = 5; }), HasSubstr("--mini-batches 5"));
  EXPECT_THAT(told([](auto& o) { o.rollout.sampler.temperature = 0; }), HasSubstr("--temperature"));
  EXPECT_THAT(told([](auto& o) { o.rollout.max_tokens = 256; }), HasSubstr("--max-tokens 256"));
  EXPECT_THAT(told([](auto& o) { o.rollout.max_tokens = 254; }), HasSubstr("q.jsonl:3"));
  EXPECT_THAT(told([](auto& o) { o.ref_every = 1; }), HasSubstr("--kl"));
  EXPECT_THAT(told([](auto& o) { o.loss.clip_high = -1; }), HasSubstr("--clip-high"));
  EXPECT_THAT(told([](auto& o) { o.rewards.weights = {}; }), HasSubstr("--reward"));
  EXPECT_THAT(told([](auto& o) { o.save_samples = o.train.data[0]; }), HasSubstr("--save-samples"));
  EXPECT_THAT(told([&](auto& o) { o.save_samples = folder_.write("notes", "of mine, all of them"); }),
              HasSubstr("holds something else"));
  EXPECT_THAT(told([](auto& o) { o.train.dsa = Dsa::warmup; }), HasSubstr("--dsa"));
  EXPECT_FALSE(fs::exists(folder_.path() / "out"));
}

TEST(QuestionsOfStep, ComeOnceBeforeAnyComesAgain) {
  std::vector<size_t> seen;
  for (int64_t step = 1; step <= 10; ++step) {
    for (const size_t q : questions_of_step(5, 7, 3, step)) seen.push_back(q);
  }
  const std::vector<size_t> first(seen.begin(), seen.begin() + 7), second(seen.begin() + 7, seen.begin() + 14);
  EXPECT_THAT(first, testing::UnorderedElementsAre(0, 1, 2, 3, 4, 5, 6));
  EXPECT_THAT(second, testing::UnorderedElementsAreArray(first));
  EXPECT_NE(first, second);
  EXPECT_NE(questions_of_step(5, 100, 10, 1), questions_of_step(6, 100, 10, 1));
}

}  // namespace
}  // namespace fathom::tune
