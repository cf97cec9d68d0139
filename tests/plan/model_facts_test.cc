// Numbers of known models, held against tables that others published or that were worked out by hand from the
// configurations.
#include "plan/model_facts.h"

#include <gtest/gtest.h>

#include "plan/plan.h"
#include "refusal.h"

namespace fathom::plan {
namespace {

Plan memory_of(const char* model, std::map<std::string, std::string> given = {}) {
  return make_plan(
      {"memory", model_facts(known_model(model), model), find_device(known_devices(), "h800"), std::move(given)});
}

struct Published {
  const char* model;
  double total, active, attention_layer, expert, moe_layer, cache;
};
// Parameters worked out by hand from the configurations, every norm and bias counted; active: without the input
// embedding and without the routers' biases. Cache in bytes of bf16, INS table 1.
constexpr Published kPublished[] = {
    {"deepseek-v2-lite", 15'706'484'224, 2'451'435'008, 13'763'072, 8'650'752, 571'080'704, 31'104},
    {"deepseek-v2", 235'741'434'880, 20'851'512'320, 149'227'520, 23'592'960, 3'822'878'720, 69'120},
    {"deepseek-v3", 671'026'419'200, 36'625'603'584, 187'107'328, 44'040'192, 11'320'164'608, 70'272},
    {"deepseek-r1", 671'026'419'200, 36'625'603'584, 187'107'328, 44'040'192, 11'320'164'608, 70'272},
    {"deepseek-v3.2", 671'877'944'064, 37'477'128'448, 187'107'328, 44'040'192, 11'320'164'608, 70'272 + 8'052},
};

TEST(ModelFacts, ParametersArePublishedOnesToTheUnit) {
  for (const Published& p : kPublished) {
    const Plan plan = memory_of(p.model);
    EXPECT_EQ(plan.at("parameters"), p.total) << p.model;
    const double active =
        plan.at("active_parameters") - plan.at("moe_layers") * plan.at("router_bias_layer_parameters");
    EXPECT_EQ(active, p.active) << p.model;
    EXPECT_EQ(plan.at("attention_layer_parameters"), p.attention_layer) << p.model;
    EXPECT_EQ(plan.at("expert_parameters"), p.expert) << p.model;
    EXPECT_EQ(plan.at("experts") * plan.at("expert_parameters") + plan.at("shared_experts_layer_parameters") +
                  plan.at("router_layer_parameters"),
              p.moe_layer)
        << p.model;
    EXPECT_EQ(plan.at("cache_token_bytes"), p.cache) << p.model;
  }
}

TEST(ModelFacts, PartsAddUpToWhatTheEngineCounts) {
  for (const std::string& name : known_models()) {
    const ModelConfig config = known_model(name);
    const ParameterCount count = count_parameters(config);
    const Plan plan = memory_of(name.c_str());
    EXPECT_EQ(plan.at("parameters"), static_cast<double>(count.total)) << name;
    EXPECT_EQ(plan.at("active_parameters"), static_cast<double>(count.active)) << name;
  }
}

// Roundings that model cards give.
TEST(ModelFacts, RoundedFiguresOfModelCards) {
  const auto near = [](const char* model, const char* name, double published, double within) {
    EXPECT_NEAR(memory_of(model).at(name) / published, 1, within) << model << " " << name;
  };
  near("deepseek-v3", "parameters", 671.0e9, 0.0005);             // V3 abstract
  near("deepseek-v3", "active_with_embedding", 37e9, 0.02);       // V3 abstract
  near("deepseek-v3", "active_parameters", 36.7e9, 0.003);        // README_WEIGHTS.md
  near("deepseek-v3", "mtp_parameters", 11.5e9, 0.011);           // README_WEIGHTS.md
  near("deepseek-v3", "mtp_stored_parameters", 14e9, 0.04);       // README: 685B = 671B + 14B
  near("deepseek-v2", "parameters", 236e9, 0.002);                // V2 abstract
  near("deepseek-v2", "active_with_embedding", 21e9, 0.02);       // V2 abstract
  near("deepseek-v2-lite", "parameters", 15.7e9, 0.001);          // V2 appendix B
  near("moonlight-16b-a3b", "parameters", 16e9, 0.004);           // model card: 16B, 3B active
  near("moonlight-16b-a3b", "active_with_embedding", 3e9, 0.04);  // model card
  near("llama-3.1-405b", "parameters", 405e9, 0.003);             // its name
  near("llama-3.1-8b", "parameters", 8.03e9, 0.001);              // model card
  near("deepseek-67b", "parameters", 67e9, 0.007);                // its name
  near("qwen2.5-72b", "parameters", 72.7e9, 0.001);               // model card
  EXPECT_EQ(memory_of("deepseek-v3").at("mtp_parameters"), 11'610'068'224);
}

TEST(ModelFacts, FilesHaveThePublishedSizes) {
  const Plan v3 = memory_of("deepseek-v3");
  constexpr double kGiB = 1 << 30;
  EXPECT_NEAR(v3.at("published_fp8") / kGiB, 641, 0.5);   // the repository deepseek-ai/DeepSeek-V3
  EXPECT_NEAR(v3.at("published_bf16"), 1.3e12, 0.08e12);  // "about 1.3 TB", README section 6
  EXPECT_GT(v3.at("weights_in_q4_0"), 350e9);
  EXPECT_LT(v3.at("weights_in_q4_0"), 400e9);
  // A byte a parameter; two; 4 bits and a 2-byte scale for each 32.
  EXPECT_NEAR(v3.at("weights_in_bf16") / (2 * (671.03e9 + 11.61e9)), 1, 0.002);
  EXPECT_NEAR(v3.at("weights_in_q8_0") / (34.0 / 32 * (671.03e9 + 11.61e9)), 1, 0.003);
}

// INS table 1 and V2 table 1: caches of other attention.
TEST(ModelFacts, CachesOfOtherAttentionAreLarger) {
  const Plan v3 = memory_of("deepseek-v3");
  EXPECT_EQ(v3.at("mha_token_bytes"), 4'997'120);
  EXPECT_GT(v3.at("cache_saved"), 0.93);
  EXPECT_EQ(memory_of("qwen2.5-72b").at("cache_token_bytes"), 327'680);
  EXPECT_EQ(memory_of("llama-3.1-405b").at("cache_token_bytes"), 516'096);
  EXPECT_NEAR(327'680 / v3.at("cache_token_bytes"), 4.66, 0.01);
  EXPECT_EQ(memory_of("deepseek-v3", {{"kv_type", "fp8"}}).at("cache_token_bytes"), 61 * 656);
}

TEST(ModelFacts, AnUnknownModelIsRefusedWithTheKnownOnes) {
  const std::string said = refusal([] { (void)known_model("gpt\x1b"); });
  EXPECT_NE(said.find("deepseek-v3"), std::string::npos);
  EXPECT_EQ(said.find('\x1b'), std::string::npos);
}

}  // namespace
}  // namespace fathom::plan
