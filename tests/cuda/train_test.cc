// Training on a device: gradients of whole models against the CPU's, and runs that learn what the CPU's do, with the
// same bits however they are cut.
#include "train/train.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "checkpoint/hf_model.h"
#include "cuda/device_context.h"
#include "model/loss.h"
#include "temporary_directory.h"
#include "train/device_state.h"
#include "train/metrics.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct Case {
  const char* fixture;
  Precision precision;
  Recompute recompute;
  Balance balance;
  double tolerance;  // of a tensor's gradient, as a part of the largest number of all that are like it
};

class CudaGradients : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (cuda_ctx().device == nullptr) GTEST_SKIP() << "there is no GPU";
  }
};

std::vector<std::vector<int32_t>> sequences(const ModelConfig& config) {
  Rng rng(5);
  std::vector<std::vector<int32_t>> all;
  for (const int length : {1, 6, 21}) {
    auto& ids = all.emplace_back();
    for (int i = 0; i < length; ++i)
      ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size))));
  }
  return all;
}

LossResult gradients_of(Context& ctx, const ModelConfig& config, const ModelWeights& weights, Parameters& gradients) {
  const Case& c = CudaGradients::GetParam();
  const ArenaScope scope(ctx.arena);
  Model model = make_model(config, weights);
  model.precision = c.precision;
  Arena scratch = ctx.device != nullptr ? Arena(ctx.device->allocate) : Arena();
  LossOptions options{.mtp_weight = weights.mtp.empty() ? 0 : 0.3, .recompute = c.recompute, .scratch = &scratch};
  if (c.balance != Balance::none) options.balance_alpha = 0.1;
  options.balance_over_batch = c.balance == Balance::aux_batch;
  const Batch batch = make_batch(ctx, sequences(config));
  return loss_and_gradients(ctx, model, gradients.weights, batch, make_targets(ctx, batch), options);
}

TEST_P(CudaGradients, AreTheCpus) {
  const Case& c = GetParam();
  Context& there = cuda_ctx();
  ThreadPool pool(1);
  const LoadedModel loaded = load_model(fs::path(FATHOM_TEST_DATA) / "oracle" / c.fixture, pool);
  Parameters want = allocate_parameters(loaded.config, false), got = allocate_parameters(loaded.config, false);
  const LossResult on_cpu = gradients_of(ctx(), loaded.config, loaded.parameters.weights, want);

  Parameters weights = allocate_parameters(loaded.config, true, {}, there.device);
  there.device->upload(*there.device, weights.memory.data(), loaded.parameters.memory.data(), weights.memory.size());
  Parameters gradients = allocate_parameters(loaded.config, false, {}, there.device);
  const LossResult on_device = gradients_of(there, loaded.config, weights.weights, gradients);
  there.device->download(*there.device, got.memory.data(), gradients.memory.data(), got.memory.size());

  EXPECT_NEAR(on_device.loss(), on_cpu.loss(), c.tolerance * on_cpu.loss());
  EXPECT_NEAR(on_device.mtp_loss(), on_cpu.mtp_loss(), c.tolerance * on_cpu.loss());
  EXPECT_NEAR(on_device.balance_loss, on_cpu.balance_loss, c.tolerance * std::max(1.0, on_cpu.balance_loss));
  EXPECT_EQ(on_device.expert_load, on_cpu.expert_load);
  std::vector<NamedTensor> of_cpu, of_device;
  for_each_tensor(want.weights, loaded.config, [&](const NamedTensor& t) { of_cpu.push_back(t); });
  for_each_tensor(got.weights, loaded.config, [&](const NamedTensor& t) { of_device.push_back(t); });
  ASSERT_EQ(of_cpu.size(), of_device.size());
  for (size_t i = 0; i < of_cpu.size(); ++i) {
    const Tensor a = of_cpu[i].view, b = of_device[i].view;
    double largest = 1e-6, error = 0;
    for (int64_t j = 0; j < a.size(); ++j) {
      largest = std::max(largest, std::abs(static_cast<double>(a.f32()[j])));
      const double off = std::abs(static_cast<double>(a.f32()[j]) - b.f32()[j]);
      error = std::max(error, std::isnan(off) ? INFINITY : off);
    }
    EXPECT_LE(error, c.tolerance * largest) << of_cpu[i].name << ", largest " << largest;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaGradients,
                         testing::Values(Case{"v3_mtp", Precision::f32, Recompute::none, Balance::none, 2e-4},
                                         Case{"v3_mtp", Precision::f32, Recompute::selective, Balance::aux, 2e-4},
                                         Case{"v3_rope_half", Precision::bf16, Recompute::full, Balance::none, 2e-2},
                                         Case{"v2_group_limited", Precision::f32, Recompute::full, Balance::aux_batch,
                                              2e-4}));

constexpr const char* kConfig = R"({
  "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 258, "hidden_size": 16,
  "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8,
  "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "intermediate_size": 24, "moe_intermediate_size": 8,
  "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
  "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
  "norm_topk_prob": true, "routed_scaling_factor": 1.0, "num_nextn_predict_layers": 1, "hidden_act": "silu",
  "attention_bias": false, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
  "initializer_range": 0.05, "tie_word_embeddings": false})";

class CudaTrain : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    std::ofstream(folder() / "config.json") << kConfig;
    std::ofstream text(folder() / "text.txt");
    for (int i = 0; i < 60; ++i) text << "line " << i << " of the text that the model learns from\n";
    std::ofstream(folder() / "held-out.txt") << "line 61 of a text that the model does not know";
  }
  const fs::path& folder() const { return scratch_.path(); }
  TrainOptions options(const std::string& out, const Device* device) const {
    TrainOptions o;
    o.model_config = folder() / "config.json";
    o.data = {folder() / "text.txt"};
    o.val_data = {folder() / "held-out.txt"};
    o.tokenizer = "bytes";
    o.out = folder() / out;
    o.device = device;
    o.steps = 3;
    o.seq_len = 17;
    o.batch_size = 4;
    o.micro_batch = 2;
    o.ema_decay = 0.9;
    o.lr.peak = 1e-2;
    o.lr.warmup = 2;
    return o;
  }
  static TrainResult run(const TrainOptions& o, int64_t stop_after = 0) {
    ThreadPool pool(2);
    int64_t asked = 0;
    return train(o, pool, [&] { return ++asked == stop_after; });
  }
  std::string file(const std::string& path) const { return read_file(folder() / path, size_t{1} << 30); }
  test::TemporaryDirectory scratch_;
};

TEST_F(CudaTrain, LearnsAsTheCpuDoes) {
  TrainOptions on_cpu = options("cpu", nullptr), on_device = options("device", cuda_ctx().device);
  on_cpu.steps = on_device.steps = 5;
  const TrainResult want = run(on_cpu), got = run(on_device);
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_NEAR(got.loss, want.loss, 1e-3 * want.loss);
  EXPECT_NEAR(got.val_loss.value(), want.val_loss.value(), 1e-3 * want.loss);
  const auto of_cpu = read_metrics(on_cpu.out / "train.jsonl"), of_device = read_metrics(on_device.out / "train.jsonl");
  ASSERT_EQ(of_cpu.size(), of_device.size());
  for (size_t i = 0; i < of_cpu.size(); ++i) {
    EXPECT_NEAR(of_device[i].loss, of_cpu[i].loss, 1e-3 * of_cpu[i].loss) << "step " << i + 1;
    EXPECT_NEAR(of_device[i].grad_norm, of_cpu[i].grad_norm, 1e-2 * of_cpu[i].grad_norm) << "step " << i + 1;
    EXPECT_EQ(of_device[i].expert_load.size(), of_cpu[i].expert_load.size());
  }
}

// In bf16, with its moments: where weights lie in the device's memory, they come back whole.
TEST_F(CudaTrain, AnInterruptedRunHasTheSameBits) {
  const auto narrow = [&](const std::string& out) {
    TrainOptions o = options(out, cuda_ctx().device);
    o.precision = Precision::bf16;
    o.moments = Format::bf16;
    return o;
  };
  run(narrow("whole"));
  TrainOptions cut = narrow("cut");
  const TrainResult first = run(cut, 4);  // asked between micro-batches, and behind each step
  ASSERT_TRUE(first.stopped);
  ASSERT_LT(first.step, cut.steps);
  cut.resume = true;
  EXPECT_EQ(run(cut).step, cut.steps);
  EXPECT_TRUE(file("cut/model.safetensors") == file("whole/model.safetensors"));
  EXPECT_TRUE(file("cut/average/model.safetensors") == file("whole/average/model.safetensors"));
  EXPECT_TRUE(file("cut/checkpoints/step-3/optimizer.safetensors") ==
              file("whole/checkpoints/step-3/optimizer.safetensors"));
}

TEST_F(CudaTrain, RefusesWhatIsNotThere) {
  const auto refused = [&](const std::function<void(TrainOptions&)>& change) {
    TrainOptions o = options("refused", cuda_ctx().device);
    change(o);
    try {
      run(o);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refused([](TrainOptions& o) { o.precision = Precision::fp8; }).find("FP8"), std::string::npos);
  EXPECT_NE(refused([](TrainOptions& o) { o.check_memory = true; }).find("--check-memory"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder() / "refused"));
}

}  // namespace
}  // namespace fathom
