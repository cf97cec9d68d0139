#include "checkpoint/packed_model.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "base/arithmetic.h"
#include "base/residency.h"
#include "base/terminal.h"
#include "checkpoint/gguf_save.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/hf_model.h"
#include "checkpoint/imatrix.h"
#include "number/panels.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using enum Format;

// Router, the indexer's head weights, biases and norms are f32 always, k_b is as kv_b, an MTP module's projection as
// the attention. What is read for every token costs little and is kept finer: the head, and the projections that
// attention is absorbed into. Values of grouped-query attention are as the experts' down. An indexer is small and its
// errors choose other tokens: it is as the attention, but 8 bits or more.
constexpr Recipe kRecipes[] = {
    // name      embedding attention kv_b  dense shared experts down  head
    {"f32", f32, f32, f32, f32, f32, f32, f32, f32},
    {"bf16", bf16, bf16, bf16, bf16, bf16, bf16, bf16, bf16},
    {"f16", f16, f16, f16, f16, f16, f16, f16, f16},
    {"fp8", bf16, f8_e4m3, f8_e4m3, f8_e4m3, f8_e4m3, f8_e4m3, f8_e4m3, bf16},
    {"q8_0", q8_0, q8_0, q8_0, q8_0, q8_0, q8_0, q8_0, q8_0},
    {"q6_k", q6_k, q6_k, q8_0, q6_k, q6_k, q6_k, q6_k, q6_k},
    {"q5_k_m", q5_k, q5_k, q8_0, q5_k, q6_k, q5_k, q6_k, q6_k},
    {"q5_k", q5_k, q5_k, q8_0, q5_k, q5_k, q5_k, q5_k, q6_k},
    {"q4_k_m", q4_k, q4_k, q8_0, q4_k, q6_k, q4_k, q5_k, q6_k},
    {"q4_k", q4_k, q4_k, q8_0, q4_k, q4_k, q4_k, q4_k, q6_k},
    {"q4_0", q4_0, q4_0, q4_0, q4_0, q4_0, q4_0, q4_0, q6_k},
};

constexpr int64_t kPieceBytes = int64_t{1} << 20;  // what one task packs

struct Piece {
  const PackedWeight* weight;
  int64_t begin, bytes;
};

// A weight as pieces of whole units, none larger than max_bytes unless a unit is.
std::vector<Piece> cut(const PackedWeight& weight, const ModelConfig& config, int64_t max_bytes) {
  const int64_t unit = packing_unit(weight, config), total = weight.slot->size_bytes();
  const int64_t step = std::max<int64_t>(1, max_bytes / unit) * unit;
  std::vector<Piece> pieces;
  for (int64_t begin = 0; begin < total; begin += step)
    pieces.push_back({&weight, begin, std::min(step, total - begin)});
  return pieces;
}

// The format stands in the name: "….gate_up_proj.panels.q4_0" in panels, "….rows.q4_0" row by row.
std::string packed_name(const PackedWeight& weight) {
  return fmt::format("{}.{}.{}", weight.name, weight.slot->panels ? "panels" : "rows",
                     format_traits(weight.slot->format).name);
}

// Everything convert_model and load share: the source, what is in it, where it goes.
struct Plan {
  ModelConfig config;
  Checkpoint checkpoint;
  std::vector<MatchedTensor> matched;
  std::vector<RowSource> sources;
  ModelWeights weights;
  std::vector<PackedWeight> packed;
};
// `plan` is filled in place: its parts point into each other.
void make_plan(Plan& plan, const fs::path& path, const ModelConfig& config, const FormatChoice& choose) {
  plan.config = config;
  plan.checkpoint = open_checkpoint(path);
  plan.matched = match_tensors(plan.checkpoint, plan.config);
  plan.sources = row_sources(plan.matched);
  plan.weights = weight_shapes(plan.config);
  plan.packed = plan_packing(plan.weights, plan.config, plan.sources, choose);
}

void make_plan(Plan& plan, const fs::path& path, const Recipe& recipe) {
  check_model_path(path);
  const ModelConfig config = read_model_config(path);
  if (config.packed) {
    throw Error(
        "{}: is packed already; convert the model that it was made from, or make it f32, bf16, f16 or fp8 first",
        printable(path.native()));
  }
  make_plan(plan, path, config, [&](const PackedWeight& weight, Format) { return recipe_format(recipe, weight.kind); });
}

// Says, once, what is quantized without.
void use_importance(Plan& plan, const Imatrix* imatrix) {
  if (imatrix == nullptr) return;
  const WithoutImportance without = set_importance(plan.packed, *imatrix, plan.config);
  if (without.experts + without.others == 0) return;
  log("{}: has no data of {} of {} experts and of {} other weights; their columns all count the same", imatrix->where,
      without.experts, without.experts_of, without.others);
}

// The system would end the process in the middle of loading, without a word. Swap is slow, but room.
void check_memory(const fs::path& path, int64_t bytes) {
  const uint64_t available = available_memory_bytes(), swap = free_swap_bytes();
  const auto size = [](auto n) { return human_bytes(static_cast<double>(n)); };
  if (static_cast<uint64_t>(bytes) <= available) return;
  if (static_cast<uint64_t>(bytes) > available + std::min(swap, UINT64_MAX - available)) {
    throw Error(
        "{}: the weights take {} of memory, and {} are available{}; fathom convert writes a packed directory, "
        "which is read from disk as it is used",
        printable(path.native()), size(bytes), size(available),
        swap > 0 ? fmt::format(" with {} of swap", size(swap)) : "");
  }
  log("the weights take {} of memory, and {} are available: the rest is swapped; a packed directory, which fathom "
      "convert writes, is read from disk instead",
      size(bytes), size(available));
}

// Where each weight begins in one block of memory, and behind the last how large that is.
std::vector<int64_t> places_of(const Plan& plan) {
  std::vector<int64_t> places{0};
  for (const PackedWeight& weight : plan.packed) {
    places.push_back(places.back() + round_up(weight.slot->size_bytes(), static_cast<int64_t>(kAlignment)));
  }
  return places;
}

PackedModel pack_model(const fs::path& path, const ModelConfig& config, ThreadPool& pool) {
  Plan plan;
  make_plan(plan, path, config, stored_format);
  const std::vector<int64_t> places = places_of(plan);
  check_memory(path, places.back());
  PackedModel model;
  model.memory = Buffer(static_cast<size_t>(places.back()));
  std::vector<Piece> pieces;
  for (size_t i = 0; i < plan.packed.size(); ++i) {
    plan.packed[i].slot->data = static_cast<uint8_t*>(model.memory.data()) + places[i];
    for (const Piece& piece : cut(plan.packed[i], plan.config, kPieceBytes)) pieces.push_back(piece);
  }
  constexpr size_t kPiecesToWaitFor = 500;  // about a second
  std::optional<Progress> progress;
  if (pieces.size() >= kPiecesToWaitFor) progress.emplace("loading", static_cast<int64_t>(pieces.size()));
  // What has been read is not held beside what was made of it.
  constexpr int64_t kPiecesToHold = std::max<int64_t>(1, (64 << 20) / kPieceBytes);
  std::atomic<int64_t> done{0};
  pool.run(static_cast<int64_t>(pieces.size()), [&](int64_t i, int thread) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    auto* out = static_cast<uint8_t*>(piece.weight->slot->data) + piece.begin;
    pack_bytes(out, *piece.weight, plan.config, piece.begin, piece.bytes);
    const int64_t n = done.fetch_add(1, std::memory_order_relaxed) + 1;
    if (n % kPiecesToHold == 0 || n == static_cast<int64_t>(pieces.size())) {
      for (const WeightFile& file : plan.checkpoint.files) give_back(file.mapping().bytes());
    }
    if (thread == 0 && progress) progress->update(n);
  });
  model.config = plan.config;
  model.weights = plan.weights;
  return model;
}

// What a packed directory must hold for a model of `config`: every weight of weight_shapes under its fused name.
struct ExpectedWeight {
  std::string name;
  WeightKind kind;
  Tensor* slot;
};
std::vector<ExpectedWeight> expected_weights(ModelWeights& weights, const ModelConfig& config) {
  // Names come from a plan over sources without data.
  std::vector<MatchedTensor> matched;
  const StoredTensor nothing{"", "F32", f32, {}, {}};
  for_each_tensor(weights, config, [&](const NamedTensor& named) {
    matched.push_back({named.name, named.view, &nothing, nullptr, nullptr});
  });
  std::vector<RowSource> sources;
  sources.reserve(matched.size());
  for (const MatchedTensor& tensor : matched) sources.push_back({&tensor, {}});
  std::vector<ExpectedWeight> expected;
  for (const PackedWeight& weight : plan_packing(weights, config, sources, stored_format)) {
    expected.push_back({weight.name, weight.kind, weight.slot});
  }
  return expected;
}

std::optional<Format> format_named(std::string_view name) {
  for (const Format format : {f32, bf16, f16, f8_e4m3, q8_0, q4_0, q5_0, q4_k, q5_k, q6_k}) {
    if (name == format_traits(format).name) return format;
  }
  return std::nullopt;
}

// Refuses sizes that the files cannot hold before a name is made for each of their experts. No format takes less than
// half a byte for a number.
void check_size(const Checkpoint& mapped, const ModelConfig& config) {
  int64_t bytes = 0;
  for (const auto& [name, place] : mapped.tensors) bytes += static_cast<int64_t>(place.tensor->data.size());
  const int64_t numbers = count_parameters(config).total;
  if (numbers / 4 > bytes) {
    throw Error("{}: holds {} bytes of weights, too few for the {} parameters of the config", mapped.where, bytes,
                numbers);
  }
}

// What kernels read as floats in place moves to memory where the file has it at odd places, as behind a q6_k embedding.
void align_floats(PackedModel& model) {
  std::vector<Tensor*> odd;
  int64_t total = 0;
  for_each_weight(model.weights, [&](WeightKind kind, Tensor& slot) {
    const bool aligned = reinterpret_cast<uintptr_t>(slot.data) % alignof(float) == 0;
    if (slot.panels || kind == WeightKind::embedding || aligned) return;
    odd.push_back(&slot);
    total += slot.size_bytes();
  });
  if (odd.empty()) return;
  model.memory = Buffer(static_cast<size_t>(total));
  auto* to = static_cast<std::byte*>(model.memory.data());
  for (Tensor* slot : odd) {
    std::memcpy(to, slot->data, static_cast<size_t>(slot->size_bytes()));
    slot->data = to;
    to += slot->size_bytes();
  }
}

}  // namespace

PackedModel map_packed_model(const fs::path& path, const ModelConfig& config) {
  PackedModel model;
  model.config = config;
  model.mapped = open_checkpoint(path);
  check_size(model.mapped, config);
  model.weights = weight_shapes(config);
  std::map<std::string, const StoredTensor*, std::less<>> by_base;
  for (const auto& [name, place] : model.mapped.tensors) {
    const size_t dot = name.rfind('.');
    if (dot != std::string_view::npos) by_base.emplace(std::string(name.substr(0, dot)), place.tensor);
  }
  std::set<const StoredTensor*> used;
  for (const ExpectedWeight& weight : expected_weights(model.weights, model.config)) {
    Tensor& slot = *weight.slot;
    const auto found = by_base.find(weight.name + (slot.panels ? ".panels" : ".rows"));
    if (found == by_base.end()) throw Error("{}: has no weight {}", model.mapped.where, weight.name);
    const StoredTensor& stored = *found->second;
    used.insert(&stored);
    model.stored.push_back(&stored);
    const std::optional<Format> format = format_named(std::string_view(stored.name).substr(found->first.size() + 1));
    const bool any_format = weight.kind == WeightKind::embedding || (slot.panels && !is_always_f32(weight.kind));
    if (!format || (!any_format && *format != f32) || slot.cols() % format_traits(*format).block != 0) {
      throw Error("{}: weight {} is in a format that it cannot have", model.mapped.where, stored.name);
    }
    slot.format = *format;
    if (slot.panels) slot.row_stride = panel_bytes(*format, slot.cols());
    if (stored.format != u8 || static_cast<int64_t>(stored.data.size()) != slot.size_bytes()) {
      throw Error("{}: weight {} has {} bytes of {}, the config asks for {} of U8", model.mapped.where, stored.name,
                  stored.data.size(), stored.dtype, slot.size_bytes());
    }
    slot.data = const_cast<std::byte*>(stored.data.data());  // NOLINT: weights are views to read
  }
  for (const auto& [name, place] : model.mapped.tensors) {
    if (used.contains(place.tensor)) continue;
    throw Error("{}: a tensor that the config has no place for: {}", model.mapped.where, printable(name));
  }
  align_floats(model);
  return model;
}

PackedModel load_packed_model(const fs::path& path, ThreadPool& pool) {
  check_model_path(path);
  const ModelConfig config = read_model_config(path);
  return config.packed ? map_packed_model(path, config) : pack_model(path, config, pool);
}

void check_fits_in_memory(const fs::path& path) {
  check_model_path(path);
  const ModelConfig config = read_model_config(path);
  if (config.packed) return;
  Plan plan;
  make_plan(plan, path, config, stored_format);
  check_memory(path, places_of(plan).back());
}

const Recipe* find_recipe(std::string_view name) {
  for (const Recipe& recipe : kRecipes) {
    if (name == recipe.name) return &recipe;
  }
  return nullptr;
}

std::string recipe_names() {
  std::string names;
  for (const Recipe& recipe : kRecipes) names += fmt::format("{}{}", names.empty() ? "" : ", ", recipe.name);
  return names;
}

Format recipe_format(const Recipe& recipe, WeightKind kind) {
  switch (kind) {
    case WeightKind::embedding:
      return recipe.embedding;
    case WeightKind::norm:
    case WeightKind::norm_bias:
    case WeightKind::bias:
    case WeightKind::head_weights:
    case WeightKind::router:
    case WeightKind::router_bias:
      return f32;
    case WeightKind::attention:
    case WeightKind::mtp_projection:
      return recipe.attention;
    case WeightKind::kv_b:
    case WeightKind::k_b:
      return recipe.kv_b;
    case WeightKind::indexer:
      return is_block_format(recipe.attention) ? q8_0 : recipe.attention;
    case WeightKind::dense:
      return recipe.dense;
    case WeightKind::shared:
      return recipe.shared;
    case WeightKind::experts:
      return recipe.experts;
    case WeightKind::experts_down:
    case WeightKind::values:
      return recipe.experts_down;
    case WeightKind::head:
      return recipe.head;
  }
  return f32;
}

WeightSizes packed_sizes(const fs::path& from, const Recipe& recipe) {
  Plan plan;
  make_plan(plan, from, recipe);
  WeightSizes sizes;
  for (const PackedWeight& weight : plan.packed) {
    WeightBytes& size = sizes[weight.slot->format];
    size.numbers += weight.slot->size();
    size.bytes += weight.slot->size_bytes();
  }
  return sizes;
}

void convert_model(const fs::path& from, const fs::path& to, const Recipe& recipe, ThreadPool& pool,
                   const ConvertOptions& options) {
  Plan plan;
  make_plan(plan, from, recipe);
  use_importance(plan, options.imatrix);
  const NewDirectory made(to);
  std::vector<TensorToStream> tensors;
  int64_t total = 0;
  for (const PackedWeight& weight : plan.packed) {
    tensors.push_back({packed_name(weight), u8, {weight.slot->size_bytes()}});
    total += weight.slot->size_bytes();
  }
  AtomicFile file(to / "model.safetensors");
  write_safetensors_header(file, tensors);
  Progress progress("converting", total);
  int64_t done = 0;
  const int64_t wave = kPieceBytes * pool.size() * 4;  // in memory at a time
  std::vector<uint8_t> bytes;
  for (const PackedWeight& weight : plan.packed) {
    for (const Piece& part : cut(weight, plan.config, wave)) {
      bytes.resize(static_cast<size_t>(part.bytes));
      const int64_t unit = packing_unit(weight, plan.config);
      const int64_t step = std::max<int64_t>(1, part.bytes / unit / (pool.size() * 4)) * unit;
      pool.parallel_for(0, part.bytes, step, [&](int64_t begin, int64_t end) {
        pack_bytes(bytes.data() + begin, weight, plan.config, part.begin + begin, end - begin);
      });
      file.write(bytes.data(), bytes.size());
      done += part.bytes;
      progress.update(done);
      if (options.check) options.check();
    }
  }
  progress.finish();
  ModelConfig config = plan.config;
  config.packed = true;
  AtomicFile* const files[] = {&file};
  commit_model(to, config, f32, files, {"model.safetensors"}, "", options.write_others);
}

namespace {

// The formats of a GGUF file's tensors.
ChooseFormat gguf_formats(const Plan& plan, const Recipe& recipe) {
  // GGUF names a fused weight's parts; each is asked for by one of them.
  std::map<std::string, Format> by_name;
  for (const PackedWeight& weight : plan.packed) {
    const Format format = recipe_format(recipe, weight.kind);
    if (format == f8_e4m3) throw Error("GGUF has no FP8; take another format");
    for (const RowSource* source : weight.sources) {
      if (weight.kind == WeightKind::k_b) continue;
      const auto [entry, is_new] = by_name.emplace(gguf_name(source->tensor->name), format);
      if (!is_new) entry->second = format;  // an embedding that is the head, too, is as the head
    }
  }
  return [by_name = std::move(by_name), kv_b = recipe.kv_b](std::string_view name, std::span<const int64_t>) {
    const auto found = by_name.find(std::string(name));
    return found == by_name.end() ? kv_b : found->second;  // the halves of kv_b
  };
}

}  // namespace

WeightSizes gguf_sizes(const fs::path& from, const Recipe& recipe) {
  Plan plan;
  make_plan(plan, from, recipe);
  WeightSizes sizes;
  for (const GgufTensor& tensor : gguf_tensors(plan.config, gguf_formats(plan, recipe))) {
    WeightBytes& size = sizes[tensor.format];
    size.numbers += tensor.n_numbers();
    size.bytes += tensor.n_bytes();
  }
  return sizes;
}

void convert_to_gguf(const fs::path& from, const fs::path& to, const Recipe& recipe, const GgufTokenizer* tokenizer,
                     ThreadPool& pool, const ConvertOptions& options) {
  Plan plan;
  make_plan(plan, from, recipe);
  use_importance(plan, options.imatrix);
  const ChooseFormat choose = gguf_formats(plan, recipe);
  std::map<std::string_view, const RowSource*> sources;
  int64_t total = 0;
  for (const RowSource& source : plan.sources) {
    sources.emplace(source.tensor->name, &source);
    total += source.tensor->shape.size();
  }
  Progress progress("converting", total);
  int64_t done = 0;
  const ReadRows read = [&](const NamedTensor& tensor, int64_t first, int64_t n, float* out) {
    read_rows(out, *sources.at(tensor.name), plan.config, first, n);
    const bool twice = tensor.name.ends_with("kv_b_proj.weight");  // for each half
    done += n * tensor.view.cols() / (twice ? 2 : 1);
    progress.update(done);
    if (options.check) options.check();
  };
  ImportanceOf importance;
  if (options.imatrix != nullptr) {
    importance = [&](std::string_view name, int64_t matrix) {
      const auto found = options.imatrix->entries.find(name);
      return found != options.imatrix->entries.end() ? found->second.of(matrix) : nullptr;
    };
  }
  save_gguf(to, plan.config, tokenizer, choose, read, pool, importance);
}

}  // namespace fathom
