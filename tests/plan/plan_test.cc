#include "plan/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "refusal.h"

namespace fathom::plan {
namespace {

using Given = std::map<std::string, std::string>;

Plan plan_of(const char* kind, Given given = {}, const char* model = "deepseek-v3", const char* gpu = "h800") {
  return make_plan({kind, model_facts(known_model(model), model), find_device(known_devices(), gpu), std::move(given)});
}

TEST(Plan, EveryModelOnEveryDeviceHasAPlan) {
  for (const std::string& model : known_models()) {
    const ModelFacts facts = model_facts(known_model(model), model);
    for (const Hardware& device : known_devices()) {
      for (const char* kind : {"memory", "train", "serve"}) {
        const Plan plan = make_plan({kind, facts, device, {}});
        for (const PlannedLine& line : plan.lines)
          EXPECT_TRUE(std::isfinite(line.value) && line.value >= 0) << line.line->name;
        EXPECT_FALSE(plan.lines.empty());
      }
    }
  }
}

TEST(Plan, WrongInputsAreToldInALine) {
  const struct {
    const char* kind;
    Given given;
    const char* word;
  } cases[] = {{"serve", {{"batch", "-4"}}, "--batch -4"},
               {"serve", {{"batch", "many"}}, "should be a number"},
               {"serve", {{"mtp_acceptance", "1.5"}}, "from 0 to 1"},
               {"serve", {{"weights", "q3"}}, "q4_0"},
               {"serve", {{"ep", "3"}}, "does not divide"},
               {"serve", {{"gpus", "320"}, {"ep", "320"}}, "--redundant-experts"},
               {"serve", {{"context", "1e8"}}, "163840"},
               {"memory", {{"gpus", "2.5"}}, "whole number"},
               {"train", {{"pp", "7"}}, "is not --gpus 2048"},
               {"train", {{"gpus", "100"}, {"pp", "100"}}, "61 layers"},
               {"train", {{"ep", "48"}}, "does not divide"},
               {"train", {{"gpus", "96"}, {"pp", "1"}, {"ep", "48"}}, "256 experts"},
               {"train", {{"batch_size", "1000"}}, "whole number of chunks"},
               {"train", {{"batch_size", "2048"}, {"pp_schedule", "dualpipe"}}, "zb1p"},
               {"train", {{"seq_len", "1T"}}, "--seq-len"},
               {"train", {{"kv_type", "bf16"}}, "no input"},
               {"train", {{"tokens", "nan"}}, "should be a number"},
               {"train", {{"tokens", "1e400"}}, "should be a number"}};
  for (const auto& each : cases) {
    const std::string said = refusal([&] { (void)plan_of(each.kind, each.given); });
    EXPECT_NE(said.find(each.word), std::string::npos) << said;
    EXPECT_TRUE(said.starts_with(std::string("plan ") + each.kind)) << said;
    EXPECT_EQ(said.find('\n'), std::string::npos);
  }
  EXPECT_NE(refusal([] {
              (void)plan_of("train", {{"precision", "fp8"}}, "deepseek-v3", "a100");
            }).find("no FP8"),
            std::string::npos);
  EXPECT_NE(refusal([] {
              (void)plan_of("serve", {{"ep", "8"}}, "llama-3.1-70b");
            }).find("no experts"),
            std::string::npos);
  EXPECT_NE(refusal([] {
              (void)plan_of("serve", {{"mtp_acceptance", "0.8"}}, "deepseek-v2");
            }).find("no MTP"),
            std::string::npos);
}

TEST(Plan, AGpuWithoutRoomForAnythingIsRefused) {
  Hardware tiny = known_devices().at(0);
  ASSERT_FALSE(tiny.is_host);
  tiny.values["gpu_memory_bytes"] = 3e9;
  for (const char* kind : {"memory", "train", "serve"}) {
    const std::string said = refusal([&] {
      (void)make_plan({kind, model_facts(known_model("deepseek-v2-lite"), "deepseek-v2-lite"), tiny, {}});
    });
    EXPECT_NE(said.find("3000000000 bytes"), std::string::npos) << said;
  }
}

TEST(Plan, AdviceSaysWhatWouldFit) {
  const auto advice = [](const Plan& plan) {
    std::string all;
    for (const std::string& each : plan.advice) all += each + "\n";
    return all;
  };
  const Plan small = plan_of("memory");  // 8 x 80 GB
  EXPECT_EQ(small.at("fits"), 0);
  EXPECT_NE(advice(small).find("q4_k_m would fit"), std::string::npos) << advice(small);
  const Plan fitting = plan_of("memory", {{"weights", "q4_k_m"}});
  EXPECT_EQ(fitting.at("fits"), 1);
  EXPECT_EQ(advice(fitting).find("To serve"), std::string::npos) << advice(fitting);
  EXPECT_EQ(plan_of("memory", {{"weights", "q4_0"}, {"ram", "400GB"}, {"context", "8192"}}, "deepseek-v3", "epyc-9654")
                .at("fits"),
            1);
  EXPECT_EQ(plan_of("memory", {{"weights", "q4_0"}, {"ram", "350GB"}}, "deepseek-v3", "epyc-9654").at("fits"), 0);
}

// What serving needs is what `plan serve` finds a place for: whole experts and whole sequences on a GPU, all else on
// each.
TEST(Plan, AsManyGpusAsMemorySaysServe) {
  for (const char* model : {"deepseek-v3", "deepseek-v2", "llama-3.1-8b"}) {
    for (const char* gpu : {"h800", "h200", "rtx-4090"}) {
      for (const char* context : {"4096", "131072"}) {
        const double gpus = plan_of("memory", {{"context", context}}, model, gpu).at("gpus_needed");
        if (gpus == 0 || gpus > 256) continue;
        const auto serves = [&](double n) {
          return plan_of("serve", {{"gpus", std::to_string(static_cast<int>(n))}, {"context", context}, {"batch", "1"}},
                         model, gpu)
                     .at("fits") == 1;
        };
        EXPECT_TRUE(serves(gpus)) << model << " " << gpu << " " << context << " " << gpus;
        EXPECT_EQ(
            plan_of("memory", {{"context", context}, {"gpus", std::to_string(static_cast<int>(gpus))}}, model, gpu)
                .at("fits"),
            1);
      }
    }
  }
  EXPECT_EQ(plan_of("memory", {{"gpus", "33"}}, "deepseek-v3", "rtx-4090").at("fits"), 0)
      << "no GPU of 24 GB holds V3's attention and a cache";
  EXPECT_EQ(plan_of("memory", {{"ram", "1GB"}}, "deepseek-v3", "epyc-9654").at("gpus_needed"), 0);
}

TEST(Plan, ATrainingThatDoesNotFitSaysSo) {
  const Plan plan = plan_of("train", {{"gpus", "1"}});
  EXPECT_EQ(plan.at("training_fits"), 0);
  ASSERT_FALSE(plan.advice.empty());
  EXPECT_NE(plan.advice[0].find("does not fit"), std::string::npos) << plan.advice[0];
  EXPECT_EQ(plan_of("train").at("training_fits"), 1);
}

TEST(Plan, LimitsAreBelowWhatIsPlanned) {
  for (const char* device : {"h800", "epyc-9654"}) {
    for (const char* acceptance : {"0", "0.85"}) {
      const Plan plan = plan_of("serve", {{"batch", "1"}, {"mtp_acceptance", acceptance}}, "deepseek-v3", device);
      EXPECT_LT(plan.at("limit_read_s"), plan.at("tpot_s")) << device << " " << acceptance;
    }
  }
}

TEST(Plan, ServingThatDoesNotFitSaysSo) {
  for (const auto& [model, device] : {std::pair{"llama-3.1-405b", "desktop-ddr5"}, std::pair{"llama-3.1-405b", "h800"},
                                      std::pair{"deepseek-v3", "h800"}}) {
    const Plan plan = plan_of("serve", {{"weights", "bf16"}}, model, device);
    EXPECT_EQ(plan.at("fits"), 0) << model << " " << device;
    ASSERT_FALSE(plan.advice.empty()) << model << " " << device;
    EXPECT_NE(plan.advice[0].find("not fit"), std::string::npos) << plan.advice[0];
    EXPECT_EQ(std::string(model).starts_with("llama") && plan.advice[0].find("--ep") != std::string::npos, false);
  }
}

TEST(Plan, WhatHasNoPlaceIsRefused) {
  EXPECT_THROW(plan_of("serve", {{"prefill_ep", "1000"}}), UsageError);
  EXPECT_THROW(plan_of("serve", {{"redundant_experts", "8"}}, "llama-3.1-8b"), UsageError);
  EXPECT_THROW(plan_of("train", {{"batch_size", "4224"}, {"pp_schedule", "dualpipe"}}), UsageError);
  EXPECT_EQ(plan_of("train", {{"batch_size", "4224"}}).at("pp_schedule"), 1) << "33 chunks: no DualPipe";
  EXPECT_NO_THROW(plan_of("train", {{"gpus", "8"}}, "deepseek-v3", "epyc-9654"));
  EXPECT_THROW(plan_of("train", {{"gpus", "8"}, {"ep", "8"}}, "deepseek-v3", "epyc-9654"), UsageError);
  EXPECT_THROW(plan_of("serve", {{"prefill_ep", "16"}, {"network_bandwidth", "0"}}), UsageError);
}

TEST(Plan, SparseAttentionCostsWhatItChooses) {
  const Given longer{{"context", "131072"}, {"prompt", "131072"}, {"batch", "1"}};
  const Plan dense = plan_of("serve", longer), sparse = plan_of("serve", longer, "deepseek-v3.2");
  EXPECT_EQ(sparse.at("attended"), 2048);
  EXPECT_LT(sparse.at("core_s"), dense.at("core_s") / 4);
  EXPECT_LT(sparse.at("prefill_compute_s"), dense.at("prefill_compute_s") / 2);
}

TEST(Plan, AcceptedDraftsAreFurtherTokens) {
  const Plan without = plan_of("serve", {{"batch", "1"}}),
             with = plan_of("serve", {{"batch", "1"}, {"mtp_acceptance", "85%"}});
  EXPECT_LT(with.at("tpot_s"), without.at("tpot_s"));
  EXPECT_NEAR(with.at("decode_step_s") / with.at("tpot_s"), 1.85, 1e-9);
}

TEST(Plan, WhatMemoryDoesNotHoldIsReadFromDisk) {
  const auto speed = [](const char* ram) {
    return plan_of("serve", {{"weights", "q4_0"}, {"ram", ram}, {"ram_bandwidth", "200GB"}}).at("host_tokens_s");
  };
  EXPECT_GT(speed("400GB"), 2 * speed("300GB"));
  EXPECT_GT(speed("300GB"), speed("100GB"));
}

TEST(Quantity, SuffixesArePowers) {
  EXPECT_EQ(parse_quantity("4096", "x"), 4096);
  EXPECT_EQ(parse_quantity("14.8T", "x"), 14.8e12);
  EXPECT_EQ(parse_quantity("671B", "x"), 671e9);
  EXPECT_EQ(parse_quantity("400GB", "x"), 400e9);
  EXPECT_EQ(parse_quantity("50GB/s", "x"), 50e9);
  EXPECT_EQ(parse_quantity("2,048", "x"), 2048);
  EXPECT_EQ(parse_quantity("14,800,000.5K", "x"), 14800000.5e3);
  EXPECT_EQ(parse_quantity("1_000", "x"), 1000);
  EXPECT_EQ(parse_quantity("-.5e+1", "x"), -5);
  EXPECT_EQ(parse_quantity("1.5 GiB", "x"), 1.5 * (1 << 30));
  EXPECT_EQ(parse_quantity("80%", "x"), 0.8);
  EXPECT_EQ(parse_quantity("1e3K", "x"), 1e6);
  for (const char* text :
       {"",       "-",    "GB",     "1X",       "1..2", "1e",     "0x10",   "inf",     "nan",     "1 2", "--1", "1e400",
        "1e308T", "1,64", "1,0245", "1024,000", ",100", "1,,000", "1,024,", "1.0,000", "1e1,000", "1_6", "."}) {
    EXPECT_NE(refusal([&] { (void)parse_quantity(text, "plan: --x"); }).find("plan: --x"), std::string::npos) << text;
  }
  EXPECT_NE(refusal([] { (void)parse_quantity("1,64", "x"); }).find("as 1,024"), std::string::npos);
}

TEST(Quantity, IsShownByItsUnit) {
  EXPECT_EQ(show_value(70272, "bytes"), "70.272 KB");
  EXPECT_EQ(show_value(0.01476, "s"), "14.76 ms");
  EXPECT_EQ(show_value(5.576e6, "dollars"), "$5.576 M");
  EXPECT_EQ(show_value(0.3894, "share"), "38.94 %");
  EXPECT_EQ(show_value(14.8e12, "tokens"), "14.8 T");
  EXPECT_EQ(show_number(2664000), "2664000");
  EXPECT_EQ(show_value(3.858e24, "FLOP"), "3.858 YFLOP");
  EXPECT_EQ(show_value(2.5046e29, "FLOP"), "250460 YFLOP");
  EXPECT_EQ(show_value(1e18, "tokens"), "1000000 T");
  EXPECT_EQ(show_value(99999.4e12, "tokens"), "99999 T");
  EXPECT_EQ(show_value(99999.6e12, "tokens"), "100000 T");
  EXPECT_EQ(show_value(123456e6, "dollars"), "$123456 M");
  EXPECT_EQ(show_value(2e18, "bytes"), "2 EB (1862645149 GiB)");
  EXPECT_EQ(show_value(86400 * 12345.6, "s"), "12346 days");
}

TEST(Hardware, EveryNumberHasASource) {
  for (const Hardware& device : known_devices()) {
    for (const auto& [key, name] : std::map<std::string, std::string>{{"fp8_tflops", "gpu_fp8_flops"},
                                                                      {"bf16_tflops", "gpu_bf16_flops"},
                                                                      {"f32_tflops", "gpu_f32_flops"},
                                                                      {"int8_tops", "gpu_int8_ops"},
                                                                      {"memory_gib", "gpu_memory_bytes"},
                                                                      {"memory_gbs", "gpu_memory_bandwidth"},
                                                                      {"link_gbs", "gpu_link_bandwidth"},
                                                                      {"network_gbs", "gpu_network_bandwidth"},
                                                                      {"dollars_an_hour", "gpu_price"}}) {
      EXPECT_TRUE(device.values.at(name) == 0 || device.sources.contains(key)) << device.name << " " << key;
    }
  }
}

TEST(Hardware, AFileMayHaveMore) {
  const std::vector<Hardware> devices = read_devices(
      "[[device]]\nname = \"mine\"\nbf16_tflops = 100\nmemory_gib = 48\nmemory_gbs = 900\nsource.memory_gib = \"its "
      "box\"\n",
      "f");
  ASSERT_EQ(devices.size(), 1U);
  EXPECT_EQ(devices[0].values.at("gpu_bf16_flops"), 100e12);
  EXPECT_EQ(devices[0].values.at("gpu_memory_bytes"), 48.0 * (1 << 30));
  EXPECT_FALSE(devices[0].is_host);
}

TEST(Hardware, AMeasuredMachineIsAHost) {
  const std::vector<Hardware> devices = read_devices(
      "{\"test\":\"machine\",\"threads\":1,\"memory_gbs\":20,\"l3_gbs\":50,\"f32_gflops\":100,\"i8_gops\":200,\"i8_dot_"
      "gops\":null}\n"
      "{\"test\":\"machine\",\"threads\":2,\"memory_gbs\":30,\"l3_gbs\":90,\"f32_gflops\":190,\"i8_gops\":380,\"i8_dot_"
      "gops\":700}\n",
      "f");
  ASSERT_EQ(devices.size(), 1U);
  const Values& v = devices[0].values;
  EXPECT_TRUE(devices[0].is_host);
  EXPECT_EQ(devices[0].name, "machine");
  EXPECT_EQ(v.at("gpu_f32_flops"), 190e9);
  EXPECT_EQ(v.at("gpu_int8_ops"), 700e9);
  EXPECT_EQ(v.at("gpu_memory_bandwidth"), 30e9);
  EXPECT_EQ(v.at("gpu_core_bandwidth"), 20e9);
  EXPECT_EQ(v.at("gpu_cores"), 2);
}

TEST(Hardware, HostileFilesAreRefused) {
  const std::string good = "[[device]]\nname = \"a\"\nbf16_tflops = 1\nmemory_gbs = 1\n";
  EXPECT_EQ(read_devices(good, "f").size(), 1U);
  for (const std::string& text :
       std::vector<std::string>{std::string(),
                                std::string("{"),
                                std::string("{}"),
                                std::string("{\"test\":\"machine\"}"),
                                std::string("[[device]]"),
                                std::string("device = 5"),
                                std::string("device = []"),
                                std::string("device = [5]"),
                                good + "x = 1\n",
                                good + "memory_gib = -1\n",
                                good + "memory_gib = inf\n",
                                good + "memory_gib = nan\n",
                                good + "memory_gib = 1e300\n",
                                good + "memory_gib = \"80\"\n",
                                good + "per_node = 0\n",
                                good + "per_node = 1.5\n",
                                good + "kind = \"tpu\"\n",
                                good + "title = 5\n",
                                good + "source = 5\n",
                                good + "source.x = 5\n",
                                good + good,
                                good + "[other]\n",
                                good + "memory_gib = 1979-05-27\n",
                                std::string("[[device]]\nname = \"\x1b\"\n"),
                                "[[device]]\nname = \"a\"\nbf16_tflops = 1\n",
                                "[[device]]\nname = \"a\"\nmemory_gbs = 1\n",
                                "x = " + std::string(200000, '['),
                                std::string("x = ") + std::string(2 << 20, '1'),
                                std::string("\xff\xfe"),
                                std::string("{\"test\":\"machine\",\"memory_gbs\":\"x\"}"),
                                std::string("{\"test\":\"machine\",\"memory_gbs\":-5,\"f32_gflops\":1}")}) {
    const std::string said = refusal([&] { (void)read_devices(text, "FILE"); });
    EXPECT_TRUE(said.starts_with("FILE: ")) << said << " of " << text.substr(0, 80);
    EXPECT_EQ(said.find_first_of("\n\x1b"), std::string::npos) << said;
  }
}

TEST(Formulas, AreCheckedWhenTheyAreRead) {
  const std::string good =
      "[[line]]\nplan = \"memory\"\nsection = \"s\"\nname = \"a\"\ntitle = \"t\"\nunit = \"count\"\nexpr = "
      "\"1\"\nsource = \"x\"\nbasis = \"exact\"\n";
  EXPECT_EQ(read_formulas(good).lines.size(), 1U);
  for (const std::string& text :
       {good + good, good + "more = 1\n", good + "when = \"1 +\"\n", std::string("[[lines]]\n")}) {
    EXPECT_TRUE(refusal([&] { (void)read_formulas(text); }).starts_with("formulas.toml")) << text;
  }
}

// The page evaluates the lines with no more than these names.
TEST(Formulas, NamesComeBeforeTheirUse) {
  const Formulas& all = formulas();
  for (const char* kind : {"memory", "train", "serve"}) {
    const Plan plan = plan_of(kind, {}, "deepseek-v3.2");
    for (const Remark& each : all.advice) {
      if (std::find(each.plans.begin(), each.plans.end(), kind) == each.plans.end()) continue;
      for (const std::string& name : each.when.names()) EXPECT_TRUE(plan.values.contains(name)) << name;
    }
    for (const PlannedLine& line : plan.lines) {
      for (const std::string& name : line.line->value.names()) EXPECT_TRUE(plan.values.contains(name)) << name;
      for (const std::string& name : line.line->when.names()) EXPECT_TRUE(plan.values.contains(name)) << name;
    }
  }
}

}  // namespace
}  // namespace fathom::plan
