#include "checkpoint/hf_directory.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <unordered_set>

#include "base/arithmetic.h"
#include "base/json.h"
#include "base/terminal.h"
#include "checkpoint/gguf_model.h"

namespace fathom {
namespace {

namespace dom = simdjson::dom;
namespace fs = std::filesystem;

// "a, b, c and 5 more"
std::string name_list(std::span<const std::string> names) {
  constexpr size_t kShown = 3;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text += (i > 0 ? ", " : "") + printable(names[i]);
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return text;
}

// Names from an index are data: nothing but a plain file in the model's own folder is opened.
void check_shard_name(std::string_view name, const std::string& where) {
  const bool plain =
      !name.starts_with('.') && name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
  if (!plain || !name.ends_with(".safetensors")) {
    throw Error("{}: \"{}\" is no file name of a shard; it must be a plain name that ends in .safetensors", where,
                printable(name));
  }
}

using WeightMap = std::map<std::string, std::vector<std::string>>;  // file name -> its tensors

WeightMap parse_weight_map(const JsonDocument& index) {
  dom::object root, map;
  if (index.root().get(root)) throw Error("{}: the file is not a JSON object", index.where());
  dom::element value;
  if (root.at_key("weight_map").get(value)) throw Error("{}: weight_map is missing", index.where());
  if (value.get(map)) throw Error("{}: weight_map is not an object", index.where());
  WeightMap shards;
  for (const auto [name, file] : map) {
    std::string_view file_name;
    if (file.get(file_name))
      throw Error("{}: weight_map: the file of {} is not a string", index.where(), printable(name));
    check_shard_name(file_name, index.where());
    shards[std::string(file_name)].emplace_back(name);
  }
  if (shards.empty()) throw Error("{}: weight_map is empty", index.where());
  return shards;
}

// Published indexes are known to carry the size of another precision, so a difference is told, not refused.
void compare_total_size(const JsonDocument& index, const Checkpoint& checkpoint) {
  dom::element metadata, value;
  double total;
  if (index.root().at_key("metadata").get(metadata) || metadata.at_key("total_size").get(value)) return;
  if (!value.is_number() || value.get(total)) throw Error("{}: metadata.total_size is not a number", index.where());
  uint64_t stored = 0;
  for (const auto& [name, place] : checkpoint.tensors) stored += place.tensor->data.size();
  if (total != static_cast<double>(stored)) {
    log("{}: total_size is {}, the shards hold {} bytes of tensors", index.where(), total, stored);
  }
}

Checkpoint join_shards(const JsonDocument& index, const WeightMap& shards, std::string where, const OpenShard& open) {
  Checkpoint checkpoint;
  checkpoint.where = std::move(where);
  for (const auto& [file_name, names] : shards) {
    SafetensorsFile shard = open(file_name);
    std::vector<std::string> missing;
    for (const std::string& name : names) {
      if (shard.find(name) == nullptr) missing.push_back(name);
    }
    if (!missing.empty())
      throw Error("{}: not in {} as the index says: {}", index.where(), printable(file_name), name_list(missing));
    if (shard.tensors().size() > names.size()) {
      const std::unordered_set<std::string_view> known(names.begin(), names.end());
      std::vector<std::string> unknown;
      for (const StoredTensor& tensor : shard.tensors()) {
        if (!known.contains(tensor.name)) unknown.push_back(tensor.name);
      }
      throw Error("{}: holds tensors that the index does not put there: {}", shard.where(), name_list(unknown));
    }
    checkpoint.add(std::move(shard));
  }
  compare_total_size(index, checkpoint);
  return checkpoint;
}

Checkpoint open_directory(const fs::path& directory, const fs::path& index_path) {
  const JsonDocument index = JsonDocument::read(index_path, kMaxIndexBytes);
  const WeightMap shards = parse_weight_map(index);
  for (const auto& [file_name, names] : shards) {
    if (!path_exists(directory / file_name)) {
      throw Error("{}: the shard {} is missing; {} tensors are in it", index.where(), printable(file_name),
                  names.size());
    }
  }
  return join_shards(index, shards, printable(directory.native()),
                     [&](const std::string& file_name) { return SafetensorsFile(directory / file_name); });
}

// The layer of "model.layers.61.enorm.weight", -1 for tensors of no layer.
int64_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  const std::string_view rest = name.substr(kPrefix.size());
  int64_t layer = -1;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
  return error == std::errc() && end != rest.data() + rest.size() && *end == '.' ? layer : -1;
}

// Stored tensors that a model does not take its weights from: precomputed frequencies, and MTP's copies of embedding
// and head.
bool is_redundant(std::string_view name, const ModelConfig& config) {
  if (name.ends_with(".rotary_emb.inv_freq")) return true;
  if (config.llama3_scaling && name == "rope_freqs.weight") return true;  // of GGUF files, see parse_gguf_config
  if (config.tie_word_embeddings && name == "lm_head.weight") return true;
  if (layer_of(name) < config.num_hidden_layers) return false;
  return name.ends_with(".embed_tokens.weight") || name.ends_with(".shared_head.head.weight");
}

// A model of so many tensors cannot be in the files: said before anything is made in the sizes that the config claims.
void check_tensor_count(const Checkpoint& checkpoint, const ModelConfig& c) {
  const auto stored = static_cast<int64_t>(checkpoint.tensors.size());
  const int64_t moe_layers =
      c.router.n_routed_experts > 0
          ? std::max<int64_t>(0, c.num_hidden_layers - c.first_k_dense_replace) + c.num_nextn_predict_layers
          : 0;
  if (c.num_hidden_layers > stored || moe_layers * c.router.n_routed_experts > stored) {
    throw Error("{}: holds {} tensors, too few for the config's {} layers with {} experts", checkpoint.where, stored,
                c.num_hidden_layers, c.router.n_routed_experts);
  }
}

bool has_mtp_layer(const Checkpoint& checkpoint, const ModelConfig& config) {
  return std::any_of(checkpoint.tensors.begin(), checkpoint.tensors.end(), [&](const auto& entry) {
    return layer_of(entry.first) >= config.num_hidden_layers && !is_redundant(entry.first, config);
  });
}

const StoredTensor* find_scale(const Checkpoint& checkpoint, const ModelConfig& config, const MatchedTensor& tensor) {
  const std::string& where = tensor.file->where();
  if (tensor.shape.rank != 2)
    throw Error("{}: tensor {} is stored as F8_E4M3, which only matrices may be", where, tensor.name);
  if (config.weight_block_rows == 0) {
    throw Error("{}: tensor {} is stored as F8_E4M3 but config.json has no quantization_config", where, tensor.name);
  }
  const std::string name = tensor.name + "_scale_inv";
  const StoredTensor* scale = checkpoint.find(name);
  if (scale == nullptr)
    throw Error("{}: tensor {} is stored as F8_E4M3 but its scales {} are missing", where, tensor.name, name);
  if (scale->format != Format::f32)
    throw Error("{}: tensor {} is stored as {}, must be F32", where, name, scale->dtype);
  const std::vector<int64_t> expected = {ceil_div(tensor.shape.shape[0], config.weight_block_rows),
                                         ceil_div(tensor.shape.shape[1], config.weight_block_cols)};
  if (scale->shape != expected) {
    throw Error("{}: tensor {} has shape {}, must be {} for blocks of {} x {}", where, name, shape_text(scale->shape),
                shape_text(expected), config.weight_block_rows, config.weight_block_cols);
  }
  return scale;
}

void check_stored(const StoredTensor& stored, std::span<const int64_t> expected, const std::string& where) {
  if (!std::ranges::equal(stored.shape, expected)) {
    throw Error("{}: tensor {} has shape {}, the config asks for {}", where, stored.name, shape_text(stored.shape),
                shape_text(expected));
  }
  switch (stored.format.value_or(Format::u8)) {
    case Format::i32:
    case Format::i64:
    case Format::u8:
      break;
    default:
      return;
  }
  throw Error(
      "{}: tensor {} is stored as {}; weights may be F32, BF16, F16 and F8_E4M3, in GGUF files also Q8_0, "
      "Q4_0, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K",
      where, stored.name, stored.dtype);
}

// The halves of a kv_b_proj that is not stored whole; false where they are missing too.
bool find_halves(const Checkpoint& checkpoint, const ModelConfig& config, MatchedTensor& tensor) {
  constexpr std::string_view kWhole = "kv_b_proj.weight";
  if (!tensor.name.ends_with(kWhole)) return false;
  const std::string prefix = tensor.name.substr(0, tensor.name.size() - kWhole.size());
  const auto k_b = checkpoint.tensors.find(prefix + "k_b_proj.weight");
  const auto v_b = checkpoint.tensors.find(prefix + "v_b_proj.weight");
  if (k_b == checkpoint.tensors.end() || v_b == checkpoint.tensors.end()) return false;
  tensor.k_b = k_b->second.tensor;
  tensor.v_b = v_b->second.tensor;
  tensor.file = k_b->second.file;
  const int64_t heads = config.num_attention_heads, rank = config.kv_lora_rank;
  check_stored(*tensor.k_b, std::array{heads * rank, config.qk_nope_head_dim}, tensor.file->where());
  check_stored(*tensor.v_b, std::array{heads * config.v_head_dim, rank}, v_b->second.file->where());
  return true;
}

// Whatever is stored beyond the weights and their scales must be known to be needless.
void check_left_over(const Checkpoint& checkpoint, const ModelConfig& config, std::span<const MatchedTensor> matched) {
  std::unordered_set<const StoredTensor*> used;
  for (const MatchedTensor& tensor : matched) {
    used.insert(tensor.stored);
    used.insert(tensor.scale);
    used.insert(tensor.k_b);
    used.insert(tensor.v_b);
  }
  const int64_t n_layers = config.num_hidden_layers + config.num_nextn_predict_layers;
  std::vector<std::string> unknown;
  int64_t beyond = 0;
  for (const WeightFile& file : checkpoint.files) {
    for (const StoredTensor& tensor : file.tensors()) {
      if (used.contains(&tensor) || is_redundant(tensor.name, config)) continue;
      if (layer_of(tensor.name) >= n_layers) {
        ++beyond;
      } else {
        unknown.push_back(tensor.name);
      }
    }
  }
  if (!unknown.empty()) {
    const bool of_indexer = !config.is_sparse() && unknown[0].find(".indexer.") != std::string::npos;
    throw Error("{}: tensors that the config has no place for: {}{}", checkpoint.where, name_list(unknown),
                of_indexer ? "; a model with an indexer is of model_type deepseek_v32" : "");
  }
  if (beyond > 0) log("{}: {} tensors of layers from {} on are left out", checkpoint.where, beyond, n_layers);
}

}  // namespace

WeightFile::WeightFile(SafetensorsFile file)
    : where_(file.where()),
      tensors_(file.tensors().begin(), file.tensors().end()),
      mapping_(std::move(file).take_mapping()) {}

WeightFile::WeightFile(std::string where, std::vector<StoredTensor> tensors, MappedFile mapping)
    : where_(std::move(where)), tensors_(std::move(tensors)), mapping_(std::move(mapping)) {}

void Checkpoint::add(WeightFile file) {
  const WeightFile& added = files.emplace_back(std::move(file));
  for (const StoredTensor& tensor : added.tensors()) {
    const auto [entry, is_new] = tensors.try_emplace(tensor.name, Place{&added, &tensor});
    if (!is_new) {
      throw Error("{}: tensor {} is in {} too", added.where(), printable(tensor.name), entry->second.file->where());
    }
  }
}

void Checkpoint::tie(std::string_view name, std::string_view twin) {
  if (const auto found = tensors.find(twin); found != tensors.end()) tensors.try_emplace(name, found->second);
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found = tensors.find(name);
  return found == tensors.end() ? nullptr : found->second.tensor;
}

Checkpoint open_shards(const JsonDocument& index, std::string where, const OpenShard& open) {
  return join_shards(index, parse_weight_map(index), std::move(where), open);
}

Checkpoint open_checkpoint(const fs::path& path) {
  if (is_gguf_path(path)) return open_gguf(path);
  const fs::path single = path_is_directory(path) ? path / "model.safetensors" : path;
  const fs::path index = path / "model.safetensors.index.json";
  if (single != path && !path_exists(single)) {
    if (path_exists(index)) return open_directory(path, index);
    throw Error("{}: holds neither model.safetensors nor model.safetensors.index.json", printable(path.native()));
  }
  Checkpoint checkpoint;
  checkpoint.where = printable(single.native());
  checkpoint.add(SafetensorsFile(single));
  return checkpoint;
}

std::vector<MatchedTensor> match_tensors(const Checkpoint& checkpoint, ModelConfig& config) {
  if (config.num_nextn_predict_layers > 0 && !has_mtp_layer(checkpoint, config)) {
    log("{}: the config has an MTP layer but the files do not; going on without it", checkpoint.where);
    config.num_nextn_predict_layers = 0;
  }
  check_tensor_count(checkpoint, config);
  std::vector<MatchedTensor> matched;
  std::vector<std::string> missing;
  for_each_tensor(weight_shapes(config), config, [&](const NamedTensor& named) {
    const auto found = checkpoint.tensors.find(named.name);
    if (found == checkpoint.tensors.end()) {
      MatchedTensor halves{named.name, named.view, nullptr, nullptr, nullptr};
      if (find_halves(checkpoint, config, halves)) {
        matched.push_back(std::move(halves));
      } else {
        missing.push_back(named.name);
      }
      return;
    }
    MatchedTensor tensor{named.name, named.view, found->second.tensor, nullptr, found->second.file};
    check_stored(*tensor.stored, std::span(named.view.shape, static_cast<size_t>(named.view.rank)),
                 tensor.file->where());
    const bool rotated = named.name.ends_with(".q_proj.weight") || named.name.ends_with(".k_proj.weight");
    if (checkpoint.is_gguf && config.model_type == "llama" && rotated) tensor.paired_rows = config.head_dim;
    if (tensor.stored->format == Format::f8_e4m3) tensor.scale = find_scale(checkpoint, config, tensor);
    matched.push_back(std::move(tensor));
  });
  if (!missing.empty()) throw Error("{}: missing tensors: {}", checkpoint.where, name_list(missing));
  check_left_over(checkpoint, config, matched);
  return matched;
}

}  // namespace fathom
