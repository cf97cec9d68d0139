// What a run of training learns from, step by step: windows of text (train/reading.h), conversations, what the model
// itself has answered.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/examples.h"
#include "text/tokenizer.h"
#include "train/metrics.h"
#include "train/options.h"

namespace fathom {

struct ExampleSource {
  // The micro-batches of a step, counted from 1: a function of the step and, where they come from it, of the model as
  // it is before that step, so that a resumed run goes on with the same ones. ctx.arena is free to use.
  std::function<std::vector<Examples>(Context& ctx, const Model& model, int64_t step)> examples;
  // Visits the micro-batches that a validation behind the step reads: after the last step all there are, before it no
  // more than val_sequences. Empty where there is no validation.
  std::function<void(int64_t step, const std::function<void(const Examples&)>& visit)> validation{};
  // What a resumed run must have in common with the run it goes on with, beside the options (settings_of()).
  Settings settings{};
  std::string contents{};                        // for people: "12345 tokens of text"
  std::function<void(StepMetrics&)> describe{};  // adds to what is reported of a step; may be empty
};

// Called once, when the options are checked, OUT is there and no other run's.
using OpenSource = std::function<ExampleSource(const TrainOptions& options, const ModelConfig& config,
                                               const Tokenizer& tokenizer, ThreadPool& pool)>;

}  // namespace fathom
