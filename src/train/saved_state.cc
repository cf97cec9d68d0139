#include "train/saved_state.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/checksum.h"
#include "base/file.h"
#include "base/json.h"
#include "base/terminal.h"
#include "checkpoint/safetensors.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxStateJson = size_t{16} << 20;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kTrainer = "trainer.json";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kAverage = "average.safetensors";
constexpr const char* kKept[] = {"first_moment", "second_moment", "average"};  // [Kept], in files
constexpr const char* kPartial = ".partial";  // behind the name of a checkpoint that is being written
constexpr const char* kRemoved = ".removed";  // and of one that is being removed

// The N of "step-N"; -1 for any other name.
int64_t step_of(const fs::path& path) {
  const std::string name = path.filename().string();
  constexpr std::string_view prefix = "step-";
  int64_t step = -1;
  if (!name.starts_with(prefix)) return -1;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, step);
  return error == std::errc() && stop == end ? step : -1;
}

// Newest first.
std::vector<int64_t> saved_steps(const fs::path& out) {
  std::vector<int64_t> steps;
  for (const fs::path& path : list_directory(out / "checkpoints")) {
    if (const int64_t step = step_of(path); step >= 0) steps.push_back(step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

fs::path with_suffix(fs::path path, const char* suffix) { return path += suffix; }

// Of a checkpoint's files, those that are small beside the weights guessed.
uint64_t checkpoint_bytes(const TrainedState& state) {
  constexpr uint64_t kSmallFiles = uint64_t{1} << 20;
  const ModelWeights& w = state.parameters.weights;
  const auto copied = static_cast<int64_t>(w.mtp.size()) * (w.embed.size() + w.head.size());  // into MTP's layers
  const auto weights = static_cast<uint64_t>(state.parameters.n_total + copied) * sizeof(float);
  const auto moments =
      static_cast<uint64_t>(state.first_moment.values.size_bytes() + state.second_moment.values.size_bytes());
  const auto all = weights + moments + static_cast<uint64_t>(state.average.n_total) * sizeof(float);
  return all + all / 64 + kSmallFiles;
}

// The last line of a manifest of which `before` is the rest: a checksum of that.
std::string manifest_end(std::string_view before) { return fmt::format(" \"xxh3\": \"{}\"\n}}\n", xxh3_of(before)); }

std::string manifest_of(const fs::path& directory) {
  nlohmann::ordered_json files;
  for (const fs::path& path : list_directory(directory)) {
    const auto [bytes, xxh3] = checksum_of_file(path);
    files[path.filename().string()] = {{"bytes", bytes}, {"xxh3", hex_of(xxh3)}};
  }
  std::string manifest = nlohmann::ordered_json{{"files", files}}.dump(1);
  manifest.resize(manifest.size() - 2);  // the line end and brace that come behind the checksum
  manifest += ",\n";
  return manifest + manifest_end(manifest);
}

// Each file is on disk under its name before the next is begun.
void write_files(const fs::path& directory, const TrainedState& state, const Tokenizer& tokenizer,
                 const Settings& settings) {
  tokenizer.save(directory);
  save_model(directory, state.config, state.parameters.weights, {.format = Format::f32});
  const Moment &m = state.first_moment, &v = state.second_moment;
  write_safetensors(directory / kOptimizer, std::vector<TensorToWrite>{{"first_moment", m.values, m.values.format},
                                                                       {"second_moment", v.values, v.values.format}});
  if (state.average.n_total > 0) {
    const Tensor average(state.average.memory.data(), Format::f32, {state.average.n_total});
    write_safetensors(directory / kAverage, std::vector<TensorToWrite>{{"average", average, Format::f32}});
  }
  write_trainer(directory, state, settings);
}

void rename_directory(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (!error) return;
  throw Error("{}: cannot rename it to {}: {}", printable(from.native()), to.filename().native(), error.message());
}

void remove_directory(const fs::path& directory) {
  std::error_code error;
  fs::remove_all(directory, error);
  if (error) throw Error("{}: cannot remove: {}", printable(directory.native()), error.message());
}

void remove_checkpoint(const fs::path& directory) {
  const fs::path removed = with_suffix(directory, kRemoved);
  remove_directory(removed);  // what an earlier try left
  rename_directory(directory, removed);
  sync_directory(directory.parent_path());
  remove_directory(removed);
}

Settings read_numbers(const fs::path& directory, TrainedState& state) {
  const JsonDocument trainer = JsonDocument::read(directory / kTrainer, kMaxStateJson);
  Settings settings;
  simdjson::dom::object stored;
  if (trainer.root()["step"].get_int64().get(state.step) != simdjson::SUCCESS ||
      trainer.root()["tokens"].get_int64().get(state.tokens) != simdjson::SUCCESS ||
      trainer.root()["loss"].get_double().get(state.loss) != simdjson::SUCCESS ||
      trainer.root()["loss_guard"]["mean"].get_double().get(state.guard.mean) != simdjson::SUCCESS ||
      trainer.root()["loss_guard"]["variance"].get_double().get(state.guard.variance) != simdjson::SUCCESS ||
      trainer.root()["loss_guard"]["taken"].get_int64().get(state.guard.taken) != simdjson::SUCCESS ||
      trainer.root()["loss_guard"]["skipped"].get_int64().get(state.guard.skipped) != simdjson::SUCCESS ||
      trainer.root()["settings"].get_object().get(stored) != simdjson::SUCCESS || state.step != step_of(directory)) {
    throw Error("{}: step, tokens, losses or settings are missing or wrong", trainer.where());
  }
  for (const auto& [name, into] : {std::pair("val_loss", &state.val_loss), std::pair("lr", &state.lr)}) {
    if (double value; trainer.root()[name].get_double().get(value) == simdjson::SUCCESS) *into = value;
  }
  for (const auto [key, value] : stored) {
    std::string_view text;
    if (value.get_string().get(text) == simdjson::SUCCESS) settings[std::string(key)] = std::string(text);
  }
  return settings;
}

Tensor moment_values(const SafetensorsFile& file, const StoredTensor& stored) {
  if (stored.format != Format::f32 && stored.format != Format::bf16) {
    throw Error("{}: {} is neither f32 nor bf16", file.where(), printable(stored.name));
  }
  const auto n = static_cast<int64_t>(stored.data.size()) / format_bytes(*stored.format);
  return Tensor(const_cast<std::byte*>(stored.data.data()), *stored.format, {n});  // NOLINT: read only
}

// One that a single process wrote: of all n trained parameters, with what lies between tensors.
Tensor whole_moment(const SafetensorsFile& file, Kept kept, int64_t n) {
  const char* const name = kKept[static_cast<size_t>(kept)];
  const StoredTensor* stored = file.find(name);
  if (stored != nullptr) {
    const Tensor values = moment_values(file, *stored);
    if (values.size() == n) return values;
  }
  throw Error("{}: {} is missing or has another size than the model", file.where(), name);
}

// In one piece, or in many, with those of the average, where several processes wrote them.
void load_moments(const fs::path& directory, TrainedState& state) {
  if (path_exists(directory / kOptimizer)) {
    const SafetensorsFile file(directory / kOptimizer);
    for (const Kept kept : {Kept::first_moment, Kept::second_moment}) {
      const Tensor stored = whole_moment(file, kept, state.parameters.n_trained);
      Moment& into = kept == Kept::second_moment ? state.second_moment : state.first_moment;
      into = allocate_moment(stored.size(), stored.format);
      std::memcpy(into.memory.data(), stored.data, into.memory.size());
    }
    return;
  }
  std::map<std::string, int64_t> offsets;
  int64_t of_moments = 0, of_average = 0;  // floats that are missing
  for (const TrainedTensor& tensor : averaged_tensors(state.parameters.weights, state.config)) {
    offsets.emplace(tensor.name, tensor.offset);
    of_average += tensor.size;
    if (tensor.offset < state.parameters.n_trained) of_moments += 2 * tensor.size;
  }
  for_each_state_piece(directory, state.config, [&](const StatePiece& piece) {
    const int64_t at = offsets.at(piece.name) + piece.offset, n = piece.values.cols();
    if (piece.kept == Kept::average) {
      if (state.average.n_total == 0) state.average = allocate_parameters(state.config);
      std::copy_n(piece.values.f32(), n, state.average.all().data() + at);
      of_average -= n;
      return;
    }
    Moment& into = piece.kept == Kept::second_moment ? state.second_moment : state.first_moment;
    if (into.memory.size() == 0) into = allocate_moment(state.parameters.n_trained, piece.values.format);
    const Tensor to = into.values.columns(at, n);
    if (to.format != piece.values.format) throw Error("{}: moments of two formats", printable(directory.native()));
    std::memcpy(to.data, piece.values.data, static_cast<size_t>(to.size_bytes()));
    of_moments -= n;
  });
  if (of_moments != 0 || (state.average.n_total > 0 && of_average != 0)) {
    throw Error("{}: moments or averages are missing", printable(directory.native()));
  }
}

void load_average(const fs::path& directory, TrainedState& state) {
  if (!path_exists(directory / kAverage)) return;
  const SafetensorsFile file(directory / kAverage);
  const StoredTensor* stored = file.find("average");
  state.average = allocate_parameters(state.config);
  const std::span<float> into = state.average.all();
  if (stored == nullptr || stored->format != Format::f32 || stored->data.size() != into.size_bytes()) {
    throw Error("{}: the average is missing or has another size than the model", file.where());
  }
  std::memcpy(into.data(), stored->data.data(), into.size_bytes());
}

void check_settings(const fs::path& directory, const Settings& stored, const Settings& wanted) {
  for (const auto& [name, value] : wanted) {
    const auto found = stored.find(name);
    const std::string before = found == stored.end() ? "not set" : found->second;
    if (before == value) continue;
    if (name == kInstructionSet) {  // a run may move to another machine
      if (found != stored.end())
        log("{} was saved by a CPU that computes with {}, this one does with {}: bits will not be those of a run on "
            "one",
            printable(directory.native()), printable(before), value);
      continue;
    }
    throw Error("--resume: {} is {} now and was {} when {} was saved; give the same or start anew in another --out",
                name, printable(value), printable(before), printable(directory.native()));
  }
}

}  // namespace

Moment allocate_moment(int64_t n, Format format) {
  Moment moment{{}, Tensor(nullptr, format, {n})};
  const auto bytes = static_cast<size_t>(moment.values.size_bytes());
  moment.memory = Buffer(bytes);
  if (bytes > 0) std::memset(moment.memory.data(), 0, bytes);
  moment.values.data = moment.memory.data();
  return moment;
}

void copy_state(TrainedState& into, const TrainedState& state) {
  const auto copy_moment = [&](Moment& to, const Moment& from) {
    if (to.memory.size() != from.memory.size()) to = allocate_moment(state.parameters.n_trained, from.values.format);
    if (from.memory.size() > 0) std::memcpy(to.memory.data(), from.memory.data(), from.memory.size());
  };
  const auto copy_parameters = [&](Parameters& to, const Parameters& from) {
    if (to.n_total != from.n_total) to = allocate_parameters(state.config);
    std::ranges::copy(from.all(), to.all().begin());
  };
  copy_parameters(into.parameters, state.parameters);
  if (state.average.n_total > 0) copy_parameters(into.average, state.average);
  copy_moment(into.first_moment, state.first_moment);
  copy_moment(into.second_moment, state.second_moment);
  into.config = state.config;
  into.step = state.step;
  into.tokens = state.tokens;
  into.loss = state.loss;
  into.lr = state.lr;
  into.guard = state.guard;
  into.val_loss = state.val_loss;
}

fs::path checkpoint_directory(const fs::path& out, int64_t step) {
  return out / "checkpoints" / fmt::format("step-{}", step);
}

fs::path partial_checkpoint(const fs::path& out, int64_t step) {
  return with_suffix(checkpoint_directory(out, step), kPartial);
}

bool has_checkpoints(const fs::path& out) { return !saved_steps(out).empty(); }

void check_free_space(const fs::path& out, const TrainedState& state) {
  std::error_code error;
  const auto space = fs::space(out, error);
  const uint64_t needed = checkpoint_bytes(state);
  if (!error && space.available < needed) {
    throw Error("{}: a checkpoint needs {} and the disk has {} left; make room or give another --out",
                printable(out.native()), human_bytes(static_cast<double>(needed)),
                human_bytes(static_cast<double>(space.available)));
  }
}

fs::path begin_checkpoint(const fs::path& out, int64_t step) {
  const fs::path partial = partial_checkpoint(out, step);
  remove_directory(partial);  // what a run that was killed left
  make_directory(partial);
  return partial;
}

void write_trainer(const fs::path& directory, const TrainedState& state, const Settings& settings) {
  nlohmann::ordered_json trainer{{"step", state.step}, {"tokens", state.tokens}, {"loss", state.loss}};
  const LossGuard& guard = state.guard;
  trainer["loss_guard"] = {
      {"mean", guard.mean}, {"variance", guard.variance}, {"taken", guard.taken}, {"skipped", guard.skipped}};
  if (state.val_loss) trainer["val_loss"] = *state.val_loss;
  if (state.lr) trainer["lr"] = *state.lr;
  trainer["settings"] = settings;
  write_file_atomically(directory / kTrainer, trainer.dump(1) + "\n");
}

void finish_checkpoint(const fs::path& out, int64_t step) {
  const fs::path directory = checkpoint_directory(out, step), partial = partial_checkpoint(out, step);
  write_file_atomically(partial / kManifest, manifest_of(partial));
  sync_directory(partial);
  if (path_exists(directory)) remove_checkpoint(directory);  // a damaged one that --resume passed over
  rename_directory(partial, directory);
  sync_directory(directory.parent_path());
}

void drop_checkpoint(const fs::path& out, int64_t step) noexcept {
  std::error_code ignored;
  fs::remove_all(partial_checkpoint(out, step), ignored);
}

void save_checkpoint(const fs::path& out, const TrainedState& state, const Tokenizer& tokenizer,
                     const Settings& settings) {
  check_finite(state.parameters.weights, state.config, state.step);
  check_free_space(out, state);
  try {
    write_files(begin_checkpoint(out, state.step), state, tokenizer, settings);
    finish_checkpoint(out, state.step);
  } catch (...) {
    drop_checkpoint(out, state.step);
    throw;
  }
}

void check_finite(const ModelWeights& weights, const ModelConfig& config, int64_t step) {
  for_each_tensor(weights, config, [&](const NamedTensor& named) {
    for (int64_t r = 0; r < named.view.rows(); ++r) {
      const std::span row(named.view.f32_row(r), static_cast<size_t>(named.view.cols()));
      if (std::ranges::all_of(row, [](float x) { return std::isfinite(x); })) continue;
      throw Error("{} is not finite after step {}", named.name, step);
    }
  });
}

namespace {

std::vector<TrainedTensor> flat_tensors(const ModelWeights& weights, const ModelConfig& config, bool with_biases) {
  std::vector<TrainedTensor> tensors;
  std::vector<const float*> begins;
  for_each_tensor(weights, config, [&](const NamedTensor& named) {
    if (!named.trained && !with_biases) return;
    tensors.push_back({named.name, 0, named.view.size()});
    begins.push_back(named.view.f32());
  });
  const auto first = std::ranges::min_element(begins);
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].offset = begins[i] - *first;
  return tensors;
}

}  // namespace

std::vector<TrainedTensor> trained_tensors(const ModelWeights& weights, const ModelConfig& config) {
  return flat_tensors(weights, config, false);
}

std::vector<TrainedTensor> averaged_tensors(const ModelWeights& weights, const ModelConfig& config) {
  return flat_tensors(weights, config, true);
}

std::string state_piece_name(const std::string& tensor, Kept kept, int64_t offset) {
  return fmt::format("{}/{}/{}", kKept[static_cast<size_t>(kept)], tensor, offset);
}

void for_each_state_piece(const fs::path& directory, const ModelConfig& config,
                          const std::function<void(const StatePiece&)>& visit) {
  const int64_t n_trained = trained_floats(config);
  std::map<std::string, TrainedTensor> tensors;
  for (TrainedTensor& tensor : averaged_tensors(weight_shapes(config), config)) tensors.emplace(tensor.name, tensor);
  if (path_exists(directory / kOptimizer)) {  // of one process: all in one piece
    const SafetensorsFile file(directory / kOptimizer);
    for (const Kept kept : {Kept::first_moment, Kept::second_moment}) {
      const Tensor all = whole_moment(file, kept, n_trained);
      for (const auto& [name, tensor] : tensors) {
        if (tensor.offset < n_trained) visit({name, kept, 0, all.columns(tensor.offset, tensor.size)});
      }
    }
    if (!path_exists(directory / kAverage)) return;
    const SafetensorsFile average(directory / kAverage);
    const StoredTensor* const stored = average.find(kKept[static_cast<size_t>(Kept::average)]);
    for (const auto& [name, tensor] : tensors) {
      const auto end = static_cast<size_t>(tensor.offset + tensor.size) * sizeof(float);
      if (stored == nullptr || stored->format != Format::f32 || stored->data.size() < end) {
        throw Error("{}: the average is missing or has another size than the model", average.where());
      }
      visit({name, Kept::average, 0, moment_values(average, *stored).columns(tensor.offset, tensor.size)});
    }
    return;
  }
  for (const fs::path& path : list_directory(directory)) {
    if (!path.filename().native().starts_with(kOptimizerShard)) continue;
    const SafetensorsFile file(path);
    for (const StoredTensor& stored : file.tensors()) {
      const size_t first = stored.name.find('/'), last = stored.name.rfind('/');
      int64_t offset = -1;
      const char* const end = stored.name.data() + stored.name.size();
      if (last != std::string::npos) std::from_chars(stored.name.data() + last + 1, end, offset);
      const auto found = last > first ? tensors.find(stored.name.substr(first + 1, last - first - 1)) : tensors.end();
      const auto* const kept = std::ranges::find(kKept, stored.name.substr(0, first));
      const Tensor values = moment_values(file, stored);
      if (found == tensors.end() || kept == std::end(kKept) || offset < 0 ||
          offset > found->second.size - values.cols()) {
        throw Error("{}: {} is no piece of a state of this model", file.where(), printable(stored.name));
      }
      const auto which = static_cast<Kept>(kept - std::begin(kKept));
      if (which == Kept::average ? values.format != Format::f32 : found->second.offset >= n_trained) {
        throw Error("{}: {} is kept of no such tensor", file.where(), printable(stored.name));
      }
      visit({found->first, which, offset, values});
    }
  }
}

fs::path newest_whole_checkpoint(const fs::path& out) {
  const std::vector<int64_t> steps = saved_steps(out);
  for (const int64_t step : steps) {
    const fs::path directory = checkpoint_directory(out, step);
    try {
      verify_checkpoint(directory);
      return directory;
    } catch (const Error& e) {
      log("passing over {}: {}", printable(directory.native()), e.what());
    }
  }
  throw Error("{}: none of its {} checkpoints is whole; remove them to begin anew, or give another --out",
              printable(out.native()), steps.size());
}

TrainedState read_trainer(const fs::path& directory, const Settings& settings) {
  TrainedState state;
  check_settings(directory, read_numbers(directory, state), settings);
  return state;
}

std::string remove_old_checkpoints(const fs::path& out, int64_t saved, Keep keep) {
  std::vector<int64_t> steps = saved_steps(out);
  std::erase_if(steps, [&](int64_t step) { return step > saved; });
  std::string trouble;
  for (size_t i = 0; keep.newest > 0 && i < steps.size(); ++i) {
    const bool milestone = keep.every > 0 && steps[i] % keep.every == 0;
    if (static_cast<int64_t>(i) < keep.newest || milestone) continue;
    try {
      remove_checkpoint(checkpoint_directory(out, steps[i]));
    } catch (const Error& error) {
      trouble = error.what();
    }
  }
  return trouble;
}

int64_t checkpoint_before(const fs::path& out, int64_t step) {
  for (const int64_t saved : saved_steps(out)) {
    if (saved < step) return saved;
  }
  return 0;
}

void remove_leftovers(const fs::path& out) {
  for (const fs::path& path : list_directory(out / "checkpoints")) {
    const bool ours = path.extension() == kPartial || path.extension() == kRemoved;
    if (!ours || step_of(path.stem()) < 0) continue;
    log("removing {}, left by a run that was cut off", printable(path.native()));
    remove_directory(path);
  }
}

void verify_checkpoint(const fs::path& directory) {
  const fs::path path = directory / kManifest;
  const std::string content = read_file(path, kMaxStateJson);
  const std::string_view all = content;
  const size_t end = all.size() - std::min(all.size(), manifest_end("").size());
  if (all.substr(end) != manifest_end(all.substr(0, end))) {
    throw Error("{}: changed since it was written, or is of another version of fathom", printable(path.native()));
  }
  const JsonDocument manifest = JsonDocument::parse(content, printable(path.native()));
  simdjson::dom::object files;
  if (manifest.root()["files"].get_object().get(files) != simdjson::SUCCESS) {
    throw Error("{}: has no `files`", manifest.where());
  }
  bool has_optimizer = false;
  for (const auto [name, entry] : files) has_optimizer |= name == kOptimizer || name.starts_with(kOptimizerShard);
  if (files[kTrainer].error() != simdjson::SUCCESS) throw Error("{}: does not name {}", manifest.where(), kTrainer);
  if (!has_optimizer) throw Error("{}: does not name {}", manifest.where(), kOptimizer);
  for (const auto [name, entry] : files) {
    const std::string file(name);
    uint64_t bytes = 0;
    std::string_view checksum;
    if (file.find('/') != std::string::npos || entry["bytes"].get_uint64().get(bytes) != simdjson::SUCCESS ||
        entry["xxh3"].get_string().get(checksum) != simdjson::SUCCESS) {
      throw Error("{}: the entry of {} is broken", manifest.where(), printable(file));
    }
    std::error_code error;
    const uint64_t size = fs::file_size(directory / file, error);
    if (error) throw Error("{}: {}", printable(file), error.message());
    if (size != bytes) throw Error("{}: has {} bytes, was written with {}", printable(file), size, bytes);
    if (hex_of(checksum_of_file(directory / file).xxh3) != checksum) {
      throw Error("{}: its content changed since it was written", printable(file));
    }
  }
}

TrainedState load_newest_checkpoint(const fs::path& out, const Settings& settings, ThreadPool& pool) {
  const fs::path directory = newest_whole_checkpoint(out);
  // Its files are those that were saved: what fails now, memory for one, is no reason to fall back silently.
  TrainedState state = read_trainer(directory, settings);
  LoadedModel model = load_model(directory, pool);
  state.config = model.config;
  state.parameters = std::move(model.parameters);
  load_moments(directory, state);
  load_average(directory, state);
  return state;
}

}  // namespace fathom
