#include "checkpoint/packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/arithmetic.h"
#include "number/formats.h"
#include "number/panels.h"

namespace fathom {
namespace {

bool is_vector(WeightKind kind) {
  using enum WeightKind;
  return kind == norm || kind == norm_bias || kind == router_bias || kind == bias;
}

// The absorbed form reads a head's part of kv_b by panels.
bool heads_fill_panels(const ModelConfig& config) {
  return config.qk_nope_head_dim % kPanelRows == 0 && config.v_head_dim % kPanelRows == 0;
}

// Where a weight's panels of 8 rows and 128 columns have one scale each.
bool fp8_fits(const PackedWeight& weight, const ModelConfig& config, int64_t rows_of_source) {
  return config.weight_block_rows % kPanelRows == 0 && config.weight_block_cols == kFp8PanelBlock &&
         (weight.sources.size() == 1 || rows_of_source % kPanelRows == 0);
}

int64_t rows_of_source(const PackedWeight& weight) {
  return weight.sources[0]->tensor->shape.rank == 1 ? 1 : weight.sources[0]->tensor->shape.rows();
}

// gate_proj and up_proj in one, all experts in one.
std::string fused_name(std::string name, size_t n_sources) {
  const auto replace = [&](std::string_view from, std::string_view to) {
    if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  };
  if (name.ends_with(".weight")) name.resize(name.size() - 7);
  if (n_sources == 1) return name;
  replace(".experts.0.", ".experts.");
  replace("gate_proj", "gate_up_proj");
  return name;
}

// The source that a row of the weight (counted over all matrices) is in, and the row there.
struct Place {
  const RowSource* source;
  int64_t row;
};
Place place_of(const PackedWeight& weight, int64_t row) {
  const int64_t rows = rows_of_source(weight);
  return {weight.sources[static_cast<size_t>(row / rows)], row % rows};
}

const uint8_t* stored_row(const RowSource& source, int64_t row, int64_t cols) {
  const StoredTensor& stored = *source.tensor->stored;
  return reinterpret_cast<const uint8_t*>(stored.data.data()) +
         format_bytes(*stored.format, source.tensor->stored_row(row) * cols);
}

// d and dmin of blocks that are taken over as they stand.
void check_blocks(const RowSource& source, const uint8_t* blocks, Format format, int64_t n, int64_t row) {
  const FormatTraits traits = format_traits(format);
  const auto check = [&](const uint8_t* at) {
    uint16_t d;
    std::memcpy(&d, at, 2);
    if ((d & 0x7C00) != 0x7C00) return;
    throw Error("{}: tensor {} holds a scale that is not finite, in row {}", source.tensor->file->where(),
                source.tensor->name, row);
  };
  for (int64_t i = 0; i < n; i += traits.block, blocks += traits.block_bytes) {
    check(format == Format::q6_k ? blocks + traits.block_bytes - 2 : blocks);
    if (format == Format::q4_k || format == Format::q5_k) check(blocks + 2);
  }
}

// What the row's columns weigh, and how many of the `wanted` rows from there on have the same.
struct RowImportance {
  const float* columns;
  int64_t n;
};
RowImportance importance_of(const PackedWeight& weight, int64_t row, int64_t wanted) {
  if (weight.importance.empty()) return {nullptr, wanted};
  const int64_t rows = weight.kind == WeightKind::k_b ? weight.slot->shape[1] : rows_of_source(weight);
  return {weight.importance[static_cast<size_t>(row / rows)], std::min(wanted, rows - row % rows)};
}

// What one task works in.
struct Scratch {
  std::vector<float> numbers;
  std::vector<uint8_t> rows;
};

// The panel of `n` rows that begin at this row of the weight.
void make_panel(uint8_t* out, const PackedWeight& weight, const ModelConfig& config, int64_t first, int64_t n,
                const float* numbers, Scratch& scratch) {
  const Format format = weight.slot->format;
  const int64_t cols = weight.slot->cols(), row_bytes = format_bytes(format, cols);
  const void* rows[kPanelRows];
  std::vector<float> scales;
  const bool as_stored = numbers == nullptr && (is_block_format(format) || format == Format::f8_e4m3) &&
                         place_of(weight, first).source->tensor->stored->format == format;
  if (as_stored) {
    for (int64_t r = 0; r < n; ++r) {
      const auto [source, row] = place_of(weight, first + r);
      rows[r] = stored_row(*source, row, cols);
      if (is_block_format(format)) check_blocks(*source, stored_row(*source, row, cols), format, cols, row);
    }
    if (format == Format::f8_e4m3) {
      const auto [source, row] = place_of(weight, first);
      const int64_t n_scales = ceil_div(cols, kFp8PanelBlock);
      const float* from = source->scales.data() + row / config.weight_block_rows * n_scales;
      scales.assign(from, from + n_scales);
      scratch.numbers.resize(static_cast<size_t>(cols));
      for (int64_t r = 0; r < n; ++r) read_rows(scratch.numbers.data(), *source, config, row + r, 1);  // for its check
    }
    return pack_panel(out, rows, n, format, cols, scales.data());
  }
  if (numbers == nullptr) {
    scratch.numbers.resize(static_cast<size_t>(n * cols));
    for (int64_t r = 0; r < n; ++r) {
      const auto [source, row] = place_of(weight, first + r);
      read_rows(scratch.numbers.data() + r * cols, *source, config, row, 1);
    }
    numbers = scratch.numbers.data();
  }
  scratch.rows.resize(static_cast<size_t>(n * row_bytes));
  scales.assign(static_cast<size_t>(ceil_div(cols, kFp8PanelBlock)), 1.0f);
  if (format == Format::f8_e4m3) {
    quantize_f8_blocks(scratch.rows.data(), scales.data(), numbers, n, cols, {kPanelRows, kFp8PanelBlock}, false);
  } else {
    for (int64_t r = 0; r < n;) {
      const auto [columns, same] = importance_of(weight, first + r, n - r);
      encode_rows(scratch.rows.data() + r * row_bytes, numbers + r * cols, format, same, cols, columns);
      r += same;
    }
  }
  for (int64_t r = 0; r < n; ++r) rows[r] = scratch.rows.data() + r * row_bytes;
  pack_panel(out, rows, n, format, cols, scales.data());
}

// Rows first .. first + n of matrix m in panels. first is a multiple of 8.
void make_panels(uint8_t* out, const PackedWeight& weight, const ModelConfig& config, int64_t m, int64_t first,
                 int64_t n, Scratch& scratch) {
  const Tensor& slot = *weight.slot;
  const int64_t rows_of_matrix = slot.shape[slot.rank - 2], cols = slot.cols();
  const MatchedTensor& tensor = *weight.sources[0]->tensor;
  std::vector<float> numbers;  // of rows that cannot be read one by one
  if (weight.kind == WeightKind::k_b) {
    const int64_t nope = config.qk_nope_head_dim, rows_of_head = nope + config.v_head_dim, rank = config.kv_lora_rank;
    if (tensor.k_b != nullptr && *tensor.k_b->format == slot.format && is_block_format(slot.format)) {
      const auto* blocks = reinterpret_cast<const uint8_t*>(tensor.k_b->data.data());
      for (int64_t r = 0; r < n; r += kPanelRows, out += slot.row_stride) {
        const int64_t n_rows = std::min(kPanelRows, n - r);
        const void* rows[kPanelRows];
        for (int64_t i = 0; i < n_rows; ++i) {
          rows[i] = blocks + format_bytes(slot.format, (m * rank + first + r + i) * nope);
        }
        pack_panel(out, rows, n_rows, slot.format, nope);
      }
      return;
    }
    std::vector<float> head(static_cast<size_t>(rows_of_head * rank));
    read_rows(head.data(), *weight.sources[0], config, m * rows_of_head,
              tensor.stored != nullptr ? nope : rows_of_head);
    for (int64_t r = first; r < first + n; ++r) {
      for (int64_t i = 0; i < nope; ++i) numbers.push_back(head[static_cast<size_t>(i * rank + r)]);
    }
  } else if (tensor.stored == nullptr) {
    numbers.resize(static_cast<size_t>(n * cols));
    read_rows(numbers.data(), *weight.sources[0], config, first, n);
  }
  for (int64_t r = 0; r < n; r += kPanelRows, out += slot.row_stride) {
    make_panel(out, weight, config, m * rows_of_matrix + first + r, std::min(kPanelRows, n - r),
               numbers.empty() ? nullptr : numbers.data() + r * cols, scratch);
  }
}

// Units of packing of a matrix: some rows, in panels or one by one.
int64_t rows_of_unit(const PackedWeight& weight, const ModelConfig& config) {
  const Tensor& slot = *weight.slot;
  if (weight.kind == WeightKind::k_b) return slot.shape[1];  // a head is read once
  if (weight.sources[0]->tensor->stored == nullptr) {        // kv_b from halves: whole heads
    return config.qk_nope_head_dim + config.v_head_dim;
  }
  return slot.panels ? kPanelRows : slot.rank == 1 ? slot.shape[0] : 1;
}

}  // namespace

Format fitting_format(Format format, int64_t cols) {
  while (cols % format_traits(format).block != 0) {
    switch (format) {
      case Format::q4_k:
      case Format::q5_k:
        format = Format::q5_0;
        break;
      case Format::q6_k:
        format = Format::q8_0;
        break;
      default:
        return Format::bf16;
    }
  }
  return format;
}

bool is_always_f32(WeightKind kind) {
  return is_vector(kind) || kind == WeightKind::router || kind == WeightKind::head_weights;
}

Format stored_format(const PackedWeight& weight, Format stored) {
  if (is_always_f32(weight.kind)) return Format::f32;
  if (stored == Format::q5_1) return Format::f16;
  const bool halves = weight.sources[0]->tensor->stored == nullptr;
  // The halves of GGUF files are turned: blocks along the other dimension. f16 holds them almost exactly.
  if (halves && weight.kind == WeightKind::kv_b) return is_block_format(stored) ? Format::f16 : stored;
  if (weight.kind == WeightKind::k_b && !halves) return is_block_format(stored) ? Format::f16 : stored;
  return stored;
}

Tensor packed_k_b(const ModelConfig& config) {
  if (!heads_fill_panels(config)) return {};
  return {nullptr, Format::f32, {config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim}};
}

void shape_packed(Tensor& slot, WeightKind kind, const ModelConfig& config, Format format) {
  const bool panels =
      !is_vector(kind) && kind != WeightKind::embedding && (kind != WeightKind::kv_b || heads_fill_panels(config));
  slot.data = nullptr;
  slot.format = kind == WeightKind::kv_b && !panels ? Format::f32 : fitting_format(format, slot.cols());
  if (!panels) return;
  slot.panels = true;
  slot.row_stride = panel_bytes(slot.format, slot.cols());
}

std::vector<PackedWeight> plan_packing(ModelWeights& weights, const ModelConfig& config,
                                       const std::vector<RowSource>& sources, const FormatChoice& choose) {
  std::vector<const RowSource*> by_place;
  by_place.reserve(sources.size());
  for (const RowSource& source : sources) by_place.push_back(&source);
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  std::sort(by_place.begin(), by_place.end(), [&](const RowSource* a, const RowSource* b) {
    return address(a->tensor->shape.data) < address(b->tensor->shape.data);
  });
  std::vector<PackedWeight> plan;
  const RowSource* kv_b = nullptr;
  auto next = by_place.begin();
  // weight_shapes gives every tensor an address, and a part of a fused one an address inside it.
  for_each_weight(weights, [&](WeightKind kind, Tensor& slot) {
    PackedWeight weight{kind, "", &slot, {}};
    if (kind == WeightKind::k_b) {
      weight.sources = {kv_b};
      weight.name = fused_name(kv_b->tensor->name, 1);
      weight.name.replace(weight.name.rfind("kv_b_proj"), 9, "k_b_proj");
      slot = packed_k_b(config);
      if (slot.rank == 0) return;
    } else {
      const uintptr_t begin = address(slot.data), end = begin + static_cast<uintptr_t>(slot.size_bytes());
      next = std::lower_bound(by_place.begin(), by_place.end(), begin, [&](const RowSource* source, uintptr_t place) {
        return address(source->tensor->shape.data) < place;
      });
      for (; next != by_place.end() && address((*next)->tensor->shape.data) < end; ++next) {
        weight.sources.push_back(*next);
      }
      FATHOM_CHECK(!weight.sources.empty());
      weight.name = fused_name(weight.sources[0]->tensor->name, weight.sources.size());
      if (kind == WeightKind::head) weight.name = "lm_head";  // where it is the embedding too
      if (kind == WeightKind::kv_b) kv_b = weight.sources[0];
    }
    const MatchedTensor& first = *weight.sources[0]->tensor;
    const StoredTensor& stored = first.stored != nullptr   ? *first.stored
                                 : kind == WeightKind::k_b ? *first.k_b
                                                           : *first.v_b;
    Format format = choose(weight, *stored.format);
    if (format == Format::f8_e4m3 && *stored.format == Format::f8_e4m3 &&
        (kind == WeightKind::k_b || !fp8_fits(weight, config, rows_of_source(weight)))) {
      format = Format::f32;
    }
    shape_packed(slot, kind, config, format);
    plan.push_back(std::move(weight));
  });
  return plan;
}

int64_t packing_unit(const PackedWeight& weight, const ModelConfig& config) {
  const Tensor& slot = *weight.slot;
  const int64_t rows = rows_of_unit(weight, config);
  return slot.panels ? ceil_div(rows, kPanelRows) * slot.row_stride
                     : format_bytes(slot.format, slot.rank == 1 ? slot.shape[0] : rows * slot.cols());
}

void pack_bytes(uint8_t* out, const PackedWeight& weight, const ModelConfig& config, int64_t begin, int64_t n) {
  const Tensor& slot = *weight.slot;
  const int64_t unit = packing_unit(weight, config), rows = rows_of_unit(weight, config), cols = slot.cols();
  FATHOM_CHECK(begin % unit == 0 && n % unit == 0);
  Scratch scratch;
  for (int64_t u = begin / unit; u < (begin + n) / unit; ++u, out += unit) {
    if (slot.panels) {
      const int64_t rows_of_matrix = slot.shape[slot.rank - 2], units = ceil_div(rows_of_matrix, rows);
      const int64_t first = u % units * rows;
      make_panels(out, weight, config, u / units, first, std::min(rows, rows_of_matrix - first), scratch);
      continue;
    }
    if (slot.rank == 1) {
      scratch.numbers.resize(static_cast<size_t>(cols));
      read_rows(scratch.numbers.data(), *weight.sources[0], config, 0, 1);
      from_f32(out, scratch.numbers.data(), slot.format, cols);
      continue;
    }
    const auto [source, row] = place_of(weight, u * rows);
    if (source->tensor->stored != nullptr && source->tensor->stored->format == slot.format &&
        is_block_format(slot.format)) {
      const uint8_t* stored = stored_row(*source, row, cols);
      check_blocks(*source, stored, slot.format, cols, row);
      std::memcpy(out, stored, static_cast<size_t>(unit));
      continue;
    }
    scratch.numbers.resize(static_cast<size_t>(rows * cols));
    read_rows(scratch.numbers.data(), *source, config, row, rows);
    from_f32(out, scratch.numbers.data(), slot.format, rows * cols);
  }
}

}  // namespace fathom
