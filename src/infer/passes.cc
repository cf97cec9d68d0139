#include "infer/passes.h"

#include <algorithm>

#include "ops/embedding.h"

namespace fathom {
namespace {

constexpr int64_t kRecordedTokens = 256;  // longer passes keep the device busy while the host starts the next operators
constexpr size_t kRecordings = 8;         // each keeps memory for its activations

// The logits of the last n tokens of each sequence.
Tensor last_logits(Context& ctx, const Model& model, const Batch& batch, Tensor hidden, int64_t n) {
  if (n == 0) return {};
  if (batch.n_sequences() == 1) return head_logits(ctx, model, hidden.slice(hidden.rows() - n, n));
  std::vector<int32_t> rows;
  for (size_t s = 1; s < batch.offsets.size(); ++s) {
    for (int64_t i = n; i > 0; --i) rows.push_back(batch.offsets[s] - static_cast<int32_t>(i));
  }
  return logits_of_rows(ctx, model, hidden, rows);
}

}  // namespace

Tensor logits_of_rows(Context& ctx, const Model& model, Tensor hidden, const std::vector<int32_t>& rows) {
  const Tensor wanted = new_f32(ctx, {std::ssize(rows), hidden.cols()});
  embedding(ctx, wanted, from_host(ctx, rows), hidden);  // gathers rows
  return head_logits(ctx, model, wanted);
}

Passes::Recorded& Passes::find(std::vector<int64_t> shape) {
  const auto found = std::ranges::find(recorded_, shape, &Recorded::shape);
  if (found == recorded_.end()) {
    if (recorded_.size() == kRecordings) recorded_.erase(recorded_.begin());
    recorded_.push_back({std::move(shape)});
  } else {
    std::rotate(found, found + 1, recorded_.end());
  }
  return recorded_.back();
}

PassResult Passes::run(Context& ctx, const Model& model, std::span<const std::vector<int32_t>> sequences,
                       std::span<LatentCache* const> caches, const PassOptions& options) {
  std::vector<int64_t> first_positions, shape{options.n_logits};
  int64_t n_tokens = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    first_positions.push_back(caches[s]->length);
    shape.push_back(std::ssize(sequences[s]));
    shape.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(caches[s]->rows(0))));
    n_tokens += std::ssize(sequences[s]);
  }
  const auto compute = [&](Context& where, const Batch& batch) -> PassResult {
    const Tensor hidden = forward(where, model, batch, {.caches = caches, .expand_from = options.expand_from});
    return {hidden, last_logits(where, model, batch, hidden, options.n_logits)};
  };
  const auto read_logits = [&](PassResult result) {
    if (result.logits) result.logits = on_host(ctx, result.logits, host_logits_);
    return result;
  };
  if (model.host_experts != nullptr) model.host_experts->adapt();
  const bool recordable = ctx.device != nullptr && ctx.device->record != nullptr && n_tokens <= kRecordedTokens;
  Recorded* const known = recordable ? &find(std::move(shape)) : nullptr;
  if (known == nullptr || known->arena == nullptr) {
    if (known != nullptr) known->arena = std::make_unique<Arena>(ctx.device->allocate);
    return read_logits(compute(ctx, make_batch(ctx, sequences, first_positions)));
  }

  const Device& device = *ctx.device;
  Context own{ctx.pool, *known->arena, ctx.device};
  if (known->graph == nullptr) {
    known->batch = make_batch(own, sequences, first_positions);
    known->graph = device.record(device, [&] {
      const PassResult result = compute(own, known->batch);
      known->hidden = result.hidden;
      known->logits = result.logits;
    });
  } else {
    for (size_t s = 0; s < sequences.size(); ++s) {
      caches[s]->length += std::ssize(sequences[s]);
      FATHOM_CHECK(caches[s]->length <= caches[s]->capacity);
    }
    const auto replace = [&](Tensor t, const std::vector<int32_t>& numbers) {
      device.upload(device, t.data, numbers.data(), numbers.size() * sizeof(int32_t));
    };
    const BatchNumbers numbers = batch_numbers(sequences, first_positions);
    replace(known->batch.ids, numbers.ids);
    replace(known->batch.positions, numbers.positions);
  }
  device.replay(device, *known->graph);
  return read_logits({known->hidden, known->logits});
}

}  // namespace fathom
