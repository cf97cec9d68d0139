// The program against the fixtures of independent implementations (tests/data/oracle): every logit, hidden state,
// expert choice, greedy token, loss, gradient and optimizer step, within the tolerances that stand beside them.
// FATHOM_FIXTURES=DIR adds the fixtures in the folders of DIR; FATHOM_TEST_DEVICE=cuda computes there what can be.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "base/cpu.h"
#include "base/json.h"
#include "checkpoint/gguf_save.h"
#include "checkpoint/hf_model.h"
#include "checkpoint/safetensors.h"
#include "infer/draft.h"
#include "model/loss.h"
#include "ops/adamw.h"
#include "temporary_directory.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kData = fs::path(FATHOM_TEST_DATA) / "oracle";

struct Fixture {
  fs::path folder;
  fs::path model = {};  // the model's folder under the fixture's
};

// Those of the project, then those of FATHOM_FIXTURES.
std::vector<Fixture> fixtures() {
  std::vector<Fixture> all = {{kData / "v3_tiny"},
                              {kData / "v3_tiny", "sharded"},
                              {kData / "v3_norope_scaling"},
                              {kData / "v3_rope_half"},
                              {kData / "v2_lite_like"},
                              {kData / "v2_group_limited"},
                              {kData / "moonlight_like"},
                              {kData / "v3_mtp"},
                              {kData / "v3_fp8"},
                              {kData / "v32_dsa"},
                              {kData / "llama_like"},
                              {kData / "qwen2_like"}};
  if (const char* more = std::getenv("FATHOM_FIXTURES"); more != nullptr) {
    for (const auto& entry : fs::directory_iterator(more)) {
      if (fs::exists(entry.path() / "expected.json")) all.push_back({entry.path()});
    }
  }
  return all;
}

std::string test_name(const testing::TestParamInfo<Fixture>& info) {
  const std::string model = info.param.model.string();
  return info.param.folder.filename().string() + (model.empty() ? "" : "_") + model;
}

// " --device cuda", where that is asked for.
std::string device_option() {
  const char* const device = std::getenv("FATHOM_TEST_DEVICE");
  return device != nullptr ? fmt::format(" --device {}", device) : "";
}

void PrintTo(const Fixture& fixture, std::ostream* out) { *out << fixture.folder.filename().string(); }

class Oracle : public testing::TestWithParam<Fixture> {
 protected:
  fs::path folder() const { return GetParam().folder; }
  fs::path model() const { return folder() / GetParam().model; }
  const test::TemporaryDirectory scratch_;
};

struct Output {
  int exit_code;
  std::string output;
};

// Runs the program with words for a shell: paths stand in quotes, they may hold spaces.
Output program(const std::string& arguments, const std::string& environment = {}) {
  FILE* pipe = popen((environment + "'" FATHOM_PROGRAM "' " + arguments).c_str(), "r");
  Output result{-1, {}};
  char chunk[4096];
  for (size_t n = 0; (n = fread(chunk, 1, sizeof chunk, pipe)) > 0;) result.output.append(chunk, n);
  const int status = pclose(pipe);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

std::vector<int64_t> integers(const StoredTensor& t) {
  std::vector<int64_t> values;
  const auto width = static_cast<size_t>(format_bytes(t.format.value()));
  for (size_t i = 0; i < t.data.size() / width; ++i) {
    int64_t wide = 0;
    int32_t narrow = 0;
    if (width == 8) {
      memcpy(&wide, t.data.data() + i * width, width);
    } else {
      memcpy(&narrow, t.data.data() + i * width, width);
      wide = narrow;
    }
    values.push_back(wide);
  }
  return values;
}

std::vector<float> floats(const StoredTensor& t) {
  EXPECT_EQ(t.format, Format::f32) << t.name;
  std::vector<float> values(t.data.size() / 4);
  memcpy(values.data(), t.data.data(), t.data.size());
  return values;
}

double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= most)) most = difference;  // NaN is a difference
  }
  return most;
}

double mean_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) total += std::abs(static_cast<double>(a[i]) - b[i]);
  return total / static_cast<double>(a.size());
}

double largest(const std::vector<float>& a) { return max_difference(a, std::vector<float>(a.size())); }

// "router.2.topk_ids" -> "router.topk_ids", "hidden.3" -> "hidden"
std::string folded(const std::string& name) {
  std::string out;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool number = name[i] == '.' && i + 1 < name.size() && name[i + 1] >= '0' && name[i + 1] <= '9';
    if (!number) {
      out += name[i];
      continue;
    }
    while (i + 1 < name.size() && name[i + 1] >= '0' && name[i + 1] <= '9') ++i;
  }
  return out;
}

// The prompts as a list of lists.
std::vector<std::vector<int32_t>> prompts(const SafetensorsFile& expected) {
  const auto ids = integers(*expected.find("input_ids")), offsets = integers(*expected.find("seq_offsets"));
  std::vector<std::vector<int32_t>> sequences;
  for (size_t s = 0; s + 1 < offsets.size(); ++s)
    sequences.emplace_back(ids.begin() + offsets[s], ids.begin() + offsets[s + 1]);
  return sequences;
}

std::string list_text(const std::vector<int32_t>& ids) { return fmt::format("{}", fmt::join(ids, ",")); }

std::string write_tokens(const fs::path& path, const std::vector<std::vector<int32_t>>& sequences) {
  std::ofstream file(path);
  file << "[";
  for (size_t s = 0; s < sequences.size(); ++s) file << (s > 0 ? "," : "") << "[" << list_text(sequences[s]) << "]";
  file << "]";
  return path.string();
}

TEST_P(Oracle, ScoreMatches) {
  const SafetensorsFile expected(folder() / "expected.safetensors");
  const JsonDocument facts = JsonDocument::read(folder() / "expected.json", 1 << 20);
  const auto tolerance = facts.root()["tolerance"];
  // A device multiplies matrices of bf16 and FP8 with inputs of 16 significant bits, f32 has 24.
  const double factor = device_option().empty() ? 1 : 4;
  double lambda = 0;
  const bool has_mtp = facts.root()["mtp"]["lambda"].get(lambda) == simdjson::SUCCESS;
  const bool has_grads = fs::exists(folder() / "grads.safetensors") && device_option().empty();

  const auto tokens = write_tokens(scratch_.path() / "tokens.json", prompts(expected));
  const auto out = (scratch_.path() / "out.safetensors").string(),
             grads = (scratch_.path() / "grads.safetensors").string();
  std::string command = fmt::format("score --json --threads 2 --model '{}' --tokens '{}' --out '{}' --all",
                                    model().string(), tokens, out);
  command += device_option();
  if (has_mtp) command += fmt::format(" --mtp --mtp-weight {}", lambda);
  if (has_grads) command += " --grads '" + grads + "'";
  const Output score = program(command);
  ASSERT_EQ(score.exit_code, 0);
  const JsonDocument printed = JsonDocument::parse(score.output, "score");
  EXPECT_NEAR(double(printed.root()["loss"]), double(facts.root()["loss"]), factor * double(tolerance["loss"]));

  const SafetensorsFile got(out);
  for (const StoredTensor& want : expected.tensors()) {
    if (want.name.find("greedy_") != std::string::npos || want.name == "logits_fp8_act") continue;
    const StoredTensor* have = got.find(want.name);
    ASSERT_NE(have, nullptr) << want.name;
    EXPECT_EQ(have->shape, want.shape) << want.name;
    EXPECT_EQ(have->dtype, want.dtype) << want.name;
    if (want.format == Format::f32) {
      EXPECT_LE(max_difference(floats(*have), floats(want)), factor * double(tolerance[folded(want.name)]))
          << want.name;
    } else {
      EXPECT_EQ(integers(*have), integers(want)) << want.name;
    }
  }

  if (!has_grads) return;
  const SafetensorsFile want_grads(folder() / "grads.safetensors"), got_grads(grads);
  EXPECT_EQ(got_grads.tensors().size(), want_grads.tensors().size());
  for (const StoredTensor& want : want_grads.tensors()) {
    const StoredTensor* have = got_grads.find(want.name);
    ASSERT_NE(have, nullptr) << want.name;
    ASSERT_EQ(have->shape, want.shape) << want.name;
    const auto values = floats(want);
    const double scale = largest(values);
    const double allowed = scale > 0 ? double(tolerance["grads_relative"]) * scale : double(tolerance["grads_abs"]);
    EXPECT_LE(max_difference(floats(*have), values), allowed) << want.name << " of size " << scale;
  }
}

// With rounded operands the gradient of all weights together has about the oracle's direction and length: 1 to 14 % off
// in bf16, 17 to 58 % in FP8, with cosines above 0.989 and 0.836, by instruction set. Rounding turns choices of
// experts, and these models are narrow and steep; each product is held to its twin to the bit elsewhere
// (tests/model/fp8_test.cc).
TEST_P(Oracle, RoundedGradientsAreNear) {
  if (!fs::exists(folder() / "grads.safetensors")) GTEST_SKIP() << "a fixture without gradients";
  const SafetensorsFile expected(folder() / "expected.safetensors"), want(folder() / "grads.safetensors");
  const JsonDocument facts = JsonDocument::read(folder() / "expected.json", 1 << 20);
  LossOptions options;
  if (facts.root()["mtp"]["lambda"].get(options.mtp_weight)) options.mtp_weight = 0;
  ThreadPool pool(2);
  Arena arena;
  Context ctx{pool, arena};
  const LoadedModel loaded = load_model(model(), pool);
  Model rounding = make_model(loaded.config, loaded.parameters.weights);
  const Batch batch = make_batch(ctx, prompts(expected));
  struct Case {
    Precision precision;
    double relative, cosine;  // |g - oracle| / |oracle| at most, angle between them at least
  };
  // FP8 turns choices of keys too, 8 of 40 at the most.
  const Case in_fp8 = loaded.config.is_sparse() ? Case{Precision::fp8, 1.3, 0.4} : Case{Precision::fp8, 0.8, 0.7};
  for (const auto& [precision, relative, cosine] :
       {Case{Precision::f32, 1e-5, 1 - 1e-9}, Case{Precision::bf16, 0.3, 0.95}, in_fp8}) {
    rounding.precision = precision;
    Parameters grads = allocate_parameters(loaded.config, false);
    loss_and_gradients(ctx, rounding, grads.weights, batch, make_targets(ctx, batch), options);
    double difference = 0, oracle = 0, own = 0, product = 0;
    for_each_tensor(grads.weights, loaded.config, [&](const NamedTensor& t) {
      if (!t.trained || t.name.find(".indexer.") != std::string::npos) return;
      const StoredTensor* stored = want.find(t.name);
      ASSERT_NE(stored, nullptr) << t.name;
      const std::vector<float> values = floats(*stored);
      ASSERT_EQ(static_cast<int64_t>(values.size()), t.view.size());
      for (size_t i = 0; i < values.size(); ++i) {
        const double g = t.view.f32()[i], o = values[i];
        difference += (g - o) * (g - o);
        oracle += o * o;
        own += g * g;
        product += g * o;
      }
    });
    const char* const name = precision == Precision::f32 ? "f32" : precision == Precision::bf16 ? "bf16" : "fp8";
    EXPECT_LE(std::sqrt(difference / oracle), relative) << name;
    EXPECT_GE(product / std::sqrt(own * oracle), cosine) << name;
    RecordProperty(std::string("relative_") + name, fmt::to_string(std::sqrt(difference / oracle)));
    RecordProperty(std::string("cosine_") + name, fmt::to_string(product / std::sqrt(own * oracle)));
  }
}

constexpr size_t kGreedyTokens = 32;

// Row `s` of a matrix of integers.
std::vector<int32_t> integer_row(const StoredTensor& t, size_t s) {
  const auto all = integers(t);
  const auto width = static_cast<size_t>(t.shape.at(1)), begin = s * width;
  return {all.begin() + static_cast<std::ptrdiff_t>(begin), all.begin() + static_cast<std::ptrdiff_t>(begin + width)};
}

// The program's answer to a prompt, greedily.
JsonDocument greedy_continuation(const fs::path& model, const std::vector<int32_t>& prompt, const char* options = "") {
  const Output generate =
      program(fmt::format("generate --json --temperature 0 --ignore-eos --kv-type f32 --max-tokens {} --model '{}' "
                          "--tokens {} {}{}",
                          kGreedyTokens, model.string(), list_text(prompt), options, device_option()));
  EXPECT_EQ(generate.exit_code, 0);
  return JsonDocument::parse(generate.output, "generate");
}

std::vector<int32_t> ids_of(const JsonDocument& answer) {
  std::vector<int32_t> ids;
  for (const simdjson::dom::element id : simdjson::dom::array(answer.root()["ids"])) {
    ids.push_back(static_cast<int32_t>(int64_t(id)));
  }
  return ids;
}

TEST_P(Oracle, GreedyContinuationIsEqual) {
  const SafetensorsFile expected(folder() / "expected.safetensors");
  const auto sequences = prompts(expected);
  for (size_t s = 0; s < sequences.size(); ++s) {
    EXPECT_EQ(ids_of(greedy_continuation(model(), sequences[s])), integer_row(*expected.find("greedy_ids"), s))
        << "prompt " << s;
  }
}

TEST_P(Oracle, GreedyContinuationIsEqualWithDrafts) {
  const SafetensorsFile expected(folder() / "expected.safetensors");
  const JsonDocument facts = JsonDocument::read(folder() / "expected.json", 1 << 20);
  const auto sequences = prompts(expected);
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (const char* options : {"--draft mtp", "--draft mtp --draft-tokens 2", "--draft mtp --draft-tokens 3"}) {
      const JsonDocument answer = greedy_continuation(model(), sequences[s], options);
      EXPECT_EQ(ids_of(answer), integer_row(*expected.find("greedy_ids"), s)) << "prompt " << s << " " << options;
      const auto passes = int64_t(answer.root()["main_passes"]), accepted = int64_t(answer.root()["accepted"]);
      EXPECT_EQ(passes + accepted, static_cast<int64_t>(kGreedyTokens));
      int64_t passes_of_one_draft = 0;
      if (facts.root()["mtp"]["main_passes"].at(s).get(passes_of_one_draft) != simdjson::SUCCESS) continue;
      if (std::string_view(options) == "--draft mtp") {
        EXPECT_EQ(passes, passes_of_one_draft) << "prompt " << s;
      } else {
        EXPECT_LE(passes, passes_of_one_draft) << "prompt " << s << " " << options;
      }
    }
  }
}

// What the module proposes behind each token of the right continuation, its cache growing token by token.
TEST_P(Oracle, DraftsAreEqual) {
  const SafetensorsFile expected(folder() / "expected.safetensors");
  const StoredTensor* drafts = expected.find("mtp_greedy_drafts");
  if (drafts == nullptr) return;
  ThreadPool pool(1);
  Arena arena;
  Context ctx{pool, arena};
  const LoadedModel loaded = load_model(model(), pool);
  const Model model = make_model(loaded.config, loaded.parameters.weights);
  const auto sequences = prompts(expected);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto wanted = integer_row(*drafts, s), greedy = integer_row(*expected.find("greedy_ids"), s);
    LatentCache cache = make_latent_cache(loaded.config, 128), mtp_cache = make_mtp_cache(loaded.config, 128);
    LatentCache* const caches[] = {&cache};
    std::vector<int32_t> previous = sequences[s], unread = sequences[s], got;
    for (size_t i = 0; i < wanted.size(); ++i) {
      const ArenaScope scope(arena);
      const int64_t position = cache.length;
      const Tensor hidden = forward(ctx, model, make_batch(ctx, {&unread, 1}, {&position, 1}), {.caches = caches});
      previous.push_back(greedy[i]);
      unread = {greedy[i]};
      Rng rng(0);
      got.push_back(
          draft_tokens(ctx, model, mtp_cache, hidden, previous, static_cast<int64_t>(i) + 1, 1, {}, rng)[0].id);
    }
    EXPECT_EQ(got, wanted) << "prompt " << s;
  }
}

// Rounding is a step function: an input on the midpoint between two codes falls to either side with the last bit of its
// norm, and moves all that follows. The AVX2 kernels sum norms as the reference did.
TEST_P(Oracle, Fp8ActivationsMatch) {
  const SafetensorsFile expected(folder() / "expected.safetensors");
  if (expected.find("logits_fp8_act") == nullptr) return;
  const JsonDocument facts = JsonDocument::read(folder() / "expected.json", 1 << 20);
  const auto tokens = write_tokens(scratch_.path() / "tokens.json", prompts(expected));
  const auto out = (scratch_.path() / "out.safetensors").string();
  const bool same_order = cpu_isa() >= Isa::avx2;
  const Output score = program(fmt::format("score --json --fp8-activations --model '{}' --tokens '{}' --out '{}'",
                                           model().string(), tokens, out),
                               same_order ? "FATHOM_ISA=avx2 " : "");
  ASSERT_EQ(score.exit_code, 0);
  const auto got = floats(*SafetensorsFile(out).find("logits")), want = floats(*expected.find("logits_fp8_act"));
  if (same_order) {
    EXPECT_LE(max_difference(got, want), double(facts.root()["tolerance"]["logits_fp8_act"]));
  } else {
    EXPECT_LE(mean_difference(got, want), 0.5 * mean_difference(floats(*expected.find("logits")), want));
  }
}

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Saved as a GGUF file in f32, a model is the same to the last bit, and so is its tokenizer.
TEST_P(Oracle, AsAGgufFileGivesTheSameBits) {
  ThreadPool pool(2);
  const LoadedModel loaded = load_model(model(), pool);
  const Vocabulary lists = Tokenizer::load(folder()).vocabulary();
  const GgufTokenizer tokenizer{lists.pretokenizer, {lists.tokens.begin(), lists.tokens.end()},
                                lists.kinds,        {lists.merges.begin(), lists.merges.end()},
                                lists.bos,          lists.eos,
                                lists.add_bos,      lists.chat_template};
  const fs::path file = scratch_.path() / "model.gguf";
  const auto in_f32 = [](std::string_view, std::span<const int64_t>) { return Format::f32; };
  const auto save = [&] {
    save_gguf(file, loaded.config, &tokenizer, in_f32, rows_of(loaded.parameters.weights, loaded.config), pool);
  };
  const auto& yarn = loaded.config.rope_scaling;
  const bool halves = loaded.config.is_mla() && !loaded.config.rope_interleave;
  if (halves || (yarn && yarn->mscale != yarn->mscale_all_dim)) {  // GGUF cannot say it
    EXPECT_THROW(save(), Error);
    return;
  }
  save();
  const auto tokens =
      write_tokens(scratch_.path() / "tokens.json", prompts(SafetensorsFile(folder() / "expected.safetensors")));
  // FP8 weights are summed block by block: their twin in f32 is what the file is like.
  fs::path directory = model();
  if (loaded.config.weight_block_rows > 0) {
    directory = scratch_.path() / "f32";
    save_model(directory, loaded.config, loaded.parameters.weights, {.format = Format::f32});
  }
  std::vector<std::string> scores;
  std::vector<std::string> texts;
  std::ofstream(scratch_.path() / "chat.jsonl")
      << R"({"messages": [{"role": "user", "content": "It's 12345 <think>"}]})";
  for (const fs::path& source : {directory, file}) {
    const auto out = (scratch_.path() / "out.safetensors").string();
    const Output score =
        program(fmt::format("score --json --all --model '{}' --tokens '{}' --out '{}'", source.string(), tokens, out));
    ASSERT_EQ(score.exit_code, 0) << source;
    scores.push_back(slurp(out));
    const fs::path text_source = source == file ? file : folder();
    const Output chat = program(fmt::format("tokenize --chat --model '{}' < '{}'", text_source.string(),
                                            (scratch_.path() / "chat.jsonl").string()));
    ASSERT_EQ(chat.exit_code, 0) << source;
    texts.push_back(chat.output);
  }
  EXPECT_TRUE(scores[0] == scores[1]);
  EXPECT_EQ(texts[0], texts[1]);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Oracle, testing::ValuesIn(fixtures()), test_name);

TEST(OracleOf, ThreeAdamwSteps) {
  const fs::path folder = kData / "v3_norope_scaling";
  const SafetensorsFile expected(folder / "expected.safetensors"), after(folder / "adamw_step3.safetensors");
  const JsonDocument facts = JsonDocument::read(folder / "expected.json", 1 << 20);
  const auto adamw = facts.root()["adamw"];
  const auto number = [&](const char* key) { return static_cast<float>(double(adamw[key])); };
  const AdamwConfig config{number("lr"), static_cast<float>(double(adamw["betas"].at(0))),
                           static_cast<float>(double(adamw["betas"].at(1))), number("eps"), number("weight_decay")};
  ThreadPool pool(2);
  Arena arena;
  Context ctx{pool, arena};
  LoadedModel loaded = load_model(folder, pool);
  const Model model = make_model(loaded.config, loaded.parameters.weights);
  Parameters grads = allocate_parameters(loaded.config, false), m = allocate_parameters(loaded.config, false);
  Parameters v = allocate_parameters(loaded.config, false);
  const auto flat = [](const Parameters& p) { return Tensor(p.memory.data(), Format::f32, {p.n_trained}); };
  const auto sequences = prompts(expected);
  const Batch batch = make_batch(ctx, sequences);
  const Targets targets = make_targets(ctx, batch);
  for (int step = 1; step <= 3; ++step) {
    std::fill(grads.trained().begin(), grads.trained().end(), 0.0f);
    const LossResult loss = loss_and_gradients(ctx, model, grads.weights, batch, targets, {});
    const auto trace = adamw["trace"].at(static_cast<size_t>(step) - 1);
    EXPECT_NEAR(loss.loss(), double(trace["loss"]), 1e-5) << step;
    EXPECT_NEAR(std::sqrt(sum_of_squares(ctx, grads.trained())), double(trace["grad_norm"]), 1e-4) << step;
    adamw_step(ctx, config, step, loaded.parameters.trained(), grads.trained(), flat(m), flat(v), 1);
  }
  double most = 0, total = 0;
  int64_t n = 0;
  for_each_tensor(loaded.parameters.weights, loaded.config, [&](const NamedTensor& t) {
    if (!t.trained) return;
    const StoredTensor* want = after.find(t.name);
    ASSERT_NE(want, nullptr) << t.name;
    const auto values = floats(*want);
    ASSERT_EQ(static_cast<int64_t>(values.size()), t.view.size()) << t.name;
    for (int64_t i = 0; i < t.view.size(); ++i) {
      const double difference = std::abs(static_cast<double>(t.view.f32()[i]) - values[static_cast<size_t>(i)]);
      if (!(difference <= most)) most = difference;
      total += difference;
      ++n;
    }
  });
  EXPECT_LE(most, double(facts.root()["tolerance"]["adamw_params_max"]));
  EXPECT_LE(total / static_cast<double>(n), double(facts.root()["tolerance"]["adamw_params_mean"]));
}

}  // namespace
}  // namespace fathom
