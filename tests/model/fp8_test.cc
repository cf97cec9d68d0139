// In FP8 each linear layer of the model gives what its twin gives, forwards and backwards, value by value: which
// rounding goes where, and that head, router, norms and the core of attention get none.
#include <gtest/gtest.h>

#include "model/backward.h"
#include "model/tiny_models.h"
#include "ops/experts.h"
#include "ops/fp8_twin.h"
#include "ops/swiglu.h"

namespace fathom {
namespace {

// Several tiles and blocks in every dimension, none of them a multiple of 128.
ModelConfig wide_config() {
  ModelConfig c = tiny_v3();
  c.hidden_size = 140;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 2;
  c.q_lora_rank = 130;
  c.kv_lora_rank = 132;
  c.qk_nope_head_dim = 40;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 70;
  c.intermediate_size = 150;
  c.moe_intermediate_size = 134;
  c.num_nextn_predict_layers = 0;
  c.router.n_routed_experts = 4;
  c.router.n_group = c.router.topk_group = 1;
  c.router.num_experts_per_tok = 2;
  c.initializer_range = 0.08;
  return c;
}

struct Fp8Model : testing::Test {
  ThreadPool pool{2};
  Arena arena;
  Context own{pool, arena};
  ModelConfig config = wide_config();
  Parameters p = tiny_parameters(config), grads = allocate_parameters(config, false);
  Model model = make_model(config, p.weights);
  const Rounding plain{Precision::fp8}, parts{.precision = Precision::fp8, .w_parts = 2};
  // As the report has it, told here again: what attention gives and what is sent goes by powers of two.
  const Rounding attention_out{.precision = Precision::fp8, .x_power_of_two = true, .x_in_e5m6 = true};
  const Rounding experts_up{.precision = Precision::fp8, .x_power_of_two = true, .w_parts = 2};
  const Rounding experts_down{.precision = Precision::fp8, .dy_power_of_two = true};
  Batch batch;
  ForwardSaved saved;
  LayerGrads g[2];
  Tensor d_out;

  Fp8Model() {
    model.precision = Precision::fp8;
    batch = make_batch(own, std::vector<std::vector<int32_t>>{random_ids(137, config.vocab_size, 1),
                                                              random_ids(9, config.vocab_size, 2)});
    forward(own, model, batch, {.saved = &saved, .taps = true});
    d_out = random_f32(batch.n_tokens(), config.hidden_size, 3);
    for (size_t l = 0; l < 2; ++l) {
      layer_backward_input(own, model, p.weights.layers[l], batch, saved.layers[l], zeros_like(d_out), d_out, g[l], {});
      layer_backward_weight(own, model, grads.weights.layers[l], batch, saved.layers[l], g[l]);
    }
  }

  static void expect_equal(const char* what, Tensor got, Tensor want) {
    EXPECT_LT(max_relative_error(got, want), 3e-6) << what;
  }
  Tensor empty(Tensor rows, int64_t cols) { return filled_f32(rows.rows(), cols, 0); }
  Tensor forwards(Tensor x, Tensor w, const Rounding& r) {
    const Tensor y = empty(x, w.rows());
    fp8_forward(y, x, w, r);
    return y;
  }
  Tensor backwards(Tensor dy, Tensor w, const Rounding& r) {
    const Tensor dx = empty(dy, w.cols());
    fp8_backward_input(dx, dy, w, r);
    return dx;
  }
  void expect_weight(const char* what, Tensor dw, Tensor dy, Tensor x, const Rounding& r) {
    const Tensor want = zeros_like(dw);
    fp8_backward_weight(want, dy, x, r);
    expect_equal(what, dw, want);
  }
  // What the backward pass knows of a SwiGLU's input.
  Tensor kept(Tensor gate_up) {
    const Fp8Operand o = quantize_rows(gate_up, false, 2);
    const Tensor out = zeros_like(gate_up);
    for (int64_t r = 0; r < out.rows(); ++r) {
      for (int64_t c = 0; c < out.cols(); ++c) out.f32(r, c) = o.value(r, c);
    }
    return out;
  }
  Tensor activated(Tensor gate_up) {
    const Tensor y = empty(gate_up, gate_up.cols() / 2);
    swiglu(own, y, gate_up);
    return y;
  }
  // Of experts: make(rows of the slots, weight) for each, put together.
  template <class Make>
  Tensor of_experts(const MoeSaved& s, Tensor w, int64_t cols, const Make& make) {
    const Tensor all = filled_f32(s.gate_up.rows(), cols, 0);
    for (int64_t e = 0; e < config.router.n_routed_experts; ++e) {
      const int64_t begin = s.dispatch.offsets.i32()[e], n = s.dispatch.offsets.i32()[e + 1] - begin;
      if (n == 0) continue;
      const Tensor part = make(begin, n, w[e]);
      for (int64_t r = 0; r < n; ++r) std::copy_n(part.f32_row(r), cols, all.f32_row(begin + r));
    }
    return all;
  }
};

TEST_F(Fp8Model, AttentionsLinearLayersAreTheirTwins) {
  const int64_t qk = config.qk_head_dim(), nope = config.qk_nope_head_dim;
  for (size_t l = 0; l < 2; ++l) {
    const MlaWeights& w = p.weights.layers[l].attention;
    MlaWeights& dw = grads.weights.layers[l].attention;
    const MlaSaved& s = saved.layers[l].attention;
    const MlaGrads& d = g[l].attention;
    expect_equal("q_a", s.q_a, forwards(s.input, w.q_a, plain));
    expect_equal("kv_a", s.kv_a.columns(0, config.kv_lora_rank),
                 forwards(s.input, w.kv_a, plain).columns(0, config.kv_lora_rank));
    const Tensor q = forwards(s.q_latent, w.q_b, plain);
    for (int64_t h = 0; h < config.num_attention_heads; ++h) {  // behind these columns it is rotated
      expect_equal("q_b", s.q.columns(h * qk, nope), q.columns(h * qk, nope));
    }
    expect_equal("kv_b", s.kv, forwards(s.latent, w.kv_b, plain));
    const Tensor o = copy_of(s.o);
    round_to_e5m6(own, o);
    EXPECT_TRUE(same_bits(o, s.o)) << "kept in twelve bits";
    expect_equal("o", saved.layers[l].attention_out, forwards(s.o, w.o, attention_out));

    expect_equal("d o", d.o, backwards(d.out, w.o, attention_out));
    expect_equal("d latent", d.latent, backwards(d.kv, w.kv_b, plain));
    expect_equal("d q_latent", d.q_latent, backwards(d.q, w.q_b, plain));
    const Tensor d_input = backwards(d.kv_a, w.kv_a, plain);
    fp8_backward_input(d_input, d.q_a, w.q_a, plain);
    expect_equal("d input", g[l].attention_normed, d_input);

    expect_weight("dw o", dw.o, d.out, s.o, attention_out);
    expect_weight("dw kv_b", dw.kv_b, d.kv, s.latent, plain);
    expect_weight("dw kv_a", dw.kv_a, d.kv_a, s.input, plain);
    expect_weight("dw q_b", dw.q_b, d.q, s.q_latent, plain);
    expect_weight("dw q_a", dw.q_a, d.q_a, s.input, plain);
  }
}

TEST_F(Fp8Model, TheDenseLayersMlpIsItsTwin) {
  const MlpWeights& w = p.weights.layers[0].mlp;
  MlpWeights& dw = grads.weights.layers[0].mlp;
  const MlpSaved& s = saved.layers[0].mlp;
  const MlpGrads& d = g[0].mlp;
  expect_equal("gate_up", s.gate_up, forwards(s.input, w.gate_up, parts));
  expect_equal("down", saved.layers[0].mlp_out, forwards(activated(s.gate_up), w.down, plain));

  const Tensor known = kept(s.gate_up), d_gate_up = zeros_like(s.gate_up);
  expect_equal("activated", d.activated, activated(known));
  swiglu_backward(own, d_gate_up, backwards(d_out, w.down, plain), known);
  expect_equal("d gate_up", d.gate_up, d_gate_up);
  expect_equal("d input", g[0].mlp_normed, backwards(d.gate_up, w.gate_up, parts));
  expect_weight("dw down", dw.down, d_out, d.activated, plain);
  expect_weight("dw gate_up", dw.gate_up, d.gate_up, s.input, plain);
}

TEST_F(Fp8Model, TheExpertsAreTheirTwins) {
  const MoeWeights& w = p.weights.layers[1].moe;
  MoeWeights& dw = grads.weights.layers[1].moe;
  const MoeSaved& s = saved.layers[1].moe;
  const MoeGrads& d = g[1].moe;
  const int64_t hidden = config.hidden_size, inter = config.moe_intermediate_size;
  const Tensor x = filled_f32(s.gate_up.rows(), hidden, 0), logits = empty(s.input, w.gate.rows());
  dispatch(own, x, s.input, s.dispatch);
  plain::linear(logits, s.input, w.gate);
  EXPECT_LT(max_relative_error(s.logits, logits), 1e-6) << "the router's logits are f32's";
  expect_equal("gate_up", s.gate_up, of_experts(s, w.gate_up, 2 * inter, [&](int64_t begin, int64_t n, Tensor w_e) {
                 return forwards(x.slice(begin, n), w_e, experts_up);
               }));
  const Tensor inner = activated(s.gate_up);
  const Tensor y = of_experts(s, w.down, hidden, [&](int64_t begin, int64_t n, Tensor w_e) {
    return forwards(inner.slice(begin, n), w_e, experts_down);
  });
  expect_equal("shared gate_up", s.shared.gate_up, forwards(s.input, w.shared.gate_up, parts));
  const Tensor out = forwards(activated(s.shared.gate_up), w.shared.down, plain);
  combine(own, out, y, s.topk_weights, s.dispatch);
  expect_equal("out", saved.layers[1].mlp_out, out);

  const Tensor known = kept(s.gate_up), d_gate_up = zeros_like(s.gate_up);
  const Tensor d_inner = of_experts(s, w.down, inter, [&](int64_t begin, int64_t n, Tensor w_e) {
    return backwards(d.y_sorted.slice(begin, n), w_e, experts_down);
  });
  swiglu_backward(own, d_gate_up, d_inner, known);
  expect_equal("activated", d.activated, activated(known));
  expect_equal("d gate_up", d.gate_up, d_gate_up);
  const Tensor d_input = backwards(d.shared.gate_up, w.shared.gate_up, parts);
  dispatch_backward(own, d_input,
                    of_experts(s, w.gate_up, hidden,
                               [&](int64_t begin, int64_t n, Tensor w_e) {
                                 return backwards(d.gate_up.slice(begin, n), w_e, experts_up);
                               }),
                    s.dispatch);
  plain::linear_backward_input(d_input, d.logits, w.gate, /*accumulate=*/true);
  expect_equal("d input", g[1].mlp_normed, d_input);

  for (int64_t e = 0; e < config.router.n_routed_experts; ++e) {
    const int64_t begin = s.dispatch.offsets.i32()[e], n = s.dispatch.offsets.i32()[e + 1] - begin;
    ASSERT_GT(n, 0);
    expect_weight("dw gate_up", dw.gate_up[e], d.gate_up.slice(begin, n), x.slice(begin, n), experts_up);
    expect_weight("dw down", dw.down[e], d.y_sorted.slice(begin, n), d.activated.slice(begin, n), experts_down);
  }
  const Tensor d_gate = zeros_like(dw.gate);
  plain::linear_backward_weight(d_gate, d.logits, s.input);
  expect_equal("dw gate", dw.gate, d_gate);
  expect_weight("dw shared down", dw.shared.down, d_out, d.shared.activated, plain);
  expect_weight("dw shared gate_up", dw.shared.gate_up, d.shared.gate_up, s.input, plain);
}

TEST_F(Fp8Model, TheHeadIsNotRounded) {
  const Tensor logits = head_logits(own, model, saved.final_hidden), want = zeros_like(logits);
  plain::linear(want, saved.final_hidden, p.weights.head);
  EXPECT_LT(max_relative_error(logits, want), 1e-6);
}

// The comparison can tell: with one scale a tensor the same layer is far from its twin in tiles.
TEST_F(Fp8Model, OneScaleATensorIsNoTwin) {
  model.precision = Precision::fp8_per_tensor;
  ForwardSaved coarse;
  forward(own, model, batch, {.saved = &coarse, .taps = true});
  const MlaSaved& s = coarse.layers[0].attention;
  EXPECT_GT(max_relative_error(s.q_a, forwards(s.input, p.weights.layers[0].attention.q_a, plain)), 1e-3);
}

}  // namespace
}  // namespace fathom
