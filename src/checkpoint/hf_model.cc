#include "checkpoint/hf_model.h"

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <system_error>

#include "base/terminal.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/hf_directory.h"
#include "checkpoint/read_rows.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shards.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// Rows of one tensor, about as many numbers in each piece: the unit of parallel work.
struct Piece {
  const RowSource* from;
  Tensor to;
  int64_t first_row, n_rows;
};
constexpr int64_t kPieceNumbers = int64_t{1} << 20;
constexpr size_t kPiecesToWaitFor = 1000;  // about a second

}  // namespace

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

namespace {

int64_t stored_bytes(const TensorToWrite& tensor) { return tensor.view.size() * format_bytes(tensor.format); }

void remove_file(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) throw Error("{}: cannot remove: {}", printable(path.native()), error.message());
}

// Weights of an earlier save under names that this one does not use would be taken for this model's.
void remove_other_weights(const fs::path& directory, const std::set<std::string>& keep) {
  for (const fs::path& path : list_directory(directory)) {
    const std::string name = path.filename();
    const bool weights = name == kIndexName || (name.starts_with("model") && name.ends_with(".safetensors"));
    if (weights && !keep.contains(name)) remove_file(path);
  }
}

}  // namespace

LoadedModel load_model(const Checkpoint& checkpoint, const ModelConfig& claimed, ThreadPool& pool,
                       const WeightPart& part) {
  LoadedModel model{claimed, {}};
  const std::vector<MatchedTensor> matched = match_tensors(checkpoint, model.config);
  const std::vector<RowSource> sources = row_sources(matched);
  // Every shape has been found in the files, so their length justifies this memory.
  model.parameters = allocate_parameters(model.config, /*with_bias=*/true, part);
  std::vector<Piece> pieces;
  size_t i = 0;  // those of a part stand in the order of the whole
  for_each_tensor(model.parameters.weights, model.config, [&](const NamedTensor& named) {
    while (i < matched.size() && matched[i].name != named.name) ++i;
    FATHOM_CHECK(i < matched.size() && named.view.contiguous(), "{}", named.name);
    // A piece of joined halves has whole heads.
    const int64_t unit = matched[i].stored != nullptr ? 1 : model.config.qk_nope_head_dim + model.config.v_head_dim;
    const int64_t rows = named.view.rows();
    const int64_t step = std::max<int64_t>(1, kPieceNumbers / named.view.cols() / unit) * unit;
    for (int64_t row = 0; row < rows; row += step) {
      pieces.push_back({&sources[i], named.view, row, std::min(step, rows - row)});
    }
    ++i;
  });

  std::optional<Progress> progress;  // only where there is something to wait for
  if (pieces.size() >= kPiecesToWaitFor) progress.emplace("loading", static_cast<int64_t>(pieces.size()));
  std::atomic<int64_t> done{0};
  pool.run(static_cast<int64_t>(pieces.size()), [&](int64_t p, int thread) {
    const Piece& piece = pieces[static_cast<size_t>(p)];
    read_rows(piece.to.f32_row(piece.first_row), *piece.from, model.config, piece.first_row, piece.n_rows);
    const int64_t n = done.fetch_add(1, std::memory_order_relaxed) + 1;
    if (thread == 0 && progress) progress->update(n);
  });
  return model;
}

void check_model_path(const fs::path& path) {
  if (path.empty()) throw Error("the name of the model's directory is empty");
  if (!path_exists(path)) throw Error("{}: no such directory", printable(path.native()));
  if (!is_gguf_path(path) && !path_is_directory(path)) {
    throw Error("{}: is a file; a model is a directory with config.json and model.safetensors, or a .gguf file",
                printable(path.native()));
  }
}

LoadedModel load_model(const fs::path& path, ThreadPool& pool, const WeightPart& part) {
  check_model_path(path);
  const ModelConfig config = read_model_config(path);
  if (config.packed) {
    throw Error("{}: holds weights packed for inference; this takes the model that they were made from",
                printable(path.native()));
  }
  return load_model(open_checkpoint(path), config, pool, part);
}

void save_model(const fs::path& directory, const ModelConfig& config, const ModelWeights& weights,
                const SaveOptions& options) {
  FATHOM_CHECK(options.format == Format::f32 || options.format == Format::bf16);
  const NewDirectory made(directory);
  const std::vector<TensorToWrite> tensors = tensors_to_save(config, weights, options.format);
  std::vector<StoredSize> sizes;
  for (const TensorToWrite& tensor : tensors) sizes.push_back({tensor.name, stored_bytes(tensor)});
  const std::vector<size_t> shards = cut_shards(sizes, options.max_shard_bytes);
  const std::vector<std::string> file_names = shard_names(shards.size());

  std::vector<std::unique_ptr<AtomicFile>> files;
  std::vector<AtomicFile*> written;
  size_t next = 0;
  for (size_t s = 0; s < shards.size(); ++s) {
    files.push_back(std::make_unique<AtomicFile>(directory / file_names[s]));
    write_safetensors(*files.back(), std::span(tensors).subspan(next, shards[s]));
    next += shards[s];
    written.push_back(files.back().get());
  }
  commit_model(directory, config, options.format, written, file_names, index_json(sizes, shards));
}

void commit_model(const fs::path& directory, const ModelConfig& config, Format stored,
                  std::span<AtomicFile* const> files, const std::vector<std::string>& file_names,
                  const std::string& index, const std::function<void()>& write_others) {
  remove_file(directory / "config.json");
  sync_directory(directory);  // else a power loss could leave it there, beside new weights
  for (AtomicFile* file : files) file->commit();
  std::set<std::string> keep(file_names.begin(), file_names.end());
  if (!index.empty()) {
    keep.insert(kIndexName);
    write_file_atomically(directory / kIndexName, index);
  }
  remove_other_weights(directory, keep);
  write_file_atomically(directory / "generation_config.json", generation_config_json(config));
  if (write_others) write_others();
  write_file_atomically(directory / "config.json", config_json(config, stored));
}

}  // namespace fathom
