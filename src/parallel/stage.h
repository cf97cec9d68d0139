// A stage of the model in a pipeline: some of its layers, at the ends also what stands in front of them and behind.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "model/examples.h"
#include "parallel/expert_parallel.h"
#include "parallel/pipeline.h"

namespace fathom {

// Which layers a stage holds: all in order, spread evenly; the last stage, which has head and MTP modules to compute
// too, has fewer where they do not divide; of each layer the experts of `experts`, or all. Error for more stages than
// layers, and for experts that cannot be dealt out.
WeightPart stage_part(const ModelConfig& config, int n_stages, int stage, const ExpertGroup* experts = nullptr);

// The weights of a stage and what is learned for them.
struct Stage {
  WeightPart part;
  Parameters parameters, gradients;
  Model model;                           // views of parameters
  const ExpertGroup* experts = nullptr;  // over whom they are spread; null: all are here
};
// Zeroed weights and gradients.
Stage make_stage(const ModelConfig& config, int n_stages, int stage, const ExpertGroup* experts = nullptr);

// What all stages are told of a step.
struct PipelineStep {
  std::vector<Examples> chunks;  // of both directions; those of direction 0 first
  LossOptions loss;              // whose scales must be those of the whole step
};

// One step of this rank's stages: gradients += those of the step's loss. stages[direction]. Returns the loss of the
// chunks that end on this rank, and the load of its experts by layer of the whole model, zero rows for others.
class StageWork {
 public:
  StageWork(ThreadPool& pool, const PipelineSchedule& schedule, std::span<Stage> stages, const PipelineStep& step);
  ~StageWork();
  PipelineWork work();
  // `told` of a layer of a direction's stage, in the last backward pass through it: the gradients of this layer and of
  // all behind it are those of the step; -1: all are, the embedding's too.
  void tell_final(std::function<void(int direction, int64_t layer)> told) { told_ = std::move(told); }
  LossResult result() const;
  const Traffic& traffic() const { return traffic_; }
  void keep_messages(std::vector<Traffic::Message>& in) { traffic_.messages = &in; }

 private:
  struct Chunk;
  Chunk& chunk(ChunkPass pass);
  size_t number(ChunkPass pass) const;  // among step.chunks
  Stage& stage(ChunkPass pass) { return stages_[static_cast<size_t>(pass.direction)]; }
  int first_tag(ChunkPass pass, bool backward) const;
  struct LayerHere;
  struct Scratch;
  std::unique_ptr<Scratch> take_scratch();
  void give_back(std::unique_ptr<Scratch> scratch);
  static LayerHere layer(Chunk& c, Stage& s, size_t l, Context& ctx, Context& made_again);
  StagePass forward(ChunkPass pass);
  StagePass layer_forward(Stage& s, LayerHere here, Tensor out, Tensor x, ExpertLoad* load, int& tag);
  StagePass make_again(Chunk& c, Stage& s, size_t l, int& tag);
  static void head(Chunk& c, Stage& s);
  StagePass head_and_mtp(Chunk& c, Stage& s, int& tag);
  StagePass backward(ChunkPass pass, bool of_input, bool of_weights);
  StagePass layer_backward_input(Chunk& c, Stage& s, LayerHere here, Tensor dx, Tensor d_out, int& tag,
                                 const std::function<void()>& meanwhile);
  static void layer_backward_weight(Stage& s, LayerHere here);

  ThreadPool& pool_;
  const PipelineSchedule& schedule_;
  std::span<Stage> stages_;
  const PipelineStep& step_;
  std::map<std::pair<int, int>, std::unique_ptr<Chunk>> chunks_;
  std::vector<std::unique_ptr<Arena>> free_arenas_;
  std::vector<std::unique_ptr<Scratch>> free_scratch_;
  Traffic traffic_;
  std::function<void(int, int64_t)> told_;
  int n_backward_[2] = {0, 0};                         // [direction]: passes that make weights' gradients, begun
  std::map<std::pair<int, int>, LossResult> results_;  // of chunks that are over, summed in this order
  std::optional<PassThread> beside_;                   // where experts are spread
};

}  // namespace fathom
