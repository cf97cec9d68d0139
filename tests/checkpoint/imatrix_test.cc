// Importance matrices: the file, what is refused in it, and what quantizing by it gains.
#include "checkpoint/imatrix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "checkpoint/gguf_bytes.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/packed_model.h"
#include "checkpoint/stored_model.h"
#include "checkpoint/tiny_model.h"
#include "refusal.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using test::GgufParts;
using testing::HasSubstr;

const fs::path kOracle = fs::path(FATHOM_TEST_DATA) / "oracle";

std::string contents(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Sums over a wide range for every matrix of a model; no token for the experts in `unseen`.
Imatrix random_imatrix(const ModelConfig& config, const std::vector<int64_t>& unseen = {}) {
  Imatrix imatrix;
  imatrix.text = "text";
  imatrix.chunks = 3;
  imatrix.chunk_tokens = 7;
  Rng rng(5);
  const auto add = [&](const std::string& name, int64_t matrices, int64_t cols) {
    ImatrixEntry& entry = imatrix.entries[name];
    entry.cols = cols;
    for (int64_t m = 0; m < matrices; ++m) {
      const bool seen = !name.ends_with("_exps.weight") || std::ranges::find(unseen, m) == unseen.end();
      entry.counts.push_back(seen ? 5 : 0);
      for (int64_t c = 0; c < cols; ++c) {
        entry.sums.push_back(seen ? static_cast<float>(std::exp(3 * rng.normal())) : 0);
      }
    }
  };
  for_each_tensor(weight_shapes(config), config, [&](const NamedTensor& named) {
    if (named.view.rank != 2 || named.name.ends_with("embed_tokens.weight")) return;
    const std::string name = gguf_name(named.name);
    const bool experts = name.ends_with("_exps.weight");
    if (!imatrix.entries.contains(name)) add(name, experts ? config.router.n_routed_experts : 1, named.view.cols());
    if (!name.ends_with("attn_kv_b.weight")) return;
    const std::string prefix = name.substr(0, name.size() - 16);
    add(prefix + "attn_k_b.weight", config.num_attention_heads, config.qk_nope_head_dim);
    add(prefix + "attn_v_b.weight", config.num_attention_heads, config.kv_lora_rank);
  });
  return imatrix;
}

class ImatrixFile : public testing::Test {
 protected:
  fs::path save(const Imatrix& imatrix) const {
    const fs::path path = scratch_.path() / "imatrix.gguf";
    AtomicFile file(path);
    write_imatrix(file, imatrix);
    file.commit();
    return path;
  }
  std::string refused(const std::string& bytes) const {
    return refusal([&] { (void)read_imatrix(scratch_.write("bad.gguf", bytes)); });
  }
  std::string misfit(Imatrix imatrix, const ModelConfig& config) const {
    imatrix.where = "FILE";
    return refusal([&] { fit_imatrix(imatrix, config); });
  }
  const TemporaryDirectory scratch_;
  ThreadPool pool_{2};
};

TEST_F(ImatrixFile, IsReadAsItWasWritten) {
  const Imatrix want = random_imatrix(tiny_mtp(), {2});
  Imatrix got = read_imatrix(save(want));
  fit_imatrix(got, tiny_mtp());
  ASSERT_EQ(got.entries.size(), want.entries.size());
  for (const auto& [name, entry] : want.entries) {
    const auto found = got.entries.find(name);
    ASSERT_NE(found, got.entries.end()) << name;
    EXPECT_EQ(found->second.cols, entry.cols);
    EXPECT_EQ(found->second.sums, entry.sums);
    EXPECT_EQ(found->second.counts, entry.counts);
  }
  // llama.cpp's keys, and its order of sizes: columns first.
  const GgufParts parts(contents(scratch_.path() / "imatrix.gguf"));
  EXPECT_EQ(parts.values.at("general.type"), test::text("imatrix"));
  EXPECT_EQ(parts.values.at("imatrix.datasets"), test::texts({"text"}));
  EXPECT_EQ(parts.values.at("imatrix.chunk_count"), test::u32(3));
  EXPECT_EQ(parts.values.at("imatrix.chunk_size"), test::u32(7));
  EXPECT_THAT(parts.tensors.at("blk.1.ffn_down_exps.weight.in_sum2").dims, testing::ElementsAre(9, 4));
  EXPECT_THAT(parts.tensors.at("blk.1.ffn_down_exps.weight.counts").dims, testing::ElementsAre(1, 4));
  // Its one row of columns for all heads.
  const ImatrixEntry& heads = want.entries.at("blk.1.attn_v_b.weight");
  EXPECT_THAT(parts.tensors.at("blk.1.attn_v_b.weight.in_sum2").dims, testing::ElementsAre(heads.sums.size(), 1));
  EXPECT_THAT(parts.tensors.at("blk.1.attn_v_b.weight.counts").dims, testing::ElementsAre(1, 1));
}

TEST_F(ImatrixFile, WhatIsNoneIsRefused) {
  const std::string sound = contents(save(random_imatrix(tiny_v3())));
  const std::string sums = "blk.1.ffn_down_exps.weight.in_sum2", counts = "blk.1.ffn_down_exps.weight.counts";
  const auto changed = [&](const auto& change) {
    GgufParts parts(sound);
    change(parts);
    return refused(parts.bytes());
  };
  EXPECT_EQ(changed([](GgufParts&) {}), "(accepted)");
  EXPECT_EQ(changed([&](GgufParts& p) {  // more than is asked for, as later versions of llama.cpp write
              p.tensors["blk.1.ffn_down_exps.weight.in_sum"] = p.tensors[sums];
              p.tensors["blk.1.ffn_down_exps.weight.in_sum"].data.replace(0, 4, test::bytes_of(-1.0f));
              p.tensors["blk.1.ffn_down_exps.weight.stats"] = p.tensors[counts];
            }),
            "(accepted)");
  EXPECT_THAT(changed([](GgufParts& p) { p.values.erase("general.type"); }), HasSubstr("is no importance matrix"));
  EXPECT_THAT(changed([](GgufParts& p) { p.values["general.type"] = test::text("model"); }),
              HasSubstr("bad.gguf: is no importance matrix"));
  EXPECT_THAT(changed([](GgufParts& p) { p.tensors.clear(); }), HasSubstr("holds no data"));
  EXPECT_THAT(changed([&](GgufParts& p) { p.tensors.erase(counts); }),
              HasSubstr("tensor " + sums + " is none of a pair"));
  EXPECT_THAT(changed([&](GgufParts& p) { p.tensors.erase(sums); }),
              HasSubstr("tensor " + counts + " is none of a pair"));
  EXPECT_THAT(changed([&](GgufParts& p) { p.tensors["x"] = p.tensors[sums]; }),
              HasSubstr("tensor x is none of a pair"));
  EXPECT_THAT(changed([&](GgufParts& p) { p.tensors[sums].type = 26; }), HasSubstr("is stored as I32"));
  EXPECT_THAT(changed([&](GgufParts& p) { p.tensors[sums].dims = {4, 9}; }), HasSubstr("but its counts [4, 1]"));
  EXPECT_THAT(changed([&](GgufParts& p) { p.tensors[counts].dims = {1, 3}; }), HasSubstr("but its counts [3, 1]"));
  for (const float bad : {-1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::string& name : {sums, counts}) {
      EXPECT_THAT(changed([&](GgufParts& p) { p.tensors[name].data.replace(8, 4, test::bytes_of(bad)); }),
                  HasSubstr("tensor " + name + " holds "));
    }
  }
  for (size_t size = 0; size < sound.size(); size += 97) {
    EXPECT_THAT(refused(sound.substr(0, size)), testing::AnyOf(HasSubstr("cut off"), HasSubstr("not a GGUF file")));
  }
}

TEST_F(ImatrixFile, OfAnotherModelIsRefused) {
  const ModelConfig config = tiny_mtp();
  EXPECT_EQ(misfit(random_imatrix(config), config), "(accepted)");
  EXPECT_THAT(misfit(random_imatrix(config), tiny_v3()),
              HasSubstr("FILE: has data of blk.3.attn_k_b.weight, which this model does not have"));
  ModelConfig other = config;
  other.hidden_size = 25;
  EXPECT_THAT(misfit(random_imatrix(config), other),
              HasSubstr("has 1 x 24 sums of blk.0.attn_kv_a_mqa.weight, this model's are 1 x 25"));
  other = config;
  other.router.n_routed_experts = 8;
  EXPECT_THAT(misfit(random_imatrix(config), other), HasSubstr("has 4 x 9 sums of blk.1.ffn_down_exps.weight"));
  Imatrix shared = random_imatrix(config);
  shared.entries.at("blk.1.ffn_down_exps.weight").counts.resize(1);
  shared.entries.at("blk.1.ffn_down_exps.weight").sums.resize(9);
  EXPECT_THAT(misfit(shared, config), HasSubstr("has 1 x 9 sums of blk.1.ffn_down_exps.weight"));
}

// Files of llama.cpp have the halves of kv_b_proj alone, with sums for each head, or for all together.
TEST_F(ImatrixFile, HalvesOfKvBServeTheWholeAndTheOtherWayRound) {
  const ModelConfig config = tiny_v3();
  const std::string whole = "blk.0.attn_kv_b.weight", values = "blk.0.attn_v_b.weight";
  Imatrix imatrix = random_imatrix(config);
  imatrix.entries.erase(whole);
  fit_imatrix(imatrix, config);
  const ImatrixEntry &heads = imatrix.entries.at(values), &joined = imatrix.entries.at(whole);
  for (size_t c = 0; c < 12; ++c) EXPECT_EQ(joined.sums[c], heads.sums[c] + heads.sums[12 + c]);

  imatrix = random_imatrix(config);
  imatrix.entries.erase(values);
  fit_imatrix(imatrix, config);
  for (const int64_t head : {0, 1}) {
    EXPECT_EQ(imatrix.entries.at(values).of(head)[3], imatrix.entries.at(whole).sums[3]);
  }
}

class Weighted : public ImatrixFile {
 protected:
  Weighted() {
    config_ = tiny_mtp();
    config_.hidden_size = 256;
    config_.moe_intermediate_size = 36;  // of gate and up, panels meet in the middle
    config_.kv_lora_rank = 32;
    config_.qk_nope_head_dim = 32;
    config_.v_head_dim = 32;
    config_.q_lora_rank = 64;
    config_.intermediate_size = 96;
    config_.rope_interleave = true;
    config_.initializer_range = 0.2;
    source_ = scratch_.path() / "source";
    save_model(source_, config_, random_model(config_).parameters.weights, {Format::f32});
    imatrix_ = random_imatrix(config_, {1});
    fit_imatrix(imatrix_, config_);
  }
  // sum of importance * difference^2 of every weight of a converted model.
  std::map<std::string, double> errors(const fs::path& path) {
    const auto a = open_stored_model(source_), b = open_stored_model(path);
    std::map<std::string, double> found;
    for (size_t w = 0; w < a->weights.size(); ++w) {
      const StoredWeight& weight = a->weights[w];
      if (weight.shape.rank != 2) continue;
      const auto n = static_cast<size_t>(weight.shape.size()), cols = static_cast<size_t>(weight.shape.cols());
      std::vector<float> x(n), y(n);
      read_rows(x.data(), *a, weight, 0, weight.shape.rows());
      read_rows(y.data(), *b, b->weights[w], 0, weight.shape.rows());
      const size_t at = weight.name.find("experts.");
      const bool routed = at != std::string::npos && weight.name.find("shared") == std::string::npos;
      const int64_t expert = routed ? weight.name[at + 8] - '0' : 0;
      const auto entry = imatrix_.entries.find(gguf_name(weight.name));
      const float* importance = entry != imatrix_.entries.end() ? entry->second.of(expert) : nullptr;
      double& sum = found[weight.name];
      for (size_t i = 0; i < n; ++i) {
        sum += (importance != nullptr ? importance[i % cols] : 1) * std::pow(static_cast<double>(x[i]) - y[i], 2);
      }
    }
    return found;
  }

  ModelConfig config_;
  fs::path source_;
  Imatrix imatrix_;
};

TEST_F(Weighted, ErrorsAreSmallerWhereTheyMatter) {
  for (const char* recipe : {"q4_0", "q4_k", "q5_k_m", "q6_k"}) {
    for (const bool gguf : {false, true}) {
      const fs::path plain = scratch_.path() / (gguf ? "plain.gguf" : "plain"),
                     weighted = scratch_.path() / (gguf ? "weighted.gguf" : "weighted");
      const auto convert = [&](const fs::path& to, const Imatrix* imatrix) {
        const ConvertOptions options{.imatrix = imatrix, .check = {}, .write_others = {}};
        if (gguf) {
          convert_to_gguf(source_, to, *find_recipe(recipe), nullptr, pool_, options);
        } else {
          convert_model(source_, to, *find_recipe(recipe), pool_, options);
        }
      };
      convert(plain, nullptr);
      convert(weighted, &imatrix_);
      const auto before = errors(plain), after = errors(weighted);
      ASSERT_EQ(before.size(), after.size());
      size_t gained = 0;
      for (const auto& [name, error] : before) {
        if (gguf && name.ends_with("kv_b_proj.weight")) continue;  // in halves, which have their own
        SCOPED_TRACE(fmt::format("{} as {}{}", name, recipe, gguf ? ", GGUF" : ""));
        EXPECT_LE(after.at(name), error * 1.0001);
        if (name.find(".experts.1.") != std::string::npos) {
          EXPECT_EQ(after.at(name), error);  // no token came to it
        }
        gained += after.at(name) < 0.8 * error ? 1 : 0;
      }
      if (recipe == std::string_view("q4_0")) {
        EXPECT_GT(gained, before.size() / 2);
      }
    }
  }
}

// k_b_proj, a head's part of kv_b_proj transposed, has columns and importance of its own.
TEST_F(Weighted, TheAbsorbedFormHasItsOwn) {
  const fs::path packed = scratch_.path() / "packed";
  const auto k_b = [&](Imatrix imatrix) {
    convert_model(source_, packed, *find_recipe("q4_0"), pool_, {.imatrix = &imatrix, .check = {}, .write_others = {}});
    const PackedModel model = load_packed_model(packed, pool_);
    const Tensor& t = model.weights.layers[0].attention.k_b;
    return std::string(static_cast<const char*>(t.data), static_cast<size_t>(t.size_bytes()));
  };
  Imatrix other = imatrix_;
  for (float& x : other.entries.at("blk.0.attn_kv_b.weight").sums) x = 1;
  EXPECT_EQ(k_b(imatrix_), k_b(other));
  std::reverse(other.entries.at("blk.0.attn_k_b.weight").sums.begin(),
               other.entries.at("blk.0.attn_k_b.weight").sums.end());
  EXPECT_NE(k_b(imatrix_), k_b(other));
}

}  // namespace
}  // namespace fathom
