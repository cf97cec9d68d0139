#include "train/saved_state.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

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

uint64_t file_checksum(const fs::path& path) {
  const MappedFile file(path);
  return XXH3_64bits(file.bytes().data(), file.bytes().size());
}

void sync_file(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = fd >= 0 && fsync(fd) == 0;
  const std::string reason = std::strerror(errno);
  if (fd >= 0) close(fd);
  if (!synced) throw Error("{}: cannot write to disk: {}", printable(path.native()), reason);
}

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
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(out / "checkpoints", none)) {
    if (const int64_t step = step_of(entry.path()); step >= 0) steps.push_back(step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

void check_free_space(const fs::path& directory, const TrainedState& state) {
  std::error_code error;
  const auto space = fs::space(directory, error);
  const auto needed = static_cast<uint64_t>(state.parameters.n_total) * 3 * sizeof(float);
  if (!error && space.available < needed) {
    throw Error("{}: a checkpoint needs {} and the disk has {} left; earlier checkpoints are untouched",
                printable(directory.native()), human_bytes(static_cast<double>(needed)),
                human_bytes(static_cast<double>(space.available)));
  }
}

void write_files(const fs::path& directory, const TrainedState& state, const Tokenizer& tokenizer,
                 const Settings& settings) {
  tokenizer.save(directory);
  save_model(directory, state.config, state.parameters.weights, {.format = Format::f32});
  const Moment &m = state.first_moment, &v = state.second_moment;
  write_safetensors(directory / kOptimizer, std::vector<TensorToWrite>{{"first_moment", m.values, m.values.format},
                                                                       {"second_moment", v.values, v.values.format}});
  nlohmann::ordered_json trainer{{"step", state.step}, {"tokens", state.tokens}, {"loss", state.loss}};
  const LossGuard& guard = state.guard;
  trainer["loss_guard"] = {
      {"mean", guard.mean}, {"variance", guard.variance}, {"taken", guard.taken}, {"skipped", guard.skipped}};
  if (state.val_loss) trainer["val_loss"] = *state.val_loss;
  trainer["settings"] = settings;
  write_file_atomically(directory / kTrainer, trainer.dump(1) + "\n");

  nlohmann::ordered_json files;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(directory)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) {
    sync_file(path);
    files[path.filename().string()] = {{"bytes", fs::file_size(path)},
                                       {"xxh3", fmt::format("{:016x}", file_checksum(path))}};
  }
  write_file_atomically(directory / kManifest, nlohmann::ordered_json{{"files", files}}.dump(1) + "\n");
}

// Throws Error that says what is broken.
void verify(const fs::path& directory) {
  const JsonDocument manifest = JsonDocument::read(directory / kManifest, kMaxStateJson);
  simdjson::dom::object files;
  if (manifest.root()["files"].get_object().get(files) != simdjson::SUCCESS) {
    throw Error("{}: has no `files`", manifest.where());
  }
  for (const char* needed : {kTrainer, kOptimizer}) {
    if (files[needed].error() != simdjson::SUCCESS) throw Error("{}: does not name {}", manifest.where(), needed);
  }
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
    if (fmt::format("{:016x}", file_checksum(directory / file)) != checksum) {
      throw Error("{}: its content changed since it was written", printable(file));
    }
  }
}

Settings read_trainer(const fs::path& directory, TrainedState& state) {
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
  if (double val_loss; trainer.root()["val_loss"].get_double().get(val_loss) == simdjson::SUCCESS) {
    state.val_loss = val_loss;
  }
  for (const auto [key, value] : stored) {
    std::string_view text;
    if (value.get_string().get(text) == simdjson::SUCCESS) settings[std::string(key)] = std::string(text);
  }
  return settings;
}

void load_moments(const fs::path& directory, TrainedState& state) {
  const SafetensorsFile file(directory / kOptimizer);
  const auto load = [&](const char* name, Moment& into) {
    const StoredTensor* stored = file.find(name);
    const bool known = stored != nullptr && (stored->format == Format::f32 || stored->format == Format::bf16);
    if (known) into = allocate_moment(state.parameters, *stored->format);
    const auto bytes = static_cast<size_t>(known ? into.values.size_bytes() : 0);
    if (!known || stored->data.size() != bytes) {
      throw Error("{}: {} is missing or has another size than the model", file.where(), name);
    }
    std::memcpy(into.memory.data(), stored->data.data(), bytes);
  };
  load("first_moment", state.first_moment);
  load("second_moment", state.second_moment);
}

void check_settings(const fs::path& directory, const Settings& stored, const Settings& wanted) {
  for (const auto& [name, value] : wanted) {
    const auto found = stored.find(name);
    const std::string before = found == stored.end() ? "not set" : found->second;
    if (before == value) continue;
    throw Error("--resume: {} is {} now and was {} when {} was saved; give the same or start anew in another --out",
                name, printable(value), printable(before), printable(directory.native()));
  }
}

}  // namespace

Moment allocate_moment(const Parameters& parameters, Format format) {
  Moment moment{{}, Tensor(nullptr, format, {parameters.n_trained})};
  const auto bytes = static_cast<size_t>(moment.values.size_bytes());
  moment.memory = Buffer(bytes);
  std::memset(moment.memory.data(), 0, bytes);
  moment.values.data = moment.memory.data();
  return moment;
}

fs::path checkpoint_directory(const fs::path& out, int64_t step) {
  return out / "checkpoints" / fmt::format("step-{}", step);
}

bool has_checkpoints(const fs::path& out) { return !saved_steps(out).empty(); }

void save_checkpoint(const fs::path& out, const TrainedState& state, const Tokenizer& tokenizer,
                     const Settings& settings, int64_t keep) {
  const fs::path directory = checkpoint_directory(out, state.step), parent = directory.parent_path();
  fs::path partial = directory;
  partial += ".partial";
  std::error_code ignored;
  fs::remove_all(partial, ignored);
  make_directory(partial);
  try {
    check_free_space(partial, state);
    write_files(partial, state, tokenizer, settings);
    sync_directory(partial);
  } catch (...) {
    fs::remove_all(partial, ignored);
    throw;
  }
  fs::remove_all(directory, ignored);  // a damaged one that --resume passed over
  std::error_code error;
  fs::rename(partial, directory, error);
  if (error) throw Error("{}: cannot write: {}", printable(directory.native()), error.message());
  sync_directory(parent);

  const std::vector<int64_t> steps = saved_steps(out);
  for (size_t i = 0; keep > 0 && i < steps.size(); ++i) {
    if (static_cast<int64_t>(i) >= keep) fs::remove_all(checkpoint_directory(out, steps[i]), ignored);
  }
}

std::optional<TrainedState> load_newest_checkpoint(const fs::path& out, const Settings& settings, ThreadPool& pool) {
  for (const int64_t step : saved_steps(out)) {
    const fs::path directory = checkpoint_directory(out, step);
    TrainedState state;
    Settings stored;
    try {
      verify(directory);
      stored = read_trainer(directory, state);
      LoadedModel model = load_model(directory, pool);
      state.config = model.config;
      state.parameters = std::move(model.parameters);
      load_moments(directory, state);
    } catch (const Error& e) {
      log("passing over {}: {}", printable(directory.native()), e.what());
      continue;
    }
    check_settings(directory, stored, settings);
    return state;
  }
  return std::nullopt;
}

}  // namespace fathom
