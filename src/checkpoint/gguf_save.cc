#include "checkpoint/gguf_save.h"

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "base/arithmetic.h"
#include "base/terminal.h"
#include "checkpoint/packing.h"
#include "number/formats.h"

namespace fathom {
namespace {

constexpr int64_t kPieceNumbers = int64_t{1} << 20;

// How a tensor of the file is made of weights: of them all, one behind the other, of a half of each head of one, of the
// rows of one in pairs; or of the config alone.
enum class Content { whole, k_half, v_half, paired, rope_factors };

struct PlannedTensor {
  GgufTensor gguf;
  Content content;
  std::vector<NamedTensor> parts;
};

// What GGUF has no key for.
void check_expressible(const ModelConfig& c) {
  const auto refuse = [](std::string_view what) { throw Error("a GGUF file cannot hold this model: {}", what); };
  if (c.is_mla() && !c.rope_interleave) refuse("rope_interleave is false");
  if (c.rope_scaling && c.rope_scaling->mscale != c.rope_scaling->mscale_all_dim) {
    refuse("rope_scaling.mscale and mscale_all_dim differ");
  }
  if (!c.is_mla() && c.rope_scaling && c.rope_scaling->mscale != 0) refuse("rope_scaling.mscale is not 0");
  const RouterConfig& r = c.router;
  if (r.n_routed_experts == 0) return;
  const bool grouped = r.method == TopkMethod::group_limited_greedy;
  const bool v2 = r.scoring == Scoring::softmax && (grouped ? r.n_group > 1 : r.method == TopkMethod::greedy);
  if (!v2 && !(r.scoring == Scoring::sigmoid && r.method == TopkMethod::noaux_tc)) {
    refuse("its topk_method and scoring_func together are neither V2's nor V3's");
  }
}

// Rows that no block format takes lose nothing.
Format gguf_format(Format wanted, int64_t cols) {
  const Format fitting = fitting_format(wanted, cols);
  return is_block_format(wanted) && !is_block_format(fitting) ? Format::f32 : fitting;
}

std::vector<PlannedTensor> plan_tensors(const ModelConfig& config, const ChooseFormat& choose) {
  std::vector<PlannedTensor> plan;
  std::unordered_map<std::string, size_t> stacks;  // by name
  const auto add = [&](std::string name, std::vector<int64_t> shape, Content content, const NamedTensor& part) {
    const bool always_f32 =
        shape.size() == 1 || name.ends_with("ffn_gate_inp.weight") || name.ends_with("indexer.proj.weight");
    const Format format = always_f32 ? Format::f32 : gguf_format(choose(name, shape), shape.back());
    plan.push_back({{std::move(name), std::move(shape), format}, content, {part}});
  };
  if (config.llama3_scaling) {
    plan.push_back({{std::string(kRopeFactors), {config.head_dim / 2}, Format::f32}, Content::rope_factors, {}});
  }
  for_each_tensor(weight_shapes(config), config, [&](const NamedTensor& named) {
    const Tensor& view = named.view;
    std::vector<int64_t> shape(view.shape, view.shape + view.rank);
    const bool rotated = named.name.ends_with(".q_proj.weight") || named.name.ends_with(".k_proj.weight");
    if (named.name.ends_with("kv_b_proj.weight")) {
      const std::string name = gguf_name(named.name);  // blk.0.attn_kv_b.weight
      const std::string prefix = name.substr(0, name.rfind("attn_kv_b"));
      const int64_t heads = config.num_attention_heads, rank = config.kv_lora_rank;
      add(prefix + "attn_k_b.weight", {heads, rank, config.qk_nope_head_dim}, Content::k_half, named);
      add(prefix + "attn_v_b.weight", {heads, config.v_head_dim, rank}, Content::v_half, named);
    } else if (config.model_type == "llama" && rotated) {
      add(gguf_name(named.name), std::move(shape), Content::paired, named);
    } else if (named.name.find(".mlp.experts.") != std::string::npos) {
      const std::string name = gguf_name(named.name);
      const auto [stack, is_new] = stacks.try_emplace(name, plan.size());
      if (!is_new) return plan[stack->second].parts.push_back(named);
      shape.insert(shape.begin(), config.router.n_routed_experts);
      add(name, std::move(shape), Content::whole, named);
    } else {
      add(gguf_name(named.name), std::move(shape), Content::whole, named);
    }
  });
  return plan;
}

// The number of the whole file's type, which programs show: that of the format most numbers are in.
uint32_t file_type(const std::vector<PlannedTensor>& plan) {
  std::unordered_map<Format, int64_t> bytes;
  for (const PlannedTensor& tensor : plan) bytes[tensor.gguf.format] += tensor.gguf.n_bytes();
  const auto most = std::max_element(bytes.begin(), bytes.end(), [](auto& a, auto& b) { return a.second < b.second; });
  switch (most->first) {
    case Format::f16:
      return 1;
    case Format::q4_0:
      return 2;
    case Format::q8_0:
      return 7;
    case Format::q5_0:
      return 8;
    case Format::q4_k:
      return 15;
    case Format::q5_k:
      return 17;
    case Format::q6_k:
      return 18;
    case Format::bf16:
      return 32;
    default:
      return 0;
  }
}

void add_llama3_scaling(GgufMetadata& out, const Llama3Scaling& s) {
  const auto key = [](std::string_view name) { return fmt::format("{}{}", kLlama3Keys, name); };
  out.f32(key("factor"), s.factor);
  out.f32(key("low_freq_factor"), s.low_freq_factor);
  out.f32(key("high_freq_factor"), s.high_freq_factor);
  out.u32(key("original_max_position_embeddings"), s.original_max_position_embeddings);
}

void add_config(GgufMetadata& out, const ModelConfig& c) {
  const auto key = [&c](std::string_view name) { return fmt::format("{}.{}", gguf_architecture(c), name); };
  out.u32(key("vocab_size"), c.vocab_size);
  out.u32(key("block_count"), c.num_hidden_layers + c.num_nextn_predict_layers);
  if (c.num_nextn_predict_layers > 0) out.u32(key("nextn_predict_layers"), c.num_nextn_predict_layers);
  out.u32(key("context_length"), c.max_position_embeddings);
  out.u32(key("embedding_length"), c.hidden_size);
  out.u32(key("feed_forward_length"), c.intermediate_size);
  out.u32(key("attention.head_count"), c.num_attention_heads);
  out.u32(key("attention.head_count_kv"), c.is_mla() ? 1 : c.num_key_value_heads);  // latents are one to others
  out.f32(key("attention.layer_norm_rms_epsilon"), c.rms_norm_eps);
  if (c.is_mla()) {
    out.u32(key("attention.q_lora_rank"), c.q_lora_rank);
    out.u32(key("attention.kv_lora_rank"), c.kv_lora_rank);
    out.u32(key("attention.key_length"), c.cache_row());
    out.u32(key("attention.value_length"), c.kv_lora_rank);
    out.u32(key("attention.key_length_mla"), c.qk_head_dim());
    out.u32(key("attention.value_length_mla"), c.v_head_dim);
  } else {
    out.u32(key("attention.key_length"), c.head_dim);
    out.u32(key("attention.value_length"), c.head_dim);
  }
  if (c.is_sparse()) {
    out.u32(key("attention.indexer.head_count"), c.indexer.n_heads);
    out.u32(key("attention.indexer.key_length"), c.indexer.head_dim);
    out.u32(key("attention.indexer.top_k"), c.indexer.topk);
  }
  out.u32(key("rope.dimension_count"), c.is_mla() ? c.qk_rope_head_dim : c.head_dim);
  if (c.llama3_scaling) add_llama3_scaling(out, *c.llama3_scaling);
  out.f32(key("rope.freq_base"), c.rope_theta);
  if (c.rope_scaling) {
    const YarnScaling& y = *c.rope_scaling;
    out.text(key("rope.scaling.type"), "yarn");
    out.f32(key("rope.scaling.factor"), y.factor);
    out.u32(key("rope.scaling.original_context_length"), y.original_max_position_embeddings);
    out.f32(key("rope.scaling.yarn_beta_fast"), y.beta_fast);
    out.f32(key("rope.scaling.yarn_beta_slow"), y.beta_slow);
    if (c.is_mla()) out.f32(key("rope.scaling.yarn_log_multiplier"), 0.1 * y.mscale_all_dim);
  }
  if (!c.is_mla()) return;
  const RouterConfig& r = c.router;
  const bool has_experts = r.n_routed_experts > 0;
  // Readers of this architecture demand the number of shared experts even where there are none.
  out.u32(key("expert_shared_count"), c.n_shared_experts);
  out.u32(key("leading_dense_block_count"), has_experts ? c.first_k_dense_replace : c.num_hidden_layers);
  if (!has_experts && !c.is_sparse()) return;  // of deepseek32 they demand more
  out.u32(key("expert_count"), r.n_routed_experts);
  out.u32(key("expert_used_count"), r.num_experts_per_tok);
  out.u32(key("expert_feed_forward_length"), c.moe_intermediate_size);
  out.u32(key("expert_gating_func"), r.scoring == Scoring::sigmoid ? 2 : 1);
  if (!has_experts) return;
  out.u32(key("expert_group_count"), r.n_group);
  out.u32(key("expert_group_used_count"), r.topk_group);
  out.f32(key("expert_weights_scale"), r.routed_scaling_factor);
  out.boolean(key("expert_weights_norm"), r.norm_topk_prob);
}

void add_tokenizer(GgufMetadata& out, const GgufTokenizer& t, int64_t vocab_size) {
  constexpr int64_t kUnused = 5;
  if (static_cast<int64_t>(t.tokens.size()) > vocab_size) {
    throw Error("the tokenizer has {} ids, more than the model's vocabulary of {}", t.tokens.size(), vocab_size);
  }
  std::vector<std::string> tokens(t.tokens.begin(), t.tokens.end());
  std::vector<int64_t> types = t.types;
  for (int64_t id = std::ssize(tokens); id < vocab_size; ++id) {
    tokens.push_back(fmt::format("[PAD{}]", id));
    types.push_back(kUnused);
  }
  out.text("tokenizer.ggml.model", "gpt2");
  out.text("tokenizer.ggml.pre", t.pretokenizer);
  out.texts("tokenizer.ggml.tokens", tokens);
  out.i32s("tokenizer.ggml.token_type", types);
  out.texts("tokenizer.ggml.merges", t.merges);
  if (!t.chat_template.empty()) out.text("tokenizer.chat_template", t.chat_template);
}

// The begin and end tokens are the model's, which may know more of them than the tokenizer.
void add_token_ids(GgufMetadata& out, const ModelConfig& config, const GgufTokenizer* tokenizer) {
  const int64_t bos = config.bos_token_id >= 0 || tokenizer == nullptr ? config.bos_token_id : tokenizer->bos;
  std::vector<int64_t> eos = config.eos_token_ids;
  if (eos.empty() && tokenizer != nullptr && tokenizer->eos >= 0) eos.push_back(tokenizer->eos);
  if (bos >= 0) out.u32("tokenizer.ggml.bos_token_id", bos);
  if (!eos.empty()) out.u32("tokenizer.ggml.eos_token_id", eos[0]);
  if (eos.size() > 1) out.u32("tokenizer.ggml.eot_token_id", eos[1]);
  if (eos.size() > 2) log("of {} end tokens the GGUF file has the first two", eos.size());
  if (tokenizer != nullptr) out.boolean("tokenizer.ggml.add_bos_token", tokenizer->add_bos.value_or(bos >= 0));
}

// Scratch of one tensor after the other.
struct Writer {
  AtomicFile& file;
  ThreadPool& pool;
  const ModelConfig& config;
  const ReadRows& read;
  const ImportanceOf& importance;
  std::vector<float> head{}, rows{};
  std::vector<std::byte> stored{};

  // The one place where numbers become what the file holds: rows of one of the tensor's matrices.
  void write(const PlannedTensor& tensor, int64_t matrix) {
    const Format format = tensor.gguf.format;
    const int64_t cols = tensor.gguf.shape.back(), n_rows = std::ssize(rows) / cols;
    const float* weights = importance ? importance(tensor.gguf.name, matrix) : nullptr;
    stored.resize(static_cast<size_t>(format_bytes(format, n_rows * cols)));
    const int64_t grain = std::max<int64_t>(1, kPieceNumbers / 64 / cols);
    pool.parallel_for(0, n_rows, grain, [&](int64_t begin, int64_t end) {
      std::byte* to = stored.data() + format_bytes(format, begin * cols);
      encode_rows(to, rows.data() + begin * cols, format, end - begin, cols, weights);
    });
    file.write(stored.data(), stored.size());
  }
  void whole(const PlannedTensor& tensor) {
    for (size_t p = 0; p < tensor.parts.size(); ++p) {
      const NamedTensor& part = tensor.parts[p];
      const int64_t n_rows = part.view.rows(), cols = part.view.cols();
      const int64_t step = std::max<int64_t>(1, kPieceNumbers / cols);
      for (int64_t row = 0; row < n_rows; row += step) {
        const int64_t n = std::min(step, n_rows - row);
        rows.resize(static_cast<size_t>(n * cols));
        read(part, row, n, rows.data());
        write(tensor, static_cast<int64_t>(p));
      }
    }
  }
  void paired(const PlannedTensor& tensor) {
    const NamedTensor& part = tensor.parts[0];
    const int64_t cols = part.view.cols(), half = config.head_dim / 2;
    for (int64_t first = 0; first < part.view.rows(); first += config.head_dim) {
      rows.resize(static_cast<size_t>(config.head_dim * cols));
      for (int64_t i = 0; i < config.head_dim; ++i) read(part, first + i / 2 + i % 2 * half, 1, rows.data() + i * cols);
      write(tensor, 0);
    }
  }
  // Of each head its rows of keys, transposed, or its rows of values.
  void half(const PlannedTensor& tensor) {
    const int64_t rank = config.kv_lora_rank, nope = config.qk_nope_head_dim, v = config.v_head_dim;
    head.resize(static_cast<size_t>((nope + v) * rank));
    for (int64_t h = 0; h < config.num_attention_heads; ++h) {
      read(tensor.parts[0], h * (nope + v), nope + v, head.data());
      rows.clear();
      if (tensor.content == Content::v_half) {
        rows.assign(head.begin() + nope * rank, head.end());
      } else {
        for (int64_t r = 0; r < rank; ++r) {
          for (int64_t i = 0; i < nope; ++i) rows.push_back(head[static_cast<size_t>(i * rank + r)]);
        }
      }
      write(tensor, h);
    }
  }
};

std::vector<GgufTensor> tensors_of(const std::vector<PlannedTensor>& plan) {
  std::vector<GgufTensor> tensors;
  tensors.reserve(plan.size());
  for (const PlannedTensor& tensor : plan) tensors.push_back(tensor.gguf);
  return tensors;
}

}  // namespace

std::vector<GgufTensor> gguf_tensors(const ModelConfig& config, const ChooseFormat& choose) {
  check_expressible(config);
  return tensors_of(plan_tensors(config, choose));
}

void save_gguf(const std::filesystem::path& path, const ModelConfig& config, const GgufTokenizer* tokenizer,
               const ChooseFormat& choose, const ReadRows& read, ThreadPool& pool, const ImportanceOf& importance) {
  check_expressible(config);
  const std::vector<PlannedTensor> plan = plan_tensors(config, choose);
  GgufMetadata metadata;
  metadata.text("general.architecture", gguf_architecture(config));
  metadata.u32("general.file_type", file_type(plan));
  metadata.u32("general.quantization_version", 2);
  add_config(metadata, config);
  if (tokenizer != nullptr) add_tokenizer(metadata, *tokenizer, config.vocab_size);
  add_token_ids(metadata, config, tokenizer);

  AtomicFile file(path);
  write_gguf_header(file, metadata, tensors_of(plan));
  Writer writer{file, pool, config, read, importance};
  for (const PlannedTensor& tensor : plan) {
    switch (tensor.content) {
      case Content::whole:
        writer.whole(tensor);
        break;
      case Content::k_half:
      case Content::v_half:
        writer.half(tensor);
        break;
      case Content::paired:
        writer.paired(tensor);
        break;
      case Content::rope_factors:
        writer.rows = rope_factors(config);
        writer.write(tensor, 0);
        break;
    }
    pad_gguf(file, tensor.gguf.n_bytes());
  }
  file.commit();
}

ReadRows rows_of(const ModelWeights& weights, const ModelConfig& config) {
  auto views = std::make_shared<std::unordered_map<std::string, Tensor>>();
  for_each_tensor(weights, config, [&](const NamedTensor& named) { views->emplace(named.name, named.view); });
  return [views](const NamedTensor& tensor, int64_t first, int64_t n, float* out) {
    const Tensor& view = views->at(tensor.name);
    for (int64_t row = first; row < first + n; ++row, out += view.cols())
      std::copy_n(view.f32_row(row), view.cols(), out);
  };
}

}  // namespace fathom
