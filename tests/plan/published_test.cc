// Plans held against published runs and services. "Blind": no constant of formulas.toml was fitted to the figure.
#include <gtest/gtest.h>

#include "plan/plan.h"

namespace fathom::plan {
namespace {

using Given = std::map<std::string, std::string>;

Plan plan_of(const char* kind, const char* model, const char* gpu, Given given = {}) {
  return make_plan({kind, model_facts(known_model(model), model), find_device(known_devices(), gpu), std::move(given)});
}
Plan v3_training(Given given = {}) { return plan_of("train", "deepseek-v3", "h800", std::move(given)); }

void near(double value, double published, double within, const char* what) {
  EXPECT_NEAR(value / published, 1, within) << what << ": " << value << " beside " << published;
}

// INS table 2, exact arithmetic.
TEST(Published, WorkOfATrainingToken) {
  near(v3_training().at("flops_token"), 250e9, 0.003, "V3");
  near(plan_of("train", "deepseek-v2", "h800").at("flops_token"), 155e9, 0.003, "V2");
  // Dense: INS counts 2,448 with a formula that it does not give.
  near(plan_of("train", "llama-3.1-405b", "h800", {{"seq_len", "4096"}}).at("flops_token"), 2448e9, 0.02, "LLaMA 405B");
}

// V3 section 3.2 and the constants' own sources: what was fitted comes out again.
TEST(Published, FittedRunsComeOutAgain) {
  const Plan v3 = v3_training();
  near(v3.at("step_s"), 19.926, 0.001, "INS table 4, a step");
  // PD's training trace: 4 MoE layers of a stage without head and MTP module.
  const double layer =
      v3.at("attention_layer_parameters") + 9 * v3.at("expert_parameters") + v3.at("router_layer_parameters");
  const double products = 6 * 4096 * 4 * layer / v3.at("product_peak");
  const double core = 4096 * 4 * v3.at("core_flops") / v3.at("layers") / v3.at("core_peak");
  near((products + core) / v3.at("fp8_efficiency"), 0.129, 0.003, "PD, F&B of 4 layers");
  near(plan_of("train", "deepseek-v2", "h800",
               {{"precision", "bf16"},
                {"gpus", "1024"},
                {"pp", "16"},
                {"ep", "8"},
                {"batch_size", "9216"},
                {"pp_schedule", "zb1p"}})
           .at("hours_a_trillion"),
       172'800, 0.005, "V2 section 3.2.3");
  near(plan_of("train", "deepseek-67b", "h800",
               {{"precision", "bf16"}, {"gpus", "512"}, {"pp", "8"}, {"batch_size", "4608"}, {"pp_schedule", "1f1b"}})
           .at("hours_a_trillion"),
       300'600, 0.005, "V2 section 3.2.3, DeepSeek 67B");
}

// The same run as INS table 4's step, told otherwise: not blind, but not fitted one by one either.
TEST(Published, CostOfV3) {
  const Plan v3 = v3_training();
  near(v3.at("hours_a_trillion"), 180'000, 0.005, "V3 section 1");
  near(v3.at("gpu_hours"), 2'664'000, 0.005, "V3 table 1");
  near(v3.at("tokens_a_day"), 272.80e9, 0.005, "INS table 4");
  near(v3.at("achieved_flops"), 385e12, 0.01, "INS table 4, causal");
  near(v3.at("mfu"), 0.3894, 0.01, "INS table 4, causal");
  near(v3.at("mfu_square"), 0.4373, 0.01, "INS table 4, full square");
  near(v3_training({{"tokens", "1T"}}).at("days"), 3.7, 0.015, "V3 section 1: 3.7 days on 2,048 GPUs");
  // 2.664 M + 119 K + 5 K hours at 2 dollars; of the last one only the sum is known.
  near((v3.at("gpu_hours") + 119'000 + 5'000) * v3.at("price"), 5.576e6, 0.005, "V3 table 1");
}

// Blind: attention in BF16 beside products in FP8 was not fitted to long sequences. 1,000 steps of 1,920 x 32K and
// 1,000 of 480 x 128K (V3 section 4.3); the layout is not published, taken is pre-training's number of chunks.
TEST(Published, BlindContextExtensionOfV3) {
  const double tokens = 1000.0 * 1920 * 32768;
  double hours = 0;
  for (const char* length : {"32768", "131072"}) {
    hours += v3_training({{"seq_len", length}, {"tokens", std::to_string(tokens)}}).at("gpu_hours");
  }
  near(hours, 119'000, 0.06, "V3 table 1, context extension");
}

// Blind: another maker's cluster. The Llama 3 Herd of Models, table 4: 41 % MFU on 16,384 H100 at 8,192 tokens;
// model card of 3.1: 30.84 M hours for all of it, restarts and long contexts too, 15.6e12 tokens.
TEST(Published, BlindLlama405B) {
  const Plan plan =
      plan_of("train", "llama-3.1-405b", "h100",
              {{"precision", "bf16"}, {"gpus", "16384"}, {"pp", "1"}, {"seq_len", "8192"}, {"tokens", "15.6T"}});
  near(plan.at("mfu"), 0.41, 0.08, "MFU");
  near(plan.at("gpu_hours"), 30.84e6, 0.2, "GPU hours");
}

// V3 table 2, DP: formulas of the bubbles, with F, B, W of the plan itself.
TEST(Published, BubblesOfTheReportsTable) {
  const Plan v3 = v3_training();
  const double f = v3.at("time_f"), b = v3.at("time_b"), w = v3.at("time_w"), fb = v3.at("time_fb");
  EXPECT_DOUBLE_EQ(v3.at("bubble_gpipe_s"), 15 * (f + b));
  EXPECT_DOUBLE_EQ(v3.at("bubble_zb1p_s"), 15 * (f + b - 2 * w));
  EXPECT_DOUBLE_EQ(v3.at("bubble_dualpipe_s"), 7 * (fb + b - 3 * w));
  EXPECT_DOUBLE_EQ(v3.at("bubble_s"), v3.at("bubble_dualpipe_s"));
  EXPECT_DOUBLE_EQ(v3_training({{"pp_schedule", "zb1p"}}).at("bubble_s"), v3.at("bubble_zb1p_s"));
}

// V3 trained on GPUs of 80 GB without tensor parallelism (V3 section 3.2): so it must fit.
TEST(Published, BlindMemoryOfV3sLayout) {
  const Plan plan = plan_of("memory", "deepseek-v3", "h800", {{"gpus", "2048"}, {"pp", "16"}, {"ep", "64"}});
  EXPECT_EQ(plan.at("chunks_held"), 17);  // V3 table 2: P + 1
  EXPECT_GT(plan.at("rank_bytes"), 60e9);
  EXPECT_LE(plan.at("rank_bytes"), 80.0 * (1 << 30));
  EXPECT_EQ(plan.at("training_fits"), 1);
}

// INS section 2.3.2 with its hidden size of "about 7K", which its arithmetic takes for 7,000.
TEST(Published, LimitsOfTimePerToken) {
  const auto limit = [](const char* bandwidth) {
    return plan_of("serve", "deepseek-v3", "h800", {{"network_bandwidth", bandwidth}});
  };
  near(limit("50GB").at("limit_exchange_s") * 7000 / 7168, 120.96e-6, 0.0001, "an exchange");
  near(limit("50GB").at("limit_network_s") * 7000 / 7168, 14.76e-3, 0.0005, "InfiniBand");
  near(limit("900GB/s").at("limit_network_s") * 7000 / 7168, 0.82e-3, 0.0005, "NVL72");
  near(limit("50GB").at("limit_network_s"), 14.76e-3, 0.025, "InfiniBand, with 7,168");
  near(limit("50GB").at("limit_network_tokens_s"), 67, 0.025, "InfiniBand, tokens a second");
}

// Blind: prefill has the training trace's constant. lmsys.org, 2025-05-05: SGLang, 4 nodes of H100.
TEST(Published, BlindPrefillOfSglang) {
  const auto prefill = [](const char* prompt) {
    return plan_of("serve", "deepseek-v3", "h100",
                   {{"gpus", "32"}, {"redundant_experts", "32"}, {"prompt", prompt}, {"batch", "16"}})
        .at("prefill_node");
  };
  near(prefill("4096"), 50'302, 0.03, "4K prompts");
  near(prefill("2000"), 52'300, 0.1, "2K prompts");
}

TEST(Published, FittedDecodingOfSglangComesOutAgain) {
  const Plan plan =
      plan_of("serve", "deepseek-v3", "h100",
              {{"gpus", "72"}, {"redundant_experts", "32"}, {"prompt", "2000"}, {"context", "2050"}, {"batch", "256"}});
  near(plan.at("decode_node"), 22'300, 0.005, "SGLang, 2K prompts, 9 nodes");
}

// INF: the H800 service of February 2025. How busy it was (utilization) is taken from its prefill; its decoding, price
// and margin are then blind, with PD's 128 requests a GPU.
Plan service() {
  return plan_of("serve", "deepseek-r1", "h800",
                 {{"gpus", "144"},
                  {"redundant_experts", "32"},
                  {"prefill_ep", "32"},
                  {"context", "4989"},
                  {"batch", "128"},
                  {"cache_hits", "0.563"},
                  {"utilization", "0.645"},
                  {"input_tokens_a_day", "608B"},
                  {"output_tokens_a_day", "168B"}});
}

TEST(Published, PrefillOfTheServiceByItsUtilization) { near(service().at("prefill_node"), 73'700, 0.01, "INF"); }

TEST(Published, BlindDecodingOfTheService) {
  const Plan plan = service();
  near(plan.at("decode_node"), 14'800, 0.15, "INF, output tokens/s a node");
  near(plan.at("user_tokens_s"), 21, 0.1, "INF, 20 to 22 tokens/s a user");
  near(plan.at("day_nodes"), 226.75, 0.1, "INF, nodes in the mean");
  near(plan.at("day_cost"), 87'072, 0.1, "INF, dollars a day");
}

TEST(Published, IncomeOfTheService) {
  const Plan plan = service();
  near(plan.at("day_income"), 562'027, 0.001, "INF, at R1's list prices");
  near(plan.at("day_income") / 87'072 - 1, 5.45, 0.002, "INF, its margin over its own cost");
  near(plan.at("day_margin"), 5.45, 0.12, "INF, margin over the predicted cost");
}

// xlab.tencent.com, 2025-03-16: fitted.
TEST(Published, HostsReadingFromMainMemory) {
  const auto host = [](const char* device, const char* weights, Given given) {
    given["weights"] = weights;
    given["context"] = given["prompt"] = "512";
    return plan_of("serve", "deepseek-r1", device, std::move(given));
  };
  near(host("epyc-9135", "q8_0", {}).at("user_tokens_s"), 7.17, 0.005, "EPYC 9135, fitted");
  // 1 to 3 tokens/s in 4 bits from 400 GB of memory: what two to six channels give, 51 to 115 GB/s. As the host of a
  // GPU, where nothing is known of its cores, and as a host of its own.
  for (const char* bandwidth : {"51.2GB", "89.6GB", "115GB"}) {
    const Given given{{"ram_bandwidth", bandwidth}, {"ram", "400GB"}};
    const double beside = host("h800", "q4_0", given).at("host_tokens_s"),
                 alone = host("epyc-9654", "q4_0", given).at("user_tokens_s");
    for (const double speed : {beside, alone}) {
      EXPECT_GT(speed, 1) << bandwidth;
      EXPECT_LT(speed, 3) << bandwidth;
    }
    EXPECT_NEAR(alone / beside, 1, 0.05) << bandwidth;
  }
}

// Blind, and a rough one: KTransformers' DeepseekR1_V3_tutorial.md, V0.2: 8.73 tokens/s of V3 in q4_k_m, experts on one
// Xeon 6454S (8 channels of DDR5-4800), the rest on an RTX 4090D. Experts and attention wait for each other there.
TEST(Published, BlindHostWithAGpu) {
  const Plan plan = plan_of("serve", "deepseek-v3", "rtx-4090",
                            {{"gpus", "1"},
                             {"weights", "q4_k_m"},
                             {"prompt", "500"},
                             {"context", "1000"},
                             {"batch", "1"},
                             {"ram", "512GB"},
                             {"ram_bandwidth", "307.2GB"}});
  near(plan.at("hybrid_tokens_s"), 8.73, 0.35, "KTransformers");
}

}  // namespace
}  // namespace fathom::plan
