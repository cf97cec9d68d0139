// fathom inspect: what is in a checkpoint, and whether it is whole. Reads headers only, never the weights.
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/terminal.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/hf_directory.h"
#include "checkpoint/packed_model.h"
#include "cli/command.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  std::string model;
  bool tensors = false;
};

// What is known of the thing inspected: a config.json alone has no checkpoint, a .safetensors file no config.
struct Subject {
  std::string name;
  std::optional<ModelConfig> config;
  std::optional<Checkpoint> checkpoint;
};

struct Part {
  const char* name;
  int64_t total = 0, active = 0;  // parameters; active: those that one token meets
};

struct Stored {
  int64_t n_tensors = 0, bytes = 0, numbers = 0;
};

Subject open_subject(const fs::path& path) {
  const std::string name = printable(path.native());
  if (!path_exists(path)) throw Error("{}: no such file or directory", name);
  if (path_is_directory(path) || is_gguf_path(path)) {
    Subject subject{name, read_model_config(path), open_checkpoint(path)};
    if (subject.config->packed) {
      ThreadPool one(1);
      (void)load_packed_model(path, one);  // maps it, with every check
    } else {
      (void)match_tensors(*subject.checkpoint, *subject.config);
    }
    return subject;
  }
  if (path.extension() == ".json") return {name, read_model_config(path), {}};
  if (path.extension() == ".safetensors") return {name, {}, open_checkpoint(path)};
  throw Error("{}: is neither a model directory nor a config.json, .safetensors or .gguf file", name);
}

int64_t size(Tensor t) { return t ? t.size() : 0; }
int64_t size(const MlpWeights& w) { return size(w.gate_up) + size(w.down); }
int64_t size(const MlaWeights& w) { return size(w.q_a) + size(w.q_b) + size(w.kv_a) + size(w.kv_b) + size(w.o); }
int64_t norms(const LayerWeights& w) {
  return size(w.input_norm) + size(w.post_attention_norm) + size(w.attention.q_a_norm) + size(w.attention.kv_a_norm);
}
int64_t routed(const MoeWeights& w) { return size(w.gate_up) + size(w.down); }
int64_t router(const MoeWeights& w) { return size(w.gate) + size(w.e_score_correction_bias); }

// Looked up, not multiplied with: the embedding is not active. MTP modules only draft and stand apart.
std::vector<Part> count_parts(const ModelConfig& config) {
  const ModelWeights w = weight_shapes(config);
  Part embedding{"embedding", size(w.embed)}, attention{"attention"}, dense{"dense_mlp"}, experts{"routed_experts"},
      shared{"shared_experts"}, gates{"router"}, norm{"norms", size(w.norm)}, head{"head", size(w.head)}, mtp{"mtp"};
  for (const LayerWeights& layer : w.layers) {
    attention.total += size(layer.attention);
    dense.total += size(layer.mlp);
    experts.total += routed(layer.moe);
    shared.total += size(layer.moe.shared);
    gates.total += router(layer.moe);
    norm.total += norms(layer);
  }
  for (Part* part : {&attention, &dense, &shared, &gates, &norm, &head}) part->active = part->total;
  if (config.router.n_routed_experts > 0) {
    experts.active = experts.total / config.router.n_routed_experts * config.router.num_experts_per_tok;
  }
  for (const MtpWeights& module : w.mtp) {
    const LayerWeights& layer = module.layer;
    mtp.total += size(module.enorm) + size(module.hnorm) + size(module.eh_proj) + size(module.norm) +
                 size(layer.attention) + size(layer.mlp) + routed(layer.moe) + size(layer.moe.shared) +
                 router(layer.moe) + norms(layer);
  }
  return {embedding, attention, dense, experts, shared, gates, norm, head, mtp};
}

std::map<std::string, Stored> count_stored(const Checkpoint& checkpoint) {
  std::map<std::string, Stored> types;
  for (const WeightFile& file : checkpoint.files) {
    for (const StoredTensor& tensor : file.tensors()) {
      Stored& type = types[tensor.dtype];
      ++type.n_tensors;
      type.bytes += static_cast<int64_t>(tensor.data.size());
      if (!tensor.name.ends_with("_scale_inv")) {
        int64_t numbers = 1;
        for (const int64_t n : tensor.shape) numbers *= n;  // checked by the reader
        type.numbers += numbers;
      }
    }
  }
  return types;
}

int64_t cache_bytes_per_token(const ModelConfig& config, Format format) {
  return config.num_hidden_layers * config.cache_row() * format_bytes(format);
}

// name, type, shape and file of every stored tensor, or of every tensor that a config alone asks for.
void for_each_listed(const Subject& subject,
                     const std::function<void(const std::string&, const std::string&, std::span<const int64_t>,
                                              const std::string&)>& visit) {
  if (!subject.checkpoint) {
    for_each_tensor(weight_shapes(*subject.config), *subject.config, [&](const NamedTensor& t) {
      visit(t.name, "", std::span(t.view.shape, static_cast<size_t>(t.view.rank)), "");
    });
    return;
  }
  for (const WeightFile& file : subject.checkpoint->files) {
    const std::string name = fs::path(file.where()).filename();
    for (const StoredTensor& t : file.tensors()) visit(t.name, t.dtype, t.shape, name);
  }
}

Json config_summary(const ModelConfig& c) {
  Json json;
  json["model_type"] = c.model_type;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["hidden_size"] = c.hidden_size;
  json["num_attention_heads"] = c.num_attention_heads;
  json["q_lora_rank"] = c.q_lora_rank > 0 ? Json(c.q_lora_rank) : Json(nullptr);
  json["kv_lora_rank"] = c.kv_lora_rank;
  json["n_routed_experts"] = c.router.n_routed_experts;
  json["num_experts_per_tok"] = c.router.num_experts_per_tok;
  json["n_shared_experts"] = c.n_shared_experts;
  json["first_k_dense_replace"] = c.first_k_dense_replace;
  json["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  json["vocab_size"] = c.vocab_size;
  json["max_position_embeddings"] = c.max_position_embeddings;
  if (c.weight_block_rows > 0) json["weight_block_size"] = {c.weight_block_rows, c.weight_block_cols};
  return json;
}

std::string as_json(const Subject& subject, bool list_tensors) {
  Json json{{"model", subject.name}};
  if (subject.config) {
    json["config"] = config_summary(*subject.config);
    int64_t total = 0, active = 0;
    Json parts, active_parts;
    for (const Part& part : count_parts(*subject.config)) {
      parts[part.name] = part.total;
      active_parts[part.name] = part.active;
      if (std::string_view(part.name) != "mtp") total += part.total;
      active += part.active;
    }
    json["parameters"] = {{"total", total}, {"active", active}, {"by_part", parts}, {"active_by_part", active_parts}};
    json["context"] = subject.config->max_position_embeddings;
    json["cache_bytes_per_token"] = {{"f32", cache_bytes_per_token(*subject.config, Format::f32)},
                                     {"bf16", cache_bytes_per_token(*subject.config, Format::bf16)}};
  }
  if (subject.checkpoint) {
    Json types = Json::object();
    int64_t bytes = 0;
    for (const auto& [dtype, stored] : count_stored(*subject.checkpoint)) {
      types[dtype] = stored.bytes;
      bytes += stored.bytes;
    }
    json["files"] = subject.checkpoint->files.size();
    json["n_tensors"] = subject.checkpoint->tensors.size();
    json["bytes"] = bytes;
    json["bytes_by_type"] = types;
  }
  if (list_tensors) {
    std::vector<Json> list;
    for_each_listed(subject, [&](const std::string& name, const std::string& dtype, std::span<const int64_t> shape,
                                 const std::string& file) {
      Json tensor{{"name", name}};
      if (!dtype.empty()) tensor["dtype"] = dtype;
      tensor["shape"] = std::vector<int64_t>(shape.begin(), shape.end());
      if (!file.empty()) tensor["file"] = file;
      list.push_back(std::move(tensor));
    });
    json["tensors"] = std::move(list);
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string config_text(const ModelConfig& c) {
  int64_t n_moe = 0;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) n_moe += c.is_moe(l) ? 1 : 0;
  std::string text = fmt::format("{}: {} layers ({} dense, {} MoE), hidden size {}, {} heads, vocabulary {}\n",
                                 c.model_type, c.num_hidden_layers, c.num_hidden_layers - n_moe, n_moe, c.hidden_size,
                                 c.num_attention_heads, c.vocab_size);
  if (n_moe > 0) {
    text += fmt::format("experts       {} routed in {} groups, {} chosen from {} groups, {} shared\n",
                        c.router.n_routed_experts, c.router.n_group, c.router.num_experts_per_tok, c.router.topk_group,
                        c.n_shared_experts);
  }
  int64_t total = 0, active = 0;
  std::string lines;
  for (const Part& part : count_parts(c)) {
    if (part.total == 0) continue;
    const bool is_mtp = std::string_view(part.name) == "mtp";
    if (!is_mtp) total += part.total;
    active += part.active;
    lines += fmt::format("  {:<16} {:>8}{}", part.name, human_count(static_cast<double>(part.total)),
                         is_mtp ? "  (beside the total)" : "");
    if (part.active != part.total && part.active > 0)
      lines += fmt::format("  ({} active)", human_count(static_cast<double>(part.active)));
    lines += "\n";
  }
  text += fmt::format("parameters    {} total, {} active for a token\n{}", human_count(static_cast<double>(total)),
                      human_count(static_cast<double>(active)), lines);
  text += fmt::format("context       {} tokens\n", c.max_position_embeddings);
  text += fmt::format("cache         {} bytes a token in f32, {} in bf16\n", cache_bytes_per_token(c, Format::f32),
                      cache_bytes_per_token(c, Format::bf16));
  return text;
}

std::string as_text(const Subject& subject, bool list_tensors) {
  std::string text = subject.name + "\n";
  if (subject.config) text += config_text(*subject.config);
  if (subject.checkpoint) {
    text += "stored\n";
    for (const auto& [dtype, stored] : count_stored(*subject.checkpoint)) {
      text += fmt::format("  {:<16} {:>10}  {} numbers, {} tensors\n", dtype,
                          human_bytes(static_cast<double>(stored.bytes)),
                          human_count(static_cast<double>(stored.numbers)), stored.n_tensors);
    }
    text += fmt::format("tensors       {} in {} file{}{}\n", subject.checkpoint->tensors.size(),
                        subject.checkpoint->files.size(), subject.checkpoint->files.size() == 1 ? "" : "s",
                        subject.config ? ", all as the config asks" : "");
  }
  if (list_tensors) {
    for_each_listed(subject, [&](const std::string& name, const std::string& dtype, std::span<const int64_t> shape,
                                 const std::string& file) {
      text += fmt::format("{:<64} {:<8} {:<16} {}", printable(name), dtype, shape_text(shape), file);
      text.erase(text.find_last_not_of(' ') + 1);
      text += "\n";
    });
  }
  return text;
}

}  // namespace

void add_inspect(CLI::App& app, CommonOptions& common) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("inspect", "What is in a checkpoint: parameters by part, bytes by type, cache size");
  command->add_option("model,--model", options->model, "Model directory, config.json, .safetensors or .gguf file")
      ->required();
  command->add_flag("--tensors", options->tensors, "List every tensor with type, shape and file");
  command->callback([options, &common] {
    const Subject subject = open_subject(options->model);
    write_stdout(common.json ? as_json(subject, options->tensors) : as_text(subject, options->tensors));
  });
}

}  // namespace fathom::cli
