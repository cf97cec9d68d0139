#include "checkpoint/hf_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/safetensors.h"
#include "checkpoint/tiny_model.h"
#include "number/formats.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::vector<float> all_values(const LoadedModel& model) {
  const auto values = model.parameters.all();
  return {values.begin(), values.end()};
}

std::vector<std::string> files_of(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// Every numbers of `model` as a save in `format` keeps it.
std::vector<float> rounded(const LoadedModel& model, Format format) {
  LoadedModel copy{model.config, allocate_parameters(model.config)};
  std::vector<Tensor> from;
  for_each_tensor(model.parameters.weights, model.config, [&](const NamedTensor& t) { from.push_back(t.view); });
  size_t i = 0;
  for_each_tensor(copy.parameters.weights, model.config, [&](const NamedTensor& t) {
    for (int64_t n = 0; n < t.view.size(); ++n) {
      const float x = from[i].f32()[n];
      t.view.f32()[n] = format == Format::bf16 && t.trained ? bf16_to_f32(f32_to_bf16(x)) : x;
    }
    ++i;
  });
  return all_values(copy);
}

TEST(HfModel, SaveThenLoadIsTheSameModel) {
  ThreadPool pool(3);
  for (const ModelConfig& config :
       {tiny_v3(), tiny_v2(), tiny_dense(), tiny_mtp(3), tiny_greedy_v2(), tiny_v32(), tiny_llama(), tiny_qwen2()}) {
    const LoadedModel model = random_model(config);
    for (const Format format : {Format::f32, Format::bf16}) {
      for (const int64_t max_shard_bytes : {int64_t{1} << 30, int64_t{20000}}) {
        const TemporaryDirectory directory;
        save_model(directory.path(), config, model.parameters.weights, {format, max_shard_bytes});
        const LoadedModel back = load_model(directory.path(), pool);
        EXPECT_EQ(all_values(back), rounded(model, format));
        EXPECT_EQ(back.config, config);
      }
    }
  }
}

TEST(HfModel, SaveWritesTheCopiesOfAnMtpLayerAndKeepsBiasesInF32) {
  const TemporaryDirectory directory;
  const LoadedModel model = random_model(tiny_mtp());
  save_model(directory.path(), model.config, model.parameters.weights, {Format::bf16});
  const SafetensorsFile file(directory.path() / "model.safetensors");
  for (const char* name : {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight",
                           "model.layers.3.eh_proj.weight", "model.layers.3.shared_head.norm.weight"}) {
    ASSERT_NE(file.find(name), nullptr) << name;
    EXPECT_EQ(file.find(name)->dtype, "BF16") << name;
  }
  EXPECT_EQ(file.find("model.layers.1.mlp.gate.e_score_correction_bias")->dtype, "F32");
  ASSERT_EQ(file.metadata().size(), 1u);
  EXPECT_EQ(file.metadata()[0], (std::pair<std::string, std::string>{"format", "pt"}));
}

TEST(HfModel, ASecondSaveLeavesNothingOfTheFirst) {
  ThreadPool pool(1);
  const TemporaryDirectory directory;
  const LoadedModel first = random_model(tiny_v3(), 1), second = random_model(tiny_v3(), 2);
  save_model(directory.path(), first.config, first.parameters.weights, {Format::f32, 20000});
  EXPECT_GT(files_of(directory.path()).size(), 5u);
  save_model(directory.path(), second.config, second.parameters.weights, {Format::f32});
  EXPECT_EQ(files_of(directory.path()),
            (std::vector<std::string>{"config.json", "generation_config.json", "model.safetensors"}));
  EXPECT_EQ(all_values(load_model(directory.path(), pool)), all_values(second));
  save_model(directory.path(), first.config, first.parameters.weights, {Format::f32, 20000});
  EXPECT_EQ(all_values(load_model(directory.path(), pool)), all_values(first));
}

TEST(HfModel, LoadsTheSameBitsOnAnyNumberOfThreads) {
  const TemporaryDirectory directory;
  const LoadedModel model = random_model(tiny_v3());
  save_model(directory.path(), model.config, model.parameters.weights, {Format::bf16});
  ThreadPool one(1), four(4);
  EXPECT_EQ(all_values(load_model(directory.path(), one)), all_values(load_model(directory.path(), four)));
}

}  // namespace
}  // namespace fathom
