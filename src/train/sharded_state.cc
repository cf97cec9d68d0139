#include "train/sharded_state.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/hf_model.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shards.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// The ranks that hold all of a stage but embedding and experts.
const RankGroup& holders_of_stage(const RankState& state, size_t direction) {
  const auto begin = static_cast<size_t>(state.stages[direction].parameters.n_embed);
  const auto found = std::ranges::find_if(
      state.regions, [&](const Region& region) { return region.direction == direction && region.begin == begin; });
  FATHOM_CHECK(found != state.regions.end());
  return found->holders;
}

// The ranks that have a tensor under its name.
const RankGroup& holders_of(const RankState& state, size_t direction, const TensorToWrite& tensor) {
  const Parameters& parameters = state.stages[direction].parameters;
  const bool is_embedding = tensor.view.data == parameters.weights.embed.data;
  // An MTP module's copy of the embedding is a tensor of the last stage.
  if (is_embedding && tensor.name != "model.embed_tokens.weight") return holders_of_stage(state, direction);
  const auto at = static_cast<size_t>(static_cast<const float*>(tensor.view.data) - parameters.trained().data());
  for (const Region& region : state.regions) {
    const bool is_here = region.direction == direction || (is_embedding && region.twin == direction);
    if (is_here && at >= region.begin && at < region.begin + region.size) return region.holders;
  }
  return holders_of_stage(state, direction);  // biases, which are not trained
}

// `work`, and then all ranks go on or fail together.
template <class Work>
void together(const RankGroup& all, const Work& work) {
  std::string failed;
  try {
    work();
  } catch (const std::exception& error) {
    failed = error.what();
    if (failed.empty()) failed = "unknown";
  }
  fail_together(all, failed);
}

std::string optimizer_name(int rank) { return fmt::format("{}{:05d}.safetensors", kOptimizerShard, rank); }

// A stretch of a stage's flat parameters of which this rank keeps something beside the weights.
struct Held {
  Kept kept;
  size_t direction;
  int64_t begin, end;
  Tensor values;  // [end - begin]
};
std::vector<Held> held_beside_weights(const RankState& state) {
  std::vector<Held> held;
  const auto add_average = [&](size_t direction, int64_t begin, const std::vector<float>& average) {
    if (average.empty()) return;
    const Tensor values(const_cast<float*>(average.data()), Format::f32, {std::ssize(average)});  // NOLINT
    held.push_back({Kept::average, direction, begin, begin + std::ssize(average), values});
  };
  for (const Region& region : state.regions) {
    const auto begin = static_cast<int64_t>(region.begin + region.own.begin);
    const auto end = static_cast<int64_t>(region.begin + region.own.end);
    held.push_back({Kept::first_moment, region.direction, begin, end, region.first_moment.values});
    held.push_back({Kept::second_moment, region.direction, begin, end, region.second_moment.values});
    add_average(region.direction, begin, region.average);
  }
  for (size_t d = 0; d < state.bias_averages.size(); ++d) {
    add_average(d, state.stages[d].parameters.n_trained, state.bias_averages[d]);
  }
  return held;
}

// The tensors of each stage, biases too, by where they lie.
std::vector<std::vector<TrainedTensor>> tensors_of_stages(const RankState& state) {
  std::vector<std::vector<TrainedTensor>> tensors;
  for (const Stage& stage : state.stages) {
    tensors.push_back(averaged_tensors(stage.parameters.weights, state.config));
  }
  return tensors;
}

// Whose turn it is to write what several have.
bool writes(const RankGroup& holders, const std::string& name) {
  const uint64_t choice = XXH3_64bits(name.data(), name.size());
  return static_cast<int>(choice % static_cast<uint64_t>(holders.size())) == holders.index;
}

std::vector<TensorToWrite> pieces_of_rank(const RankState& state) {
  std::vector<TensorToWrite> pieces;
  const std::vector<std::vector<TrainedTensor>> tensors = tensors_of_stages(state);
  for (const Held& held : held_beside_weights(state)) {
    for (const TrainedTensor& tensor : tensors[held.direction]) {
      const int64_t from = std::max(held.begin, tensor.offset), to = std::min(held.end, tensor.offset + tensor.size);
      if (from >= to) continue;
      const bool is_bias = tensor.offset >= state.stages[held.direction].parameters.n_trained;
      if (is_bias && !writes(holders_of_stage(state, held.direction), tensor.name)) continue;
      const Tensor values = held.values.columns(from - held.begin, to - from);
      pieces.push_back({state_piece_name(tensor.name, held.kept, from - tensor.offset), values, values.format});
    }
  }
  return pieces;
}

}  // namespace

void fail_together(const RankGroup& all, const std::string& failed) {
  // The first that failed speaks for all.
  std::vector<int64_t> flags(static_cast<size_t>(all.size()));
  flags[static_cast<size_t>(all.index)] = failed.empty() ? 0 : 1;
  sum_over(all, std::span(flags));
  const auto first = std::find(flags.begin(), flags.end(), 1) - flags.begin();
  if (first == std::ssize(flags)) return;
  throw FailedTogether(first == all.index ? failed : fmt::format("rank {} failed", first), first == all.index);
}

namespace {

// What of the whole model this rank writes: whole tensors, each by one of the ranks that hold it.
std::vector<TensorToWrite> tensors_of_rank(const RankState& state, Format format) {
  std::vector<TensorToWrite> own;
  std::set<std::string> seen;  // of the embedding that both stages have
  for (size_t d = 0; d < state.stages.size(); ++d) {
    for (const TensorToWrite& tensor : tensors_to_save(state.config, state.stages[d].parameters.weights, format)) {
      const RankGroup& holders = holders_of(state, d, tensor);
      if (writes(holders, tensor.name) && seen.insert(tensor.name).second) own.push_back(tensor);
    }
  }
  return own;
}

}  // namespace

RankFiles files_of_rank(const RankState& state, Format format) {
  RankFiles files{.rank = state.all.index,
                  .n_ranks = state.all.size(),
                  .model = tensors_of_rank(state, format),
                  .beside = pieces_of_rank(state)};
  nlohmann::json own = nlohmann::json::array();
  for (const TensorToWrite& t : files.model) own.push_back({t.name, t.view.size() * format_bytes(t.format)});
  std::vector<StoredSize> sizes;
  std::vector<size_t> shards;
  for (const std::string& text : gather_texts(state.all, own.dump())) {
    const nlohmann::json of_rank = nlohmann::json::parse(text);
    shards.push_back(of_rank.size());
    for (const auto& entry : of_rank) sizes.push_back({entry[0], entry[1]});
  }
  if (files.rank == 0) files.index = index_json(sizes, shards);
  return files;
}

void write_model_files(const fs::path& directory, const RankFiles& files) {
  write_safetensors(directory / shard_names(static_cast<size_t>(files.n_ranks))[static_cast<size_t>(files.rank)],
                    files.model);
}

void write_files_beside(const fs::path& directory, const RankFiles& files) {
  write_safetensors(directory / optimizer_name(files.rank), files.beside);
}

void commit_rank_files(const fs::path& directory, const ModelConfig& config, Format format, const RankFiles& files) {
  commit_model(directory, config, format, {}, shard_names(static_cast<size_t>(files.n_ranks)), files.index);
}

void save_sharded_model(const fs::path& directory, const RankState& state, const Tokenizer& tokenizer, Format format) {
  together(state.all, [&] {
    if (state.all.index == 0) {
      make_directory(directory);
      tokenizer.save(directory);  // before the model, whose config.json comes last
    }
  });
  const RankFiles files = files_of_rank(state, format);
  together(state.all, [&] { write_model_files(directory, files); });
  together(state.all, [&] {
    if (files.rank == 0) commit_rank_files(directory, state.config, format, files);
  });
}

void load_sharded_model(const fs::path& path, RankState& state, ThreadPool& pool) {
  together(state.all, [&] {
    for (Stage& stage : state.stages) {
      LoadedModel loaded = load_model(path, pool, stage.part);
      if (loaded.parameters.n_total != stage.parameters.n_total) {
        throw Error("{}: is another model than the run's", printable(path.native()));
      }
      std::ranges::copy(loaded.parameters.all(), stage.parameters.all().begin());
    }
  });
}

void load_sharded_checkpoint(const fs::path& directory, RankState& state, ThreadPool& pool) {
  load_sharded_model(directory, state, pool);
  together(state.all, [&] {
    std::vector<std::map<std::string, TrainedTensor>> tensors;  // [stage]
    for (const std::vector<TrainedTensor>& of_stage : tensors_of_stages(state)) {
      auto& by_name = tensors.emplace_back();
      for (const TrainedTensor& tensor : of_stage) by_name.emplace(tensor.name, tensor);
    }
    const std::vector<Held> all_held = held_beside_weights(state);
    int64_t n_loaded = 0, n_wanted = 0;
    for_each_state_piece(directory, state.config, [&](const StatePiece& piece) {
      for (size_t d = 0; d < tensors.size(); ++d) {
        const auto found = tensors[d].find(piece.name);
        if (found == tensors[d].end()) continue;
        const int64_t at = found->second.offset + piece.offset;
        for (const Held& held : all_held) {
          const int64_t from = std::max(held.begin, at), to = std::min(held.end, at + piece.values.cols());
          if (held.kept != piece.kept || held.direction != d || from >= to) continue;
          const Tensor into = held.values.columns(from - held.begin, to - from);
          if (into.format != piece.values.format) {
            throw Error("{}: its moments have another format than --moments", printable(directory.native()));
          }
          std::memcpy(into.data, piece.values.columns(from - at, into.cols()).data,
                      static_cast<size_t>(into.size_bytes()));
          n_loaded += to - from;
        }
      }
    });
    for (const Held& held : all_held) {
      for (const auto& [name, tensor] : tensors[held.direction]) {
        n_wanted +=
            std::max(std::min(held.end, tensor.offset + tensor.size) - std::max(held.begin, tensor.offset), int64_t{0});
      }
    }
    if (n_loaded != n_wanted) {
      throw Error("{}: moments or averages are missing", printable(directory.native()));
    }
  });
}

}  // namespace fathom
