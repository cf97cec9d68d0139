#include "parallel/stage.h"

#include "base/error.h"
#include "model/layer.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/rms_norm.h"

namespace fathom {

WeightPart stage_part(const ModelConfig& config, int n_stages, int stage, const ExpertGroup* experts) {
  const int64_t layers = config.num_hidden_layers;
  if (layers < n_stages) {
    throw Error("{} stages of a pipeline need as many layers or more; the model has {}", n_stages, layers);
  }
  // Larger stages first.
  const auto begin_of = [&](int64_t s) { return layers / n_stages * s + std::min(s, layers % n_stages); };
  WeightPart part{.first_layer = begin_of(stage),
                  .end_layer = begin_of(stage + 1),
                  // MTP modules read the embedding too.
                  .embed = stage == 0 || (stage == n_stages - 1 && config.num_nextn_predict_layers > 0),
                  .head = stage == n_stages - 1,
                  .experts_last = true};
  if (experts == nullptr) return part;
  const ExpertRange range = experts_of(config.router.n_routed_experts, experts->size(), experts->index());
  part.first_expert = range.first;
  part.end_expert = range.end;
  return part;
}

Stage make_stage(const ModelConfig& config, int n_stages, int stage, const ExpertGroup* experts) {
  Stage made;
  made.part = stage_part(config, n_stages, stage, experts);
  made.experts = experts;
  made.parameters = allocate_parameters(config, /*with_bias=*/true, made.part);
  made.gradients = allocate_parameters(config, /*with_bias=*/false, made.part);
  made.model = make_model(config, made.parameters.weights);
  return made;
}

// Memory of what is not kept of a layer between its passes, or is made again.
struct StageWork::Scratch {
  explicit Scratch(ThreadPool& pool) : ctx{pool, arena} {}
  Arena arena;
  Context ctx;
};

// A chunk in a stage; its memory is its arena's, but for what is made again.
struct StageWork::Chunk {
  std::unique_ptr<Arena> arena;
  Context ctx;
  Batch batch;
  Targets targets{};
  Tensor input, output, d_output, d_input;  // [tokens, hidden]
  Tensor x_rms, hidden, d_hidden;           // of the last norm
  std::vector<LayerSaved> saved;            // [layer of the stage]
  std::vector<LayerGrads> inner;
  std::vector<ExpertsHere> experts;                // where they are spread
  std::vector<std::unique_ptr<Scratch>> remade{};  // of what was made again, until the weights' part of it is over
  LossResult result;
};

// One of its layers, or of an MTP module.
struct StageWork::LayerHere {
  const LayerWeights& w;
  LayerWeights& gradients;
  const Batch& batch;
  LayerSaved& saved;
  LayerGrads& inner;
  ExpertsHere& experts;
  Context &ctx, &made_again;  // as model/layer.h has them
};

namespace {

constexpr int kTagsOfPass = 1 << 11;  // exchanges of a chunk's way through a stage
constexpr int kFirstTag = 1 << 20;    // behind those of the pipeline

}  // namespace

StageWork::StageWork(ThreadPool& pool, const PipelineSchedule& schedule, std::span<Stage> stages,
                     const PipelineStep& step)
    : pool_(pool), schedule_(schedule), stages_(stages), step_(step) {
  FATHOM_CHECK(std::ssize(stages) == schedule.n_directions() && std::ssize(step.chunks) == schedule.n_chunks);
  for (const Stage& s : stages) {
    if (s.experts != nullptr && !beside_) beside_.emplace(*s.experts->across.comm);
  }
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
  Example example = make_example(c->ctx, step_.chunks[number(pass)]);
  c->batch = std::move(example.batch);
  c->targets = example.targets;
  const int64_t tokens = c->batch.n_tokens(), hidden = stage(pass).model.config.hidden_size;
  for (Tensor* t : {&c->input, &c->output, &c->d_output, &c->d_input}) *t = new_f32(c->ctx, {tokens, hidden});
  const WeightPart& part = stage(pass).part;
  c->saved.resize(static_cast<size_t>(part.end_layer - part.first_layer));
  c->inner.resize(c->saved.size());
  c->experts.resize(c->saved.size());
  c->remade.resize(c->saved.size());
  return *c;
}

std::unique_ptr<StageWork::Scratch> StageWork::take_scratch() {
  if (free_scratch_.empty()) return std::make_unique<Scratch>(pool_);
  std::unique_ptr<Scratch> scratch = std::move(free_scratch_.back());
  free_scratch_.pop_back();
  return scratch;
}

void StageWork::give_back(std::unique_ptr<Scratch> scratch) {
  if (scratch == nullptr) return;
  scratch->arena.reset();
  free_scratch_.push_back(std::move(scratch));
}

// Ranks that exchange rows may do so for two chunks in another order: those that are begun at a time, which are few.
int StageWork::first_tag(ChunkPass pass, bool backward) const {
  constexpr int kApart = 64;  // chunks; those so far from each other have the same tags, in the same order everywhere
  const int number = 2 * (2 * (pass.chunk % kApart) + pass.direction) + (backward ? 1 : 0);
  return kFirstTag + kTagsOfPass * number;
}

StageWork::LayerHere StageWork::layer(Chunk& c, Stage& s, size_t l, Context& ctx, Context& made_again) {
  const size_t index = static_cast<size_t>(s.part.first_layer) + l;
  return {s.model.weights.layers[index],
          s.gradients.weights.layers[index],
          c.batch,
          c.saved[l],
          c.inner[l],
          c.experts[l],
          ctx,
          made_again};
}

StagePass StageWork::layer_forward(Stage& s, LayerHere here, Tensor out, Tensor x, ExpertLoad* load, int& tag) {
  const LayerWeights& w = here.w;
  LayerSaved& saved = here.saved;
  const MlpInput input = layer_attention(here.ctx, s.model, w, here.batch, x, saved, here.made_again);
  if (!w.moe.gate) {
    layer_mlp(here.ctx, s.model, w.mlp, out, input, saved.mlp, here.made_again);
  } else {
    layer_route(here.ctx, s.model, w, input, saved.moe, load, here.made_again);
    StagePass away;
    if (s.experts != nullptr) {
      away = experts_forward(here.ctx, s.model, *s.experts, w.moe, out, saved.moe, here.experts, here.made_again,
                             *beside_, tag, traffic_);
      away.go_on();
      co_await StagePass::after_others();
    }
    // While rows are on their way.
    if (w.moe.shared.gate_up) {
      layer_mlp(here.ctx, s.model, w.moe.shared, out, input, saved.moe.shared, here.made_again);
    } else {
      fill_zero(here.ctx, out);
    }
    if (s.experts != nullptr) {
      co_await std::move(away);
    } else {
      layer_experts(here.ctx, s.model, w.moe, out, saved.moe, here.made_again);
    }
  }
  add(here.ctx, out, saved.mid, out);
}

// What the backward pass reads of a layer and forward() has not kept, in the same bits; all of it where it has kept
// what enters the layer alone: then rows go to the experts again.
StagePass StageWork::make_again(Chunk& c, Stage& s, size_t l, int& tag) {
  c.remade[l] = take_scratch();
  Context& ctx = c.remade[l]->ctx;
  const LayerHere here = layer(c, s, l, ctx, ctx);
  if (step_.loss.recompute == Recompute::full) {
    const Tensor x = here.saved.x, unread = new_f32(ctx, {x.rows(), x.cols()});
    co_await layer_forward(s, here, unread, x, nullptr, tag);
  } else {
    recompute_layer(ctx, s.model, here.w, here.batch, step_.loss.recompute, here.saved);
    here.experts.saved.activated = {};
  }
}

// As loss() has it (model/loss.cc), of the main loss.
void StageWork::head(Chunk& c, Stage& s) {
  const Tensor losses = new_f32(c.ctx, {c.hidden.rows()});
  head_cross_entropy(c.ctx, losses, c.hidden, s.model.weights.head, c.targets.main);
  c.result.loss_sum = sum_of_losses(c.ctx, losses);
  c.result.main_targets = c.targets.n_main;
}

// As loss_and_gradients() has it.
StagePass StageWork::head_and_mtp(Chunk& c, Stage& s, int& tag) {
  const LossOptions& options = step_.loss;
  ModelWeights& dw = s.gradients.weights;
  const auto predict = [&](Tensor hidden, Tensor d_hidden, const Targets& targets, double scale) {
    const Tensor losses = new_f32(c.ctx, {hidden.rows()});
    main_loss_backward(c.ctx, losses, d_hidden, dw.head, hidden, s.model.weights.head, targets, scale, {}, nullptr,
                       c.result);
    return sum_of_losses(c.ctx, losses);
  };
  c.result.loss_sum = predict(c.hidden, c.d_hidden, c.targets, options.main_scale);
  c.result.main_targets = c.targets.n_main;

  const std::vector<MtpStep> steps = mtp_steps(c.ctx, s.model, c.batch, c.targets, options);
  std::vector<MtpSaved> mtp(steps.size());
  std::vector<MtpGrads> inner(steps.size());
  std::vector<ExpertsHere> experts(steps.size());
  std::vector<Tensor> d_hiddens = {c.d_hidden};
  const auto layer_of = [&](size_t m) {
    return LayerHere{steps[m].module->layer,
                     dw.mtp[m].layer,
                     steps[m].input.next,
                     mtp[m].layer,
                     inner[m].layer,
                     experts[m],
                     c.ctx,
                     c.ctx};
  };
  for (size_t m = 0; m < steps.size(); ++m) {
    const MtpWeights& w = *steps[m].module;
    const Tensor x = mtp_begin(c.ctx, s.model, w, steps[m].input, m == 0 ? c.hidden : mtp[m - 1].hidden, mtp[m]);
    co_await layer_forward(s, layer_of(m), mtp[m].x, x, &c.result.expert_load, tag);
    const Tensor hidden = mtp_end(c.ctx, s.model, w, mtp[m]);
    d_hiddens.push_back(new_f32(c.ctx, {hidden.rows(), hidden.cols()}));
    const double scale = options.mtp_weight * options.mtp_scale;
    c.result.mtp_loss_sum += predict(hidden, d_hiddens.back(), steps[m].targets, scale);
    c.result.mtp_targets += steps[m].targets.n_main;
  }
  const std::function<void()> nothing = [] {};
  for (size_t m = steps.size(); m-- > 0;) {
    const MtpWeights& w = *steps[m].module;
    const Tensor d_out = mtp_end_backward_input(c.ctx, w, mtp[m], d_hiddens[m + 1], inner[m]);
    co_await layer_backward_input(c, s, layer_of(m), inner[m].projected, d_out, tag, nothing);
    mtp_begin_backward_input(c.ctx, s.model, w, mtp[m], d_hiddens[m], inner[m]);
    layer_backward_weight(s, layer_of(m));
    mtp_ends_backward_weight(c.ctx, s.model, dw.mtp[m], dw.embed, mtp[m], inner[m]);
  }
}

StagePass StageWork::forward(ChunkPass pass) {
  Chunk& c = chunk(pass);
  Stage& s = stage(pass);
  const ModelWeights& w = s.model.weights;
  const ModelConfig& config = s.model.config;
  const int64_t tokens = c.batch.n_tokens(), hidden = config.hidden_size;
  int tag = first_tag(pass, false);
  if (s.part.first_layer == 0) embedding(c.ctx, c.input, c.batch.ids, w.embed);
  Tensor x = c.input;
  const Recompute recompute = schedule_.forward_only ? Recompute::full : step_.loss.recompute;
  std::unique_ptr<Scratch> scratch = recompute == Recompute::none ? nullptr : take_scratch();
  Context& made_again = scratch != nullptr ? scratch->ctx : c.ctx;
  Context& kept = recompute == Recompute::full ? made_again : c.ctx;
  for (size_t l = 0; l < c.saved.size(); ++l) {
    const Tensor out = l + 1 == c.saved.size() ? c.output : new_f32(c.ctx, {tokens, hidden});
    co_await layer_forward(s, layer(c, s, l, kept, made_again), out, x, &c.result.expert_load, tag);
    if (scratch != nullptr) scratch->arena.reset();
    x = out;
  }
  FATHOM_CHECK(tag <= first_tag(pass, false) + kTagsOfPass);
  give_back(std::move(scratch));
  if (!s.part.head) co_return;
  c.x_rms = new_f32(c.ctx, {tokens});
  c.hidden = new_f32(c.ctx, {tokens, hidden});
  c.d_hidden = new_f32(c.ctx, {tokens, hidden});
  rms_norm(c.ctx, c.hidden, x, w.norm, static_cast<float>(config.rms_norm_eps), c.x_rms);
  if (schedule_.forward_only) {
    head(c, s);
  } else {
    co_await head_and_mtp(c, s, tag);
  }
}

// meanwhile: what may be computed while rows are on their way.
StagePass StageWork::layer_backward_input(Chunk& c, Stage& s, LayerHere here, Tensor dx, Tensor d_out, int& tag,
                                          const std::function<void()>& meanwhile) {
  const LayerWeights& w = here.w;
  const LayerSaved& saved = here.saved;
  LayerGrads& g = here.inner;
  g.mlp_normed = new_f32(here.ctx, {d_out.rows(), d_out.cols()});
  if (!w.moe.gate) {
    layer_mlp_backward_input(here.ctx, s.model, w.mlp, saved.mlp, g.mlp_normed, d_out, g.mlp);
  } else {
    const Tensor d_weights = new_f32(here.ctx, {d_out.rows(), saved.moe.topk_weights.cols()});
    StagePass away;
    if (s.experts != nullptr) {
      away = experts_backward(here.ctx, s.model, *s.experts, w.moe, g.mlp_normed, d_weights, d_out, here.experts,
                              *beside_, tag, traffic_);
      away.go_on();
      co_await StagePass::after_others();
    }
    if (w.moe.shared.gate_up) {
      layer_mlp_backward_input(here.ctx, s.model, w.moe.shared, saved.moe.shared, g.mlp_normed, d_out, g.moe.shared);
    } else {
      fill_zero(here.ctx, g.mlp_normed);
    }
    if (s.experts != nullptr) {
      co_await StagePass::after_others();
      meanwhile();
      co_await std::move(away);
    } else {
      layer_experts_backward_input(here.ctx, s.model, w.moe, saved.moe, g.mlp_normed, d_weights, d_out, g.moe);
    }
    const ScoreGradient balance = balance_gradient(here.ctx, s.model, here.batch, step_.loss, c.result.balance_loss);
    layer_route_backward_input(here.ctx, s.model, w.moe, saved.moe, g.mlp_normed, d_weights, g.moe, balance);
  }
  layer_attention_backward_input(here.ctx, s.model, w, here.batch, saved, dx, d_out, g);
}

void StageWork::layer_backward_weight(Stage& s, LayerHere here) {
  LayerWeights& dw = here.gradients;
  const LayerSaved& saved = here.saved;
  const LayerGrads& g = here.inner;
  if (!dw.moe.gate) {
    layer_mlp_backward_weight(here.ctx, s.model, dw.mlp, saved.mlp, g.mlp);
  } else {
    layer_route_backward_weight(here.ctx, dw.moe, saved.moe, g.moe);
    if (dw.moe.shared.gate_up) {
      layer_mlp_backward_weight(here.ctx, s.model, dw.moe.shared, saved.moe.shared, g.moe.shared);
    }
    if (s.experts != nullptr) {
      layer_experts_backward_weight(here.ctx, s.model, dw.moe, here.experts.saved, here.experts.grads);
    } else {
      layer_experts_backward_weight(here.ctx, s.model, dw.moe, saved.moe, g.moe);
    }
  }
  layer_attention_backward_weight(here.ctx, s.model, dw, saved, g);
}

StagePass StageWork::backward(ChunkPass pass, bool of_input, bool of_weights) {
  Chunk& c = chunk(pass);
  Stage& s = stage(pass);
  ModelWeights& dw = s.gradients.weights;
  const int64_t tokens = c.batch.n_tokens(), hidden = s.model.config.hidden_size;
  const size_t n_layers = c.saved.size();
  size_t n_waiting = of_input ? n_layers : 0;  // layers from the first whose input part is not done
  size_t n_left = n_layers;                    // and those whose weights' part is not
  const bool is_last = of_weights && ++n_backward_[pass.direction] == schedule_.chunks_of_direction();
  const auto are_final_from = [&](int64_t l) {
    if (is_last && told_) told_(pass.direction, l);
  };
  const auto here = [&](size_t l) {
    Context& ctx = c.remade[l] != nullptr ? c.remade[l]->ctx : c.ctx;
    return layer(c, s, l, ctx, ctx);
  };
  const std::function<void()> weights_that_are_due = [&] {
    for (; of_weights && n_left > n_waiting; --n_left) {
      layer_backward_weight(s, here(n_left - 1));
      give_back(std::move(c.remade[n_left - 1]));
      are_final_from(s.part.first_layer + static_cast<int64_t>(n_left) - 1);
    }
  };
  if (of_weights) {
    if (s.part.head) rms_norm_backward_weight(c.ctx, dw.norm, c.d_hidden, c.output, c.x_rms);
    are_final_from(s.part.end_layer);
  }
  if (of_input) {
    int tag = first_tag(pass, true);
    Tensor d_out = c.d_output;
    if (s.part.head) {
      rms_norm_backward_input(c.ctx, d_out, c.d_hidden, c.output, s.model.weights.norm, c.x_rms, /*accumulate=*/false);
    }
    while (n_waiting > 0) {
      const size_t l = n_waiting - 1;
      const Tensor dx = l == 0 ? c.d_input : new_f32(c.ctx, {tokens, hidden});
      if (step_.loss.recompute != Recompute::none) co_await make_again(c, s, l, tag);
      co_await layer_backward_input(c, s, here(l), dx, d_out, tag, weights_that_are_due);
      d_out = dx;
      n_waiting = l;
      if (s.experts == nullptr) weights_that_are_due();  // no rows of the next layer have to hide behind it
    }
    FATHOM_CHECK(tag <= first_tag(pass, true) + kTagsOfPass);
  }
  if (!of_weights) co_return;
  weights_that_are_due();
  if (s.part.first_layer == 0) embedding_backward_weight(c.ctx, dw.embed, c.d_input, c.batch.ids);
  are_final_from(-1);
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
