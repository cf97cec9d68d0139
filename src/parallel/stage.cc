#include "parallel/stage.h"

#include "base/error.h"
#include "model/backward.h"
#include "ops/embedding.h"
#include "ops/rms_norm.h"

namespace fathom {

WeightPart stage_part(const ModelConfig& config, int n_stages, int stage) {
  const int64_t layers = config.num_hidden_layers;
  if (layers < n_stages) {
    throw Error("{} stages of a pipeline need as many layers or more; the model has {}", n_stages, layers);
  }
  // Larger stages first.
  const auto begin_of = [&](int64_t s) { return layers / n_stages * s + std::min(s, layers % n_stages); };
  return {.first_layer = begin_of(stage),
          .end_layer = begin_of(stage + 1),
          // MTP modules read the embedding too.
          .embed = stage == 0 || (stage == n_stages - 1 && config.num_nextn_predict_layers > 0),
          .head = stage == n_stages - 1};
}

Stage make_stage(const ModelConfig& config, int n_stages, int stage) {
  Stage made;
  made.part = stage_part(config, n_stages, stage);
  made.parameters = allocate_parameters(config, /*with_bias=*/true, made.part);
  made.gradients = allocate_parameters(config, /*with_bias=*/false, made.part);
  made.model = make_model(config, made.parameters.weights);
  return made;
}

// A chunk in a stage; all its memory is its arena's.
struct StageWork::Chunk {
  std::unique_ptr<Arena> arena;
  Context ctx;
  Batch batch;
  Targets targets{};
  Tensor input, output, d_output, d_input;  // [tokens, hidden]
  Tensor x_rms, hidden, d_hidden;           // of the last norm
  std::vector<LayerSaved> saved;            // [layer of the stage]
  std::vector<LayerGrads> inner;
  LossResult result;
};

StageWork::StageWork(ThreadPool& pool, const PipelineSchedule& schedule, int rank, std::span<Stage> stages,
                     const PipelineStep& step)
    : pool_(pool), schedule_(schedule), rank_(rank), stages_(stages), step_(step) {
  FATHOM_CHECK(std::ssize(stages) == schedule.n_directions() && std::ssize(step.chunks) == schedule.n_chunks);
  // The backward passes are apart: what one of them makes again would have to stay for the other.
  FATHOM_CHECK(step.loss.recompute == Recompute::none);
}

StageWork::~StageWork() = default;

size_t StageWork::number(ChunkPass pass) const {
  const bool own_chunks = schedule_.kind == ScheduleKind::dualpipe;
  return static_cast<size_t>(pass.chunk + (own_chunks ? pass.direction * schedule_.chunks_of_direction() : 0));
}

StageWork::Chunk& StageWork::chunk(ChunkPass pass) {
  std::unique_ptr<Chunk>& c = chunks_[{pass.direction, pass.chunk}];
  if (c != nullptr) return *c;
  std::unique_ptr<Arena> arena;
  if (free_arenas_.empty()) {
    arena = std::make_unique<Arena>();
  } else {
    arena = std::move(free_arenas_.back());
    free_arenas_.pop_back();
  }
  Arena& memory = *arena;
  c.reset(new Chunk{std::move(arena), {pool_, memory}});
  c->batch = make_batch(c->ctx, step_.chunks[number(pass)]);
  const int64_t tokens = c->batch.n_tokens(), hidden = stage(pass).model.config.hidden_size;
  for (Tensor* t : {&c->input, &c->output, &c->d_output, &c->d_input}) *t = new_f32(c->ctx, {tokens, hidden});
  const WeightPart& part = stage(pass).part;
  c->saved.resize(static_cast<size_t>(part.end_layer - part.first_layer));
  c->inner.resize(c->saved.size());
  return *c;
}

StagePass StageWork::forward(ChunkPass pass) {
  Chunk& c = chunk(pass);
  Stage& s = stage(pass);
  const ModelWeights& w = s.model.weights;
  const ModelConfig& config = s.model.config;
  const int64_t tokens = c.batch.n_tokens(), hidden = config.hidden_size;
  if (s.part.first_layer == 0) embedding(c.ctx, c.input, c.batch.ids, w.embed);
  Tensor x = c.input;
  for (size_t l = 0; l < c.saved.size(); ++l) {
    const Tensor out = l + 1 == c.saved.size() ? c.output : new_f32(c.ctx, {tokens, hidden});
    layer_forward(c.ctx, s.model, w.layers[static_cast<size_t>(s.part.first_layer) + l], c.batch, out, x, c.saved[l],
                  &c.result.expert_load);
    x = out;
  }
  if (s.part.head) {
    c.x_rms = new_f32(c.ctx, {tokens});
    c.hidden = new_f32(c.ctx, {tokens, hidden});
    c.d_hidden = new_f32(c.ctx, {tokens, hidden});
    rms_norm(c.ctx, c.hidden, x, w.norm, static_cast<float>(config.rms_norm_eps), c.x_rms);
    c.targets = make_targets(c.ctx, c.batch);
    head_and_mtp_gradients(c.ctx, s.model, s.gradients.weights, c.batch, c.targets, step_.loss, c.hidden, c.d_hidden,
                           c.result);
  }
  co_return;
}

void StageWork::backward_input(Chunk& c, Stage& s) {
  const ModelWeights& w = s.model.weights;
  const int64_t tokens = c.batch.n_tokens(), hidden = s.model.config.hidden_size;
  Tensor d_out = c.d_output;
  if (s.part.head) rms_norm_backward_input(c.ctx, d_out, c.d_hidden, c.output, w.norm, c.x_rms, /*accumulate=*/false);
  const ScoreGradient balance = balance_gradient(c.ctx, s.model, c.batch, step_.loss, c.result.balance_loss);
  for (size_t l = c.saved.size(); l-- > 0;) {
    const Tensor dx = l == 0 ? c.d_input : new_f32(c.ctx, {tokens, hidden});
    layer_backward_input(c.ctx, s.model, w.layers[static_cast<size_t>(s.part.first_layer) + l], c.batch, c.saved[l], dx,
                         d_out, c.inner[l], balance);
    d_out = dx;
  }
}

void StageWork::backward_weight(Chunk& c, Stage& s) {
  ModelWeights& dw = s.gradients.weights;
  if (s.part.head) rms_norm_backward_weight(c.ctx, dw.norm, c.d_hidden, c.output, c.x_rms);
  for (size_t l = c.saved.size(); l-- > 0;) {
    layer_backward_weight(c.ctx, s.model, dw.layers[static_cast<size_t>(s.part.first_layer) + l], c.batch, c.saved[l],
                          c.inner[l]);
  }
  if (s.part.first_layer == 0) embedding_backward_weight(c.ctx, dw.embed, c.d_input, c.batch.ids);
}

StagePass StageWork::backward(ChunkPass pass, bool of_input, bool of_weights) {
  if (of_input) backward_input(chunk(pass), stage(pass));
  if (of_weights) backward_weight(chunk(pass), stage(pass));
  co_return;
}

PipelineWork StageWork::work() {
  const auto bytes = [](Tensor t) {
    return std::span(static_cast<std::byte*>(t.data), static_cast<size_t>(t.size_bytes()));
  };
  return {
      .forward = [this](ChunkPass p) { return forward(p); },
      .backward_input = [this](ChunkPass p) { return backward(p, true, false); },
      .backward_weight = [this](ChunkPass p) { return backward(p, false, true); },
      .backward = [this](ChunkPass p) { return backward(p, true, true); },
      .input = [this, bytes](ChunkPass p) { return bytes(chunk(p).input); },
      .output_gradient = [this, bytes](ChunkPass p) { return bytes(chunk(p).d_output); },
      .output = [this, bytes](ChunkPass p) -> std::span<const std::byte> { return bytes(chunk(p).output); },
      .input_gradient = [this, bytes](ChunkPass p) -> std::span<const std::byte> { return bytes(chunk(p).d_input); },
      .end_chunk =
          [this](ChunkPass p) {
            const auto found = chunks_.find({p.direction, p.chunk});
            Chunk& c = *found->second;
            results_.emplace(found->first, std::move(c.result));
            c.arena->reset();
            free_arenas_.push_back(std::move(c.arena));
            chunks_.erase(found);
          },
  };
}

LossResult StageWork::result() const {
  LossResult total;
  for (const auto& [pass, of_chunk] : results_) {
    const Stage& s = stages_[static_cast<size_t>(pass.first)];
    const ModelConfig& config = s.model.config;
    const auto moe_layers = [&](int64_t from, int64_t to) {
      int64_t n = 0;
      for (int64_t l = from; l < to; ++l) n += config.is_moe(l) ? 1 : 0;
      return static_cast<size_t>(n);
    };
    LossResult result = of_chunk;
    ExpertLoad& load = result.expert_load;
    const std::vector<int64_t> none(static_cast<size_t>(config.router.n_routed_experts));
    load.insert(load.begin(), moe_layers(0, s.part.first_layer), none);
    load.insert(load.end(), moe_layers(s.part.end_layer, config.num_hidden_layers), none);
    total += result;
  }
  return total;
}

}  // namespace fathom
