#include "checkpoint/weight_memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/arithmetic.h"
#include "base/residency.h"
#include "base/terminal.h"
#include "ops/device.h"

namespace fathom {
namespace {

template <class Visit>
void for_each_present(ModelWeights& weights, const Visit& visit) {
  for_each_weight(weights, [&](WeightKind, Tensor& slot) {
    if (slot) visit(slot);
  });
}

bool is_expert(WeightKind kind) { return kind == WeightKind::experts || kind == WeightKind::experts_down; }

// Of the weights, or all but routed experts, one behind the other, each at a multiple of `alignment`.
int64_t placed_bytes(const ModelWeights& weights, int64_t alignment, bool but_experts = false) {
  ModelWeights views = weights;  // the walk may change what it visits
  int64_t total = 0;
  for_each_weight(views, [&](WeightKind kind, const Tensor& slot) {
    if (slot && !(but_experts && is_expert(kind))) total += round_up(slot.size_bytes(), alignment);
  });
  return total;
}

void check_fit(int64_t bytes, const char* option) {
  const uint64_t available = available_memory_bytes();
  if (weights_fit(bytes, available)) return;
  throw Error("{}: the weights are {}, and {} of memory are available; leave {} out, and experts are read from disk",
              option, human_bytes(static_cast<double>(bytes)), human_bytes(static_cast<double>(available)), option);
}

constexpr int64_t kDeviceAlignment = 256;

// Copies weights to new memory of the device, where they are views of it from then on.
Buffer copy_to_device(ModelWeights& weights, const Device& device, bool but_experts) {
  Buffer memory = device.allocate(static_cast<size_t>(placed_bytes(weights, kDeviceAlignment, but_experts)));
  auto* to = static_cast<std::byte*>(memory.data());
  for_each_weight(weights, [&](WeightKind kind, Tensor& slot) {
    if (!slot || (but_experts && is_expert(kind))) return;
    read_ahead({static_cast<const std::byte*>(slot.data), static_cast<size_t>(slot.size_bytes())});
    device.upload(device, to, slot.data, static_cast<size_t>(slot.size_bytes()));
    slot.data = to;
    to += round_up(slot.size_bytes(), kDeviceAlignment);
  });
  device.synchronize(device);
  return memory;
}

}  // namespace

int64_t weight_bytes(const ModelWeights& weights) {
  ModelWeights views = weights;  // the walk may change what it visits
  int64_t bytes = 0;
  for_each_present(views, [&](const Tensor& slot) { bytes += slot.size_bytes(); });
  return bytes;
}

int64_t weight_bytes_when_packed(const Checkpoint& checkpoint, const ModelConfig& config) {
  ModelConfig found = config;
  const std::vector<MatchedTensor> matched = match_tensors(checkpoint, found);
  std::vector<RowSource> sources;
  for (const MatchedTensor& tensor : matched) sources.push_back({&tensor, {}});
  ModelWeights weights = weight_shapes(found);
  int64_t bytes = 0;
  for (const PackedWeight& weight : plan_packing(weights, found, sources, stored_format)) {
    bytes += weight.slot->size_bytes();
  }
  return bytes;
}

bool is_mapped(const PackedModel& model) { return !model.mapped.files.empty(); }

bool shows_residency(const PackedModel& model) {
  return std::all_of(model.mapped.files.begin(), model.mapped.files.end(),
                     [](const WeightFile& file) { return shows_residency(file.mapping().path()); });
}

uint64_t memory_for_model(uint64_t available_bytes) { return available_bytes - available_bytes / 16; }

bool weights_fit(int64_t weight_bytes, uint64_t available_bytes) {
  return static_cast<uint64_t>(weight_bytes) <= memory_for_model(available_bytes);
}

void prefer_huge_pages(const PackedModel& model) {
  for (const WeightFile& file : model.mapped.files) read_into_huge_pages(file.mapping().bytes());
}

void move_to_huge_pages(PackedModel& model, ThreadPool& pool) {
  if (!is_mapped(model)) return;
  check_fit(weight_bytes(model.weights), "--hugepages");
  struct Piece {
    std::byte* to;
    const std::byte* from;
    int64_t bytes;
  };
  constexpr int64_t kPieceBytes = int64_t{2} << 20;  // a huge page
  std::vector<Piece> pieces;
  const int64_t total = placed_bytes(model.weights, static_cast<int64_t>(kAlignment));
  Buffer memory(static_cast<size_t>(total));
  auto* to = static_cast<std::byte*>(memory.data());
  for_each_present(model.weights, [&](Tensor& slot) {
    const auto* from = static_cast<const std::byte*>(slot.data);
    const int64_t bytes = slot.size_bytes();
    for (int64_t begin = 0; begin < bytes; begin += kPieceBytes) {
      pieces.push_back({to + begin, from + begin, std::min(kPieceBytes, bytes - begin)});
    }
    slot.data = to;
    to += round_up(bytes, static_cast<int64_t>(kAlignment));
  });
  for (const Piece& piece : pieces) read_ahead({piece.from, static_cast<size_t>(piece.bytes)});
  pool.run(static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    std::memcpy(piece.to, piece.from, static_cast<size_t>(piece.bytes));
  });
  model.memory = std::move(memory);
  model.stored.clear();
  model.mapped = {};
}

void check_room(int64_t weight_bytes, const Device* device) {
  const uint64_t free = device != nullptr ? device->free_bytes() : memory_for_model(available_memory_bytes());
  if (static_cast<uint64_t>(weight_bytes) <= free) return;
  throw Error("the weights are {}, and {} of {} are free: take a smaller format (fathom convert)",
              human_bytes(static_cast<double>(weight_bytes)), human_bytes(static_cast<double>(free)),
              device != nullptr ? device->name : "memory");
}

void move_to_device(PackedModel& model, const Device& device) {
  check_room(placed_bytes(model.weights, kDeviceAlignment), &device);
  model.memory = copy_to_device(model.weights, device, /*but_experts=*/false);
  model.stored.clear();
  model.mapped = {};
}

void move_to_device_without_experts(PackedModel& model, const Device& device) {
  Buffer memory = copy_to_device(model.weights, device, /*but_experts=*/true);
  model.experts = std::exchange(model.memory, std::move(memory));
  model.stored.clear();
}

int64_t device_bytes_without_experts(const ModelWeights& weights) {
  return placed_bytes(weights, kDeviceAlignment, /*but_experts=*/true);
}

void lock_weights(const PackedModel& model) {
  if (is_mapped(model)) check_fit(weight_bytes(model.weights), "--mlock");
  std::vector<std::span<const std::byte>> ranges;
  for (const WeightFile& file : model.mapped.files) ranges.push_back(file.mapping().bytes());
  if (model.memory.size() > 0) {
    ranges.push_back({static_cast<const std::byte*>(model.memory.data()), model.memory.size()});
  }
  lock_in_memory(ranges);
}

}  // namespace fathom
