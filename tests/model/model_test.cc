#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "model/backward.h"
#include "model/loss.h"
#include "model/tiny_models.h"

namespace fathom {
namespace {

struct Machine {
  ThreadPool pool;
  Arena arena;
  Context ctx{pool, arena};
  explicit Machine(int threads = 2) : pool(threads) {}
};

std::vector<float> copy(Tensor t) {
  std::vector<float> values;
  for (int64_t r = 0; r < t.rows(); ++r) values.insert(values.end(), t.f32_row(r), t.f32_row(r) + t.cols());
  return values;
}

std::vector<float> final_hidden(Machine& machine, const Model& model,
                                const std::vector<std::vector<int32_t>>& sequences) {
  const ArenaScope scope(machine.arena);
  return copy(forward(machine.ctx, model, make_batch(machine.ctx, sequences)));
}

const LossOptions kLoss{.mtp_weight = 0.3, .balance_alpha = 0.05};

double objective(Machine& machine, const Model& model, const std::vector<std::vector<int32_t>>& sequences,
                 LossOptions options) {
  const ArenaScope scope(machine.arena);
  const Batch batch = make_batch(machine.ctx, sequences);
  Parameters grads = allocate_parameters(model.config, false);
  // The balance loss comes with the gradients only.
  const auto result =
      loss_and_gradients(machine.ctx, model, grads.weights, batch, make_targets(machine.ctx, batch), options);
  const auto n = static_cast<double>(sequences.size());
  return result.loss() + options.mtp_weight * result.mtp_loss() + result.balance_loss / n;
}

// The derivative along a random direction, against central differences in the whole space of parameters.
void check_gradient(ModelConfig config, LossOptions options) {
  Machine machine;
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const std::vector<std::vector<int32_t>> sequences{
      random_ids(11, config.vocab_size, 1), random_ids(1, config.vocab_size, 2), random_ids(6, config.vocab_size, 3)};
  Parameters grads = allocate_parameters(config, false);
  const Batch batch = make_batch(machine.ctx, sequences);
  loss_and_gradients(machine.ctx, model, grads.weights, batch, make_targets(machine.ctx, batch), options);

  for_each_tensor(p.weights, config, [&](const NamedTensor& t) {
    if (!t.trained) return;
    Tensor grad;
    for_each_tensor(grads.weights, config, [&](const NamedTensor& g) {
      if (g.name == t.name) grad = g.view;
    });
    Rng rng(std::hash<std::string>()(t.name));
    const float step = 4e-3f;
    double slope = 0;
    std::vector<float> before = copy(t.view), direction;
    double norm = 0;
    for (size_t i = 0; i < before.size(); ++i) direction.push_back(static_cast<float>(rng.normal()));
    for (const float d : direction) norm += static_cast<double>(d) * d;
    for (float& d : direction) d /= static_cast<float>(std::sqrt(norm));
    const auto gradient = copy(grad);
    for (size_t i = 0; i < before.size(); ++i) slope += static_cast<double>(gradient[i]) * direction[i];
    const auto shifted = [&](float by) {
      for (size_t i = 0; i < before.size(); ++i) t.view.f32()[i] = before[i] + by * direction[i];
      return objective(machine, model, sequences, options);
    };
    const double measured = (shifted(step) - shifted(-step)) / (2.0 * step);
    shifted(0);
    EXPECT_NEAR(slope, measured, 1e-3 * std::max(0.5, std::abs(measured))) << t.name;
  });
}

TEST(Gradient, V3WithMtpAndBalanceLoss) { check_gradient(tiny_v3(), kLoss); }
TEST(Gradient, SeveralMtpModules) {
  ModelConfig config = tiny_v3();
  config.num_nextn_predict_layers = 3;
  check_gradient(config, kLoss);
}
TEST(Gradient, V2WithoutQueryLatent) { check_gradient(tiny_v2(), {}); }
TEST(Gradient, DenseOnly) { check_gradient(tiny_dense(), {}); }
TEST(Gradient, GroupedQueries) { check_gradient(tiny_llama(), {}); }
TEST(Gradient, GroupedQueriesWithBiasesAndTiedHead) { check_gradient(tiny_qwen2(), {}); }

TEST(Gradient, MicroBatchesAddUpToTheBatch) {
  Machine machine;
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const std::vector<std::vector<int32_t>> sequences{random_ids(9, config.vocab_size, 1),
                                                    random_ids(9, config.vocab_size, 2)};
  LossOptions options{.mtp_weight = 0.3, .main_scale = 1.0 / 16, .mtp_scale = 1.0 / 14};
  Parameters whole = allocate_parameters(config, false), parts = allocate_parameters(config, false);
  const auto add = [&](Parameters& grads, std::span<const std::vector<int32_t>> some) {
    const Batch batch = make_batch(machine.ctx, some);
    loss_and_gradients(machine.ctx, model, grads.weights, batch, make_targets(machine.ctx, batch), options);
  };
  add(whole, sequences);
  add(parts, std::span(sequences).first(1));
  add(parts, std::span(sequences).last(1));
  for (size_t i = 0; i < whole.trained().size(); ++i) {
    EXPECT_NEAR(whole.trained()[i], parts.trained()[i], 1e-5f + 1e-4f * std::abs(whole.trained()[i]));
  }
}

// Rounded operands have no derivative; what their backward pass gives must be near that of f32, by the norm of all.
// These models magnify: bf16, whose steps are a 16th of e4m3's, is 4 % off, and FP8 30 to 50 %.
TEST(Gradient, RoundedOperandsStayNearF32) {
  struct Case {
    Precision precision;
    double loss, gradient;  // relative differences
  };
  for (ModelConfig config : {tiny_v3(), tiny_v2(), tiny_dense(), tiny_llama()}) {
    // Every token goes to every expert: a choice that rounding turns is a jump.
    config.router.n_group = config.router.topk_group = 1;
    config.router.num_experts_per_tok = config.router.n_routed_experts;
    const LossOptions options{.mtp_weight = config.num_nextn_predict_layers > 0 ? 0.3 : 0};
    std::vector<float> exact;
    double exact_loss = 0;
    for (const auto& [precision, loss_bound, bound] :
         {Case{Precision::f32, 0, 0}, Case{Precision::bf16, 1e-3, 0.06}, Case{Precision::fp8, 0.01, 0.6}}) {
      Machine machine;
      Parameters p = tiny_parameters(config), grads = allocate_parameters(config, false);
      Model model = make_model(config, p.weights);
      model.precision = precision;
      const std::vector<std::vector<int32_t>> sequences{random_ids(200, config.vocab_size, 1),
                                                        random_ids(60, config.vocab_size, 2)};
      const Batch batch = make_batch(machine.ctx, sequences);
      const double loss =
          loss_and_gradients(machine.ctx, model, grads.weights, batch, make_targets(machine.ctx, batch), options)
              .loss();
      const std::vector<float> values(grads.trained().begin(), grads.trained().end());
      if (precision == Precision::f32) {
        exact = values;
        exact_loss = loss;
        continue;
      }
      double difference = 0, norm = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        difference += std::pow(static_cast<double>(values[i]) - exact[i], 2);
        norm += std::pow(static_cast<double>(exact[i]), 2);
      }
      const double relative = std::sqrt(difference / norm);
      EXPECT_LT(relative, bound) << config.model_type << " " << static_cast<int>(precision);
      EXPECT_GT(relative, bound / 10) << "nothing was rounded";
      EXPECT_NEAR(loss, exact_loss, loss_bound * exact_loss);
    }
  }
}

// A schedule may put the weight gradients of the MTP module and of a layer behind all input gradients.
TEST(Gradient, WeightGradientsMayComeLater) {
  Machine machine;
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config), one = allocate_parameters(config, false),
             other = allocate_parameters(config, false);
  const Model model = make_model(config, p.weights);
  const std::vector<std::vector<int32_t>> sequences{random_ids(13, config.vocab_size, 1),
                                                    random_ids(6, config.vocab_size, 2)};
  const Batch batch = make_batch(machine.ctx, sequences);
  ForwardSaved saved;
  MtpSaved mtp;
  const Tensor hidden = forward(machine.ctx, model, batch, {.saved = &saved});
  const MtpWeights& w = model.weights.mtp[0];
  mtp_forward(machine.ctx, model, w, make_mtp_input(machine.ctx, batch), hidden, {.saved = &mtp});
  const size_t last = saved.layers.size() - 1;
  std::vector<float> inputs[2];
  for (const bool later : {false, true}) {
    ModelWeights& grads = later ? other.weights : one.weights;
    const Tensor d_hidden = new_f32(machine.ctx, {hidden.rows(), hidden.cols()});
    const Tensor dx = new_f32(machine.ctx, {hidden.rows(), hidden.cols()});
    std::fill_n(d_hidden.f32(), d_hidden.size(), 0.5f);
    MtpGrads inner;
    LayerGrads layer;
    mtp_backward_input(machine.ctx, model, w, mtp, d_hidden, mtp.hidden, inner);
    if (!later) mtp_backward_weight(machine.ctx, model, grads.mtp[0], grads.embed, mtp, inner);
    layer_backward_input(machine.ctx, model, model.weights.layers[last], batch, saved.layers[last], dx, d_hidden, layer,
                         {});
    layer_backward_weight(machine.ctx, model, grads.layers[last], batch, saved.layers[last], layer);
    if (later) mtp_backward_weight(machine.ctx, model, grads.mtp[0], grads.embed, mtp, inner);
    inputs[later] = copy(dx);
  }
  EXPECT_EQ(inputs[0], inputs[1]);
  EXPECT_EQ(memcmp(one.memory.data(), other.memory.data(), one.memory.size()), 0);
  EXPECT_GT(std::abs(one.weights.mtp[0].eh_proj.f32(0, 0)), 0);
}

TEST(Forward, PackedSequencesDoNotSeeEachOther) {
  Machine machine;
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const auto a = random_ids(13, config.vocab_size, 1), b = random_ids(7, config.vocab_size, 2);
  const auto alone = final_hidden(machine, model, {b});
  const auto packed = final_hidden(machine, model, {a, b});
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_NEAR(packed[13 * static_cast<size_t>(config.hidden_size) + i], alone[i], 1e-5f);
  }
}

TEST(Forward, TokensDoNotSeeTheFuture) {
  Machine machine;
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  auto ids = random_ids(20, config.vocab_size, 1);
  const auto before = final_hidden(machine, model, {ids});
  ids[15] = (ids[15] + 1) % static_cast<int32_t>(config.vocab_size);
  const auto after = final_hidden(machine, model, {ids});
  const auto rows = static_cast<size_t>(15 * config.hidden_size);
  EXPECT_EQ(memcmp(before.data(), after.data(), rows * sizeof(float)), 0);
  EXPECT_NE(before[rows], after[rows]);
}

TEST(Forward, CachedDecodingEqualsTheWholePass) {
  for (const auto& config : {tiny_v3(), tiny_v2()}) {
    Machine machine;
    Parameters p = tiny_parameters(config);
    const Model model = make_model(config, p.weights);
    const auto ids = random_ids(23, config.vocab_size, 5);
    const auto whole = final_hidden(machine, model, {ids});
    // A prompt of 10, then chunks of 1, 4 and 8 tokens.
    LatentCache cache = make_latent_cache(config, 23);
    LatentCache* const caches[] = {&cache};
    std::vector<float> pieces;
    for (const size_t end : {10, 11, 15, 23}) {
      const ArenaScope scope(machine.arena);
      const auto begin = static_cast<size_t>(cache.length);
      const std::vector<std::vector<int32_t>> chunk{
          {ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.begin() + static_cast<std::ptrdiff_t>(end)}};
      const int64_t position[] = {cache.length};
      const auto hidden =
          copy(forward(machine.ctx, model, make_batch(machine.ctx, chunk, position), {.caches = caches}));
      pieces.insert(pieces.end(), hidden.begin(), hidden.end());
    }
    ASSERT_EQ(pieces.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(pieces[i], whole[i], 2e-5f) << config.model_type;
  }
}

// How far decoding from a cache in each format is from exact, in parts of the hidden states' size. No experts: the
// choice of another one is no rounding.
TEST(Forward, NarrowCachesRoundAsTheirFormatsDo) {
  struct Case {
    Format kv_type;
    double least, most;
  };
  const ModelConfig config = tiny_dense();
  Machine machine;
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const std::vector<int32_t> ids = random_ids(60, config.vocab_size, 5);
  const std::vector<float> exact = final_hidden(machine, model, {ids});
  for (const Case& c : {Case{Format::f32, 0, 1e-5}, Case{Format::f16, 1e-6, 1e-3}, Case{Format::bf16, 1e-5, 1e-2},
                        Case{Format::q8_0, 1e-5, 2e-2}, Case{Format::f8_e4m3, 1e-4, 1e-1}}) {
    LatentCache cache = make_latent_cache(config, 60, c.kv_type);
    LatentCache* const caches[] = {&cache};
    double difference = 0, size = 0;
    size_t at = 0;
    for (const int32_t id : ids) {
      const ArenaScope scope(machine.arena);
      const int64_t position[] = {cache.length};
      const std::vector<std::vector<int32_t>> token{{id}};
      const Tensor hidden = forward(machine.ctx, model, make_batch(machine.ctx, token, position), {.caches = caches});
      for (int64_t i = 0; i < hidden.cols(); ++i, ++at) {
        difference += std::pow(hidden.f32()[i] - exact[at], 2);
        size += std::pow(exact[at], 2);
      }
    }
    const double relative = std::sqrt(difference / size);
    EXPECT_GE(relative, c.least) << format_traits(c.kv_type).name;
    EXPECT_LE(relative, c.most) << format_traits(c.kv_type).name;
  }
}

TEST(Forward, SavingChangesNoBit) {
  Machine machine;
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const std::vector<std::vector<int32_t>> sequences{random_ids(17, config.vocab_size, 1)};
  const auto unsaved = final_hidden(machine, model, sequences);
  ForwardSaved saved;
  EXPECT_EQ(copy(forward(machine.ctx, model, make_batch(machine.ctx, sequences), {.saved = &saved, .taps = true})),
            unsaved);
}

// A prompt read in any pieces, and beside any other sequences, leaves the same hidden states and caches.
TEST(Forward, APromptHasTheSameBitsInAnyPiecesAndAnyBatch) {
  struct Case {
    ModelConfig config;
    Format kv_type;
  };
  for (const auto& [config, kv_type] :
       {Case{tiny_v3(), Format::f32}, Case{tiny_v2(), Format::f32}, Case{tiny_dense(), Format::f32},
        Case{tiny_llama(), Format::f32}, Case{tiny_qwen2(), Format::bf16}, Case{tiny_llama(), Format::q8_0},
        Case{tiny_v3(), Format::bf16}, Case{tiny_v3(), Format::f8_e4m3}, Case{tiny_v2(), Format::q8_0}}) {
    Machine machine;
    Parameters p = tiny_parameters(config);
    const Model model = make_model(config, p.weights);
    const std::vector<int32_t> ids = random_ids(150, config.vocab_size, 1),
                               other = random_ids(40, config.vocab_size, 2);
    std::vector<float> whole;
    std::string whole_cache;
    for (const size_t piece : {150u, 64u, 19u, 1u}) {
      for (const bool beside : {false, true}) {
        LatentCache cache = make_latent_cache(config, 200, kv_type);
        LatentCache neighbour = make_latent_cache(config, 200, kv_type);
        std::vector<float> hidden;
        for (size_t begin = 0; begin < ids.size(); begin += piece) {
          const size_t n = std::min(piece, ids.size() - begin);
          std::vector<std::vector<int32_t>> sequences{
              {ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(begin + n)}};
          std::vector<LatentCache*> caches{&cache};
          std::vector<int64_t> first{cache.length};
          if (beside && begin == 0) {
            sequences.push_back(other);
            caches.push_back(&neighbour);
            first.push_back(0);
          }
          const Batch batch = make_batch(machine.ctx, sequences, first);
          const Tensor out = forward(machine.ctx, model, batch, {.caches = caches, .expand_from = kExpandAll});
          hidden.insert(hidden.end(), out.f32(), out.f32() + static_cast<int64_t>(n) * out.cols());
        }
        const std::string cached(static_cast<const char*>(cache.rows(1)),
                                 static_cast<const char*>(cache.rows(1, cache.length)));
        if (whole.empty()) {
          whole = hidden;
          whole_cache = cached;
        }
        EXPECT_EQ(memcmp(hidden.data(), whole.data(), whole.size() * sizeof(float)), 0) << piece << " " << beside;
        EXPECT_EQ(cached, whole_cache) << piece;
      }
    }
  }
}

// One sequence generates in the absorbed form while another's prompt is read in parts: each has the bits that it has
// alone in memory of its own.
TEST(Forward, PromptsBesideGenerationInPagesChangeNoBit) {
  for (const auto& [config, kv_type] : {std::pair{tiny_v3(), Format::f32}, {tiny_v2(), Format::bf16}}) {
    Machine machine;
    Parameters p = tiny_parameters(config);
    const Model model = make_model(config, p.weights);
    const std::vector<int32_t> first = random_ids(140, config.vocab_size, 1),
                               second = random_ids(130, config.vocab_size, 2);
    const size_t prompt = 133, part = 20;
    const auto run = [&](const std::vector<std::vector<int32_t>>& sequences, const std::vector<LatentCache*>& caches,
                         size_t expand_from) {
      std::vector<int64_t> positions;
      for (const LatentCache* cache : caches) positions.push_back(cache->length);
      const Tensor out = forward(machine.ctx, model, make_batch(machine.ctx, sequences, positions),
                                 {.caches = caches, .expand_from = expand_from});
      return std::vector<float>(out.f32(), out.f32() + out.size());
    };
    const auto ids = [](const std::vector<int32_t>& of, size_t begin, size_t n) {
      return std::vector<int32_t>(of.begin() + static_cast<int64_t>(begin),
                                  of.begin() + static_cast<int64_t>(std::min(begin + n, of.size())));
    };

    LatentCache own = make_latent_cache(config, 140, kv_type), other = make_latent_cache(config, 140, kv_type);
    run({ids(first, 0, prompt)}, {&own}, kExpandAll);
    std::vector<float> want_generated;
    for (size_t i = prompt; i < first.size(); ++i) {
      const std::vector<float> out = run({{first[i]}}, {&own}, kExpandNone);
      want_generated.insert(want_generated.end(), out.begin(), out.end());
    }
    const std::vector<float> want_read = run({second}, {&other}, kExpandAll);

    const int64_t page_bytes = cache_page_bytes(config, config.num_hidden_layers, kv_type);
    const Buffer memory(static_cast<size_t>(6 * page_bytes));
    LatentCache paged[] = {make_paged_cache(config, kv_type), make_paged_cache(config, kv_type)};
    for (int64_t page = 0; page < 6; ++page) {
      paged[page % 2].pages.push_back(static_cast<char*>(memory.data()) + (5 - page) * page_bytes);
      paged[page % 2].capacity += kCachePageRows;
    }
    run({ids(first, 0, prompt)}, {&paged[0]}, kExpandAll);
    std::vector<float> generated, read;
    const auto hidden = static_cast<int64_t>(config.hidden_size);
    for (size_t i = prompt, at = 0; i < first.size(); ++i, at += part) {
      const std::vector<float> out = run({{first[i]}, ids(second, at, part)}, {&paged[0], &paged[1]}, 1);
      generated.insert(generated.end(), out.begin(), out.begin() + hidden);
      read.insert(read.end(), out.begin() + hidden, out.end());
    }
    EXPECT_TRUE(generated == want_generated);
    EXPECT_TRUE(read == want_read);
  }
}

TEST(Loss, KeepsWhatSavedFloatsATokenSays) {
  for (ModelConfig config : {tiny_v3(), tiny_v2(), tiny_dense(), tiny_llama()}) {
    config.num_hidden_layers = 12;  // the last layers' gradients in flight count for little then
    Machine machine;
    Parameters p = tiny_parameters(config), grads = allocate_parameters(config, false);
    const Model model = make_model(config, p.weights);
    const std::vector<std::vector<int32_t>> sequences(8, random_ids(100, config.vocab_size, 1));
    const Batch batch = make_batch(machine.ctx, sequences);
    loss_and_gradients(machine.ctx, model, grads.weights, batch, make_targets(machine.ctx, batch), {});
    const auto said = [&](Recompute recompute) {
      return static_cast<double>(saved_floats_a_token(config, recompute, Precision::f32)) * 800 * sizeof(float);
    };
    const auto used = static_cast<double>(machine.arena.peak_bytes());
    EXPECT_LE(said(Recompute::none), used) << config.model_type;
    EXPECT_GE(said(Recompute::none), 0.6 * used) << config.model_type;
    for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
      Machine small;
      Arena scratch;
      const Batch same = make_batch(small.ctx, sequences);
      loss_and_gradients(small.ctx, model, grads.weights, same, make_targets(small.ctx, same),
                         {.recompute = recompute, .scratch = &scratch});
      const auto least = static_cast<double>(small.arena.peak_bytes() + scratch.peak_bytes());
      EXPECT_LE(said(recompute), least) << config.model_type;
      EXPECT_GE(said(recompute), (recompute == Recompute::selective ? 0.4 : 0.2) * least) << config.model_type;
      EXPECT_LT(least, (recompute == Recompute::selective ? 0.85 : 0.6) * used) << config.model_type;
    }
  }
}

// What is made again has the bits that it had.
TEST(Gradient, RecomputingChangesNoBit) {
  for (const ModelConfig& config : {tiny_v3(), tiny_v2(), tiny_dense(), tiny_llama(), tiny_qwen2()}) {
    Parameters p = tiny_parameters(config);
    Model model = make_model(config, p.weights);
    const std::vector<std::vector<int32_t>> sequences{random_ids(50, config.vocab_size, 1),
                                                      random_ids(1, config.vocab_size, 2),
                                                      random_ids(33, config.vocab_size, 3)};
    for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8, Precision::fp8_per_tensor}) {
      model.precision = precision;
      std::vector<float> whole;
      double loss_sum = 0;
      for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
        Machine machine;
        Arena scratch;
        Parameters grads = allocate_parameters(config, false);
        const Batch batch = make_batch(machine.ctx, sequences);
        LossOptions options = config.num_nextn_predict_layers > 0 ? kLoss : LossOptions{};
        options.recompute = recompute;
        options.scratch = &scratch;
        const LossResult result =
            loss_and_gradients(machine.ctx, model, grads.weights, batch, make_targets(machine.ctx, batch), options);
        const std::vector<float> values(grads.trained().begin(), grads.trained().end());
        if (recompute == Recompute::none) {
          whole = values;
          loss_sum = result.loss_sum;
        }
        EXPECT_EQ(result.loss_sum, loss_sum);
        EXPECT_EQ(memcmp(whole.data(), values.data(), values.size() * sizeof(float)), 0) << config.model_type;
      }
    }
  }
}

// Two sequences, or one: with two the balance losses differ, with one they are the same.
TEST(Loss, BalanceOverTheBatchIsThatOfOneSequence) {
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const auto balance_loss = [&](const std::vector<std::vector<int32_t>>& sequences, bool over_batch) {
    Machine machine;
    Parameters grads = allocate_parameters(config, false);
    const Batch batch = make_batch(machine.ctx, sequences);
    return loss_and_gradients(machine.ctx, model, grads.weights, batch, make_targets(machine.ctx, batch),
                              {.balance_alpha = 1, .balance_over_batch = over_batch})
        .balance_loss;
  };
  const std::vector<int32_t> ids = random_ids(40, config.vocab_size, 1), other = random_ids(40, config.vocab_size, 2);
  EXPECT_EQ(balance_loss({ids}, false), balance_loss({ids}, true));
  const double each = balance_loss({ids, other}, false), together = balance_loss({ids, other}, true);
  EXPECT_LT(together, 0.9 * each) << "a sum over two sequences, and one loss";
  EXPECT_GT(together, 0.9) << "alpha * sum f P is about 1 a layer, and never below by much";
}

TEST(Config, FlopsOfTrainingFollowTheParameters) {
  ModelConfig config = tiny_v3();
  const double active = static_cast<double>(count_parameters(config).active);
  const double one = training_flops_a_token(config, 1, false), more = training_flops_a_token(config, 101, false);
  const double pair = 6.0 * static_cast<double>(config.num_hidden_layers * config.num_attention_heads *
                                                (config.qk_head_dim() + config.v_head_dim));
  EXPECT_DOUBLE_EQ(one, 6 * active + pair);
  EXPECT_DOUBLE_EQ(more, 6 * active + 51 * pair);
  const double with_mtp = training_flops_a_token(config, 1, true);
  EXPECT_GT(with_mtp, one);
  config.num_nextn_predict_layers = 3;
  EXPECT_DOUBLE_EQ(training_flops_a_token(config, 1, true) - one, 3 * (with_mtp - one));
}

TEST(Loss, SameBitsForAnyNumberOfThreads) {
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config);
  Model model = make_model(config, p.weights);
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::fp8}) {
    model.precision = precision;
    std::vector<float> first;
    for (const int threads : {1, 2, 5}) {
      Machine machine(threads);
      Parameters grads = allocate_parameters(config, false);
      const std::vector<std::vector<int32_t>> sequences{random_ids(150, config.vocab_size, 1),
                                                        random_ids(70, config.vocab_size, 2)};
      const Batch batch = make_batch(machine.ctx, sequences);
      loss_and_gradients(machine.ctx, model, grads.weights, batch, make_targets(machine.ctx, batch), kLoss);
      const std::vector<float> values(grads.trained().begin(), grads.trained().end());
      if (first.empty()) first = values;
      EXPECT_EQ(memcmp(first.data(), values.data(), values.size() * sizeof(float)), 0) << threads;
    }
  }
}

TEST(Loss, CountsEveryTokenTimesK) {
  Machine machine;
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const std::vector<std::vector<int32_t>> sequences{random_ids(10, config.vocab_size, 1)};
  const Batch batch = make_batch(machine.ctx, sequences);
  const auto result = loss(machine.ctx, model, batch, make_targets(machine.ctx, batch), kLoss);
  ASSERT_EQ(result.expert_load.size(), 3u);  // two MoE layers and the MTP layer
  const int64_t rows[] = {10, 10, 9};
  for (size_t l = 0; l < 3; ++l) {
    int64_t total = 0;
    for (const int64_t n : result.expert_load[l]) total += n;
    EXPECT_EQ(total, rows[l] * config.router.num_experts_per_tok);
  }
}

TEST(Loss, EachMtpModulePredictsATokenFurther) {
  Machine machine;
  ModelConfig config = tiny_v3();
  config.num_nextn_predict_layers = 2;
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const auto loss_of = [&](const std::vector<std::vector<int32_t>>& sequences) {
    const Batch batch = make_batch(machine.ctx, sequences);
    return loss(machine.ctx, model, batch, make_targets(machine.ctx, batch), kLoss);
  };
  const auto counted = [&](const std::vector<std::vector<int32_t>>& sequences) {
    return count_mtp_targets(sequences, std::ssize(model.weights.mtp));
  };
  const LossResult whole = loss_of({random_ids(10, config.vocab_size, 1)});
  EXPECT_EQ(whole.mtp_targets, 8 + 7);
  EXPECT_EQ(counted({random_ids(10, config.vocab_size, 1)}), 8 + 7);
  ASSERT_EQ(whole.expert_load.size(), 4u);  // two MoE layers and two MTP layers
  EXPECT_EQ(std::accumulate(whole.expert_load[3].begin(), whole.expert_load[3].end(), int64_t{0}),
            8 * config.router.num_experts_per_tok);
  const LossResult shorter = loss_of({random_ids(3, config.vocab_size, 1), random_ids(2, config.vocab_size, 2)});
  EXPECT_EQ(shorter.mtp_targets, 1);
  EXPECT_EQ(shorter.expert_load.size(), 3u);  // the second module has nothing to predict
  EXPECT_EQ(loss_of({random_ids(2, config.vocab_size, 1)}).mtp_targets, 0);
  EXPECT_EQ(counted({random_ids(2, config.vocab_size, 1)}), 0);
  EXPECT_EQ(counted({random_ids(3, config.vocab_size, 1)}), 1);
}

// Row i of the second module has read token i + 2, and no further one.
TEST(Forward, MtpModulesReadOneTokenEach) {
  Machine machine;
  ModelConfig config = tiny_v3();
  config.num_nextn_predict_layers = 2;
  Parameters p = tiny_parameters(config);
  const Model model = make_model(config, p.weights);
  const auto second = [&](const std::vector<int32_t>& ids) {
    const Batch batch = make_batch(machine.ctx, {&ids, 1});
    Tensor hidden = forward(machine.ctx, model, batch);
    MtpInput input = make_mtp_input(machine.ctx, batch);
    hidden = mtp_forward(machine.ctx, model, model.weights.mtp[0], input, hidden);
    input = make_mtp_input(machine.ctx, input.next);
    return mtp_forward(machine.ctx, model, model.weights.mtp[1], input, hidden);
  };
  std::vector<int32_t> ids = random_ids(9, config.vocab_size, 1);
  const Tensor before = second(ids);
  ASSERT_EQ(before.rows(), 7);
  ids[5] = (ids[5] + 1) % static_cast<int32_t>(config.vocab_size);
  const Tensor after = second(ids);
  for (int64_t i = 0; i < 7; ++i) {
    const bool same = memcmp(before.f32_row(i), after.f32_row(i), sizeof(float) * 20) == 0;
    EXPECT_EQ(same, i + 2 < 5) << i;
  }
}

}  // namespace
}  // namespace fathom
