// The whole model on a device against the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "checkpoint/hf_model.h"
#include "checkpoint/weight_memory.h"
#include "cuda/device_context.h"
#include "infer/device_placement.h"
#include "infer/generation.h"
#include "infer/score.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

const std::filesystem::path kOracle = std::filesystem::path(FATHOM_TEST_DATA) / "oracle";

struct Case {
  const char* name;
  const char* fixture;
  const char* recipe;  // that it is converted by; null: as it is
  double tolerance;    // of every output, as a part of its largest number
};

class CudaModel : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (cuda_ctx().device == nullptr) GTEST_SKIP() << "there is no GPU";
  }
  PackedModel load() const {
    ThreadPool pool(1);
    const auto folder = kOracle / GetParam().fixture;
    if (GetParam().recipe == nullptr) return load_packed_model(folder, pool);
    const auto converted = scratch_.path() / "converted";
    if (!std::filesystem::exists(converted)) convert_model(folder, converted, *find_recipe(GetParam().recipe), pool);
    return load_packed_model(converted, pool);
  }
  PackedModel load_on_device() const {
    PackedModel model = load();
    move_to_device(model, *cuda_ctx().device);
    return model;
  }
  // Then activations are rounded to 8 bits: what falls to the other side of a half for a difference in the seventh
  // digit has effects of its own, and other experts. The most of the numbers must agree still.
  bool in_blocks() const { return GetParam().recipe != nullptr && GetParam().recipe[0] == 'q'; }
  void expect_near(const ScoreTensor& a, const ScoreTensor& b) const {
    ASSERT_EQ(a.name, b.name);
    EXPECT_TRUE(in_blocks() || a.ids == b.ids) << a.name;
    ASSERT_EQ(a.values.size(), b.values.size()) << a.name;
    if (a.values.empty()) return;
    double largest = 1e-30;
    std::vector<double> errors;
    for (size_t j = 0; j < a.values.size(); ++j) {
      largest = std::max(largest, std::abs(static_cast<double>(b.values[j])));
      const double error = std::abs(static_cast<double>(a.values[j]) - b.values[j]);
      errors.push_back(std::isnan(error) ? std::numeric_limits<double>::infinity() : error);
    }
    std::sort(errors.begin(), errors.end());
    EXPECT_LE(in_blocks() ? errors[errors.size() / 2] : errors.back(), GetParam().tolerance * largest)
        << a.name << ", largest " << largest;
  }
  const test::TemporaryDirectory scratch_;
};

std::vector<std::vector<int32_t>> sequences(const ModelConfig& config) {
  Rng rng(11);
  std::vector<std::vector<int32_t>> all;
  for (const int length : {1, 5, 17}) {
    auto& ids = all.emplace_back();
    for (int i = 0; i < length; ++i)
      ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size))));
  }
  return all;
}

TEST_P(CudaModel, ScoresAsTheCpuDoes) {
  const PackedModel on_cpu = load(), on_gpu = load_on_device();
  const Model cpu_model = make_model(on_cpu.config, on_cpu.weights),
              gpu_model = make_model(on_gpu.config, on_gpu.weights);
  const ScoreOptions options{.tensors = true, .all = true, .mtp = !on_cpu.weights.mtp.empty()};
  const ScoreResult want = score(ctx(), cpu_model, sequences(on_cpu.config), options);
  const ScoreResult got = score(cuda_ctx(), gpu_model, sequences(on_cpu.config), options);
  EXPECT_NEAR(got.loss.loss(), want.loss.loss(), (in_blocks() ? 100 : 10) * GetParam().tolerance);
  ASSERT_EQ(got.tensors.size(), want.tensors.size());
  for (size_t i = 0; i < want.tensors.size(); ++i) {
    expect_near(got.tensors[i], want.tensors[i]);
  }
}

class CudaModelBesideHost : public CudaModel {};

// Routed experts in the host's memory, none, some or all but one of them on the device too: the same outputs as the
// CPU's.
TEST_P(CudaModelBesideHost, ScoresAsTheCpuDoes) {
  const PackedModel on_cpu = load();
  const int64_t experts = on_cpu.config.router.n_routed_experts;
  const Model cpu_model = make_model(on_cpu.config, on_cpu.weights);
  const ScoreOptions options{.tensors = true, .all = true, .mtp = !on_cpu.weights.mtp.empty()};
  const ScoreResult want = score(ctx(), cpu_model, sequences(on_cpu.config), options);
  const int64_t one = HostExperts::bytes_of_one(on_cpu.weights), others = device_bytes_without_experts(on_cpu.weights);
  for (const int64_t n : {int64_t{0}, experts / 3, experts - 1}) {
    PackedModel on_gpu = load();
    const auto host = place_on_device(on_gpu, *cuda_ctx().device, others + n * one + one / 2, 2);
    ASSERT_NE(host, nullptr);
    Model model = make_model(on_gpu.config, on_gpu.weights);
    model.host_experts = host.get();
    const ScoreResult got = score(cuda_ctx(), model, sequences(on_cpu.config), options);
    EXPECT_NEAR(got.loss.loss(), want.loss.loss(), (in_blocks() ? 100 : 10) * GetParam().tolerance) << n;
    ASSERT_EQ(got.tensors.size(), want.tensors.size());
    for (size_t i = 0; i < want.tensors.size(); ++i) expect_near(got.tensors[i], want.tensors[i]);
  }
}

// Experts that are chosen often come to the device, and tokens stay what they are.
TEST_P(CudaModelBesideHost, HotExpertsMoveThere) {
  const PackedModel on_cpu = load();
  const int64_t one = HostExperts::bytes_of_one(on_cpu.weights);
  PackedModel on_gpu = load();
  const auto host = place_on_device(on_gpu, *cuda_ctx().device, device_bytes_without_experts(on_cpu.weights) + one, 1);
  ASSERT_NE(host, nullptr);
  const Model cpu_model = make_model(on_cpu.config, on_cpu.weights);
  Model model = make_model(on_gpu.config, on_gpu.weights);
  model.host_experts = host.get();
  const GenerationOptions options{.sampler = {.temperature = 0}, .max_tokens = 40};
  const std::vector<int32_t> prompt = sequences(on_cpu.config).back();
  Sequence of_cpu{{}, make_latent_cache(on_cpu.config, 64, Format::f32)};
  Sequence of_gpu{{}, make_latent_cache(on_cpu.config, 64, Format::f32, cuda_ctx().device)};
  const auto want = generate(ctx(), cpu_model, nullptr, of_cpu, prompt, options).ids;
  const auto got = generate(cuda_ctx(), model, nullptr, of_gpu, prompt, options).ids;
  EXPECT_TRUE(host->n_moved() > 0 || in_blocks());  // that model chooses evenly
  EXPECT_TRUE(GetParam().recipe != nullptr || got == want);
}

// Greedy tokens through the cache; where weights or cache are rounded, near ties may fall otherwise.
TEST_P(CudaModel, ContinuesAsTheCpuDoes) {
  const PackedModel on_cpu = load(), on_gpu = load_on_device();
  const Model cpu_model = make_model(on_cpu.config, on_cpu.weights),
              gpu_model = make_model(on_gpu.config, on_gpu.weights);
  const std::vector<int32_t> prompt = sequences(on_cpu.config).back();
  for (const int64_t drafts : {0, 2}) {
    for (const Format kv_type : {Format::f32, Format::bf16}) {
      const GenerationOptions options{.sampler = {.temperature = 0}, .max_tokens = 6, .draft_tokens = drafts};
      Sequence of_cpu{{}, make_latent_cache(on_cpu.config, 64, kv_type)};
      Sequence of_gpu{{}, make_latent_cache(on_cpu.config, 64, kv_type, cuda_ctx().device)};
      const Generation want = generate(ctx(), cpu_model, nullptr, of_cpu, prompt, options);
      const Generation got = generate(cuda_ctx(), gpu_model, nullptr, of_gpu, prompt, options);
      EXPECT_EQ(got.ids.size(), want.ids.size());
      const bool exact = GetParam().recipe == nullptr && kv_type == Format::f32;
      EXPECT_TRUE(!exact || got.ids == want.ids) << drafts;
    }
  }
}

// The same bits whether a pass is recorded or not is what replays must give: one prompt twice.
TEST_P(CudaModel, RepeatsItself) {
  const PackedModel on_gpu = load_on_device();
  const Model model = make_model(on_gpu.config, on_gpu.weights);
  const GenerationOptions options{.sampler = {.temperature = 1}, .max_tokens = 6, .seed = 5};
  std::vector<std::vector<int32_t>> ids;
  for (int i = 0; i < 2; ++i) {
    Sequence sequence{{}, make_latent_cache(on_gpu.config, 64, Format::bf16, cuda_ctx().device)};
    ids.push_back(generate(cuda_ctx(), model, nullptr, sequence, sequences(on_gpu.config).back(), options).ids);
  }
  EXPECT_EQ(ids[0], ids[1]);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, CudaModel,
    testing::Values(Case{"v3", "v3_tiny", nullptr, 2e-4}, Case{"v2", "v2_lite_like", nullptr, 2e-4},
                    Case{"groups", "v2_group_limited", nullptr, 2e-4}, Case{"half", "v3_rope_half", nullptr, 2e-4},
                    Case{"mtp", "v3_mtp", nullptr, 2e-4}, Case{"fp8", "v3_fp8", nullptr, 2e-3},
                    Case{"as_bf16", "v3_fp8", "bf16", 2e-3}, Case{"as_fp8", "v3_fp8", "fp8", 2e-3},
                    Case{"as_q8_0", "v3_fp8", "q8_0", 5e-3}, Case{"as_q4_0", "v3_fp8", "q4_0", 5e-3},
                    Case{"as_q4_k_m", "v3_fp8", "q4_k_m", 5e-3}, Case{"as_q6_k", "v3_fp8", "q6_k", 5e-3}),
    [](const auto& test) { return std::string(test.param.name); });

INSTANTIATE_TEST_SUITE_P(Cases, CudaModelBesideHost,
                         testing::Values(Case{"v3", "v3_tiny", nullptr, 2e-4}, Case{"mtp", "v3_mtp", nullptr, 2e-4},
                                         Case{"as_q4_k_m", "v3_fp8", "q4_k_m", 5e-3}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace fathom
