// fathom inspect: what is in a checkpoint, and whether it is whole. Reads headers only, never the weights.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/residency.h"
#include "base/terminal.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/hf_directory.h"
#include "checkpoint/packed_model.h"
#include "checkpoint/weight_memory.h"
#include "cli/command.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct InspectCommandOptions {
  std::string model;
  bool tensors = false;
};

// What is known of the thing inspected: a config.json alone has no checkpoint, a .safetensors file no config.
struct Subject {
  std::string name;
  std::optional<ModelConfig> config;
  std::optional<Checkpoint> checkpoint;
  std::optional<PackedModel> packed;  // then its files are here, and not in `checkpoint`

  const Checkpoint* files() const { return packed ? &packed->mapped : checkpoint ? &*checkpoint : nullptr; }
};

// What is said of a tensor.
struct Listed {
  std::string name, type;
  std::span<const int64_t> shape;
  std::string file;
  int64_t bytes = 0, numbers = 0;
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
    Subject subject{name, read_model_config(path), {}, {}};
    if (subject.config->packed) {
      ThreadPool one(1);
      subject.packed = load_packed_model(path, one);  // maps it, with every check
    } else {
      subject.checkpoint = open_checkpoint(path);
      (void)match_tensors(*subject.checkpoint, *subject.config);
    }
    // One that fathom does not know says nothing about the weights.
    find_fitting_tokenizer(path, *subject.config, [](const Error& error) { log("{}", error.what()); });
    return subject;
  }
  if (path.extension() == ".json") return {name, read_model_config(path), {}, {}};
  if (path.extension() == ".safetensors") return {name, {}, open_checkpoint(path), {}};
  throw Error("{}: is neither a model directory nor a config.json, .safetensors or .gguf file", name);
}

int64_t size(Tensor t) { return t ? t.size() : 0; }
int64_t size(const MlpWeights& w) { return size(w.gate_up) + size(w.down); }
int64_t size(const MlaWeights& w) { return size(w.q_a) + size(w.q_b) + size(w.kv_a) + size(w.kv_b) + size(w.o); }
int64_t size(const GqaWeights& w) {
  return size(w.q) + size(w.k) + size(w.v) + size(w.q_bias) + size(w.k_bias) + size(w.v_bias) + size(w.o);
}
int64_t norms(const LayerWeights& w) {
  return size(w.input_norm) + size(w.post_attention_norm) + size(w.attention.q_a_norm) + size(w.attention.kv_a_norm);
}
int64_t size(const IndexerWeights& w) {
  return size(w.q_b) + size(w.k) + size(w.k_norm) + size(w.k_bias) + size(w.head_weights);
}
int64_t routed(const MoeWeights& w) { return size(w.gate_up) + size(w.down); }
int64_t router(const MoeWeights& w) { return size(w.gate) + size(w.e_score_correction_bias); }

// Looked up, not multiplied with: the embedding is not active. MTP modules only draft and stand apart.
std::vector<Part> count_parts(const ModelConfig& config) {
  const ModelWeights w = weight_shapes(config);
  Part embedding{"embedding", size(w.embed)}, attention{"attention"}, indexer{"indexer"}, dense{"dense_mlp"},
      experts{"routed_experts"}, shared{"shared_experts"}, gates{"router"}, norm{"norms", size(w.norm)},
      head{"head", config.tie_word_embeddings ? 0 : size(w.head)}, mtp{"mtp"};
  for (const LayerWeights& layer : w.layers) {
    attention.total += size(layer.attention) + size(layer.gqa);
    indexer.total += size(layer.attention.indexer);
    dense.total += size(layer.mlp);
    experts.total += routed(layer.moe);
    shared.total += size(layer.moe.shared);
    gates.total += router(layer.moe);
    norm.total += norms(layer);
  }
  for (Part* part : {&attention, &indexer, &dense, &shared, &gates, &norm}) part->active = part->total;
  head.active = size(w.head);
  if (config.router.n_routed_experts > 0) {
    experts.active = experts.total / config.router.n_routed_experts * config.router.num_experts_per_tok;
  }
  for (const MtpWeights& module : w.mtp) {
    const LayerWeights& layer = module.layer;
    mtp.total += size(module.enorm) + size(module.hnorm) + size(module.eh_proj) + size(module.norm) +
                 size(layer.attention) + size(layer.attention.indexer) + size(layer.mlp) + routed(layer.moe) +
                 size(layer.moe.shared) + router(layer.moe) + norms(layer);
  }
  return {embedding, attention, indexer, dense, experts, shared, gates, norm, head, mtp};
}

int64_t cache_bytes_per_token(const ModelConfig& config, Format format) {
  int64_t bytes = latent_row_bytes(config.cached_row(format));
  if (config.is_sparse()) bytes += index_block_bytes({index_format(format), config.indexer.head_dim}) / kIndexBlock;
  return config.num_hidden_layers * bytes;
}

// The weights of a packed model in the formats that they are in: to the file they are all bytes.
void for_each_packed(const PackedModel& model, const std::function<void(const Listed&)>& visit) {
  ModelWeights weights = model.weights;
  size_t i = 0;
  for_each_weight(weights, [&](WeightKind, const Tensor& slot) {
    if (!slot) return;
    const StoredTensor& stored = *model.stored[i++];
    const std::string file = fs::path(model.mapped.tensors.at(stored.name).file->where()).filename();
    visit({stored.name, format_traits(slot.format).name, std::span(slot.shape, static_cast<size_t>(slot.rank)), file,
           slot.size_bytes(), slot.size()});
  });
}

// Every stored tensor, or every tensor that a config alone asks for.
void for_each_listed(const Subject& subject, const std::function<void(const Listed&)>& visit) {
  if (subject.packed) return for_each_packed(*subject.packed, visit);
  if (!subject.checkpoint) {
    for_each_tensor(weight_shapes(*subject.config), *subject.config, [&](const NamedTensor& t) {
      visit({t.name, "", std::span(t.view.shape, static_cast<size_t>(t.view.rank)), "", 0, t.view.size()});
    });
    return;
  }
  for (const WeightFile& file : subject.checkpoint->files) {
    const std::string name = fs::path(file.where()).filename();
    for (const StoredTensor& t : file.tensors()) {
      int64_t numbers = t.name.ends_with("_scale_inv") ? 0 : 1;
      for (const int64_t n : t.shape) numbers *= n;  // checked by the reader
      visit({t.name, t.dtype, t.shape, name, static_cast<int64_t>(t.data.size()), numbers});
    }
  }
}

std::map<std::string, Stored> count_stored(const Subject& subject) {
  std::map<std::string, Stored> types;
  for_each_listed(subject, [&](const Listed& tensor) {
    Stored& type = types[tensor.type];
    ++type.n_tensors;
    type.bytes += tensor.bytes;
    type.numbers += tensor.numbers;
  });
  return types;
}

// Whether this machine's memory holds the model, now.
struct Fit {
  int64_t weight_bytes = 0;
  uint64_t available_bytes = 0;
  bool packed = false;

  bool fits() const { return weights_fit(weight_bytes, available_bytes); }
  // Tokens whose cache has room beside the weights, as far as the model reads.
  int64_t context(const ModelConfig& config, Format format) const {
    if (!fits()) return 0;
    const uint64_t room = memory_for_model(available_bytes) - static_cast<uint64_t>(weight_bytes);
    const auto per_token = static_cast<uint64_t>(cache_bytes_per_token(config, format));
    return static_cast<int64_t>(
        std::min(room / per_token, static_cast<uint64_t>(std::max<int64_t>(config.max_position_embeddings, 0))));
  }
};
std::optional<Fit> find_fit(const Subject& subject) {
  if (!subject.config || subject.files() == nullptr) return std::nullopt;
  return Fit{subject.packed ? weight_bytes(subject.packed->weights)
                            : weight_bytes_when_packed(*subject.checkpoint, *subject.config),
             available_memory_bytes(), subject.packed.has_value()};
}

std::string fit_text(const Fit& fit, const ModelConfig& config) {
  std::string text =
      fmt::format("memory        {} of weights, {} available: ", human_bytes(static_cast<double>(fit.weight_bytes)),
                  human_bytes(static_cast<double>(fit.available_bytes)));
  if (!fit.fits()) {
    return text + (fit.packed ? "does not fit, runs from disk with experts read as they are chosen\n"
                              : "does not fit; a directory that fathom convert writes runs from disk\n");
  }
  text += "fits with a context of";
  const char* comma = "";
  for (const auto& [name, format] : kCacheTypes) {
    const int64_t context = fit.context(config, format);
    text += fmt::format("{} {} tokens in {}", comma, context, name);
    if (context >= config.max_position_embeddings) break;  // no smaller type holds more
    comma = ",";
  }
  return text + "\n";
}

Json config_summary(const ModelConfig& c) {
  Json json;
  json["model_type"] = c.model_type;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["hidden_size"] = c.hidden_size;
  json["num_attention_heads"] = c.num_attention_heads;
  if (c.is_mla()) {
    json["q_lora_rank"] = c.q_lora_rank > 0 ? Json(c.q_lora_rank) : Json(nullptr);
    json["kv_lora_rank"] = c.kv_lora_rank;
  } else {
    json["num_key_value_heads"] = c.num_key_value_heads;
    json["head_dim"] = c.head_dim;
    json["tie_word_embeddings"] = c.tie_word_embeddings;
  }
  json["n_routed_experts"] = c.router.n_routed_experts;
  json["num_experts_per_tok"] = c.router.num_experts_per_tok;
  json["n_shared_experts"] = c.n_shared_experts;
  json["first_k_dense_replace"] = c.first_k_dense_replace;
  json["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  if (c.is_sparse()) {
    json["index_n_heads"] = c.indexer.n_heads;
    json["index_head_dim"] = c.indexer.head_dim;
    json["index_topk"] = c.indexer.topk;
  }
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
    for (const auto& [name, format] : kCacheTypes) {
      json["cache_bytes_per_token"][name] = cache_bytes_per_token(*subject.config, format);
    }
  }
  if (const std::optional<Fit> fit = find_fit(subject)) {
    Json& memory = json["memory"];
    memory = {{"weight_bytes", fit->weight_bytes},
              {"available_bytes", fit->available_bytes},
              {"fits", fit->fits()},
              {"runs_from_disk", !fit->fits() && fit->packed}};
    for (const auto& [name, format] : kCacheTypes) {
      memory["context_that_fits"][name] = fit->context(*subject.config, format);
    }
  }
  if (const Checkpoint* files = subject.files()) {
    Json types = Json::object();
    int64_t bytes = 0;
    for (const auto& [dtype, stored] : count_stored(subject)) {
      types[dtype] = stored.bytes;
      bytes += stored.bytes;
    }
    json["files"] = files->files.size();
    json["n_tensors"] = files->tensors.size();
    json["bytes"] = bytes;
    json["bytes_by_type"] = types;
  }
  if (list_tensors) {
    std::vector<Json> list;
    for_each_listed(subject, [&](const Listed& listed) {
      Json tensor{{"name", listed.name}};
      if (!listed.type.empty()) tensor["dtype"] = listed.type;
      tensor["shape"] = std::vector<int64_t>(listed.shape.begin(), listed.shape.end());
      if (!listed.file.empty()) tensor["file"] = listed.file;
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
  if (!c.is_mla()) {
    text += fmt::format("keys, values  {} heads of {} each\n", c.num_key_value_heads, c.head_dim);
  }
  if (n_moe > 0) {
    text += fmt::format("experts       {} routed in {} groups, {} chosen from {} groups, {} shared\n",
                        c.router.n_routed_experts, c.router.n_group, c.router.num_experts_per_tok, c.router.topk_group,
                        c.n_shared_experts);
  }
  if (c.is_sparse()) {
    text += fmt::format("indexer       {} heads of {}, {} tokens chosen\n", c.indexer.n_heads, c.indexer.head_dim,
                        c.indexer.topk);
  }
  int64_t total = 0, active = 0;
  std::string lines;
  for (const Part& part : count_parts(c)) {
    if (part.total == 0 && part.active == 0) continue;
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
  text += "cache        ";
  const char* between = "";
  for (const auto& [name, format] : kCacheTypes) {
    text += fmt::format("{} {}{} in {}", between, cache_bytes_per_token(c, format),
                        *between == 0 ? " bytes a token" : "", name);
    between = ",";
  }
  return text + "\n";
}

std::string as_text(const Subject& subject, bool list_tensors) {
  std::string text = subject.name + "\n";
  if (subject.config) text += config_text(*subject.config);
  if (const std::optional<Fit> fit = find_fit(subject)) text += fit_text(*fit, *subject.config);
  if (const Checkpoint* files = subject.files()) {
    text += "stored\n";
    for (const auto& [dtype, stored] : count_stored(subject)) {
      text += fmt::format("  {:<16} {:>10}  {} numbers, {} tensors\n", dtype,
                          human_bytes(static_cast<double>(stored.bytes)),
                          human_count(static_cast<double>(stored.numbers)), stored.n_tensors);
    }
    text += fmt::format("tensors       {} in {} file{}{}\n", files->tensors.size(), files->files.size(),
                        files->files.size() == 1 ? "" : "s", subject.config ? ", all as the config asks" : "");
  }
  if (list_tensors) {
    for_each_listed(subject, [&](const Listed& t) {
      text += fmt::format("{:<64} {:<8} {:<16} {}", printable(t.name), t.type, shape_text(t.shape), t.file);
      text.erase(text.find_last_not_of(' ') + 1);
      text += "\n";
    });
  }
  return text;
}

}  // namespace

void add_inspect(CLI::App& app, CommonOptions& common) {
  auto options = std::make_shared<InspectCommandOptions>();
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
