#include "checkpoint/hf_model.h"

#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <system_error>

#include "base/terminal.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/hf_directory.h"
#include "checkpoint/safetensors.h"
#include "number/formats.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndexName = "model.safetensors.index.json";

// Stored scales are copied: files owe them no alignment.
std::vector<float> read_scales(const MatchedTensor& tensor) {
  std::vector<float> scales(tensor.scale->data.size() / sizeof(float));
  std::memcpy(scales.data(), tensor.scale->data.data(), tensor.scale->data.size());
  for (const float scale : scales) {
    if (!std::isfinite(scale))
      throw Error("{}: tensor {} holds a scale that is not finite", tensor.file->where(), tensor.scale->name);
  }
  return scales;
}

// Numbers [begin, begin + n) of a tensor. One that is not finite would spread to every output without a word.
void check_finite(const MatchedTensor& tensor, const float* values, int64_t begin, int64_t n) {
  constexpr uint32_t kExponent = 0x7F800000;  // all its bits set: infinity or NaN
  uint32_t broken = 0;
  for (int64_t i = 0; i < n; ++i) broken |= (std::bit_cast<uint32_t>(values[begin + i]) & kExponent) == kExponent;
  if (broken == 0) return;
  while (std::isfinite(values[begin])) ++begin;
  const int64_t cols = tensor.shape.cols();
  const std::string place =
      tensor.shape.rank == 1 ? fmt::to_string(begin) : fmt::format("row {}, column {}", begin / cols, begin % cols);
  throw Error("{}: tensor {} holds a number that is not finite, at {}", tensor.file->where(), tensor.name, place);
}

// Rows of one tensor, about as many numbers in each piece: the unit of parallel work.
struct Piece {
  const MatchedTensor* from;
  const std::vector<float>* scales;
  Tensor to;
  int64_t first_row, n_rows;
};
constexpr int64_t kPieceNumbers = int64_t{1} << 20;
constexpr size_t kPiecesToWaitFor = 1000;  // about a second

// Whole heads of kv_b_proj: of each, first its rows of k_b turned back, then its rows of v_b.
void join_halves(const Piece& piece, const ModelConfig& config) {
  const StoredTensor &k_b = *piece.from->k_b, &v_b = *piece.from->v_b;
  const int64_t rank = config.kv_lora_rank, nope = config.qk_nope_head_dim, v = config.v_head_dim;
  const auto decode = [](float* to, const StoredTensor& from, int64_t begin, int64_t n) {
    to_f32(to, from.data.data() + format_bytes(*from.format, begin), *from.format, n);
  };
  std::vector<float> turned(static_cast<size_t>(rank * nope));
  for (int64_t row = piece.first_row; row < piece.first_row + piece.n_rows; row += nope + v) {
    const int64_t head = row / (nope + v);
    decode(turned.data(), k_b, head * rank * nope, rank * nope);
    float* to = piece.to.f32_row(row);
    for (int64_t i = 0; i < nope; ++i) {
      for (int64_t r = 0; r < rank; ++r) *to++ = turned[static_cast<size_t>(r * nope + i)];
    }
    decode(to, v_b, head * v * rank, v * rank);
  }
  check_finite(*piece.from, piece.to.f32(), piece.first_row * rank, piece.n_rows * rank);
}

void convert(const Piece& piece, const ModelConfig& config) {
  if (piece.from->stored == nullptr) return join_halves(piece, config);
  const Format format = *piece.from->stored->format;
  const int64_t cols = piece.to.cols(), begin = piece.first_row * cols;
  float* to = piece.to.f32() + begin;
  const std::byte* from = piece.from->stored->data.data() + format_bytes(format, begin);
  if (format == Format::f8_e4m3) {
    dequantize_f8_blocks(to, reinterpret_cast<const uint8_t*>(from), piece.scales->data(), piece.first_row,
                         piece.n_rows, cols, {config.weight_block_rows, config.weight_block_cols});
  } else {
    to_f32(to, from, format, piece.n_rows * cols);
  }
  check_finite(*piece.from, piece.to.f32(), begin, piece.n_rows * cols);
}

// What save_model stores: every weight, and behind an MTP layer the copies of embedding and head that readers look for
// there.
std::vector<TensorToWrite> tensors_to_save(const ModelConfig& config, const ModelWeights& weights, Format format) {
  std::vector<TensorToWrite> tensors;
  for_each_tensor(weights, config, [&](const NamedTensor& named) {
    tensors.push_back({named.name, named.view, named.trained ? format : Format::f32});
  });
  for (size_t m = 0; m < weights.mtp.size(); ++m) {
    const std::string prefix = fmt::format("model.layers.{}.", config.num_hidden_layers + static_cast<int64_t>(m));
    tensors.push_back({prefix + "embed_tokens.weight", weights.embed, format});
    tensors.push_back({prefix + "shared_head.head.weight", weights.head, format});
  }
  return tensors;
}

int64_t stored_bytes(const TensorToWrite& tensor) { return tensor.view.size() * format_bytes(tensor.format); }

// Consecutive tensors of at most max_bytes together; one that is larger stands alone.
std::vector<std::vector<TensorToWrite>> cut_shards(const std::vector<TensorToWrite>& tensors, int64_t max_bytes) {
  std::vector<std::vector<TensorToWrite>> shards(1);
  int64_t bytes = 0;
  for (const TensorToWrite& tensor : tensors) {
    if (!shards.back().empty() && bytes + stored_bytes(tensor) > max_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += stored_bytes(tensor);
    shards.back().push_back(tensor);
  }
  return shards;
}

std::string index_json(const std::vector<std::vector<TensorToWrite>>& shards,
                       const std::vector<std::string>& file_names) {
  nlohmann::json index;
  int64_t total = 0;
  for (size_t s = 0; s < shards.size(); ++s) {
    for (const TensorToWrite& tensor : shards[s]) {
      index["weight_map"][tensor.name] = file_names[s];
      total += stored_bytes(tensor);
    }
  }
  index["metadata"]["total_size"] = total;
  return index.dump(2) + "\n";
}

void remove_file(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) throw Error("{}: cannot remove: {}", printable(path.native()), error.message());
}

// Weights of an earlier save under names that this one does not use would be taken for this model's.
void remove_other_weights(const fs::path& directory, const std::set<std::string>& keep) {
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename();
    const bool weights = name == kIndexName || (name.starts_with("model") && name.ends_with(".safetensors"));
    if (weights && !keep.contains(name)) remove_file(entry.path());
  }
}

}  // namespace

LoadedModel load_model(const Checkpoint& checkpoint, const ModelConfig& claimed, ThreadPool& pool) {
  LoadedModel model{claimed, {}};
  const std::vector<MatchedTensor> matched = match_tensors(checkpoint, model.config);
  std::vector<std::vector<float>> scales(matched.size());
  for (size_t i = 0; i < matched.size(); ++i) {
    if (matched[i].scale != nullptr) scales[i] = read_scales(matched[i]);
  }
  // Every shape has been found in the files, so their length justifies this memory.
  model.parameters = allocate_parameters(model.config);
  std::vector<Piece> pieces;
  size_t i = 0;
  for_each_tensor(model.parameters.weights, model.config, [&](const NamedTensor& named) {
    FATHOM_CHECK(i < matched.size() && matched[i].name == named.name && named.view.contiguous(), "{}", named.name);
    // A piece of joined halves has whole heads.
    const int64_t unit = matched[i].stored != nullptr ? 1 : model.config.qk_nope_head_dim + model.config.v_head_dim;
    const int64_t rows = named.view.rows();
    const int64_t step = std::max<int64_t>(1, kPieceNumbers / named.view.cols() / unit) * unit;
    for (int64_t row = 0; row < rows; row += step) {
      pieces.push_back({&matched[i], &scales[i], named.view, row, std::min(step, rows - row)});
    }
    ++i;
  });

  std::optional<Progress> progress;  // only where there is something to wait for
  if (pieces.size() >= kPiecesToWaitFor) progress.emplace("loading", static_cast<int64_t>(pieces.size()));
  std::atomic<int64_t> done{0};
  pool.run(static_cast<int64_t>(pieces.size()), [&](int64_t p, int thread) {
    convert(pieces[static_cast<size_t>(p)], model.config);
    const int64_t n = done.fetch_add(1, std::memory_order_relaxed) + 1;
    if (thread == 0 && progress) progress->update(n);
  });
  return model;
}

LoadedModel load_model(const fs::path& path, ThreadPool& pool) {
  if (path.empty()) throw Error("the name of the model's directory is empty");
  if (!path_exists(path)) throw Error("{}: no such directory", printable(path.native()));
  if (!is_gguf_path(path) && !path_is_directory(path)) {
    throw Error("{}: is a file; a model is a directory with config.json and model.safetensors, or a .gguf file",
                printable(path.native()));
  }
  const ModelConfig config = read_model_config(path);
  return load_model(open_checkpoint(path), config, pool);
}

void save_model(const fs::path& directory, const ModelConfig& config, const ModelWeights& weights,
                const SaveOptions& options) {
  FATHOM_CHECK(options.format == Format::f32 || options.format == Format::bf16);
  make_directory(directory);
  const auto shards = cut_shards(tensors_to_save(config, weights, options.format), options.max_shard_bytes);
  std::vector<std::string> file_names{"model.safetensors"};
  if (shards.size() > 1) {
    file_names.clear();
    for (size_t s = 0; s < shards.size(); ++s) {
      file_names.push_back(fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size()));
    }
  }

  // All weights are written beside their names first. Only then does the old model, if there is one, give way;
  // config.json goes first and comes last, so that whatever stands in between is no model to any reader.
  std::vector<std::unique_ptr<AtomicFile>> files;
  for (size_t s = 0; s < shards.size(); ++s) {
    files.push_back(std::make_unique<AtomicFile>(directory / file_names[s]));
    write_safetensors(*files.back(), shards[s]);
  }
  remove_file(directory / "config.json");
  for (auto& file : files) file->commit();
  std::set<std::string> keep(file_names.begin(), file_names.end());
  if (shards.size() > 1) {
    keep.insert(kIndexName);
    write_file_atomically(directory / kIndexName, index_json(shards, file_names));
  }
  remove_other_weights(directory, keep);
  write_file_atomically(directory / "generation_config.json", generation_config_json(config));
  write_file_atomically(directory / "config.json", config_json(config, options.format));
}

}  // namespace fathom
