// Any model as a Hugging Face directory: what transformers and the official release would have written.
#include "checkpoint/hf_save.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "checkpoint/gguf_save.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tiny_model.h"
#include "number/formats.h"
#include "refusal.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using enum Format;
using testing::HasSubstr;

const fs::path kOracle = fs::path(FATHOM_TEST_DATA) / "oracle";
const fs::path kShakespeare = fs::path(FATHOM_TEST_DATA) / "../../models/shakespeare";

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class HfSave : public testing::Test {
 protected:
  fs::path at(const std::string& name) const { return scratch_.path() / name; }
  fs::path saved(const std::string& name, ModelConfig config, Format format = bf16) {
    config.initializer_range = 0.2;
    save_model(at(name), config, random_model(config).parameters.weights, {format});
    return at(name);
  }
  std::vector<float> numbers(const fs::path& path) {
    const LoadedModel model = load_model(path, pool_);
    const auto all = model.parameters.all();
    return {all.begin(), all.end()};
  }

  const TemporaryDirectory scratch_;
  ThreadPool pool_{2};
};

TEST_F(HfSave, GivesTheFilesThatATrainedModelIsSavedAs) {
  const std::pair<const char*, ModelConfig> configs[] = {
      {"v3", tiny_v3()},       {"mtp", tiny_mtp(3)}, {"v2", tiny_v2()},       {"greedy", tiny_greedy_v2()},
      {"dense", tiny_dense()}, {"v32", tiny_v32()},  {"llama", tiny_llama()}, {"qwen2", tiny_qwen2()}};
  for (const auto& [name, config] : configs) {
    const LoadedModel model = random_model(config);
    save_model(at("source"), config, model.parameters.weights, {f32});
    for (const Format format : {f32, bf16}) {
      for (const int64_t shard_bytes : {kMaxShardBytes, int64_t{2000}}) {
        save_model(at("want"), config, model.parameters.weights, {format, shard_bytes});
        convert_to_hf(at("source"), at("got"), format, pool_, {}, shard_bytes);
        size_t files = 0;
        for (const auto& entry : fs::directory_iterator(at("want"))) {
          EXPECT_EQ(contents(entry.path()), contents(at("got") / entry.path().filename())) << name << entry.path();
          ++files;
        }
        EXPECT_EQ(std::distance(fs::directory_iterator(at("got")), {}), static_cast<ptrdiff_t>(files)) << name;
        EXPECT_EQ(files > 3, shard_bytes < kMaxShardBytes);
      }
    }
  }
}

TEST_F(HfSave, Fp8StaysTheSameBits) {
  const fs::path source = kOracle / "v3_fp8";
  convert_to_hf(source, at("got"), f8_e4m3, pool_);
  const SafetensorsFile want(source / "model.safetensors"), got(at("got") / "model.safetensors");
  ASSERT_EQ(got.tensors().size(), want.tensors().size());
  for (const StoredTensor& tensor : want.tensors()) {
    const StoredTensor* found = got.find(tensor.name);
    ASSERT_NE(found, nullptr) << tensor.name;
    EXPECT_EQ(found->dtype, tensor.dtype) << tensor.name;
    EXPECT_TRUE(std::ranges::equal(found->data, tensor.data)) << tensor.name;
  }
  EXPECT_EQ(read_model_config(at("got")), read_model_config(source));

  // Scales that are powers of two stay so, and say so.
  convert_to_hf(saved("mtp", tiny_mtp()), at("a"), f8_e4m3, pool_);
  std::string config = contents(at("a") / "config.json");
  config.replace(config.find("\"fmt\""), 0, "\"scale_fmt\": \"ue8m0\", ");
  scratch_.write("a/config.json", config);
  convert_to_hf(at("a"), at("b"), f8_e4m3, pool_);
  EXPECT_EQ(contents(at("a") / "model.safetensors"), contents(at("b") / "model.safetensors"));
  EXPECT_TRUE(read_model_config(at("b")).scale_ue8m0);
}

// What the reference says of the official release: which tensors have scales, which stay bf16, which are f32.
TEST_F(HfSave, Fp8HasTheReleasesNamesAndTypes) {
  convert_to_hf(saved("v32", tiny_v32()), at("fp8"), f8_e4m3, pool_);
  const SafetensorsFile file(at("fp8") / "model.safetensors");
  size_t scales = 0, codes = 0;
  for (const StoredTensor& tensor : file.tensors()) {
    const auto has = [&](const char* part) { return tensor.name.find(part) != std::string::npos; };
    if (tensor.name.ends_with("_scale_inv")) {
      EXPECT_EQ(tensor.dtype, "F32");
      ++scales;
    } else if (has("e_score_correction_bias")) {
      EXPECT_EQ(tensor.dtype, "F32");
    } else if (has("norm") || has("embed_tokens") || has("head") || has("mlp.gate.weight") || has("eh_proj") ||
               has("weights_proj")) {
      EXPECT_EQ(tensor.dtype, "BF16") << tensor.name;
    } else {
      EXPECT_EQ(tensor.dtype, "F8_E4M3") << tensor.name;
      EXPECT_NE(file.find(tensor.name + "_scale_inv"), nullptr) << tensor.name;
      ++codes;
    }
  }
  EXPECT_EQ(scales, codes);
  EXPECT_NE(file.find("model.layers.3.embed_tokens.weight"), nullptr);
  EXPECT_NE(file.find("model.layers.3.shared_head.head.weight"), nullptr);
  const std::string config = contents(at("fp8") / "config.json");
  EXPECT_THAT(config, HasSubstr(R"("quant_method": "fp8")"));
  EXPECT_THAT(config, HasSubstr(R"("torch_dtype": "bfloat16")"));
  // A trained model's norms and router keep what they have.
  convert_to_hf(saved("wide", tiny_v32(), f32), at("fp8"), f8_e4m3, pool_);
  const SafetensorsFile wide(at("fp8") / "model.safetensors");
  EXPECT_EQ(wide.find("model.norm.weight")->dtype, "F32");
  EXPECT_EQ(wide.find("model.layers.1.mlp.gate.weight")->dtype, "F32");
  EXPECT_EQ(wide.find("model.layers.3.self_attn.indexer.k_norm.bias")->dtype, "F32");
  EXPECT_EQ(wide.find("model.layers.3.self_attn.indexer.weights_proj.weight")->dtype, "F32");
  EXPECT_EQ(wide.find("model.layers.3.self_attn.indexer.wk.weight")->dtype, "F8_E4M3");
  (void)load_model(at("fp8"), pool_);  // such a mixture is read
  EXPECT_EQ(wide.find("lm_head.weight")->dtype, "BF16");
}

// Every number is what quantizing its whole matrix at once makes of it, wherever pieces and shards are cut.
TEST_F(HfSave, ThroughFp8AndBackOnlyTheCodesRound) {
  ModelConfig large = tiny_v3();
  large.hidden_size = 300;
  large.intermediate_size = 5000;  // some pieces
  const fs::path subjects[] = {saved("mtp", tiny_mtp()), saved("v32", tiny_v32()), saved("large", large),
                               kOracle / "v2_lite_like", kShakespeare};
  for (const fs::path& path : subjects) {
    convert_to_hf(path, at("fp8"), f8_e4m3, pool_, {}, 1 << 20);
    convert_to_hf(at("fp8"), at("back"), bf16, pool_);
    EXPECT_EQ(read_model_config(at("back")), read_model_config(path));
    const SafetensorsFile want(path / "model.safetensors"), got(at("back") / "model.safetensors");
    ASSERT_EQ(got.tensors().size(), want.tensors().size()) << path;
    for (const StoredTensor& tensor : want.tensors()) {
      const StoredTensor* found = got.find(tensor.name);
      ASSERT_NE(found, nullptr) << tensor.name;
      EXPECT_EQ(found->dtype, tensor.dtype);
      const bool quantized =
          tensor.shape.size() == 2 && tensor.name.find("embed") == std::string::npos &&
          tensor.name.find("head") == std::string::npos && tensor.name.find("mlp.gate.") == std::string::npos &&
          tensor.name.find("weights_proj") == std::string::npos && tensor.name.find("eh_proj") == std::string::npos;
      std::vector<std::byte> expected(tensor.data.begin(), tensor.data.end());
      if (quantized) {
        const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
        std::vector<float> x(static_cast<size_t>(rows * cols)), scales(x.size());
        std::vector<uint8_t> codes(x.size());
        to_f32(x.data(), tensor.data.data(), *tensor.format, rows * cols);
        quantize_f8_blocks(codes.data(), scales.data(), x.data(), rows, cols, {}, false);
        dequantize_f8_blocks(x.data(), codes.data(), scales.data(), 0, rows, cols, {});
        from_f32(expected.data(), x.data(), bf16, rows * cols);
      }
      EXPECT_TRUE(std::ranges::equal(found->data, expected)) << path << " " << tensor.name;
    }
  }
}

TEST_F(HfSave, TakesGgufFilesAndPackedDirectories) {
  ModelConfig config = tiny_mtp();
  config.rope_interleave = true;  // GGUF knows nothing else
  for (const fs::path& path : {saved("mtp", config), kShakespeare}) {
    const LoadedModel model = load_model(path, pool_);
    // kv_b_proj comes from its halves, in heads.
    save_gguf(
        at("model.gguf"), model.config, nullptr, [](std::string_view, std::span<const int64_t>) { return q8_0; },
        rows_of(model.parameters.weights, model.config), pool_);
    convert_to_hf(at("model.gguf"), at("got"), f32, pool_);
    EXPECT_EQ(numbers(at("got")), numbers(at("model.gguf"))) << path;
    for (const char* recipe : {"bf16", "f32"}) {
      convert_model(path, at("packed"), *find_recipe(recipe), pool_);
      convert_to_hf(at("packed"), at("got"), bf16, pool_);
      EXPECT_EQ(numbers(at("got")), numbers(path)) << path << " packed as " << recipe;
      EXPECT_EQ(read_model_config(at("got")), model.config);
    }
    convert_model(path, at("packed"), *find_recipe("q4_0"), pool_);
    convert_to_hf(at("packed"), at("got"), f32, pool_);
    const std::vector<float> got = numbers(at("got")), want = numbers(path);
    ASSERT_EQ(got.size(), want.size());
    double squares = 0, all = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      squares += (got[i] - want[i]) * (got[i] - want[i]);
      all += want[i] * want[i];
    }
    EXPECT_LT(std::sqrt(squares / all), 0.15) << path;
  }
}

// Through every form of a checkpoint and back.
TEST_F(HfSave, IndexersStayTheSameBits) {
  const std::pair<fs::path, Format> subjects[] = {{saved("v32", tiny_v32(), f32), f32}, {kOracle / "v32_dsa", bf16}};
  for (const auto& [path, format] : subjects) {
    const Recipe& recipe = *find_recipe(format == f32 ? "f32" : "bf16");
    convert_model(path, at("packed"), recipe, pool_);
    convert_to_hf(at("packed"), at("hf"), format, pool_);
    convert_to_gguf(at("hf"), at("model.gguf"), recipe, nullptr, pool_);
    convert_to_hf(at("model.gguf"), at("back"), format, pool_);
    EXPECT_EQ(numbers(at("back")), numbers(path));
    ModelConfig config = read_model_config(at("back"));
    config.initializer_range = read_model_config(path).initializer_range;  // GGUF has no key for it
    EXPECT_EQ(config, read_model_config(path));
    EXPECT_EQ(contents(at("hf") / "model.safetensors"), contents(at("back") / "model.safetensors"));
    if (format == f32) {
      EXPECT_EQ(contents(at("back") / "model.safetensors"), contents(path / "model.safetensors"));
    }
  }
}

TEST_F(HfSave, SizesAreThoseOfTheFile) {
  for (const fs::path& path : {kOracle / "v3_mtp", kOracle / "v3_fp8", kOracle / "v32_dsa"}) {
    for (const Format format : {f32, bf16, f16, f8_e4m3}) {
      convert_to_hf(path, at("got"), format, pool_);
      int64_t stored = 0, told = 0;
      const SafetensorsFile file(at("got") / "model.safetensors");
      for (const StoredTensor& tensor : file.tensors()) stored += std::ssize(tensor.data);
      for (const auto& [of, size] : hf_sizes(path, format)) told += size.bytes;
      EXPECT_EQ(told, stored) << path;
    }
  }
}

TEST_F(HfSave, RefusesNumbersThatAreNone) {
  LoadedModel model = random_model(tiny_v3());
  model.parameters.weights.head.f32()[30] = 65520;
  save_model(at("large"), model.config, model.parameters.weights, {f32});
  EXPECT_THAT(refusal([&] { convert_to_hf(at("large"), at("out/f16"), f16, pool_); }),
              HasSubstr("tensor lm_head.weight holds numbers that are too large for f16"));
  EXPECT_FALSE(fs::exists(at("out")));
  model.parameters.weights.head.f32()[30] = std::numeric_limits<float>::quiet_NaN();
  save_model(at("broken"), model.config, model.parameters.weights, {f32});
  fs::create_directory(at("out"));
  for (const Format format : {f32, f8_e4m3}) {
    EXPECT_THAT(refusal([&] { convert_to_hf(at("broken"), at("out/f32"), format, pool_); }),
                HasSubstr("lm_head.weight holds a number that is not finite, at row 1, column 6"));
  }
  EXPECT_TRUE(fs::is_empty(at("out")));
}

// Called once for a wave of pieces; what it throws gives up, and nothing is left.
TEST_F(HfSave, CanBeStopped) {
  struct Stop {};
  const ConvertOptions options{.check = [] { throw Stop{}; }, .write_others = {}};
  EXPECT_THROW(convert_to_hf(kOracle / "v3_tiny", at("out"), bf16, pool_, options), Stop);
  EXPECT_FALSE(fs::exists(at("out")));
}

}  // namespace
}  // namespace fathom
