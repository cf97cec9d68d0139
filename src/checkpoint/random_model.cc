#include "checkpoint/random_model.h"

#include <algorithm>
#include <vector>

#include "base/arithmetic.h"
#include "base/rng.h"
#include "checkpoint/weight_memory.h"
#include "number/formats.h"
#include "number/panels.h"
#include "ops/device.h"

namespace fathom {
namespace {

constexpr int64_t kRows = 512;  // that are drawn; further ones repeat them

// Bytes of the first rows of a weight, at most kRows: a whole number of panels.
std::vector<uint8_t> random_rows(const Tensor& slot, WeightKind kind, const ModelConfig& config, Rng& rng) {
  const int64_t cols = slot.cols(), rows = std::min(slot.rows(), kRows);
  std::vector<float> numbers(static_cast<size_t>(rows * cols));
  for (float& x : numbers) {
    x = kind == WeightKind::norm          ? 1
        : kind == WeightKind::router_bias ? 0
                                          : static_cast<float>(rng.normal() * config.initializer_range);
  }
  const int64_t row_bytes = format_bytes(slot.format, cols);
  std::vector<uint8_t> encoded(static_cast<size_t>(rows * row_bytes));
  std::vector<float> scales(static_cast<size_t>(ceil_div(rows, kPanelRows) * ceil_div(cols, kFp8PanelBlock)));
  if (slot.format == Format::f8_e4m3) {
    quantize_f8_blocks(encoded.data(), scales.data(), numbers.data(), rows, cols, {kPanelRows, kFp8PanelBlock}, false);
  } else {
    from_f32(encoded.data(), numbers.data(), slot.format, rows * cols);
  }
  if (!slot.panels) return encoded;
  std::vector<uint8_t> panels(static_cast<size_t>(ceil_div(rows, kPanelRows) * slot.row_stride));
  for (int64_t panel = 0; panel * kPanelRows < rows; ++panel) {
    const void* of_panel[kPanelRows];
    const int64_t n = std::min(kPanelRows, rows - panel * kPanelRows);
    for (int64_t r = 0; r < n; ++r) of_panel[r] = encoded.data() + (panel * kPanelRows + r) * row_bytes;
    pack_panel(panels.data() + panel * slot.row_stride, of_panel, n, slot.format, cols,
               scales.data() + panel * ceil_div(cols, kFp8PanelBlock));
  }
  return panels;
}

// `pattern`, again and again.
void fill(void* to, int64_t bytes, const std::vector<uint8_t>& pattern, const Device* device) {
  auto* const out = static_cast<uint8_t*>(to);
  int64_t done = std::min(bytes, std::ssize(pattern));
  upload_where(device, out, pattern.data(), static_cast<size_t>(done));
  while (done < bytes) {
    const int64_t n = std::min(done, bytes - done);
    copy_where(device, out + done, out, static_cast<size_t>(n));
    done += n;
  }
}

}  // namespace

PackedModel random_model(const ModelConfig& config, const Recipe& recipe, uint64_t seed, const Device* device) {
  constexpr int64_t kAligned = 256;  // bytes
  PackedModel model;
  model.config = config;
  model.weights = weight_shapes(config);
  struct Weight {
    Tensor* slot;
    WeightKind kind;
  };
  std::vector<Weight> weights;
  int64_t total = 0;
  for_each_weight(model.weights, [&](WeightKind kind, Tensor& slot) {
    if (kind == WeightKind::k_b) slot = packed_k_b(config);
    if (slot.rank == 0) return;
    shape_packed(slot, kind, config, recipe_format(recipe, kind));
    total += round_up(slot.size_bytes(), kAligned);
    weights.push_back({&slot, kind});
  });
  check_room(total, device);
  model.memory = allocate_where(device, static_cast<size_t>(total));
  auto* to = static_cast<std::byte*>(model.memory.data());
  Rng rng(seed);
  for (const auto& [slot, kind] : weights) {
    slot->data = to;
    fill(to, slot->size_bytes(), random_rows(*slot, kind, config, rng), device);
    to += round_up(slot->size_bytes(), kAligned);
  }
  if (device != nullptr) device->synchronize(*device);
  return model;
}

}  // namespace fathom
