// How many tokens chose each expert, counted while a pass goes through the layers.
#pragma once

#include "model/forward.h"

namespace fathom {

// On a device the layers' slots are put together and read behind the last one: a read for each would have it wait.
class LoadCount {
 public:
  // load: gets a row for each layer with experts, of which there are n_layers at most; null: nothing is counted.
  LoadCount(Context& ctx, ExpertLoad* load, const ModelConfig& config, size_t n_layers);
  void add(Context& ctx, const MoeSaved& s);  // of the next layer, behind its choice
  void finish(Context& ctx);                  // behind the last one

 private:
  std::vector<int64_t>& append();

  ExpertLoad* load_;
  int64_t experts_, n_ = 0;
  Tensor offsets_;  // on a device: [layers, experts + 1] i32, n_ of them filled
};

}  // namespace fathom
