#include "checkpoint/imatrix.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "base/arithmetic.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/gguf_write.h"

namespace fathom {
namespace {

constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";
constexpr std::string_view kKvB = "attn_kv_b.weight", kKB = "attn_k_b.weight", kVB = "attn_v_b.weight";

std::vector<float> numbers(const StoredTensor& tensor, const std::string& where) {
  if (tensor.format != Format::f32) {
    throw Error("{}: tensor {} is stored as {}, in an importance matrix it must be F32", where, printable(tensor.name),
                tensor.dtype);
  }
  std::vector<float> out(tensor.data.size() / sizeof(float));
  std::memcpy(out.data(), tensor.data.data(), tensor.data.size());
  const auto bad = std::find_if(out.begin(), out.end(), [](float x) { return !std::isfinite(x) || x < 0; });
  if (bad != out.end()) {
    throw Error("{}: tensor {} holds {}, at {}; a sum of squares or a count is never that", where,
                printable(tensor.name), *bad, bad - out.begin());
  }
  return out;
}

// The matrices that a model's tensors of one name are, by their names in a GGUF file.
struct Shape {
  int64_t matrices, cols;
};
std::map<std::string, Shape> shapes_of(const ModelConfig& config) {
  std::map<std::string, Shape> shapes;
  for_each_tensor(weight_shapes(config), config, [&](const NamedTensor& named) {
    if (named.view.rank != 2) return;
    const std::string name = gguf_name(named.name);
    ++shapes.try_emplace(name, Shape{0, named.view.cols()}).first->second.matrices;
    if (!name.ends_with(kKvB)) return;
    const std::string prefix = name.substr(0, name.size() - kKvB.size());
    shapes[prefix + std::string(kKB)] = {config.num_attention_heads, config.qk_nope_head_dim};
    shapes[prefix + std::string(kVB)] = {config.num_attention_heads, config.kv_lora_rank};
  });
  return shapes;
}

// All heads' matrices are one to the file, with a column for each of theirs.
bool is_of_heads(std::string_view name) { return name.ends_with(kKB) || name.ends_with(kVB); }

// The same for `n` matrices.
ImatrixEntry repeated(const ImatrixEntry& entry, int64_t n) {
  ImatrixEntry all{entry.cols, {}, std::vector<float>(static_cast<size_t>(n), entry.counts[0])};
  for (int64_t i = 0; i < n; ++i) all.sums.insert(all.sums.end(), entry.sums.begin(), entry.sums.end());
  return all;
}

// The expert that a Hugging Face name is of, 0 for other names.
int64_t expert_of(std::string_view hf_name) {
  constexpr std::string_view kExperts = ".mlp.experts.";
  const size_t at = hf_name.find(kExperts);
  int64_t expert = 0;
  if (at != std::string_view::npos) {
    std::from_chars(hf_name.data() + at + kExperts.size(), hf_name.data() + hf_name.size(), expert);
  }
  return expert;
}

}  // namespace

const float* ImatrixEntry::of(int64_t matrix) const {
  const auto m = static_cast<size_t>(counts.size() == 1 ? 0 : matrix);
  const float* columns = sums.data() + m * static_cast<size_t>(cols);
  return counts[m] > 0 && std::any_of(columns, columns + cols, [](float x) { return x > 0; }) ? columns : nullptr;
}

void write_imatrix(AtomicFile& file, const Imatrix& imatrix) {
  GgufMetadata metadata;
  metadata.text("general.type", "imatrix");
  metadata.texts("imatrix.datasets", std::vector<std::string>{imatrix.text});
  metadata.u32("imatrix.chunk_count", imatrix.chunks);
  metadata.u32("imatrix.chunk_size", imatrix.chunk_tokens);
  std::vector<GgufTensor> tensors;
  std::vector<const float*> data;
  for (const auto& [name, entry] : imatrix.entries) {
    const int64_t matrices = is_of_heads(name) ? 1 : entry.matrices(), cols = std::ssize(entry.sums) / matrices;
    tensors.push_back({name + std::string(kSums), {matrices, cols}, Format::f32});
    tensors.push_back({name + std::string(kCounts), {matrices, 1}, Format::f32});
    data.insert(data.end(), {entry.sums.data(), entry.counts.data()});
  }
  write_gguf_header(file, metadata, tensors);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t bytes = tensors[i].n_bytes();
    file.write(data[i], static_cast<size_t>(bytes));
    pad_gguf(file, bytes);
  }
}

Imatrix read_imatrix(const std::filesystem::path& path) { return parse_imatrix(GgufFile(path)); }

Imatrix parse_imatrix(const GgufFile& file) {
  if (file.text_or("general.type", "") != "imatrix") {
    throw Error(
        "{}: is no importance matrix (its general.type is not imatrix); fathom convert --make-imatrix makes one",
        file.where());
  }
  Imatrix imatrix;
  imatrix.where = file.where();
  for (const StoredTensor& tensor : file.tensors()) {
    const std::string_view name = tensor.name;
    const std::string base(name.substr(0, name.rfind('.')));
    // What else is known of a matrix (sums, statistics) is of no use here.
    if (!name.ends_with(kSums) && file.find(base + std::string(kSums)) != nullptr) continue;
    const StoredTensor* counts = name.ends_with(kSums) ? file.find(base + std::string(kCounts)) : nullptr;
    if (counts == nullptr) {
      throw Error("{}: tensor {} is none of a pair NAME.in_sum2 and NAME.counts", file.where(), printable(name));
    }
    ImatrixEntry entry{tensor.shape.back(), numbers(tensor, file.where()), numbers(*counts, file.where())};
    if (entry.matrices() * entry.cols != std::ssize(entry.sums)) {
      throw Error("{}: tensor {} has shape {} but its counts {}", file.where(), printable(name),
                  shape_text(tensor.shape), shape_text(counts->shape));
    }
    imatrix.entries.emplace(base, std::move(entry));
  }
  if (imatrix.entries.empty()) throw Error("{}: holds no data", file.where());
  return imatrix;
}

void fit_imatrix(Imatrix& imatrix, const ModelConfig& config) {
  const auto shapes = shapes_of(config);
  for (auto& [name, entry] : imatrix.entries) {
    const auto found = shapes.find(name);
    if (found == shapes.end()) {
      throw Error("{}: has data of {}, which this model does not have: it was made from another one", imatrix.where,
                  printable(name));
    }
    const auto [matrices, cols] = found->second;
    if (is_of_heads(name) && entry.matrices() == 1 && entry.cols == matrices * cols) {
      entry.cols = cols;
      entry.counts.resize(static_cast<size_t>(matrices), entry.counts[0]);
    }
    // Some programs sum all heads in one.
    const bool fits = entry.matrices() == matrices || (entry.matrices() == 1 && !name.ends_with("_exps.weight"));
    if (entry.cols != cols || !fits) {
      throw Error("{}: has {} x {} sums of {}, this model's are {} x {}: it was made from another one", imatrix.where,
                  entry.matrices(), entry.cols, printable(name), matrices, cols);
    }
  }
  for (const auto& [name, shape] : shapes) {
    if (!name.ends_with(kKvB)) continue;
    const std::string halves = name.substr(0, name.size() - kKvB.size()) + std::string(kVB);
    const auto whole = imatrix.entries.find(name), values = imatrix.entries.find(halves);
    if (whole == imatrix.entries.end() && values != imatrix.entries.end()) {
      const ImatrixEntry& heads = values->second;
      ImatrixEntry joined{shape.cols, std::vector<float>(static_cast<size_t>(shape.cols)), {0}};
      for (int64_t h = 0; h < heads.matrices(); ++h) {
        joined.counts[0] += heads.counts[static_cast<size_t>(h)];
        for (size_t c = 0; c < joined.sums.size(); ++c)
          joined.sums[c] += heads.sums[static_cast<size_t>(h) * joined.sums.size() + c];
      }
      imatrix.entries.emplace(name, std::move(joined));
    } else if (whole != imatrix.entries.end() && values == imatrix.entries.end()) {
      imatrix.entries.emplace(halves, repeated(whole->second, config.num_attention_heads));
    }
  }
}

WithoutImportance set_importance(std::vector<PackedWeight>& weights, const Imatrix& imatrix,
                                 const ModelConfig& config) {
  WithoutImportance without;
  for (PackedWeight& weight : weights) {
    weight.importance.clear();
    const auto add = [&](std::string_view name, int64_t matrix) {
      const auto found = imatrix.entries.find(name);
      weight.importance.push_back(found == imatrix.entries.end() ? nullptr : found->second.of(matrix));
    };
    switch (weight.kind) {
      case WeightKind::embedding:  // rows are looked up, nothing is multiplied
      case WeightKind::norm:
      case WeightKind::norm_bias:
      case WeightKind::bias:
      case WeightKind::head_weights:
      case WeightKind::router:
      case WeightKind::router_bias:
        continue;
      case WeightKind::k_b: {
        std::string name = gguf_name(weight.sources[0]->tensor->name);
        name.replace(name.rfind(kKvB), kKvB.size(), kKB);
        for (int64_t h = 0; h < config.num_attention_heads; ++h) add(name, h);
        break;
      }
      default:
        for (const RowSource* source : weight.sources)
          add(gguf_name(source->tensor->name), expert_of(source->tensor->name));
    }
    const bool experts = weight.kind == WeightKind::experts || weight.kind == WeightKind::experts_down;
    const auto missing = std::count(weight.importance.begin(), weight.importance.end(), nullptr);
    if (weight.kind == WeightKind::experts_down) {
      without.experts += missing;
      without.experts_of += std::ssize(weight.importance);
    } else if (!experts && missing > 0) {
      ++without.others;
    }
  }
  return without;
}

}  // namespace fathom
