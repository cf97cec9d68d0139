#include "checkpoint/gguf_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/gguf_bytes.h"
#include "checkpoint/gguf_save.h"
#include "checkpoint/tiny_model.h"
#include "number/formats.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using test::GgufParts;
using testing::HasSubstr;

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

ChooseFormat all_in(Format format) {
  return [format](std::string_view, std::span<const int64_t>) { return format; };
}

// The bytes of the GGUF file of a model.
std::string saved(const LoadedModel& model, Format format = Format::f32, const GgufTokenizer* tokenizer = nullptr) {
  const TemporaryDirectory directory;
  ThreadPool pool(2);
  save_gguf(directory.path() / "m.gguf", model.config, tokenizer, all_in(format),
            rows_of(model.parameters.weights, model.config), pool);
  return slurp(directory.path() / "m.gguf");
}

LoadedModel load(const std::string& bytes) {
  const TemporaryDirectory directory;
  ThreadPool pool(3);
  return load_model(directory.write("m.gguf", bytes), pool);
}

std::vector<float> all_values(const LoadedModel& model) {
  const auto values = model.parameters.all();
  return {values.begin(), values.end()};
}

// What a GGUF file can say of a config: mscale is mscale_all_dim.
ModelConfig sayable(ModelConfig config) {
  config.rope_interleave = config.is_mla();
  if (config.rope_scaling && config.is_mla()) config.rope_scaling->mscale = config.rope_scaling->mscale_all_dim = 0.707;
  if (config.router.n_routed_experts == 0) config.eos_token_ids = {1};
  return config;
}

std::vector<ModelConfig> configs() {
  std::vector<ModelConfig> all;
  for (const ModelConfig& config :
       {tiny_v3(), tiny_v2(), tiny_dense(), tiny_mtp(3), tiny_greedy_v2(), tiny_v32(), tiny_llama(), tiny_qwen2()}) {
    all.push_back(sayable(config));
  }
  all.push_back(all[0]);
  all.back().num_attention_heads = 1;
  ModelConfig dense = sayable(tiny_dense());
  dense.model_type = "deepseek_v32";
  dense.indexer = tiny_v32().indexer;
  all.push_back(dense);
  return all;
}

TEST(GgufModel, SaveThenLoadIsTheSameModel) {
  for (const ModelConfig& config : configs()) {
    const LoadedModel model = random_model(config);
    const LoadedModel back = load(saved(model));
    EXPECT_EQ(back.config, config);
    EXPECT_EQ(all_values(back), all_values(model));
  }
}

TEST(GgufModel, HalfPrecisionRoundsMatricesAlone) {
  const LoadedModel model = random_model(tiny_v32());
  for (const Format format : {Format::bf16, Format::f16}) {
    const LoadedModel back = load(saved(model, format));
    std::vector<Tensor> got;
    for_each_tensor(back.parameters.weights, back.config, [&](const NamedTensor& t) { got.push_back(t.view); });
    size_t i = 0;
    for_each_tensor(model.parameters.weights, model.config, [&](const NamedTensor& t) {
      const bool exact =
          t.view.rank == 1 || t.name.ends_with("mlp.gate.weight") || t.name.ends_with("weights_proj.weight");
      for (int64_t n = 0; n < t.view.size(); ++n) {
        const float x = t.view.f32()[n];
        const float rounded = format == Format::bf16 ? bf16_to_f32(f32_to_bf16(x)) : f16_to_f32(f32_to_f16(x));
        ASSERT_EQ(got[i].f32()[n], exact ? x : rounded) << t.name << " " << n;
      }
      ++i;
    });
  }
}

TEST(GgufModel, RowsOfNoWholeBlocksTakeAnotherType) {
  const LoadedModel model = random_model(sayable(tiny_v3()));
  EXPECT_EQ(all_values(load(saved(model, Format::q4_k))), all_values(model));  // no row has 32 numbers
}

TEST(GgufModel, NamesGoBothWays) {
  for (const auto& [hf, gguf] : {std::pair{"lm_head.weight", "output.weight"},
                                 {"model.layers.12.self_attn.kv_a_proj_with_mqa.weight", "blk.12.attn_kv_a_mqa.weight"},
                                 {"model.layers.3.mlp.gate.e_score_correction_bias", "blk.3.exp_probs_b.bias"},
                                 {"model.layers.3.mlp.experts.17.up_proj.weight", "blk.3.ffn_up_exps.weight"},
                                 {"model.layers.3.self_attn.indexer.wq_b.weight", "blk.3.indexer.attn_q_b.weight"},
                                 {"model.layers.3.self_attn.indexer.wk.weight", "blk.3.indexer.attn_k.weight"},
                                 {"model.layers.3.self_attn.indexer.k_norm.weight", "blk.3.indexer.k_norm.weight"},
                                 {"model.layers.3.self_attn.indexer.k_norm.bias", "blk.3.indexer.k_norm.bias"},
                                 {"model.layers.3.self_attn.indexer.weights_proj.weight", "blk.3.indexer.proj.weight"},
                                 {"model.layers.61.shared_head.norm.weight", "blk.61.nextn.shared_head_norm.weight"}}) {
    EXPECT_EQ(gguf_name(hf), gguf);
  }
}

// A file as it was written before the halves of kv_b_proj: one tensor, and the heads' sizes under the shorter names.
TEST(GgufModel, OlderFilesWithJoinedKvBAreTheSameModel) {
  const LoadedModel model = random_model(sayable(tiny_v3()));
  GgufParts parts(saved(model));
  const ModelConfig& c = model.config;
  parts.values["deepseek2.attention.key_length"] = parts.values.extract("deepseek2.attention.key_length_mla").mapped();
  parts.values["deepseek2.attention.value_length"] =
      parts.values.extract("deepseek2.attention.value_length_mla").mapped();
  for (size_t l = 0; l < model.parameters.weights.layers.size(); ++l) {
    const std::string prefix = fmt::format("blk.{}.attn_", l);
    parts.tensors.erase(prefix + "k_b.weight");
    parts.tensors.erase(prefix + "v_b.weight");
    const Tensor& kv_b = model.parameters.weights.layers[l].attention.kv_b;
    parts.tensors[prefix + "kv_b.weight"] = {
        {static_cast<uint64_t>(c.kv_lora_rank), static_cast<uint64_t>(kv_b.rows())},
        0,
        std::string(static_cast<const char*>(kv_b.data), static_cast<size_t>(kv_b.size_bytes()))};
  }
  const LoadedModel back = load(parts.bytes());
  EXPECT_EQ(back.config, c);
  EXPECT_EQ(all_values(back), all_values(model));
}

TEST(GgufModel, AHeadThatIsMissingIsTheEmbedding) {
  GgufParts parts(saved(random_model(sayable(tiny_v3()))));
  parts.tensors.erase("output.weight");
  const LoadedModel back = load(parts.bytes());
  const Tensor &embed = back.parameters.weights.embed, &head = back.parameters.weights.head;
  EXPECT_TRUE(std::equal(embed.f32(), embed.f32() + embed.size(), head.f32()));
}

TEST(GgufModel, TensorsInBlocksAreDecoded) {
  ModelConfig config = sayable(tiny_v3());
  config.hidden_size = 32;
  const LoadedModel model = random_model(config);
  GgufParts parts(saved(model));
  // q8_0 with the scale 0.5: number i of a block is i / 2.
  std::string block = test::bytes_of(f32_to_f16(0.5f));
  for (int i = 0; i < 32; ++i) block += static_cast<char>(i);
  GgufParts::Tensor& gate = parts.tensors["blk.1.ffn_gate_exps.weight"];
  gate.type = ggml_type(Format::q8_0).number;
  gate.data.clear();
  for (int64_t i = 0; i < config.router.n_routed_experts * config.moe_intermediate_size; ++i) gate.data += block;
  const LoadedModel back = load(parts.bytes());
  const Tensor gates = back.parameters.weights.layers[1].moe.gate_up[3].slice(0, config.moe_intermediate_size);
  for (int64_t row = 0; row < gates.rows(); ++row) {
    for (int64_t i = 0; i < 32; ++i) EXPECT_EQ(gates.f32(row, i), 0.5f * static_cast<float>(i));
  }
}

// The tensors of a file dealt out to three, as gguf-split does it: the metadata in the first.
struct Split {
  explicit Split(const LoadedModel& model) {
    const GgufParts whole(saved(model));
    for (int i = 0; i < 3; ++i) {
      parts.push_back(whole);
      if (i > 0) parts[i].values.clear();
      parts[i].tensors.clear();
      parts[i].values["split.no"] = test::bytes_of(2) + test::bytes_of(static_cast<uint16_t>(i));
      parts[i].values["split.count"] = test::bytes_of(2) + test::bytes_of(uint16_t{3});
      parts[i].values["split.tensors.count"] = test::i32(static_cast<int32_t>(whole.tensors.size()));
    }
    for (size_t n = 0; const auto& [name, tensor] : whole.tensors) parts[n++ % 3].tensors[name] = tensor;
  }
  static std::string name(int i) { return fmt::format("m-{:05}-of-00003.gguf", i + 1); }
  void write() const {
    for (int i = 0; i < 3; ++i) directory.write(name(i), parts[static_cast<size_t>(i)].bytes());
  }
  std::string refusal(int opened) const {
    ThreadPool pool(1);
    try {
      (void)load_model(directory.path() / name(opened), pool);
    } catch (const Error& error) {
      return error.what();
    }
    return "(accepted)";
  }
  std::vector<GgufParts> parts;
  const TemporaryDirectory directory;
};

TEST(GgufModel, AnyFileOfASplitOpensTheModel) {
  const LoadedModel model = random_model(sayable(tiny_v3()));
  const Split split(model);
  split.write();
  ThreadPool pool(2);
  for (int i = 0; i < 3; ++i) {
    const LoadedModel back = load_model(split.directory.path() / Split::name(i), pool);
    EXPECT_EQ(back.config, model.config);
    EXPECT_EQ(all_values(back), all_values(model));
  }
}

TEST(GgufModel, BrokenSplitsAreRefusedWithTheirReason) {
  const LoadedModel model = random_model(sayable(tiny_v3()));
  Split split(model);
  split.write();
  fs::remove(split.directory.path() / Split::name(1));
  EXPECT_THAT(split.refusal(0), HasSubstr("m-00002-of-00003.gguf: file 2 of the 3 of this model is missing"));
  split.write();
  fs::remove(split.directory.path() / Split::name(0));
  EXPECT_THAT(split.refusal(2), HasSubstr("m-00001-of-00003.gguf: file 1 of the 3"));
  split.write();
  fs::copy_file(split.directory.path() / Split::name(2), split.directory.path() / Split::name(1),
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(split.refusal(0), HasSubstr("m-00002-of-00003.gguf: says that it is file 3 of 3, its name says 2 of 3"));
  split.write();
  fs::rename(split.directory.path() / Split::name(0), split.directory.path() / "first.gguf");
  ThreadPool pool(1);
  try {
    (void)load_model(split.directory.path() / "first.gguf", pool);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("it must be called NAME-00001-of-00003.gguf"));
  }
  const auto moved = split.parts[1].tensors.extract(split.parts[1].tensors.begin());
  split.write();
  EXPECT_THAT(split.refusal(0), HasSubstr("split.tensors.count is"));
  split.parts[2].tensors[moved.key()] = moved.mapped();
  split.parts[0].tensors[moved.key()] = moved.mapped();
  split.write();
  EXPECT_THAT(split.refusal(0), HasSubstr("is in "));
}

// An empty value: none.
void set_or_erase(GgufParts& parts, const std::string& key, const std::string& value) {
  if (value.empty()) {
    parts.values.erase(key);
  } else {
    parts.values[key] = value;
  }
}

// The reason for which a changed file of a sound model is refused.
std::string refusal(const LoadedModel& model, const std::function<void(GgufParts&)>& change) {
  GgufParts parts(saved(model));
  change(parts);
  try {
    (void)load(parts.bytes());
  } catch (const Error& error) {
    return error.what();
  }
  return "(accepted)";
}

TEST(MalformedGgufModel, MetadataAreRefusedByTheirKey) {
  using test::f32, test::flag, test::text, test::texts, test::u32;
  const LoadedModel model = random_model(sayable(tiny_v3()));
  struct Case {
    const char* key;
    std::string value;  // empty: the key is missing
    const char* message;
  };
  const Case cases[] = {
      {"general.name", text("a"), "(accepted)"},
      {"general.architecture", "", "the metadata key general.architecture is missing"},
      {"general.architecture", u32(2), "general.architecture is u32, not a text"},
      {"general.architecture", text("gemma"), "general.architecture gemma is not supported; supported are deepseek2 "},
      {"general.architecture", text("deepseek"), "general.architecture deepseek is not supported"},
      {"general.architecture", text("deepseek32"), "the metadata key deepseek32.embedding_length is missing"},
      {"general.architecture", text("deepseek4"), "general.architecture deepseek4 is not supported"},
      {"general.architecture", text("a\nb"), "general.architecture a\\x0ab is not supported"},
      {"deepseek2.block_count", "", "the metadata key deepseek2.block_count is missing"},
      {"deepseek2.block_count", u32(0), "num_hidden_layers is 0, must be between 1 and"},
      {"deepseek2.block_count", u32(4), "missing tensors: model.layers.3."},
      {"deepseek2.block_count", u32(9999), "too few for the config's 9999 layers"},
      {"deepseek2.block_count", u32(0xFFFFFFFF), "num_hidden_layers is 4294967295"},
      {"deepseek2.block_count", f32(3), "deepseek2.block_count is f32, not a whole number"},
      {"deepseek2.nextn_predict_layers", u32(9), "num_hidden_layers is -6"},
      {"deepseek2.nextn_predict_layers", u32(2), "missing tensors: model.layers.1.enorm.weight"},
      {"deepseek2.embedding_length", u32(25), "has shape [33, 24], the config asks for [33, 25]"},
      {"deepseek2.vocab_size", u32(34), "has shape [33, 24], the config asks for [34, 24]"},
      {"deepseek2.vocab_size", "", "vocab_size is 0, must be between 1 and"},
      {"deepseek2.attention.head_count", u32(0), "num_attention_heads is 0"},
      {"deepseek2.attention.head_count", test::list(4, 1, test::bytes_of(2)), "is a list of u32, not a whole number"},
      {"deepseek2.attention.head_count", u32(3), "the config asks for ["},
      {"deepseek2.attention.kv_lora_rank", "", "deepseek2.attention.kv_lora_rank is missing"},
      {"deepseek2.attention.key_length_mla", u32(3), "qk_nope_head_dim is -1, must be between 1"},
      {"deepseek2.attention.key_length_mla", u32(12), "self_attn.q_b_proj.weight has shape"},
      {"deepseek2.attention.value_length_mla", "", "deepseek2.attention.value_length_mla is missing"},
      {"deepseek2.attention.layer_norm_rms_epsilon", f32(NAN), "rms_norm_eps is nan"},
      {"deepseek2.rope.dimension_count", u32(5), "qk_rope_head_dim is 5, must be even"},
      {"deepseek2.rope.scaling.type", text("linear"), "deepseek2.rope.scaling.type is \"linear\"; only \"yarn\""},
      {"deepseek2.rope.scaling.factor", f32(0), "rope_scaling.factor is 0"},
      {"deepseek2.rope.scaling.factor", "", "deepseek2.rope.scaling.factor is missing"},
      {"deepseek2.rope.scaling.attn_factor", f32(2), "deepseek2.rope.scaling.attn_factor is not supported"},
      {"deepseek2.expert_count", u32(65536), "too few for the config's 3 layers with 65536 experts"},
      {"deepseek2.expert_used_count", u32(5), "num_experts_per_tok is 5, must be between 1 and n_routed_experts (4)"},
      {"deepseek2.expert_gating_func", u32(3), "deepseek2.expert_gating_func is 3; only 1 (softmax) and 2 (sigmoid)"},
      {"deepseek2.expert_gating_func", u32(1), "no place for: model.layers.1.mlp.gate.e_score_correction_bias"},
      {"deepseek2.expert_group_count", u32(3), "n_group is 3, must divide n_routed_experts (4)"},
      {"deepseek2.expert_weights_norm", u32(1), "deepseek2.expert_weights_norm is u32, not true or false"},
      {"deepseek2.expert_weights_scale", f32(-1), "routed_scaling_factor is -1, must be positive"},
      {"tokenizer.ggml.bos_token_id", u32(33), "tokenizer.ggml.bos_token_id 33 is no id of the vocabulary of 33"},
      {"tokenizer.ggml.eos_token_id", test::i32(-1), "tokenizer.ggml.eos_token_id -1 is no id"},
      {"split.count", u32(2), "it must be called NAME-00001-of-00002.gguf"},
      {"split.count", u32(70000), "split.count is 70000, must be 1 to 65535"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(refusal(model,
                        [&](GgufParts& parts) {
                          set_or_erase(parts, c.key, c.value);
                          if (std::string_view(c.key) == "split.count") parts.values["split.no"] = u32(0);
                        }),
                HasSubstr(c.message))
        << c.key;
  }
}

TEST(MalformedGgufModel, GroupedQueriesAreRefusedByTheirKey) {
  using test::f32, test::u32, test::text;
  struct Case {
    std::string key, value, message;
  };
  const LoadedModel llama = random_model(tiny_llama()), qwen2 = random_model(tiny_qwen2());
  for (const Case& c :
       {Case{"llama.attention.head_count_kv", u32(0), "llama.attention.head_count_kv is 0, must be 1 or more"},
        {"llama.attention.head_count_kv", u32(4), "num_key_value_heads is 4, must divide num_attention_heads (6)"},
        {"llama.attention.head_count_kv", u32(2), "k_proj.weight has shape [24, 24], the config asks for [16, 24]"},
        {"llama.attention.head_count_kv", "", "k_proj.weight has shape [24, 24], the config asks for [48, 24]"},
        {"llama.attention.key_length", u32(6), "llama.attention.value_length is 8; only the heads' size, 6"},
        {"llama.rope.dimension_count", u32(4), "llama.rope.dimension_count is 4; only the heads' size, 8"},
        {"llama.expert_count", u32(8), "llama.expert_count is not supported"},
        {"llama.rope.scaling.type", text("longrope"), "llama.rope.scaling.type is \"longrope\""},
        {"fathom.rope_scaling.factor", f32(16), "tensor rope_freqs.weight holds "},
        {"fathom.rope_scaling.factor", f32(0), "rope_scaling.factor is 0"},
        {"fathom.rope_scaling.original_max_position_embeddings", "", "tensor rope_freqs.weight holds "},
        {"general.name", text("a"), "(accepted)"}}) {
    EXPECT_THAT(refusal(llama, [&](GgufParts& parts) { set_or_erase(parts, c.key, c.value); }), HasSubstr(c.message))
        << c.key;
  }
  EXPECT_THAT(refusal(qwen2, [](GgufParts& parts) { parts.tensors.erase("blk.1.attn_k.bias"); }),
              HasSubstr("missing tensors: model.layers.1.self_attn.k_proj.bias"));
}

// Files of llama.cpp have the numbers of all released models, and no keys for them.
TEST(GgufModel, Llama3ScalingFollowsFromItsFactors) {
  ModelConfig config = tiny_llama();
  config.head_dim = 64;
  config.rope_theta = 500000;
  config.llama3_scaling = Llama3Scaling{.factor = 8};
  GgufParts parts(saved(random_model(config)));
  for (const char* const key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    parts.values.erase(std::string("fathom.rope_scaling.") + key);
  }
  EXPECT_EQ(load(parts.bytes()).config, config);
}

TEST(MalformedGgufModel, AnIndexerIsRefusedByItsKey) {
  using test::u32;
  const LoadedModel model = random_model(tiny_v32());
  const std::string indexer = "deepseek32.attention.indexer.";
  struct Case {
    std::string key, value, message;
  };
  const Case cases[] = {
      {indexer + "head_count", "", indexer + "head_count is missing"},
      {indexer + "head_count", u32(0), indexer + "head_count is 0, must be 1 or more"},
      {indexer + "head_count", test::i32(-1), indexer + "head_count is -1, must be 1 or more"},
      {indexer + "head_count", u32(4), "indexer.wq_b.weight has shape [18, 10], the config asks for [24, 10]"},
      {indexer + "key_length", u32(3), "index_head_dim is 3, must be qk_rope_head_dim (4) or more"},
      {indexer + "top_k", u32(0), "index_topk is 0, must be between 1 and"},
      {"deepseek32.attention.q_lora_rank", "", "q_lora_rank is null, but index_n_heads is 3"},
      {"deepseek32.expert_gating_func", u32(1), "only 2 (sigmoid) is supported in deepseek32"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(refusal(model, [&](GgufParts& parts) { set_or_erase(parts, c.key, c.value); }), HasSubstr(c.message))
        << c.key;
  }
  EXPECT_THAT(refusal(model, [](GgufParts& parts) { parts.tensors.erase("blk.3.indexer.k_norm.bias"); }),
              HasSubstr("missing tensors: model.layers.3.self_attn.indexer.k_norm.bias"));
}

TEST(MalformedGgufModel, TensorsAreRefusedByTheirName) {
  const LoadedModel model = random_model(sayable(tiny_v3()));
  using Change = std::function<void(GgufParts&)>;
  const auto removed = [](const char* name) -> Change { return [=](GgufParts& p) { p.tensors.erase(name); }; };
  const auto retyped = [](const char* name, uint32_t type) -> Change {
    return [=](GgufParts& p) { p.tensors.at(name).type = type; };
  };
  const auto reshaped = [](const char* name, std::vector<uint64_t> dims) -> Change {
    return [=](GgufParts& p) { p.tensors.at(name).dims = dims; };
  };
  const std::pair<Change, const char*> cases[] = {
      {removed("output_norm.weight"), "missing tensors: model.norm.weight"},
      {removed("token_embd.weight"), "missing tensors: model.embed_tokens.weight"},
      {removed("blk.2.attn_k_b.weight"), "missing tensors: model.layers.2.self_attn.kv_b_proj.weight"},
      {removed("blk.2.ffn_up_exps.weight"), "missing tensors: model.layers.2.mlp.experts.0.up_proj.weight"},
      {retyped("output_norm.weight", 26), "tensor model.norm.weight is stored as I32; weights may be"},
      {reshaped("blk.1.attn_k_b.weight", {12, 7, 2}), "self_attn.k_b_proj.weight has shape [14, 12], the config asks"},
      {reshaped("blk.1.attn_v_b.weight", {5, 12, 2}), "self_attn.v_b_proj.weight has shape [24, 5], the config asks"},
      {reshaped("blk.1.ffn_up_exps.weight", {24, 36}), "must have three dimensions: [experts, out, in]"},
      {reshaped("blk.1.ffn_up_exps.weight", {24, 18, 2}), "mlp.experts.0.up_proj.weight has shape [18, 24]"},
      {reshaped("blk.1.ffn_up_exps.weight", {24, 9, 3}), "missing tensors: model.layers.1.mlp.experts.3.up_proj"},
      {[](GgufParts& p) {
         p.tensors["blk.0.attn_sinks.weight"] = {{2}, 0, std::string(8, '\0')};
       },
       "tensors that the config has no place for: blk.0.attn_sinks.weight"},
      {[](GgufParts& p) {
         p.tensors["blk.7.attn_norm.weight"] = {{24}, 0, std::string(96, '\0')};
       },
       "(accepted)"},
      {[](GgufParts& p) { p.tensors["model.norm.weight"] = p.tensors["output_norm.weight"]; },
       "tensor model.norm.weight is in"},
      {[](GgufParts& p) { p.tensors["blk.1.attn_v_b.weight"].data.replace(4, 4, test::bytes_of(NAN)); },
       "self_attn.kv_b_proj.weight holds a number that is not finite, at row 7, column 1"},
      {[](GgufParts& p) { p.tensors["blk.1.attn_k_b.weight"].data.replace(4, 4, test::bytes_of(INFINITY)); },
       "self_attn.kv_b_proj.weight holds a number that is not finite, at row 1, column 0"},
  };
  for (const auto& [change, message] : cases) EXPECT_THAT(refusal(model, change), HasSubstr(message));
}

TEST(GgufTokenizerLists, AreGivenAsTheFileHasThem) {
  const LoadedModel model = random_model(sayable(tiny_v3()));
  GgufTokenizer tokenizer{"deepseek-v3", {"a", "b", "ab", "<e>"}, {1, 1, 1, 3}, {"a b"}, 0, 3,
                          false,         "{{ bos_token }}"};
  const std::string bytes = saved(model, Format::f32, &tokenizer);
  const GgufFile file(std::as_bytes(std::span(bytes)), "f");
  const auto back = find_gguf_tokenizer(file);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->pretokenizer, "deepseek-v3");
  ASSERT_EQ(back->tokens.size(), 33u);
  EXPECT_EQ(back->tokens[2], "ab");
  EXPECT_EQ(back->tokens[32], "[PAD32]");
  EXPECT_EQ(back->types[3], 3);
  EXPECT_EQ(back->types[32], 5);
  EXPECT_EQ(back->merges, (std::vector<std::string_view>{"a b"}));
  EXPECT_EQ(back->bos, 0);
  EXPECT_EQ(back->eos, 1);  // the model's
  EXPECT_EQ(back->add_bos, false);
  EXPECT_EQ(back->chat_template, "{{ bos_token }}");
  const std::string bare = saved(model);
  EXPECT_FALSE(find_gguf_tokenizer(GgufFile(std::as_bytes(std::span(bare)), "f")));

  tokenizer.tokens.resize(34);
  tokenizer.types.resize(34, 1);
  EXPECT_THROW(saved(model, Format::f32, &tokenizer), Error);
}

TEST(MalformedGgufTokenizer, IsRefusedByItsKey) {
  const LoadedModel model = random_model(sayable(tiny_v3()));
  const GgufTokenizer tokenizer{"deepseek-v3", {"a", "b", "ab"}, {1, 1, 1}, {"a b"}, 0, 1, {}, ""};
  const GgufParts sound(saved(model, Format::f32, &tokenizer));
  for (const auto& [key, value, message] :
       {std::tuple{"tokenizer.ggml.model", test::text("llama"),
                   "tokenizer.ggml.model llama is not supported; only gpt2"},
        {"tokenizer.ggml.pre", test::u32(3), "tokenizer.ggml.pre is u32, not a text"},
        {"tokenizer.ggml.tokens", test::text("a"), "tokenizer.ggml.tokens is text, not a list of texts"},
        {"tokenizer.ggml.tokens", test::texts({"a", "\xff"}), "tokenizer.ggml.tokens[1] is not UTF-8 at byte 0"},
        {"tokenizer.ggml.tokens", test::texts({"a"}),
         "tokenizer.ggml.token_type has 33 entries, tokenizer.ggml.tokens 1"},
        {"tokenizer.ggml.token_type", test::texts({"a"}), "token_type is a list of text, not a list of whole numbers"},
        {"tokenizer.ggml.merges", test::u32(3), "tokenizer.ggml.merges is u32, not a list of texts"},
        {"tokenizer.ggml.eos_token_id", test::u32(33), "tokenizer.ggml.eos_token_id 33 is no id"},
        {"tokenizer.chat_template", test::text("\xff"), "tokenizer.chat_template is not UTF-8 at byte 0"}}) {
    GgufParts parts = sound;
    parts.values[key] = value;
    const std::string bytes = parts.bytes();
    const GgufFile file(std::as_bytes(std::span(bytes)), "f");
    try {
      (void)find_gguf_tokenizer(file);
      ADD_FAILURE() << key;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
  }
}

TEST(SaveGguf, RefusesWhatTheFormatCannotSay) {
  const auto message = [](const ModelConfig& config) -> std::string {
    try {
      (void)saved(random_model(config));
    } catch (const Error& error) {
      return error.what();
    }
    return "(accepted)";
  };
  EXPECT_THAT(message(tiny_v3()), HasSubstr("rope_scaling.mscale and mscale_all_dim differ"));
  EXPECT_THAT(message(tiny_mtp()), HasSubstr("rope_interleave is false"));
  ModelConfig config = sayable(tiny_v2());
  config.router.method = TopkMethod::noaux_tc;
  EXPECT_THAT(message(config), HasSubstr("neither V2's nor V3's"));
}

}  // namespace
}  // namespace fathom
