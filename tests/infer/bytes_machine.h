// A tiny model with random weights over the bytes tokenizer, and what it takes to run it.
#pragma once

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

}  // namespace fathom
