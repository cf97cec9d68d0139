#include "checkpoint/hf_save.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <numeric>

#include "base/arithmetic.h"
#include "base/terminal.h"
#include "checkpoint/hf_model.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/stored_model.h"
#include "number/formats.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr BlockShape kBlock{128, 128};               // of the official release
constexpr int64_t kPieceNumbers = int64_t{1} << 20;  // what one task writes, about
constexpr int64_t kPiecesOfThread = 4;               // that are in memory together

struct PlannedTensor {
  std::string name;
  const StoredWeight* weight;
  Format format;
  bool as_stored;  // FP8 codes and scales that stay

  int64_t rows() const { return weight->shape.rows(); }
  int64_t cols() const { return weight->shape.cols(); }
  int64_t n_scales() const {
    return format == Format::f8_e4m3 ? ceil_div(rows(), kBlock.rows) * ceil_div(cols(), kBlock.cols) : 0;
  }
  int64_t bytes() const { return format_bytes(format, rows() * cols()) + n_scales() * int64_t{sizeof(float)}; }
  std::string scale_name() const { return name + "_scale_inv"; }
};

struct Plan {
  std::unique_ptr<StoredModel> model;
  ModelConfig config;  // of what is written
  std::vector<PlannedTensor> tensors;
};

Format format_of(WeightKind kind, Format stored, Format wanted) {
  using enum WeightKind;
  if (kind == router_bias) return Format::f32;
  if (wanted != Format::f8_e4m3 || stored == Format::f8_e4m3) return wanted;
  switch (kind) {
    case norm:
    case norm_bias:
    case bias:
    case head_weights:
    case router:
      return stored == Format::f32 ? Format::f32 : Format::bf16;
    case embedding:
    case head:
    case mtp_projection:
      return Format::bf16;
    default:
      return Format::f8_e4m3;
  }
}

Plan make_plan(const fs::path& from, Format format) {
  Plan plan;
  plan.model = open_stored_model(from);
  const ModelConfig& source = plan.model->config;
  plan.config = source;
  plan.config.packed = false;
  const bool same_blocks = source.weight_block_rows == kBlock.rows && source.weight_block_cols == kBlock.cols;
  const bool in_fp8 = format == Format::f8_e4m3;
  plan.config.weight_block_rows = in_fp8 ? kBlock.rows : 0;
  plan.config.weight_block_cols = in_fp8 ? kBlock.cols : 0;
  plan.config.scale_ue8m0 = in_fp8 && source.scale_ue8m0;
  const StoredWeight *embedding = nullptr, *head = nullptr;
  const auto add = [&](const std::string& name, const StoredWeight& weight) {
    const Format stored = weight.format(), to = format_of(weight.kind, stored, format);
    const bool as_stored = to == Format::f8_e4m3 && stored == to && same_blocks && weight.source != nullptr &&
                           weight.source->tensor->stored != nullptr;
    plan.tensors.push_back({name, &weight, to, as_stored});
  };
  for (const StoredWeight& weight : plan.model->weights) {
    if (weight.kind == WeightKind::embedding) embedding = &weight;
    if (weight.kind == WeightKind::head) head = &weight;
    add(weight.name, weight);
  }
  for (int64_t m = 0; m < source.num_nextn_predict_layers; ++m) {
    const std::string prefix = fmt::format("model.layers.{}.", source.num_hidden_layers + m);
    add(prefix + "embed_tokens.weight", *embedding);
    add(prefix + "shared_head.head.weight", *head);
  }
  return plan;
}

std::vector<StoredSize> sizes_of(std::span<const PlannedTensor> tensors) {
  std::vector<StoredSize> sizes;
  for (const PlannedTensor& tensor : tensors) {
    const int64_t scales = tensor.n_scales() * int64_t{sizeof(float)};
    sizes.push_back({tensor.name, tensor.bytes() - scales});
    if (scales > 0) sizes.push_back({tensor.scale_name(), scales});
  }
  return sizes;
}

// Rows of one tensor, and where they go in the bytes of a wave.
struct Piece {
  const PlannedTensor* tensor;
  int64_t first, n;
  size_t at, bytes;
};

// From this magnitude on a number is infinity in the format.
float infinite_from(Format format) {
  return format == Format::f16    ? 65520.0f
         : format == Format::bf16 ? 0x1.FFp127f
                                  : std::numeric_limits<float>::infinity();
}

// The rows as the file holds them; of FP8 that is made here the scales too.
void encode(uint8_t* out, float* scales, const StoredModel& model, const ModelConfig& config, const Piece& piece,
            std::vector<float>& numbers) {
  const PlannedTensor& tensor = *piece.tensor;
  const int64_t cols = tensor.cols();
  numbers.resize(static_cast<size_t>(piece.n * cols));
  read_rows(numbers.data(), model, *tensor.weight, piece.first, piece.n);  // of what stays for its check
  if (tensor.as_stored) {
    const std::byte* codes = tensor.weight->source->tensor->stored->data.data() + piece.first * cols;
    std::memcpy(out, codes, static_cast<size_t>(piece.n * cols));
  } else if (tensor.format == Format::f8_e4m3) {
    quantize_f8_blocks(out, scales + piece.first / kBlock.rows * ceil_div(cols, kBlock.cols), numbers.data(), piece.n,
                       cols, kBlock, config.scale_ue8m0);
  } else {
    const float limit = infinite_from(tensor.format);
    if (std::any_of(numbers.begin(), numbers.end(), [&](float x) { return std::fabs(x) >= limit; })) {
      throw Error("{}: tensor {} holds numbers that are too large for {}; take another format", model.where,
                  tensor.name, format_traits(tensor.format).name);
    }
    from_f32(out, numbers.data(), tensor.format, piece.n * cols);
  }
}

// Writes shard after shard.
struct Writer {
  const Plan& plan;
  ThreadPool& pool;
  const std::function<void()>& check;
  Progress progress;
  int64_t done = 0, in_wave = 0;  // numbers
  std::vector<std::vector<float>> scratch{static_cast<size_t>(pool.size())};
  std::vector<uint8_t> bytes{};
  std::vector<Piece> wave{};
  std::map<const PlannedTensor*, std::vector<float>> scales{};

  void flush(AtomicFile& file) {
    if (wave.empty()) return;
    const size_t size = wave.back().at + wave.back().bytes;
    bytes.resize(size);
    pool.run(std::ssize(wave), [&](int64_t i, int thread) {
      const Piece& piece = wave[static_cast<size_t>(i)];
      const auto found = scales.find(piece.tensor);
      encode(bytes.data() + piece.at, found != scales.end() ? found->second.data() : nullptr, *plan.model, plan.config,
             piece, scratch[static_cast<size_t>(thread)]);
    });
    file.write(bytes.data(), size);
    wave.clear();
    done += in_wave;
    in_wave = 0;
    progress.update(done);
    if (check) check();
  }

  void add(AtomicFile& file, const PlannedTensor& tensor) {
    const int64_t cols = tensor.cols(), rows = tensor.rows();
    int64_t unit = rows_of_reading(*tensor.weight, plan.config);
    if (tensor.format == Format::f8_e4m3) unit = std::lcm(unit, kBlock.rows);
    const int64_t step = std::max<int64_t>(1, kPieceNumbers / cols / unit) * unit;
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t n = std::min(step, rows - row);
      const size_t at = wave.empty() ? 0 : wave.back().at + wave.back().bytes;
      wave.push_back({&tensor, row, n, at, static_cast<size_t>(format_bytes(tensor.format, n * cols))});
      in_wave += n * cols;
      if (in_wave >= kPieceNumbers * kPiecesOfThread * pool.size()) flush(file);
    }
  }

  void shard(AtomicFile& file, std::span<const PlannedTensor> tensors) {
    // Large elements first, so that every tensor is aligned.
    struct Entry {
      TensorToStream header;
      const PlannedTensor* tensor;
      bool is_scale;
    };
    std::vector<Entry> entries;
    for (const PlannedTensor& tensor : tensors) {
      const Tensor& shape = tensor.weight->shape;
      entries.push_back({{tensor.name, tensor.format, {shape.shape, shape.shape + shape.rank}}, &tensor, false});
      if (tensor.n_scales() == 0) continue;
      entries.push_back({{tensor.scale_name(),
                          Format::f32,
                          {ceil_div(tensor.rows(), kBlock.rows), ceil_div(tensor.cols(), kBlock.cols)}},
                         &tensor,
                         true});
      auto& of_tensor = scales[&tensor];
      of_tensor.resize(static_cast<size_t>(tensor.n_scales()));
      if (tensor.as_stored) of_tensor = tensor.weight->source->scales;
    }
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return format_bytes(a.header.format) > format_bytes(b.header.format);
    });
    std::vector<TensorToStream> header;
    header.reserve(entries.size());
    for (const Entry& entry : entries) header.push_back(entry.header);
    uint64_t place = write_safetensors_header(file, header);
    std::map<const PlannedTensor*, uint64_t> scale_places;
    for (const Entry& entry : entries) {
      const auto scale_bytes = static_cast<uint64_t>(entry.tensor->n_scales()) * sizeof(float);
      if (entry.is_scale) {
        flush(file);
        scale_places[entry.tensor] = place;
        file.write(scales[entry.tensor].data(), scale_bytes);  // what they are, the codes tell
      } else {
        add(file, *entry.tensor);
      }
      place += entry.is_scale ? scale_bytes : static_cast<uint64_t>(entry.tensor->bytes()) - scale_bytes;
    }
    flush(file);
    for (const auto& [tensor, at] : scale_places) {
      const std::vector<float>& of_tensor = scales[tensor];
      if (!tensor->as_stored) file.write_at(at, of_tensor.data(), of_tensor.size() * sizeof(float));
    }
    scales.clear();
  }
};

}  // namespace

void convert_to_hf(const fs::path& from, const fs::path& to, Format format, ThreadPool& pool,
                   const ConvertOptions& options, int64_t max_shard_bytes) {
  const Plan plan = make_plan(from, format);
  int64_t numbers = 0;
  for (const PlannedTensor& tensor : plan.tensors) numbers += tensor.rows() * tensor.cols();
  // A weight and its scales stay in one file.
  std::vector<StoredSize> whole;
  for (const PlannedTensor& tensor : plan.tensors) whole.push_back({tensor.name, tensor.bytes()});
  const std::vector<size_t> shards = cut_shards(whole, max_shard_bytes);
  const std::vector<std::string> names = shard_names(shards.size());

  const NewDirectory made(to);
  std::vector<std::unique_ptr<AtomicFile>> files;
  std::vector<AtomicFile*> written;
  std::vector<size_t> listed;  // with the scales
  {
    Writer writer{plan, pool, options.check, {"converting", numbers}};
    size_t next = 0;
    for (size_t s = 0; s < shards.size(); ++s) {
      const auto tensors = std::span(plan.tensors).subspan(next, shards[s]);
      files.push_back(std::make_unique<AtomicFile>(to / names[s]));
      writer.shard(*files.back(), tensors);
      written.push_back(files.back().get());
      listed.push_back(sizes_of(tensors).size());
      next += shards[s];
    }
    writer.progress.finish();
  }
  commit_model(to, plan.config, format, written, names, index_json(sizes_of(plan.tensors), listed),
               options.write_others);
}

WeightSizes hf_sizes(const fs::path& from, Format format) {
  const Plan plan = make_plan(from, format);
  WeightSizes sizes;
  for (const PlannedTensor& tensor : plan.tensors) {
    WeightBytes& size = sizes[tensor.format];
    size.numbers += tensor.rows() * tensor.cols();
    size.bytes += tensor.bytes();
  }
  return sizes;
}

}  // namespace fathom
