// Checkpoints whose every bit follows from their step, and where the tests of faults keep them.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>

#include "base/thread_pool.h"
#include "temporary_directory.h"
#include "train/saved_state.h"

namespace fathom::test {

// FATHOM_FAULTS=full asks for the figures of docs/testing.md, which take minutes; else a part of them is done.
inline bool full_run() {
  const char* const asked = std::getenv("FATHOM_FAULTS");
  return asked != nullptr && std::string(asked) == "full";
}

// Memory where there is such a file system: what is tested is the order of calls, not the disk.
inline std::filesystem::path scratch_root() {
  return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : std::filesystem::temp_directory_path();
}

// Checkpoints of 20 kB and, with a vocabulary of 9000, of 2 MB.
inline ModelConfig small_config(int64_t vocab_size = 40) {
  ModelConfig c;
  c.vocab_size = vocab_size;
  c.hidden_size = 8;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 1;
  c.kv_lora_rank = 4;
  c.qk_nope_head_dim = 4;
  c.qk_rope_head_dim = 2;
  c.v_head_dim = 4;
  c.intermediate_size = 8;
  c.moe_intermediate_size = 4;
  c.n_shared_experts = 1;
  c.first_k_dense_replace = 1;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = 64;
  c.router = {.n_routed_experts = 2, .num_experts_per_tok = 1, .n_group = 1, .topk_group = 1};
  return c;
}

inline TrainedState state_of(int64_t step, const ModelConfig& config, Format moments = Format::bf16) {
  TrainedState state;
  state.config = config;
  state.parameters = allocate_parameters(config);
  state.first_moment = allocate_moment(state.parameters.n_trained, moments);
  state.second_moment = allocate_moment(state.parameters.n_trained, moments);
  state.average = allocate_parameters(config);
  uint32_t place = static_cast<uint32_t>(step) * 40'503;
  const auto next = [&] { return static_cast<float>((place += 2'654'435'761) % 1'000'003) * 1e-6F; };
  for_each_tensor(state.parameters.weights, config, [&](const NamedTensor& named) {
    for (int64_t r = 0; r < named.view.rows(); ++r) {
      for (int64_t c = 0; c < named.view.cols(); ++c) named.view.f32_row(r)[c] = next();
    }
  });
  for (float& value : state.average.all()) value = next();
  for (const Moment* moment : {&state.first_moment, &state.second_moment}) {
    for (size_t i = 0; i + sizeof(float) <= moment->memory.size(); i += sizeof(float)) {
      const float value = next();
      std::memcpy(static_cast<char*>(moment->memory.data()) + i, &value, sizeof value);
    }
  }
  state.step = step;
  state.tokens = 7 * step;
  state.loss = 1 / static_cast<double>(step);
  state.guard = {0.25 * static_cast<double>(step), 0.5, step, step % 3};
  state.val_loss = static_cast<double>(step) / 3;
  state.lr = 0.001 * static_cast<double>(step);
  return state;
}

// As a run does once it knows that the checkpoint is good. What could not be removed.
inline std::string save_and_clean(const std::filesystem::path& out, const TrainedState& state,
                                  const Tokenizer& tokenizer, const Settings& settings, Keep keep) {
  save_checkpoint(out, state, tokenizer, settings);
  return remove_old_checkpoints(out, state.step, keep);
}

inline bool same_bits(const Buffer& a, const Buffer& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

// The step whose checkpoint is loaded, 0 for none, -1 when it is not bit for bit what was saved, or none is whole.
inline int64_t loaded_step(const std::filesystem::path& out, ThreadPool& pool) {
  if (!has_checkpoints(out)) return 0;
  TrainedState found;
  try {
    found = load_newest_checkpoint(out, {}, pool);
  } catch (const Error&) {
    return -1;
  }
  const TrainedState made = state_of(found.step, found.config, found.first_moment.values.format);
  const bool same = same_bits(found.parameters.memory, made.parameters.memory) &&
                    same_bits(found.first_moment.memory, made.first_moment.memory) &&
                    same_bits(found.second_moment.memory, made.second_moment.memory) && found.tokens == made.tokens &&
                    found.loss == made.loss && found.guard.mean == made.guard.mean &&
                    found.guard.variance == made.guard.variance && found.guard.taken == made.guard.taken &&
                    found.guard.skipped == made.guard.skipped && found.val_loss == made.val_loss &&
                    found.lr == made.lr && same_bits(found.average.memory, made.average.memory);
  return same ? found.step : -1;
}

}  // namespace fathom::test
