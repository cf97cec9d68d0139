#include <algorithm>
#include <cmath>
#include <optional>

#include "model/indexer.h"
#include "model/layer.h"
#include "model/load_count.h"
#include "number/formats.h"
#include "ops/attention.h"
#include "ops/device.h"
#include "ops/embedding.h"
#include "ops/gqa_attention.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rows.h"
#include "ops/swiglu.h"

namespace fathom {
namespace {

// The norms of the two latents have this epsilon whatever rms_norm_eps says.
constexpr float kLatentNormEps = 1e-6f;

// What the layers of a forward pass share.
struct Pass {
  const Batch& batch;
  const ForwardOptions& options;
  Context& made_again;         // memory of what the backward pass makes again, see Recompute
  DeviceCaches caches{};       // options.caches, on a device
  LoadCount* loads = nullptr;  // of options.expert_load
};

Pass make_pass(Context& ctx, Context& made_again, const Batch& batch, const ForwardOptions& options) {
  Pass pass{batch, options, made_again};
  FATHOM_CHECK(options.caches.empty() || static_cast<int64_t>(options.caches.size()) == batch.n_sequences());
  if (ctx.device == nullptr || options.caches.empty()) return pass;
  std::vector<int64_t> rows, strides;
  for (const LatentCache* cache : options.caches) {
    rows.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(cache->rows(0))));
    strides.push_back(cache->layer_bytes);
    FATHOM_CHECK(cache->layout == options.caches[0]->layout);
  }
  pass.caches = {from_host(ctx, rows), from_host(ctx, strides), batch.sequence, batch.positions,
                 options.caches[0]->layout};
  return pass;
}

LinearCall call(const Model& model, Tensor y, const LinearInput& x, Tensor w) {
  return {y, x, w, {}, {}, {model.precision}};
}
LinearCall gate_up_call(const Model& model, Tensor y, const LinearInput& x, Tensor w) {
  return {y, x, w, {}, {}, gate_up_rounding(model)};
}

// x as these matrices read it.
LinearInput matrix_input(Context& ctx, const Model& model, Tensor x, std::initializer_list<Tensor> weights) {
  if (!model.fp8_activations) return make_linear_input(ctx, x, weights);
  const Tensor rounded = round_rows(ctx, x, Precision::fp8, model.config.scale_ue8m0, kActivationAmaxFloor);
  return make_linear_input(ctx, rounded, weights);
}

// The same of normed = norm(sum), where sum = a + b, or without b it is a.
LinearInput norm_input(Context& ctx, const Model& model, Tensor normed, Tensor sum, Tensor a, Tensor b, Tensor w,
                       float eps, Tensor inv_rms, std::initializer_list<Tensor> weights) {
  if (!model.fp8_activations) return add_norm_input(ctx, normed, sum, a, b, w, eps, inv_rms, weights);
  add_norm_input(ctx, normed, sum, a, b, w, eps, inv_rms, {});
  return matrix_input(ctx, model, normed, weights);
}

// The same of what swiglu makes.
LinearInput activated_input(Context& ctx, const Model& model, Tensor activated, Tensor gate_up, Tensor w) {
  if (!model.fp8_activations) return swiglu_input(ctx, activated, gate_up, {w});
  swiglu(ctx, activated, gate_up);
  return matrix_input(ctx, model, activated, {w});
}

// Stores the new tokens' [c | k_rope] behind what the caches hold, and returns for each sequence what its queries may
// see. A format that rounds leaves its numbers in latent and k_rope too: a token sees the others as the cache has them,
// whether they were read with it or before.
std::vector<LatentCacheView> extend_caches(Context& ctx, const Batch& batch, int64_t layer, Tensor latent,
                                           Tensor k_rope, std::span<LatentCache* const> caches) {
  std::vector<LatentCacheView> views;
  for (int64_t s = 0; s < batch.n_sequences(); ++s) {
    const LatentCache& cache = *caches[static_cast<size_t>(s)];
    const int64_t first = sequence_begin(batch, s), n_new = sequence_begin(batch, s + 1) - first;
    FATHOM_CHECK(cache.length + n_new <= cache.capacity, "{} + {} > {}", cache.length, n_new, cache.capacity);
    ctx.pool.parallel_for(0, n_new, 16, [&](int64_t begin, int64_t end) {
      std::vector<float> stored(static_cast<size_t>(cache.layout.dim()));
      for (int64_t i = begin; i < end; ++i) {
        float *const c = latent.f32_row(first + i), *const k = k_rope.f32_row(first + i);
        void* const row = cache.rows(layer, cache.length + i);
        write_latent_row(cache.layout, row, c, k);
        if (cache.layout.format == Format::f32) continue;
        read_latent_rows(cache.layout, stored.data(), row, 1);
        std::copy_n(stored.data(), latent.cols(), c);
        std::copy_n(stored.data() + latent.cols(), k_rope.cols(), k);
      }
    });
    views.push_back(cache.view(layer, n_new));
  }
  return views;
}

// What every layer has copied counts from now on.
void count_new_rows(const Batch& batch, std::span<LatentCache* const> caches) {
  for (size_t s = 0; s < caches.size(); ++s) {
    const auto i = static_cast<int64_t>(s);
    caches[s]->length += sequence_begin(batch, i + 1) - sequence_begin(batch, i);
  }
}

// o of the new tokens of these caches, in the form that their positions and expand_from say. index_q, index_weights:
// absent where nothing is to be chosen.
void attend_views(Context& ctx, const Model& model, const MlaWeights& w, std::span<const LatentCacheView> seen,
                  size_t expand_from, Tensor o, Tensor q, Tensor index_q, Tensor index_weights) {
  const MlaDims dims = model.config.mla();
  const int64_t topk = index_q ? model.config.indexer.topk : INT64_MAX;
  for (const AttentionRun& run : attention_runs(seen, dims, topk, expand_from)) {
    const ArenaScope scope(ctx.arena);
    const int64_t first = run.first_row, n = run.n_rows();
    Tensor selected;
    if (run.selected) {
      selected = new_i32(ctx, {n, topk});
      select_keys(ctx, selected, index_q.slice(first, n), index_weights.slice(first, n), run.views,
                  model.config.indexer);
    }
    if (run.expanded) {
      mla_attention_expanded(ctx, o.slice(first, n), q.slice(first, n), w.kv_b, run.views, dims, model.softmax_scale,
                             selected);
    } else {
      mla_attention_absorbed(ctx, o.slice(first, n), q.slice(first, n), w.kv_b, w.k_b, run.views, dims,
                             model.softmax_scale, selected);
    }
  }
}

// Stores the new tokens' rows and attends to all that the caches hold, or what the indexer chooses of it. false where
// they held nothing, so that the new tokens see each other alone.
bool attend_caches(Context& ctx, const Model& model, const MlaWeights& w, const Pass& pass, int64_t layer,
                   Tensor k_rope, MlaSaved& s) {
  const MlaDims dims = model.config.mla();
  if (ctx.device != nullptr) {
    DeviceCaches caches = pass.caches;
    caches.layer = layer;
    ctx.device->operators.write_cache(ctx, caches, s.latent, k_rope);
    ctx.device->operators.mla_attention_absorbed(ctx, s.o, s.q, w.kv_b, w.k_b, caches, dims, model.softmax_scale);
    return true;
  }
  const std::vector<LatentCacheView> seen =
      extend_caches(ctx, pass.batch, layer, s.latent, k_rope, pass.options.caches);
  if (s.indexer.k) extend_index_caches(ctx, pass.batch, layer, s.indexer.k, pass.options.caches);
  const int64_t topk = s.indexer.q ? model.config.indexer.topk : INT64_MAX;
  const bool all_new = std::all_of(seen.begin(), seen.end(), [](const auto& v) { return v.length == v.n_new; });
  const bool all_seen = std::all_of(seen.begin(), seen.end(), [&](const auto& v) { return v.length <= topk; });
  if (all_new && all_seen) return false;
  const size_t expand_from = all_new ? kExpandAll : pass.options.expand_from;
  attend_views(ctx, model, w, seen, expand_from, s.o, s.q, s.indexer.q, s.indexer.weights);
  return true;
}

// s.o of the tokens that were generated, again; where there is a choice that of the prompts too, whose far tokens read
// what they choose in that form.
void attend_as_generated(Context& ctx, const Model& model, const MlaWeights& w, const Batch& batch, Tensor k_rope,
                         MlaSaved& s) {
  const ArenaScope scope(ctx.arena);
  const LatentRowLayout layout = model.config.mla().cached_row(Format::f32);
  const Tensor cached = new_f32(ctx, {batch.n_tokens(), layout.dim()});
  ctx.pool.parallel_for(0, batch.n_tokens(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      write_latent_row(layout, cached.f32_row(t), s.latent.f32_row(t), k_rope.f32_row(t));
    }
  });
  std::vector<LatentCacheView> whole(static_cast<size_t>(batch.n_sequences()));
  const bool chooses = s.indexer.q && !model.dense_attention;
  if (chooses) whole = index_views(ctx, batch, s.indexer.k);
  std::vector<LatentCacheView> views;
  std::vector<int32_t> rows;
  const auto add = [&](size_t sequence, int64_t begin, int64_t end) {  // of its tokens
    if (begin >= end) return;
    LatentCacheView& view = views.emplace_back(whole[sequence]);
    const int32_t first = batch.offsets[sequence];
    view.rows = cached.f32_row(first);
    view.length = end;
    view.n_new = end - begin;
    for (int64_t t = begin; t < end; ++t) rows.push_back(first + static_cast<int32_t>(t));
  };
  for (size_t i = 0; i < whole.size(); ++i) add(i, batch.prompts[i], batch.offsets[i + 1] - batch.offsets[i]);
  const size_t expand_from = views.size();
  for (size_t i = 0; chooses && i < whole.size(); ++i) add(i, 0, batch.prompts[i]);
  if (rows.empty()) return;
  const auto of_rows = [&](Tensor of_all) {
    if (!of_all) return of_all;
    const Tensor some = new_f32(ctx, {std::ssize(rows), of_all.cols()});
    gather_rows(ctx, some, of_all, rows);
    return some;
  };
  const Tensor o = new_f32(ctx, {std::ssize(rows), s.o.cols()});
  attend_views(ctx, model, w, views, expand_from, o, of_rows(s.q), of_rows(chooses ? s.indexer.q : Tensor()),
               of_rows(chooses ? s.indexer.weights : Tensor()));
  scatter_rows(ctx, s.o, o, rows);
}

// Multi-head latent attention (V3 equations 1-11). Returns [tokens, hidden].
Tensor attention_block(Context& ctx, const Model& model, const MlaWeights& w, const Pass& pass, Tensor input,
                       const LinearInput& hidden, size_t layer, MlaSaved& s) {
  const Batch& batch = pass.batch;
  const MlaDims dims = model.config.mla();
  const int64_t tokens = batch.n_tokens(), rank = dims.kv_lora_rank, rope_dim = dims.qk_rope_head_dim;
  const int64_t qk = dims.qk_nope_head_dim + rope_dim;
  s.input = input;
  s.q = new_f32(pass.made_again, {tokens, dims.n_heads * qk});
  s.kv_a = new_f32(ctx, {tokens, rank + rope_dim});
  if (w.q_a) {
    s.q_a = new_f32(ctx, {tokens, w.q_a.shape[0]});
    s.q_a_rms = new_f32(ctx, {tokens});
    s.q_latent = new_f32(pass.made_again, {tokens, w.q_a.shape[0]});
    linear(ctx, {call(model, s.q_a, hidden, w.q_a), call(model, s.kv_a, hidden, w.kv_a)});
    const LinearInput q_latent = norm_input(ctx, model, s.q_latent, s.q_a, s.q_a, {}, w.q_a_norm, kLatentNormEps,
                                            s.q_a_rms, {w.q_b, w.indexer.q_b});
    linear(ctx, {call(model, s.q, q_latent, w.q_b)});
    if (w.indexer.q_b) {
      const bool keys_alone = model.dense_attention && !pass.options.caches.empty();
      index_queries(ctx, model, w.indexer, batch, hidden, q_latent, input, keys_alone, s.indexer);
    }
  } else {
    linear(ctx, {call(model, s.q, hidden, w.q_b), call(model, s.kv_a, hidden, w.kv_a)});
  }
  s.kv_a_rms = new_f32(ctx, {tokens});
  s.latent = new_f32(pass.made_again, {tokens, rank});
  norm_and_rotate(ctx, model.rope, s.q, {dims.n_heads, qk, dims.qk_nope_head_dim}, s.latent, s.kv_a, w.kv_a_norm,
                  kLatentNormEps, s.kv_a_rms, batch.positions);
  const Tensor k_rope = s.kv_a.columns(rank, rope_dim);

  s.o = new_f32(ctx, {tokens, dims.n_heads * dims.v_head_dim});
  const bool attended =
      !pass.options.caches.empty() && attend_caches(ctx, model, w, pass, static_cast<int64_t>(layer), k_rope, s);
  if (!attended) {
    s.kv = new_f32(pass.made_again, {tokens, w.kv_b.shape[0]});
    s.lse = new_f32(ctx, {tokens, dims.n_heads});
    linear(ctx, {call(model, s.kv, matrix_input(ctx, model, s.latent, {w.kv_b}), w.kv_b)});
    if (s.indexer.q && !model.dense_attention) choose_keys(ctx, model, batch, s.indexer);
    mla_attention(ctx, s.o, s.q, s.kv, k_rope, batch.seq_offsets, dims, model.softmax_scale, s.lse, s.indexer.selected,
                  model.precision);
    if (!batch.prompts.empty()) attend_as_generated(ctx, model, w, batch, k_rope, s);
  }
  if (is_fp8(model.precision)) round_to_e5m6(ctx, s.o);
  Tensor out = new_f32(ctx, {tokens, model.config.hidden_size});
  linear(ctx, {{out, matrix_input(ctx, model, s.o, {w.o}), w.o, {}, {}, attention_out_rounding(model)}});
  return out;
}

// The packed sequences as caches of their own keys and values.
std::vector<LatentCacheView> views_of(const Batch& batch, Tensor kv) {
  std::vector<LatentCacheView> views;
  for (int64_t s = 0; s < batch.n_sequences(); ++s) {
    const int64_t first = sequence_begin(batch, s), n = sequence_begin(batch, s + 1) - first;
    views.push_back({kv.f32_row(first), n, n});
  }
  return views;
}

// Grouped-query attention (ops/gqa_attention.h), of the dense families. Returns [tokens, hidden].
Tensor gqa_block(Context& ctx, const Model& model, const GqaWeights& w, const Pass& pass, Tensor input,
                 const LinearInput& hidden, size_t layer, MlaSaved& s) {
  const Batch& batch = pass.batch;
  const GqaDims dims = model.config.gqa();
  const int64_t tokens = batch.n_tokens(), kv_columns = dims.n_kv_heads * dims.head_dim;
  s.input = input;
  s.q = new_f32(ctx, {tokens, dims.n_heads * dims.head_dim});
  s.kv = new_f32(ctx, {tokens, dims.row()});
  const Tensor k = s.kv.columns(0, kv_columns), v = s.kv.columns(kv_columns, kv_columns);
  linear(ctx, {call(model, s.q, hidden, w.q), call(model, k, hidden, w.k), call(model, v, hidden, w.v)});
  if (w.q_bias) {
    add_bias(ctx, s.q, w.q_bias);
    add_bias(ctx, k, w.k_bias);
    add_bias(ctx, v, w.v_bias);
  }
  rope(ctx, model.rope, s.q, batch.positions, {dims.n_heads, dims.head_dim, 0});
  rope(ctx, model.rope, k, batch.positions, {dims.n_kv_heads, dims.head_dim, 0});

  const std::span<LatentCache* const> caches = pass.options.caches;
  const Tensor no_key = s.kv.columns(0, 0);
  const std::vector<LatentCacheView> seen =
      caches.empty() ? views_of(batch, s.kv)
                     : extend_caches(ctx, batch, static_cast<int64_t>(layer), s.kv, no_key, caches);
  s.o = new_f32(ctx, {tokens, s.q.cols()});
  s.lse = new_f32(ctx, {tokens, dims.n_heads});
  gqa_attention(ctx, s.o, s.q, seen, dims, model.softmax_scale, s.lse);
  if (is_fp8(model.precision)) round_to_e5m6(ctx, s.o);
  Tensor out = new_f32(ctx, {tokens, model.config.hidden_size});
  linear(ctx, {{out, matrix_input(ctx, model, s.o, {w.o}), w.o, {}, {}, attention_out_rounding(model)}});
  return out;
}

// out = W_down(silu(W_gate x) * W_up x)
void mlp_block(Context& ctx, const Model& model, const MlpWeights& w, Context& made_again, Tensor out,
               const MlpInput& input, MlpSaved& s) {
  const int64_t tokens = input.normed.rows();
  s.input = input.normed;
  s.gate_up = new_f32(ctx, {tokens, w.gate_up.shape[0]});
  if (!is_fp8(model.precision)) s.activated = new_f32(made_again, {tokens, w.down.shape[1]});
  linear(ctx, {gate_up_call(model, s.gate_up, input.matrix, w.gate_up)});
  const ArenaScope scope(ctx.arena);
  const Tensor activated = s.activated ? s.activated : new_f32(ctx, {tokens, w.down.shape[1]});
  linear(ctx, {call(model, out, activated_input(ctx, model, activated, s.gate_up, w.down), w.down)});
}

// Of the model's layers; behind them for a module's.
size_t index_of(const Model& model, const LayerWeights& w) {
  const std::vector<LayerWeights>& layers = model.weights.layers;
  const auto here = std::find_if(layers.begin(), layers.end(), [&](const LayerWeights& layer) { return &layer == &w; });
  return static_cast<size_t>(here - layers.begin());
}

// Where experts may be on disk: those that the router of this layer has chosen (none in a dense layer) are read, and
// behind them those that the next layer's would choose now.
void read_experts(Context& ctx, const Model& model, const LayerWeights& w, Tensor topk_ids, Tensor stream) {
  if (model.reading == nullptr || model.routed_experts != nullptr) return;
  if (topk_ids) read_chosen(*model.reading, w.moe, topk_ids);
  const std::vector<LayerWeights>& layers = model.weights.layers;
  const size_t next = index_of(model, w) + 1;
  if (next < layers.size()) read_predicted(ctx, *model.reading, model.config, layers[next], stream);
}

// Of this layer's router, where the batch settles it. Modules behind the layers choose.
Tensor kept_choice(const Model& model, const LayerWeights& w, const Batch& batch) {
  if (batch.experts.empty()) return {};
  const size_t layer = index_of(model, w);
  return layer < batch.experts.size() ? batch.experts[layer] : Tensor();
}

// The router's choice for every token and where its experts' rows go (V3 equations 14-16). With `also_shared` the
// shared expert's first product goes along, so that the threads meet less often. stream: what `input` is the norm of.
// chosen: the experts, where that is settled.
void moe_route(Context& ctx, const Model& model, const LayerWeights& layer, Context& made_again, const MlpInput& input,
               Tensor stream, bool also_shared, Tensor chosen, MoeSaved& s) {
  const MoeWeights& w = layer.moe;
  const RouterConfig& router = model.config.router;
  const int64_t tokens = input.normed.rows(), k = router.num_experts_per_tok, experts = router.n_routed_experts;
  s.input = input.normed;
  s.logits = new_f32(ctx, {tokens, experts});
  s.scores = new_f32(ctx, {tokens, experts});
  s.topk_ids = chosen ? chosen : new_i32(ctx, {tokens, k});
  s.topk_weights = new_f32(ctx, {tokens, k});
  if (also_shared && w.shared.gate_up) {
    s.shared.input = s.input;
    s.shared.gate_up = new_f32(ctx, {tokens, w.shared.gate_up.shape[0]});
    linear(ctx, {{s.logits, s.input, w.gate}, gate_up_call(model, s.shared.gate_up, input.matrix, w.shared.gate_up)});
  } else {
    linear(ctx, s.logits, s.input, w.gate);
  }
  if (chosen) {
    weigh_chosen(ctx, router, s.topk_ids, s.topk_weights, s.scores, s.logits);
  } else {
    route(ctx, router, s.topk_ids, s.topk_weights, s.scores, s.logits, w.e_score_correction_bias);
  }
  read_experts(ctx, model, layer, s.topk_ids, stream);
  if (w.host == nullptr) {
    s.dispatch = make_dispatch(made_again, s.topk_ids, experts);
  } else if (w.gate_up) {
    const Tensor placed = new_i32(ctx, {tokens, k});
    ctx.device->operators.place_experts(ctx, placed, s.topk_ids, w.host->device_place);
    s.dispatch = make_dispatch(made_again, placed, w.gate_up.shape[0]);
  }
}

// The experts' products up to the last, which is returned: y_sorted [slots, hidden] = each chosen expert's output. Its
// memory is ctx.arena's.
LinearCall expert_products(Context& ctx, const Model& model, const MoeWeights& w, Tensor y_sorted,
                           const LinearInput& matrix, MoeSaved& s) {
  const int64_t slots = s.dispatch.token_of.cols();
  const Tensor routed = s.activated ? s.activated : new_f32(ctx, {slots, w.down.shape[2]});
  const LinearInput sorted = dispatch(ctx, matrix, s.dispatch, w.gate_up);
  linear(ctx, {{s.gate_up, sorted, w.gate_up, s.dispatch.offsets, s.dispatch.experts, experts_up_rounding(model)}});
  const LinearInput activated = activated_input(ctx, model, routed, s.gate_up, w.down);
  return {y_sorted, activated, w.down, s.dispatch.offsets, s.dispatch.experts, experts_down_rounding(model)};
}

// out = Shared(x) behind its first product, or 0 without one; `beside`, where given, is computed with it.
void shared_output(Context& ctx, const Model& model, const MoeWeights& w, Tensor out, MoeSaved& s,
                   const LinearCall* beside) {
  if (!w.shared.gate_up) {
    fill_zero(ctx, out);
    if (beside != nullptr) linear(ctx, {*beside});
    return;
  }
  const Tensor shared = s.shared.activated ? s.shared.activated : new_f32(ctx, {out.rows(), w.shared.down.shape[1]});
  const LinearInput activated = activated_input(ctx, model, shared, s.shared.gate_up, w.shared.down);
  const LinearCall of_shared = call(model, out, activated, w.shared.down);
  if (beside != nullptr) {
    linear(ctx, {*beside, of_shared});
  } else {
    linear(ctx, {of_shared});
  }
}

// staging.y = sum of g_i Expert_i(x) over the chosen experts that the device does not hold, on the host.
void compute_on_host(HostExperts& host, const Model& model, HostLayer& layer, const HostExperts::Staging& staging) {
  Context ctx{host.pool(), host.arena()};
  const ArenaScope scope(ctx.arena);
  const Tensor here = new_i32(ctx, {staging.topk_ids.rows(), staging.topk_ids.cols()});
  for (int64_t i = 0; i < here.size(); ++i) {
    const int32_t expert = staging.topk_ids.i32()[i];
    ++layer.chosen[static_cast<size_t>(expert)];
    here.i32()[i] = layer.place[static_cast<size_t>(expert)] < 0 ? expert : -1;
  }
  fill_zero(ctx, staging.y);
  MoeSaved s;
  s.input = staging.x;
  s.dispatch = make_dispatch(ctx, here, model.config.router.n_routed_experts);
  const int64_t slots = s.dispatch.token_of.cols();
  if (slots == 0) return;
  MoeWeights w;
  w.gate_up = layer.gate_up;
  w.down = layer.down;
  s.gate_up = new_f32(ctx, {slots, w.gate_up.shape[1]});
  const Tensor y_sorted = new_f32(ctx, {slots, staging.y.cols()});
  linear(ctx, {expert_products(ctx, model, w, y_sorted, matrix_input(ctx, model, s.input, {w.gate_up}), s)});
  combine(ctx, staging.y, y_sorted, staging.topk_weights, s.dispatch);
}

// moe_experts() with the shared expert, where experts are in the host's memory: while the host computes those that it
// has to, the device does the shared one and those that it holds.
void moe_experts_beside_host(Context& ctx, const Model& model, const MoeWeights& w, Tensor out,
                             const LinearInput& matrix, MoeSaved& s) {
  const Device& device = *ctx.device;
  const ArenaScope scope(ctx.arena);
  const HostExperts::Staging staging = model.host_experts->staging(out.rows(), out.cols(), s.topk_ids.cols());
  const Tensor of_host = new_f32(ctx, {out.rows(), out.cols()});
  const auto copy = [](Tensor to, Tensor from) {
    FATHOM_CHECK(from.contiguous() && to.size() == from.size());
    return HostWork::Copy{to.data, from.data, static_cast<size_t>(from.size_bytes())};
  };
  device.start_host(
      device,
      {{copy(staging.x, s.input), copy(staging.topk_ids, s.topk_ids), copy(staging.topk_weights, s.topk_weights)},
       {copy(of_host, staging.y)},
       [&model, layer = w.host, staging] { compute_on_host(*model.host_experts, model, *layer, staging); }});
  if (w.gate_up) {
    const int64_t slots = s.dispatch.token_of.cols();
    s.gate_up = new_f32(ctx, {slots, w.gate_up.shape[1]});
    const Tensor y_sorted = new_f32(ctx, {slots, out.cols()});
    const LinearCall last = expert_products(ctx, model, w, y_sorted, matrix, s);
    shared_output(ctx, model, w, out, s, &last);
    combine(ctx, out, y_sorted, s.topk_weights, s.dispatch);
  } else {
    shared_output(ctx, model, w, out, s, nullptr);
  }
  device.join_host(device);
  add(ctx, out, out, of_host);
}

// out += sum over the chosen experts of g_i Expert_i(x); with `also_shared` out = that and Shared(x), behind
// moe_route() with the same (V3 equations 12-13).
void moe_experts(Context& ctx, const Model& model, const MoeWeights& w, Context& made_again, Tensor out,
                 const LinearInput& matrix, bool also_shared, MoeSaved& s) {
  if (w.host != nullptr) {
    FATHOM_CHECK(also_shared);
    return moe_experts_beside_host(ctx, model, w, out, matrix, s);
  }
  const int64_t tokens = out.rows(), slots = s.dispatch.token_of.cols();
  const bool elsewhere = model.routed_experts != nullptr;
  if (!elsewhere) s.gate_up = new_f32(ctx, {slots, w.gate_up.shape[1]});
  if (!is_fp8(model.precision)) {
    if (!elsewhere) s.activated = new_f32(made_again, {slots, w.down.shape[2]});
    if (also_shared && w.shared.gate_up) {
      s.shared.activated = new_f32(made_again, {tokens, w.shared.down.shape[1]});
    }
  }
  const ArenaScope scope(ctx.arena);
  const Tensor y_sorted = new_f32(ctx, {slots, out.cols()});
  if (elsewhere) {
    FATHOM_CHECK(also_shared);
    (*model.routed_experts)(ctx, model, w, y_sorted, s, [&] { shared_output(ctx, model, w, out, s, nullptr); });
  } else {
    const LinearCall last = expert_products(ctx, model, w, y_sorted, matrix, s);
    if (also_shared) {
      shared_output(ctx, model, w, out, s, &last);
    } else {
      linear(ctx, {last});
    }
  }
  combine(ctx, out, y_sorted, s.topk_weights, s.dispatch);
}

// x' = x + Attention(norm(x)), kept as s.mid. Returns norm(x').
MlpInput attention_half(Context& ctx, const Model& model, const LayerWeights& w, const Pass& pass, Tensor x,
                        size_t layer, LayerSaved& s) {
  const int64_t tokens = pass.batch.n_tokens(), hidden = model.config.hidden_size;
  const auto eps = static_cast<float>(model.config.rms_norm_eps);
  s.x = x;
  s.x_rms = new_f32(ctx, {tokens});
  const MlaWeights& mla = w.attention;
  const Tensor normed = new_f32(pass.made_again, {tokens, hidden});
  const LinearInput attention_input =
      norm_input(ctx, model, normed, x, x, {}, w.input_norm, eps, s.x_rms,
                 {mla.q_a, mla.q_b, mla.kv_a, mla.indexer.k, w.gqa.q, w.gqa.k, w.gqa.v});
  s.attention_out = w.gqa.q ? gqa_block(ctx, model, w.gqa, pass, normed, attention_input, layer, s.attention)
                            : attention_block(ctx, model, mla, pass, normed, attention_input, layer, s.attention);

  s.mid = pass.options.taps ? new_f32(ctx, {tokens, hidden}) : s.attention_out;
  s.mid_rms = new_f32(ctx, {tokens});
  MlpInput input{new_f32(pass.made_again, {tokens, hidden}), Tensor()};
  input.matrix = norm_input(ctx, model, input.normed, s.mid, x, s.attention_out, w.post_attention_norm, eps, s.mid_rms,
                            {w.mlp.gate_up, w.moe.gate_up, w.moe.shared.gate_up});
  return input;
}

// x' = x + Attention(norm(x));  out = x' + MLP or MoE(norm(x'))
void layer_block(Context& ctx, const Model& model, const LayerWeights& w, const Pass& pass, Tensor out, Tensor x,
                 size_t layer, LayerSaved& s) {
  const MlpInput input = attention_half(ctx, model, w, pass, x, layer, s);
  s.mlp_out = pass.options.taps ? new_f32(ctx, {out.rows(), out.cols()}) : out;
  if (w.moe.gate) {
    moe_route(ctx, model, w, pass.made_again, input, s.mid, /*also_shared=*/true, kept_choice(model, w, pass.batch),
              s.moe);
    moe_experts(ctx, model, w.moe, pass.made_again, s.mlp_out, input.matrix, /*also_shared=*/true, s.moe);
    if (pass.loads != nullptr) pass.loads->add(ctx, s.moe);
  } else {
    read_experts(ctx, model, w, {}, s.mid);
    mlp_block(ctx, model, w.mlp, pass.made_again, s.mlp_out, input, s.mlp);
  }
  add(ctx, out, s.mid, s.mlp_out);
}

}  // namespace

Model make_model(const ModelConfig& config, const ModelWeights& weights) {
  const int64_t rotated = config.is_mla() ? config.qk_rope_head_dim : config.head_dim;
  const int64_t width = config.is_mla() ? config.qk_head_dim() : config.head_dim;
  Model model{config, make_rope(rotated, config.rope_theta, config.rope_interleave, config.rope_scaling),
              make_rope(rotated, config.rope_theta, /*interleaved=*/false, config.rope_scaling), 0, weights};
  if (config.llama3_scaling) scale_as_llama3(model.rope, *config.llama3_scaling);
  // Dense families have YaRN's magnitude in cos and sin alone.
  const float factor = config.is_mla() ? model.rope.softmax_scale_factor : 1;
  model.softmax_scale = factor / std::sqrt(static_cast<float>(width));
  return model;
}

BatchNumbers batch_numbers(std::span<const std::vector<int32_t>> sequences, std::span<const int64_t> first_position) {
  BatchNumbers numbers;
  numbers.seq_offsets.push_back(0);
  for (size_t s = 0; s < sequences.size(); ++s) {
    auto position = static_cast<int32_t>(first_position.empty() ? 0 : first_position[s]);
    for (const int32_t id : sequences[s]) {
      numbers.ids.push_back(id);
      numbers.positions.push_back(position++);
      numbers.sequence.push_back(static_cast<int32_t>(s));
    }
    numbers.seq_offsets.push_back(static_cast<int32_t>(numbers.ids.size()));
  }
  return numbers;
}

Batch make_batch(Context& ctx, std::span<const std::vector<int32_t>> sequences,
                 std::span<const int64_t> first_position) {
  BatchNumbers numbers = batch_numbers(sequences, first_position);
  Batch batch;
  batch.ids = from_host(ctx, numbers.ids);
  batch.positions = from_host(ctx, numbers.positions);
  batch.seq_offsets = from_host(ctx, numbers.seq_offsets);
  batch.sequence = from_host(ctx, numbers.sequence);
  batch.tokens = std::move(numbers.ids);
  batch.offsets = std::move(numbers.seq_offsets);
  return batch;
}

Tensor forward(Context& ctx, const Model& model, const Batch& batch, const ForwardOptions& options) {
  const ModelConfig& config = model.config;
  const int64_t tokens = batch.n_tokens(), hidden = config.hidden_size;
  ForwardSaved unsaved;
  ForwardSaved& saved = options.saved != nullptr ? *options.saved : unsaved;
  saved.layers.assign(model.weights.layers.size(), {});
  saved.recompute = options.recompute;
  FATHOM_CHECK(saved.recompute == Recompute::none || (options.saved != nullptr && options.scratch != nullptr));
  Context scratch{ctx.pool, saved.recompute == Recompute::none ? ctx.arena : *options.scratch, ctx.device};
  Context& kept = saved.recompute == Recompute::full ? scratch : ctx;
  LoadCount loads(ctx, options.expert_load, config, model.weights.layers.size());
  Pass pass = make_pass(ctx, scratch, batch, options);
  pass.loads = &loads;

  saved.final_hidden = new_f32(ctx, {tokens, hidden});
  saved.x_rms = new_f32(ctx, {tokens});
  Tensor x = new_f32(ctx, {tokens, hidden});
  // Without anything to save, two buffers take turns and what a layer allocates is freed behind it.
  Tensor other = options.saved != nullptr ? Tensor() : new_f32(ctx, {tokens, hidden});
  embedding(ctx, x, batch.ids, model.weights.embed);
  for (size_t l = 0; l < model.weights.layers.size(); ++l) {
    Tensor out = options.saved != nullptr ? new_f32(ctx, {tokens, hidden}) : other;
    std::optional<ArenaScope> scope;
    if (options.saved == nullptr || saved.recompute != Recompute::none) scope.emplace(scratch.arena);
    layer_block(kept, model, model.weights.layers[l], pass, out, x, l, saved.layers[l]);
    if (options.on_layer != nullptr) (*options.on_layer)(static_cast<int64_t>(l), saved.layers[l]);
    other = x;
    x = out;
  }
  loads.finish(ctx);
  count_new_rows(batch, options.caches);
  saved.x = x;
  rms_norm(ctx, saved.final_hidden, x, model.weights.norm, static_cast<float>(config.rms_norm_eps), saved.x_rms);
  return saved.final_hidden;
}

MlpInput layer_attention(Context& ctx, const Model& model, const LayerWeights& w, const Batch& batch, Tensor x,
                         LayerSaved& s, Context& made_again) {
  const ForwardOptions options;
  return attention_half(ctx, model, w, make_pass(ctx, made_again, batch, options), x, 0, s);
}

void layer_mlp(Context& ctx, const Model& model, const MlpWeights& w, Tensor out, const MlpInput& input, MlpSaved& s,
               Context& made_again) {
  mlp_block(ctx, model, w, made_again, out, input, s);
}

void layer_route(Context& ctx, const Model& model, const LayerWeights& w, const MlpInput& input, MoeSaved& s,
                 ExpertLoad* load, Context& made_again) {
  moe_route(ctx, model, w, made_again, input, {}, /*also_shared=*/false, {}, s);
  LoadCount count(ctx, load, model.config, 1);
  count.add(ctx, s);
  count.finish(ctx);
}

void layer_experts(Context& ctx, const Model& model, const MoeWeights& w, Tensor out, MoeSaved& s,
                   Context& made_again) {
  moe_experts(ctx, model, w, made_again, out, matrix_input(ctx, model, s.input, {w.gate_up}), /*also_shared=*/false, s);
}

void layer_expert_outputs(Context& ctx, const Model& model, const MoeWeights& w, Tensor y_sorted, MoeSaved& s) {
  s.gate_up = new_f32(ctx, {y_sorted.rows(), w.gate_up.shape[1]});
  linear(ctx, {expert_products(ctx, model, w, y_sorted, matrix_input(ctx, model, s.input, {w.gate_up}), s)});
}

int64_t saved_floats_a_token(const ModelConfig& c, Recompute recompute, Precision precision) {
  const RouterConfig& r = c.router;
  const bool selective = recompute == Recompute::selective;
  const int64_t hidden = c.hidden_size, heads = c.num_attention_heads, k = r.num_experts_per_tok;
  // The stream in front of the layer and between its halves; latents before their norms, what heads attend to.
  // And all of the indexer's, with what it chooses.
  const IndexerDims& i = c.indexer;
  const int64_t indexer =
      c.is_sparse() ? i.n_heads * (i.head_dim + 1) + 2 * i.head_dim + std::min(i.topk, c.max_position_embeddings) : 0;
  const int64_t of_heads = c.is_mla() ? heads * c.v_head_dim : 2 * heads * c.head_dim;  // grouped queries stay too
  const int64_t kept = 2 * hidden + c.q_lora_rank + c.cache_row() + of_heads + indexer;
  // Both norms' outputs, latents behind theirs, their queries, keys and values.
  const int64_t attention =
      2 * hidden + c.q_lora_rank + c.kv_lora_rank + heads * (c.qk_head_dim() + c.qk_nope_head_dim + c.v_head_dim);
  const int64_t inter = (k + c.n_shared_experts) * c.moe_intermediate_size;
  int64_t floats = 0, most = 0;  // of all layers; of the one with most
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const int64_t activated = c.is_moe(l) ? inter : c.intermediate_size;
    int64_t layer = kept + 2 * activated + (c.is_moe(l) ? 2 * r.n_routed_experts : 0);
    if (!selective) layer += attention + (is_fp8(precision) ? 0 : activated);
    floats += layer;
    most = std::max(most, layer);
  }
  return recompute == Recompute::full ? c.num_hidden_layers * hidden + most : floats;
}

namespace {

// The queries, keys and values of latent attention from the latents that were kept.
template <class NormAgain>
void recompute_latents(Context& ctx, const Model& model, const MlaWeights& w, const Batch& batch, MlaSaved& a,
                       const NormAgain& norm_again) {
  const MlaDims dims = model.config.mla();
  const int64_t tokens = a.input.rows();
  if (w.q_a) a.q_latent = norm_again(a.q_a, w.q_a_norm, kLatentNormEps);
  a.latent = norm_again(a.kv_a.columns(0, dims.kv_lora_rank), w.kv_a_norm, kLatentNormEps);
  const int64_t qk = dims.qk_nope_head_dim + dims.qk_rope_head_dim;
  a.q = new_f32(ctx, {tokens, dims.n_heads * qk});
  a.kv = new_f32(ctx, {tokens, w.kv_b.shape[0]});
  linear(ctx, {call(model, a.q, w.q_a ? a.q_latent : a.input, w.q_b), call(model, a.kv, a.latent, w.kv_b)});
  rope(ctx, model.rope, a.q, batch.positions, {dims.n_heads, qk, dims.qk_nope_head_dim});
}

}  // namespace

void recompute_layer(Context& ctx, const Model& model, const LayerWeights& w, const Batch& batch, Recompute what,
                     LayerSaved& s) {
  if (what == Recompute::none) return;
  const Tensor x = s.x;
  const int64_t tokens = x.rows(), hidden = x.cols();
  if (what == Recompute::full) {
    const ForwardOptions options;
    layer_block(ctx, model, w, make_pass(ctx, ctx, batch, options), new_f32(ctx, {tokens, hidden}), x, 0, s);
    return;
  }
  const auto eps = static_cast<float>(model.config.rms_norm_eps);
  const auto norm_again = [&](Tensor of, Tensor weight, float epsilon) {
    const Tensor y = new_f32(ctx, {tokens, of.cols()});
    rms_norm(ctx, y, of, weight, epsilon);
    return y;
  };
  s.attention.input = norm_again(x, w.input_norm, eps);
  if (!w.gqa.q) recompute_latents(ctx, model, w.attention, batch, s.attention, norm_again);

  const Tensor mlp_input = norm_again(s.mid, w.post_attention_norm, eps);
  if (!w.moe.gate) {
    s.mlp.input = mlp_input;
    s.mlp.activated = {};
    return;
  }
  MoeSaved& moe = s.moe;
  moe.input = mlp_input;
  moe.dispatch = make_dispatch(ctx, moe.topk_ids, model.config.router.n_routed_experts);
  moe.activated = moe.shared.activated = {};
  moe.shared.input = mlp_input;
}

Tensor head_logits(Context& ctx, const Model& model, Tensor hidden) {
  Tensor logits = new_f32(ctx, {hidden.rows(), model.config.vocab_size});
  linear(ctx, logits, make_linear_input(ctx, hidden, {model.weights.head}), model.weights.head);
  return logits;
}

MtpInput make_mtp_input(Context& ctx, const Batch& batch) {
  std::vector<std::vector<int32_t>> rows, next_ids;
  for (int64_t q = 0; q < batch.n_sequences(); ++q) {
    auto& sequence_rows = rows.emplace_back();
    auto& sequence_ids = next_ids.emplace_back();
    for (int32_t t = sequence_begin(batch, q); t + 1 < sequence_begin(batch, q + 1); ++t) {
      sequence_rows.push_back(t);
      sequence_ids.push_back(batch.tokens[static_cast<size_t>(t) + 1]);
    }
  }
  const Batch next = make_batch(ctx, next_ids);
  return {make_batch(ctx, rows).ids, next};
}

std::vector<MtpInput> make_mtp_inputs(Context& ctx, const Model& model, const Batch& batch) {
  std::vector<MtpInput> inputs;
  for (size_t m = 0; m < model.weights.mtp.size(); ++m) {
    MtpInput input = make_mtp_input(ctx, m == 0 ? batch : inputs.back().next);
    if (input.next.n_tokens() == 0) break;
    inputs.push_back(std::move(input));
  }
  return inputs;
}

Tensor mtp_begin(Context& ctx, const Model& model, const MtpWeights& w, const MtpInput& input, Tensor hidden_before,
                 MtpSaved& s) {
  const int64_t tokens = input.next.n_tokens(), hidden = model.config.hidden_size;
  const auto eps = static_cast<float>(model.config.rms_norm_eps);
  FATHOM_CHECK(input.rows.cols() == tokens);
  s.input = input;
  s.embedded = new_f32(ctx, {tokens, hidden});
  s.hidden_in = new_f32(ctx, {tokens, hidden});
  s.e_rms = new_f32(ctx, {tokens});
  s.h_rms = new_f32(ctx, {tokens});
  s.concatenated = new_f32(ctx, {tokens, 2 * hidden});
  embedding(ctx, s.embedded, input.next.ids, model.weights.embed);
  embedding(ctx, s.hidden_in, input.rows, hidden_before);  // gathers rows
  rms_norm(ctx, s.concatenated.columns(0, hidden), s.embedded, w.enorm, eps, s.e_rms);
  rms_norm(ctx, s.concatenated.columns(hidden, hidden), s.hidden_in, w.hnorm, eps, s.h_rms);
  const Tensor x = new_f32(ctx, {tokens, hidden});
  linear(ctx, {call(model, x, matrix_input(ctx, model, s.concatenated, {w.eh_proj}), w.eh_proj)});
  s.x = new_f32(ctx, {tokens, hidden});
  return x;
}

Tensor mtp_end(Context& ctx, const Model& model, const MtpWeights& w, MtpSaved& s) {
  s.x_rms = new_f32(ctx, {s.x.rows()});
  s.hidden = new_f32(ctx, {s.x.rows(), s.x.cols()});
  rms_norm(ctx, s.hidden, s.x, w.norm, static_cast<float>(model.config.rms_norm_eps), s.x_rms);
  return s.hidden;
}

Tensor mtp_forward(Context& ctx, const Model& model, const MtpWeights& w, const MtpInput& input, Tensor hidden_before,
                   const MtpOptions& options) {
  const ForwardOptions of_layer{
      .caches = options.caches, .expand_from = options.expand_from, .expert_load = options.expert_load};
  LoadCount loads(ctx, options.expert_load, model.config, 1);
  Pass pass = make_pass(ctx, ctx, input.next, of_layer);
  pass.loads = &loads;
  MtpSaved unsaved;
  MtpSaved& s = options.saved != nullptr ? *options.saved : unsaved;
  const Tensor x = mtp_begin(ctx, model, w, input, hidden_before, s);
  layer_block(ctx, model, w.layer, pass, s.x, x, 0, s.layer);
  loads.finish(ctx);
  count_new_rows(input.next, options.caches);
  return mtp_end(ctx, model, w, s);
}

}  // namespace fathom
