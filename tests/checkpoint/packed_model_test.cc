// Models packed for inference give the logits of the same model in f32, as near as their formats allow.
#include "checkpoint/packed_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <numeric>

#include "base/file.h"
#include "checkpoint/gguf_bytes.h"
#include "checkpoint/gguf_save.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tiny_model.h"
#include "model/forward.h"
#include "number/formats.h"
#include "number/panels.h"
#include "number/random_blocks.h"
#include "sanitized.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using enum Format;
using testing::HasSubstr;

const fs::path kOracle = fs::path(FATHOM_TEST_DATA) / "oracle";
const fs::path kShakespeare = fs::path(FATHOM_TEST_DATA) / "../../models/shakespeare";

// The logits of a prompt, of tokens one by one behind it, and of the MTP module where there is one.
std::vector<float> logits(const ModelConfig& config, const ModelWeights& weights, ThreadPool& pool) {
  constexpr int64_t kPrompt = 11, kSteps = 5;
  const Model model = make_model(config, weights);
  Arena arena;
  Context ctx{pool, arena};
  LatentCache cache = make_latent_cache(config, kPrompt + kSteps);
  LatentCache* const caches[] = {&cache};
  std::vector<float> all;
  const auto append = [&](Tensor hidden) {
    const Tensor rows = head_logits(ctx, model, hidden);
    all.insert(all.end(), rows.f32(), rows.f32() + rows.size());
  };
  Rng rng(3);
  const auto random_tokens = [&](int64_t n) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < n; ++i) {
      ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size))));
    }
    return ids;
  };
  for (int64_t n = kPrompt; cache.length < kPrompt + kSteps; n = 1) {
    const std::vector<int32_t> ids = random_tokens(n);
    const int64_t first = cache.length;
    const Batch batch = make_batch(ctx, {&ids, 1}, {&first, 1});
    const Tensor hidden = forward(ctx, model, batch, {.caches = caches});
    append(hidden);
    Tensor state = hidden;
    const std::vector<MtpInput> inputs = make_mtp_inputs(ctx, model, batch);
    for (size_t m = 0; m < inputs.size(); ++m) {
      state = mtp_forward(ctx, model, weights.mtp[m], inputs[m], state);
      append(state);
    }
  }
  return all;
}

std::vector<float> logits_of(const LoadedModel& model, ThreadPool& pool) {
  return logits(model.config, model.parameters.weights, pool);
}
std::vector<float> packed_logits(const fs::path& path, ThreadPool& pool) {
  const PackedModel model = load_packed_model(path, pool);
  return logits(model.config, model.weights, pool);
}

// The largest difference, of the largest logit.
double error_of(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  double most = 0, largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(difference <= most)) most = difference;  // NaN is a difference
    largest = std::max(largest, std::abs(static_cast<double>(want[i])));
  }
  return most / largest;
}

// The same of squares.
double mean_error_of(const std::vector<float>& got, const std::vector<float>& want) {
  double squares = 0, all = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - want[i];
    squares += difference * difference;
    all += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(squares / all);
}

// Of logits, the middle token's: one that goes to another expert, and those after it, do not decide.
double typical_error_of(const std::vector<float>& got, const std::vector<float>& want, int64_t vocab_size) {
  EXPECT_EQ(got.size(), want.size());
  std::vector<double> errors;
  for (auto g = got.begin(), w = want.begin(); w != want.end(); g += vocab_size, w += vocab_size) {
    errors.push_back(mean_error_of({g, g + vocab_size}, {w, w + vocab_size}));
  }
  std::ranges::nth_element(errors, errors.begin() + std::ssize(errors) / 2);
  return errors[errors.size() / 2];
}

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <class Work>
std::string refusal(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::Not(HasSubstr("\n")));
    return error.what();
  }
  return "(accepted)";
}

void convert(const fs::path& from, const fs::path& to, const char* recipe, ThreadPool& pool) {
  convert_model(from, to, *find_recipe(recipe), pool);
}

// Where rows are no whole blocks, the next format of as many bits or more.
Format fitting(Format format, int64_t cols) {
  if (cols % 256 != 0 && (format == q4_k || format == q5_k)) format = q5_0;
  if (cols % 256 != 0 && format == q6_k) format = q8_0;
  const bool blocks = format == q8_0 || format == q4_0 || format == q5_0;
  return blocks && cols % 32 != 0 ? bf16 : format;
}

constexpr const char* kRecipes[] = {"f32",    "bf16", "f16",    "fp8",  "q8_0", "q6_k",
                                    "q5_k_m", "q5_k", "q4_k_m", "q4_k", "q4_0"};

TEST(Recipes, AreFoundByTheirNames) {
  std::string names;
  for (const char* name : kRecipes) {
    ASSERT_NE(find_recipe(name), nullptr) << name;
    names += std::string(names.empty() ? "" : ", ") + name;
  }
  EXPECT_EQ(recipe_names(), names);
  EXPECT_EQ(find_recipe("q4"), nullptr);
  EXPECT_EQ(find_recipe(""), nullptr);
}

struct Subject {
  std::string name;
  fs::path path;
};

bool fits_gguf(const ModelConfig& config) {
  const auto& yarn = config.rope_scaling;
  return (config.rope_interleave || !config.is_mla()) && !(yarn && yarn->mscale != yarn->mscale_all_dim);
}

// The fixtures, and models that fit nowhere: odd rows, heads that fill no panels, MTP modules.
class PackedModels : public testing::Test {
 protected:
  PackedModels() {
    for (const char* name : {"v3_tiny", "v3_fp8", "v2_lite_like", "v3_norope_scaling", "moonlight_like", "v32_dsa"}) {
      subjects_.push_back({name, kOracle / name});
    }
    subjects_.push_back({"shakespeare", kShakespeare});
    add("odd", tiny_mtp(2));
    add("sparse", tiny_v32());
    ModelConfig blocks = tiny_v3();  // odd rows of whole blocks
    blocks.hidden_size = 256;
    blocks.moe_intermediate_size = 32;
    add("blocks", blocks);
    ModelConfig llama = tiny_llama();
    llama.hidden_size = 256;
    llama.intermediate_size = 64;
    add("llama", llama);
    add("qwen2", tiny_qwen2());
  }
  void add(const std::string& name, ModelConfig config) {
    config.initializer_range = 0.2;
    const LoadedModel model = random_model(config);
    save_model(scratch_.path() / name, config, model.parameters.weights, {bf16});
    subjects_.push_back({name, scratch_.path() / name});
  }

  const TemporaryDirectory scratch_;
  std::vector<Subject> subjects_;
  ThreadPool pool_{2};
};

// A weight as plain numbers, row by row.
std::vector<float> unpacked(const Tensor& t) {
  std::vector<float> out(static_cast<size_t>(t.size()));
  if (!t.panels) {
    to_f32(out.data(), t.data, t.format, t.size());
    return out;
  }
  const int64_t rows = t.shape[t.rank - 2], cols = t.cols(), n_matrices = t.rows() / rows;
  std::vector<float> panel(static_cast<size_t>(kPanelRows * cols));
  const auto* at = static_cast<const char*>(t.data);
  float* to = out.data();
  for (int64_t m = 0; m < n_matrices; ++m) {
    for (int64_t row = 0; row < rows; row += kPanelRows, at += t.row_stride) {
      unpack_panel(panel.data(), at, t.format, cols);
      to = std::copy_n(panel.data(), std::min(kPanelRows, rows - row) * cols, to);
    }
  }
  return out;
}

// The rows of kv_b for k_nope, transposed, head by head.
std::vector<float> k_b_of(const Tensor& kv_b, const ModelConfig& config) {
  std::vector<float> out;
  const int64_t nope = config.qk_nope_head_dim, rows = nope + config.v_head_dim;
  for (int64_t head = 0; head < config.num_attention_heads; ++head) {
    for (int64_t r = 0; r < config.kv_lora_rank; ++r) {
      for (int64_t i = 0; i < nope; ++i) out.push_back(kv_b.f32(head * rows + i, r));
    }
  }
  return out;
}

// Calls compare with every weight, its numbers and those of the f32 model.
using Compare = std::function<void(WeightKind, const Tensor&, const std::vector<float>&, const std::vector<float>&)>;
void compare_weights(ModelWeights& packed, LoadedModel& model, const Compare& compare) {
  std::vector<std::vector<float>> wanted;
  Tensor kv_b;
  for_each_weight(model.parameters.weights, [&](WeightKind kind, Tensor& t) {
    if (kind == WeightKind::kv_b) kv_b = t;
    wanted.push_back(kind == WeightKind::k_b ? k_b_of(kv_b, model.config) : unpacked(t));
  });
  size_t i = 0;
  for_each_weight(packed, [&](WeightKind kind, Tensor& t) {
    const std::vector<float>& want = wanted.at(i++);
    if (t) compare(kind, t, unpacked(t), want);
  });
  EXPECT_EQ(i, wanted.size());
}

// What a format may lose of a weight: twice what was seen of numbers that lie like a normal distribution.
double loss_of(Format format) {
  switch (format) {
    case f16:
      return 5e-4;
    case bf16:
      return 3.5e-3;
    case f8_e4m3:
      return 0.055;
    case q8_0:
      return 0.013;
    case q6_k:
      return 0.033;
    case q5_k:
      return 0.07;
    case q5_0:
      return 0.1;
    case q4_k:
      return 0.14;
    case q4_0:
      return 0.2;
    default:
      return 0;
  }
}

double bits_of(Format format) {
  const FormatTraits traits = format_traits(format);
  return 8.0 * static_cast<double>(traits.block_bytes) / static_cast<double>(traits.block);
}

// Every weight has the shape of the f32 model's, and the format of its kind.
void check_formats(PackedModel& packed, const ModelConfig& config, const Recipe& recipe, bool stored_in_fp8) {
  const bool panels_in_heads = config.qk_nope_head_dim % kPanelRows == 0 && config.v_head_dim % kPanelRows == 0;
  ModelWeights shapes = weight_shapes(config);
  std::vector<Tensor> wanted;
  for_each_weight(shapes, [&](WeightKind, Tensor& t) { wanted.push_back(t); });
  size_t i = 0;
  for_each_weight(packed.weights, [&](WeightKind kind, Tensor& t) {
    ASSERT_LT(i, wanted.size());
    Tensor want = wanted[i++];
    const bool is_kv_b = kind == WeightKind::kv_b || kind == WeightKind::k_b;
    if (kind == WeightKind::k_b) {
      EXPECT_EQ(static_cast<bool>(t), panels_in_heads);
      if (!t) return;
      want = Tensor(nullptr, f32, {config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim});
    }
    ASSERT_EQ(t.rank, want.rank);
    EXPECT_TRUE(std::equal(t.shape, t.shape + t.rank, want.shape));
    const bool vector = kind == WeightKind::norm || kind == WeightKind::norm_bias || kind == WeightKind::router_bias ||
                        kind == WeightKind::bias;
    EXPECT_EQ(t.panels, !vector && kind != WeightKind::embedding && (!is_kv_b || panels_in_heads));
    Format format = fitting(recipe_format(recipe, kind), t.cols());
    EXPECT_TRUE(kind != WeightKind::indexer || bits_of(t.format) >= 8);
    const bool always_f32 = vector || kind == WeightKind::router || kind == WeightKind::head_weights;
    if (always_f32 || (is_kv_b && !panels_in_heads)) format = f32;
    if (kind == WeightKind::k_b && stored_in_fp8 && format == f8_e4m3) format = f32;  // blocks lie across
    EXPECT_EQ(t.format, format) << static_cast<int>(kind) << " of " << t.cols() << " columns";
  });
  EXPECT_EQ(i, wanted.size());
}

TEST_F(PackedModels, HoldEveryWeightInTheFormatOfItsRecipe) {
  int n = 0;
  for (const Subject& subject : subjects_) {
    LoadedModel model = load_model(subject.path, pool_);
    ModelConfig config = model.config;
    const bool stored_in_fp8 = config.weight_block_rows > 0;
    config.packed = true;
    config.weight_block_rows = config.weight_block_cols = 0;
    for (const char* name : kRecipes) {
      if (test::kSanitized && n++ % 3 != 0) continue;
      const Recipe& recipe = *find_recipe(name);
      convert_model(subject.path, scratch_.path() / "packed", recipe, pool_);
      PackedModel packed = load_packed_model(scratch_.path() / "packed", pool_);
      SCOPED_TRACE(subject.name + " as " + name);
      EXPECT_EQ(packed.config, config);
      check_formats(packed, config, recipe, stored_in_fp8);
      compare_weights(packed.weights, model, [&](WeightKind kind, const Tensor& t, const auto& got, const auto& want) {
        EXPECT_LE(mean_error_of(got, want), loss_of(t.format)) << static_cast<int>(kind);
      });
    }
  }
}

// f32 and f16 hold bf16 numbers, and bf16 of course.
TEST_F(PackedModels, GiveTheSameLogitsWhereNothingIsLost) {
  for (const Subject& subject : subjects_) {
    const LoadedModel model = load_model(subject.path, pool_);
    const std::vector<float> want = logits_of(model, pool_);
    const bool stored_in_bf16 = subject.name != "v3_fp8" && subject.name != "v3_norope_scaling";
    for (const char* recipe : {"f32", "bf16", "f16"}) {
      if (!stored_in_bf16 && recipe != std::string_view("f32")) continue;
      convert(subject.path, scratch_.path() / "packed", recipe, pool_);
      EXPECT_LE(error_of(packed_logits(scratch_.path() / "packed", pool_), want), 1e-5)
          << subject.name << " " << recipe;
    }
  }
}

// In the random models a token that goes to another expert changes everything; these two keep their heads. The bounds
// are twice what was seen.
TEST_F(PackedModels, GiveLogitsAsNearAsTheirRecipe) {
  struct Bound {
    const char* recipe;
    double shakespeare, v2_lite_like;
  };
  const Bound bounds[] = {{"fp8", 0.03, 0.18},   {"q8_0", 0.012, 0.05}, {"q6_k", 0.015, 0.05}, {"q5_k_m", 0.04, 0.28},
                          {"q4_k_m", 0.07, 0.3}, {"q4_k", 0.07, 0.3},   {"q4_0", 0.12, 0.6}};
  for (const fs::path& path : {kShakespeare, kOracle / "v2_lite_like"}) {
    const LoadedModel model = load_model(path, pool_);
    const std::vector<float> want = logits_of(model, pool_);
    for (const Bound& bound : bounds) {
      convert(path, scratch_.path() / "packed", bound.recipe, pool_);
      EXPECT_LE(typical_error_of(packed_logits(scratch_.path() / "packed", pool_), want, model.config.vocab_size),
                path == kShakespeare ? bound.shakespeare : bound.v2_lite_like)
          << path << " as " << bound.recipe;
    }
  }
}

TEST_F(PackedModels, PackedAtLoadAndConvertedAreTheSameBits) {
  for (const Subject& subject : subjects_) {
    const LoadedModel model = load_model(subject.path, pool_);
    if (subject.name == "v3_fp8" || subject.name == "v3_norope_scaling") continue;  // not in bf16
    convert(subject.path, scratch_.path() / "packed", "bf16", pool_);
    EXPECT_EQ(packed_logits(subject.path, pool_), packed_logits(scratch_.path() / "packed", pool_)) << subject.name;
  }
}

TEST_F(PackedModels, Fp8WeightsKeepTheirCodesAndScales) {
  const fs::path path = kOracle / "v3_fp8";
  PackedModel packed = load_packed_model(path, pool_);
  LoadedModel model = load_model(path, pool_);
  for_each_weight(packed.weights, [&](WeightKind kind, Tensor& t) {
    const bool in_fp8 = kind != WeightKind::embedding && kind != WeightKind::head && kind != WeightKind::norm &&
                        kind != WeightKind::router && kind != WeightKind::router_bias && kind != WeightKind::k_b;
    EXPECT_EQ(t.format == f8_e4m3, in_fp8) << static_cast<int>(kind);
  });
  compare_weights(packed.weights, model,
                  [](WeightKind, const Tensor&, const auto& got, const auto& want) { EXPECT_EQ(got, want); });
  const std::vector<float> want = logits_of(model, pool_);
  EXPECT_LE(error_of(logits(packed.config, packed.weights, pool_), want), 1e-5);
  convert(path, scratch_.path() / "packed", "fp8", pool_);
  EXPECT_LE(error_of(packed_logits(scratch_.path() / "packed", pool_), want), 1e-5);
}

TEST_F(PackedModels, GgufFilesKeepTheirBlocks) {
  for (const Subject& subject : subjects_) {
    LoadedModel model = load_model(subject.path, pool_);
    if (!fits_gguf(model.config)) continue;
    for (const Format format : {q8_0, q4_0, q4_k, q5_k, q6_k}) {
      const fs::path file = scratch_.path() / "model.gguf";
      save_gguf(
          file, model.config, nullptr, [&](std::string_view, std::span<const int64_t>) { return format; },
          rows_of(model.parameters.weights, model.config), pool_);
      PackedModel packed = load_packed_model(file, pool_);
      LoadedModel decoded = load_model(file, pool_);
      SCOPED_TRACE(subject.name + " as " + format_traits(format).name);
      const int64_t cols = model.config.hidden_size;
      const Format fits = cols % 32 == 0 ? fitting(format, cols) : f32;
      EXPECT_EQ(packed.weights.embed.format, fits);
      EXPECT_EQ(packed.weights.head.format, fits);
      compare_weights(packed.weights, decoded,
                      [&](WeightKind kind, const Tensor& t, const auto& got, const auto& want) {
                        if (t.format == f16) {  // kv_b, whose halves have blocks across
                          EXPECT_EQ(kind, WeightKind::kv_b);
                          EXPECT_LE(mean_error_of(got, want), loss_of(f16));
                        } else {
                          EXPECT_EQ(got, want) << static_cast<int>(kind);
                        }
                      });
      if (subject.name != "shakespeare") continue;
      EXPECT_LE(typical_error_of(logits(packed.config, packed.weights, pool_), logits_of(decoded, pool_),
                                 model.config.vocab_size),
                0.01);
    }
  }
}

// What llama.cpp makes of short rows that are to be q5_k.
TEST_F(PackedModels, Q5_1OfAGgufFileBecomesF16) {
  const LoadedModel model = load_model(kShakespeare, pool_);
  const fs::path file = scratch_.path() / "model.gguf";
  save_gguf(
      file, model.config, nullptr, [](std::string_view, std::span<const int64_t>) { return q8_0; },
      rows_of(model.parameters.weights, model.config), pool_);
  test::GgufParts parts(read_file(file, size_t{1} << 24));
  for (const char* name : {"blk.0.attn_output.weight", "blk.0.attn_k_b.weight", "blk.1.ffn_down_exps.weight"}) {
    test::GgufParts::Tensor& tensor = parts.tensors.at(name);
    const int64_t n = std::accumulate(tensor.dims.begin(), tensor.dims.end(), int64_t{1}, std::multiplies());
    const std::vector<uint8_t> blocks = random_blocks(q5_1, n, 3);
    tensor.type = ggml_type(q5_1).number;
    tensor.data.assign(blocks.begin(), blocks.end());
  }
  scratch_.write("model.gguf", parts.bytes());
  PackedModel packed = load_packed_model(file, pool_);
  EXPECT_EQ(packed.weights.layers[0].attention.o.format, f16);
  EXPECT_EQ(packed.weights.layers[0].attention.k_b.format, f16);
  EXPECT_EQ(packed.weights.layers[1].moe.down.format, f16);
  EXPECT_EQ(packed.weights.layers[1].moe.gate_up.format, q8_0);
  LoadedModel decoded = load_model(file, pool_);
  compare_weights(packed.weights, decoded, [](WeightKind kind, const Tensor&, const auto& got, const auto& want) {
    EXPECT_LE(mean_error_of(got, want), loss_of(f16)) << static_cast<int>(kind);
  });
}

TEST_F(PackedModels, ConvertWritesTheSameBytesOnAnyNumberOfThreads) {
  ThreadPool one(1), three(3);
  for (const Subject& subject : subjects_) {
    for (const char* recipe : {"fp8", "q4_k_m"}) {
      const fs::path a = scratch_.path() / "a", b = scratch_.path() / "b";
      convert(subject.path, a, recipe, one);
      convert(subject.path, b, recipe, three);
      for (const char* file : {"model.safetensors", "config.json", "generation_config.json"}) {
        EXPECT_EQ(contents(a / file), contents(b / file)) << subject.name << " " << file;
      }
    }
  }
}

TEST_F(PackedModels, SizesAreThoseOfTheFile) {
  for (const Subject& subject : subjects_) {
    for (const char* name : {"f32", "fp8", "q5_k_m"}) {
      const Recipe& recipe = *find_recipe(name);
      int64_t told = 0, written = 0;
      for (const auto& [of, size] : packed_sizes(subject.path, recipe)) told += size.bytes;
      convert_model(subject.path, scratch_.path() / "packed", recipe, pool_);
      const SafetensorsFile file(scratch_.path() / "packed" / "model.safetensors");
      for (const StoredTensor& tensor : file.tensors()) written += static_cast<int64_t>(tensor.data.size());
      EXPECT_EQ(told, written) << subject.name << " " << name;
      if (recipe.experts == f8_e4m3 || !fits_gguf(read_model_config(subject.path))) continue;
      const fs::path path = scratch_.path() / "model.gguf";
      convert_to_gguf(subject.path, path, recipe, nullptr, pool_);
      WeightSizes stored;
      const GgufFile gguf(path);
      for (const StoredTensor& tensor : gguf.tensors()) {
        WeightBytes& size = stored[*tensor.format];
        size.numbers += std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies());
        size.bytes += std::ssize(tensor.data);
      }
      EXPECT_EQ(gguf_sizes(subject.path, recipe), stored) << subject.name << " " << name;
    }
  }
}

std::vector<std::string> files_of(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename());
  return names;
}

TEST_F(PackedModels, ConvertRefusesWhatIsPackedOrNoModel) {
  const fs::path packed = scratch_.path() / "packed", other = scratch_.path() / "other";
  convert(kOracle / "v3_tiny", packed, "q8_0", pool_);
  const std::string before = contents(packed / "model.safetensors");
  EXPECT_THAT(refusal([&] { convert(packed, other, "f32", pool_); }), HasSubstr("packed: is packed already"));
  EXPECT_THAT(refusal([&] { convert(packed, packed, "f32", pool_); }), HasSubstr("packed: is packed already"));
  EXPECT_THAT(refusal([&] { (void)load_model(packed, pool_); }), HasSubstr("holds weights packed for inference"));
  EXPECT_EQ(contents(packed / "model.safetensors"), before);
  EXPECT_FALSE(fs::exists(other));
  EXPECT_THAT(refusal([&] { convert(other, packed, "f32", pool_); }), HasSubstr("other: no such directory"));
  EXPECT_THAT(refusal([&] { convert(packed / "model.safetensors", other, "f32", pool_); }), HasSubstr("is a file"));
  EXPECT_FALSE(fs::exists(other));
}

// Conversions that end half-way: a number that is not finite, one that gives up, places that take no file.
TEST_F(PackedModels, AFailedConvertLeavesTheOldModelOrNone) {
  const fs::path bad = scratch_.path() / "bad", to = scratch_.path() / "to", fresh = scratch_.path() / "fresh";
  LoadedModel model = random_model(tiny_v3());
  model.parameters.weights.head.f32()[7] = NAN;
  save_model(bad, model.config, model.parameters.weights, {bf16});
  const fs::path good = kOracle / "v3_tiny";
  convert(good, to, "q8_0", pool_);
  const std::string before = contents(to / "model.safetensors");

  const auto given_up = [&](const fs::path& where) {
    const ConvertOptions options{.check = [] { throw Error("enough"); }, .write_others = {}};
    convert_model(good, where, *find_recipe("bf16"), pool_, options);
  };
  for (const fs::path& where : {to, fresh}) {
    EXPECT_THAT(refusal([&] { convert(bad, where, "q4_0", pool_); }),
                HasSubstr("lm_head.weight holds a number that is not finite"));
    EXPECT_THAT(refusal([&] { given_up(where); }), HasSubstr("enough"));
  }
  EXPECT_EQ(contents(to / "model.safetensors"), before);
  EXPECT_EQ(files_of(to).size(), 3u);
  (void)load_packed_model(to, pool_);
  EXPECT_FALSE(fs::exists(fresh));

  const fs::path file = scratch_.write("file", "");
  for (const fs::path& where : {file, file / "under"}) {
    EXPECT_THAT(refusal([&] { convert(good, where, "bf16", pool_); }), HasSubstr(where.string()));
  }
  fs::create_directories(fresh / "model.safetensors.partial");
  EXPECT_THAT(refusal([&] { convert(good, fresh, "bf16", pool_); }), HasSubstr("model.safetensors.partial"));
  EXPECT_THAT(refusal([&] { (void)load_packed_model(fresh, pool_); }), HasSubstr("config.json: cannot open"));
}

// A packed directory whose tensors can be changed.
struct Parts {
  struct Part {
    std::string dtype, data;
  };
  std::vector<std::pair<std::string, Part>> tensors;

  explicit Parts(const fs::path& path) {
    const SafetensorsFile file(path);
    for (const StoredTensor& t : file.tensors()) {
      tensors.push_back({t.name, {t.dtype, {reinterpret_cast<const char*>(t.data.data()), t.data.size()}}});
    }
  }
  std::string bytes(size_t place = 0) const {  // of the data, beyond a multiple of 8
    std::string header, data;
    for (const auto& [name, part] : tensors) {
      const size_t width = part.dtype == "F32" ? 4 : 1;
      header +=
          fmt::format(R"({}"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", header.empty() ? "{" : ",",
                      name, part.dtype, part.data.size() / width, data.size(), data.size() + part.data.size());
      data += part.data;
    }
    header += '}';
    while (header.size() % 8 != place) header += ' ';
    const uint64_t size = header.size();
    return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
  }
  std::pair<std::string, Part>& at(const std::string& name) {
    for (auto& tensor : tensors) {
      if (tensor.first == name) return tensor;
    }
    throw Error("no {} in the file", name);
  }
};

class HostilePackedModel : public testing::Test {
 protected:
  HostilePackedModel() {
    convert(kOracle / "v3_tiny", path(), "q4_k_m", pool_);
    config_ = contents(path() / "config.json");
  }
  const fs::path& path() const { return scratch_.path(); }
  std::string load() {
    return refusal([&] {
      const PackedModel model = load_packed_model(path(), pool_);
      (void)logits(model.config, model.weights, pool_);
    });
  }
  std::string load_changed(const std::function<void(Parts&)>& change) {
    Parts parts = sound_.empty() ? Parts(path() / "model.safetensors") : sound_.front();
    if (sound_.empty()) sound_.push_back(parts);
    change(parts);
    scratch_.write("model.safetensors", parts.bytes());
    return load();
  }
  // config.json with `value` for a key of its own line.
  std::string load_with(const std::string& key, const std::string& value) {
    std::string text = config_;
    const size_t begin = text.find("\"" + key + "\": ") + key.size() + 4, end = text.find_first_of(",\n", begin);
    scratch_.write("config.json", text.replace(begin, end - begin, value));
    return load();
  }

  const TemporaryDirectory scratch_;
  ThreadPool pool_{1};
  std::string config_;
  std::vector<Parts> sound_;
};

TEST_F(HostilePackedModel, TensorsAreRefusedByFileAndName) {
  const std::string q_a = "model.layers.0.self_attn.q_a_proj", down = "model.layers.1.mlp.experts.down_proj",
                    norm = "model.norm", gate = "model.layers.1.mlp.gate", embed = "model.embed_tokens";
  const auto renamed = [](const std::string& from, const std::string& to) {
    return [=](Parts& parts) { parts.at(from).first = to; };
  };
  struct Case {
    std::function<void(Parts&)> change;
    std::string expected;
  };
  const std::string none(8, '\0'), q_a_stored = q_a + ".panels.q5_0";
  const std::string cannot = " is in a format that it cannot have";
  const Case cases[] = {
      {[&](Parts& p) { std::erase_if(p.tensors, [&](auto& t) { return t.first == q_a_stored; }); },
       "has no weight " + q_a},
      {[&](Parts& p) { std::erase_if(p.tensors, [&](auto& t) { return t.first == norm + ".rows.f32"; }); },
       "has no weight " + norm},
      {[](Parts& p) { p.tensors.resize(1); }, "too few for the"},
      {[&](Parts& p) { p.at(q_a_stored).second.data.pop_back(); },
       "weight " + q_a_stored + " has 2111 bytes of U8, the config asks for 2112 of U8"},
      {[&](Parts& p) { p.at(q_a_stored).second.data += none; }, "weight " + q_a_stored + " has 2120 bytes of U8"},
      {[&](Parts& p) { p.at(q_a_stored).second.data.clear(); }, "weight " + q_a_stored + " has 0 bytes of U8"},
      {[&](Parts& p) { p.at(q_a_stored).second.dtype = "F32"; }, "weight " + q_a_stored + " has 2112 bytes of F32"},
      {[&](Parts& p) { p.at(q_a_stored).second.dtype = "I8"; }, "weight " + q_a_stored + " has 2112 bytes of I8"},
      {renamed(q_a_stored, q_a + ".panels.q4_1"), "weight " + q_a + ".panels.q4_1" + cannot},
      {renamed(q_a_stored, q_a + ".panels."), "weight " + q_a + ".panels." + cannot},
      {renamed(q_a_stored, q_a + ".panels.i32"), "weight " + q_a + ".panels.i32" + cannot},
      {renamed(q_a_stored, q_a + ".panels.q4_k"), "weight " + q_a + ".panels.q4_k" + cannot},
      {renamed(down + ".panels.bf16", down + ".panels.q8_0"), "weight " + down + ".panels.q8_0" + cannot},
      {renamed(q_a_stored, q_a + ".panels.f32"), "has 2112 bytes of U8, the config asks for"},
      {renamed(q_a_stored, q_a + ".rows.q5_0"), "has no weight " + q_a},
      {renamed(q_a_stored, q_a), "has no weight " + q_a},
      {renamed(q_a_stored, q_a + ".weight"), "has no weight " + q_a},
      {renamed(norm + ".rows.f32", norm + ".rows.bf16"), "weight " + norm + ".rows.bf16" + cannot},
      {renamed(gate + ".panels.f32", gate + ".panels.bf16"), "weight " + gate + ".panels.bf16" + cannot},
      {[&](Parts& p) {
         p.tensors.push_back({"extra", {"U8", none}});
       },
       "no place for: extra"},
      {[&](Parts& p) {
         p.tensors.push_back({"extra.panels.q8_0", {"U8", none}});
       },
       "no place for: extra.panels.q8_0"},
      {[&](Parts& p) {
         p.tensors.push_back({norm + ".rows.q8_0", {"U8", none}});
       },
       norm + ".rows."},
  };
  EXPECT_EQ(load_changed([](Parts&) {}), "(accepted)");
  for (const Case& c : cases) {
    const std::string message = load_changed(c.change);
    EXPECT_THAT(message, HasSubstr(c.expected));
    EXPECT_THAT(message, testing::StartsWith((path() / "model.safetensors: ").string()));
  }
}

// A header of any length is sound: floats need not stand where they can be read in place.
TEST_F(HostilePackedModel, DataMayBeginAnywhere) {
  const std::vector<float> want = packed_logits(path(), pool_);
  const Parts parts(path() / "model.safetensors");
  for (const size_t place : {1, 2, 4, 7}) {
    scratch_.write("model.safetensors", parts.bytes(place));
    EXPECT_EQ(packed_logits(path(), pool_), want) << place;
  }
}

TEST_F(HostilePackedModel, ConfigsOfOtherModelsAreRefused) {
  EXPECT_EQ(load_with("vocab_size", "640"), "(accepted)");
  EXPECT_THAT(load_with("version", "2"),
              HasSubstr("config.json: the weights are packed in version 2, this program reads"));
  EXPECT_THAT(load_with("version", "\"1\""), HasSubstr("quantization_config.version is not a whole number"));
  EXPECT_THAT(load_with("quant_method", "\"fathom2\""), HasSubstr("quant_method fathom2 is not supported"));
  EXPECT_THAT(load_with("vocab_size", "641"), HasSubstr("weight model.embed_tokens.rows.q5_0 has 28160 bytes of U8"));
  EXPECT_THAT(load_with("hidden_size", "65"), HasSubstr("weight model.embed_tokens.rows.q5_0 is in a format that"));
  EXPECT_THAT(load_with("num_hidden_layers", "4"), HasSubstr("has no weight model.layers.3.input_layernorm"));
  EXPECT_THAT(load_with("num_hidden_layers", "2"), HasSubstr("no place for: model.layers.2."));
  EXPECT_THAT(load_with("q_lora_rank", "null"), HasSubstr("has no weight model.layers.0.self_attn.q_proj"));
  EXPECT_THAT(load_with("n_routed_experts", "32"), HasSubstr("weight model.layers.1.mlp.gate.panels.f32 has"));
  EXPECT_THAT(load_with("n_routed_experts", "65536"), HasSubstr("too few for the"));
  EXPECT_THAT(load_with("num_hidden_layers", "10000"), HasSubstr("too few for the"));
  EXPECT_THAT(load_with("vocab_size", "16777216"), HasSubstr("too few for the"));
}

// The other way round: packed weights read by what expects a model to train on.
TEST_F(HostilePackedModel, WithoutItsMarkIsNoModel) {
  EXPECT_THAT(load_with("quantization_config", "null, \"x\": {"),
              HasSubstr("missing tensors: model.embed_tokens.weight"));
}

}  // namespace
}  // namespace fathom
