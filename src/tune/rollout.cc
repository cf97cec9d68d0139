#include "tune/rollout.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/terminal.h"

namespace fathom::tune {

uint64_t sample_seed(uint64_t seed, int64_t step, int64_t question, int64_t sample) {
  // Each number moves on by what the ones before it drew, so that no two tuples are neighbours.
  uint64_t mixed = seed;
  for (const int64_t part : {step, question, sample}) mixed = Rng(mixed, static_cast<uint64_t>(part) + 1).next();
  return mixed;
}

std::optional<std::vector<Sample>> sample_answers(Context& ctx, const Model& model, std::span<const Wanted> wanted,
                                                  const RolloutOptions& options, RolloutCounts& counts,
                                                  const std::function<bool()>& interrupted) {
  const double begin_s = monotonic_s();
  std::vector<Sample> samples(wanted.size());
  int64_t longest = 0;
  for (const Wanted& each : wanted) longest = std::max(longest, std::ssize(each.question->prompt));
  const int64_t context = std::min(longest + options.max_tokens, model.config.max_position_embeddings);
  // Room for all that run at a time: who is put back computes again, and draws other drafts.
  const int64_t pages_each = (context + options.draft_tokens) / kCachePageRows + 2;
  BatchingOptions batching_options{.max_sequences = options.max_sequences,
                                   .cache_tokens = pages_each * kCachePageRows * options.max_sequences,
                                   .context = context,
                                   .kv_type = options.kv_type,
                                   .draft_tokens = options.draft_tokens,
                                   .draft_sequences = options.max_sequences};
  Batching batching(ctx, model, nullptr, batching_options);
  std::string failure;
  for (size_t i = 0; i < wanted.size(); ++i) {
    BatchRequest request;
    request.prompt = wanted[i].question->prompt;
    request.options.sampler = options.sampler;
    request.options.max_tokens = options.max_tokens;
    request.options.eos_ids = model.config.eos_token_ids;
    request.options.seed = wanted[i].seed;
    request.options.draft_tokens = options.draft_tokens;
    request.options.record_sampling = true;
    request.on_end = [&, i](const Generation& result, const std::string& error) {
      if (!error.empty() && failure.empty()) {
        failure = fmt::format("question {}: {}", printable(wanted[i].question->id), error);
      }
      samples[i].ids = result.ids;
      samples[i].sampling = result.sampling;
      samples[i].ended = result.finish == FinishReason::eos;
      samples[i].cut = result.finish == FinishReason::length || result.finish == FinishReason::context;
      counts.tokens += std::ssize(result.ids);
      counts.drafted += result.drafted;
      counts.accepted += result.accepted;
    };
    batching.add(std::move(request));
  }
  bool more = true;
  while (more && failure.empty()) {
    if (interrupted && interrupted()) return std::nullopt;
    more = batching.step();
  }
  if (!failure.empty()) throw Error("{}", failure);
  counts.passes += batching.counts().passes;
  counts.seconds += monotonic_s() - begin_s;
  return samples;
}

SampleBatch make_sample_batch(Context& ctx, std::span<const Trained> samples, const SamplerOptions& sampler) {
  SampleBatch made;
  std::vector<std::vector<int32_t>> sequences;
  for (const Trained& each : samples) {
    std::vector<int32_t>& ids = sequences.emplace_back(each.question->prompt);
    ids.insert(ids.end(), each.sample->ids.begin(), each.sample->ids.end());
  }
  made.batch = make_batch(ctx, sequences);
  made.targets = make_targets(ctx, made.batch);
  int32_t* const targets = made.targets.main.i32();
  const bool keep_mask =
      std::ranges::any_of(samples, [](const Trained& each) { return !each.sample->sampling.begins.empty(); });
  if (keep_mask) made.begins.push_back(0);
  for (size_t s = 0; s < samples.size(); ++s) {
    const int64_t begin = made.batch.offsets[s], n_prompt = std::ssize(samples[s].question->prompt);
    made.batch.prompts.push_back(static_cast<int32_t>(n_prompt));
    std::fill_n(targets + begin, n_prompt - 1, kNoTarget);
    made.targets.n_main -= n_prompt - 1;
    made.first_rows.push_back(begin + n_prompt - 1);
    if (!keep_mask) continue;
    const SamplingRecord& record = samples[s].sample->sampling;
    made.begins.insert(made.begins.end(), static_cast<size_t>(n_prompt - 1), std::ssize(made.kept));
    for (size_t t = 0; t < samples[s].sample->ids.size(); ++t) {
      if (!record.begins.empty()) {
        made.kept.insert(made.kept.end(), record.kept.begin() + record.begins[t],
                         record.kept.begin() + record.begins[t + 1]);
      }
      made.begins.push_back(std::ssize(made.kept));
    }
    made.begins.push_back(std::ssize(made.kept));  // the last token has no target
  }
  made.mask = {sampler.temperature, made.begins, made.kept};
  return made;
}

std::vector<ChosenExperts> cut_by_sample(const Batch& batch, std::span<const Tensor> chosen) {
  std::vector<ChosenExperts> cut(static_cast<size_t>(batch.n_sequences()));
  for (size_t s = 0; s < cut.size(); ++s) {
    for (const Tensor& layer : chosen) {
      if (!layer) continue;
      const int32_t* const first = layer.i32() + batch.offsets[s] * layer.cols();
      cut[s].emplace_back(first, first + (batch.offsets[s + 1] - batch.offsets[s]) * layer.cols());
    }
  }
  return cut;
}

std::vector<Tensor> joined(Context& ctx, const Model& model, std::span<const ChosenExperts* const> of) {
  std::vector<Tensor> layers;
  const int64_t k = model.config.router.num_experts_per_tok;
  size_t moe_layer = 0;
  for (const LayerWeights& layer : model.weights.layers) {
    if (!layer.moe.gate) {
      layers.emplace_back();
      continue;
    }
    int64_t n = 0;
    for (const ChosenExperts* each : of) n += std::ssize((*each)[moe_layer]);
    const Tensor all = new_i32(ctx, {n / k, k});
    int32_t* to = all.i32();
    for (const ChosenExperts* each : of) to = std::ranges::copy((*each)[moe_layer], to).out;
    layers.push_back(all);
    ++moe_layer;
  }
  return layers;
}

}  // namespace fathom::tune
