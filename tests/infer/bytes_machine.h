// A tiny model with random weights over the bytes tokenizer, and what it takes to run it.
#pragma once

#include <gmock/gmock.h>

#include <cmath>

#include "infer/generation.h"
#include "model/tiny_models.h"

namespace fathom {

struct BytesMachine {
  ModelConfig config;
  Parameters parameters;
  Model model;
  ThreadPool pool{2};
  Arena arena;
  Context ctx{pool, arena};
  Tokenizer tokenizer = Tokenizer::bytes();

  explicit BytesMachine(int64_t max_position_embeddings, const ModelConfig& like = tiny_v3()) : config(like) {
    config.vocab_size = 300;  // room for bytes
    config.max_position_embeddings = max_position_embeddings;
    parameters = allocate_parameters(config);
    initialize(parameters, config, 11);
    model = make_model(config, parameters.weights);
  }
};

// `grads` against finite differences of `objective` at 40 parameters, by chance, whose gradients are not small.
template <typename F>
void expect_slopes(Parameters& parameters, Parameters& grads, const F& objective, double relative, double absolute) {
  Rng rng(3);
  int checked = 0;
  while (checked < 40) {
    const auto i = static_cast<size_t>(rng.below(grads.trained().size()));
    const double want = grads.trained()[i];
    if (std::abs(want) < 1e-3) continue;
    float& x = parameters.trained()[i];
    const float kept = x, step = 2e-3f;
    x = kept + step;
    const double up = objective();
    x = kept - step;
    const double down = objective();
    x = kept;
    EXPECT_NEAR((up - down) / (2 * step), want, relative * std::abs(want) + absolute) << i;
    ++checked;
  }
}

}  // namespace fathom
