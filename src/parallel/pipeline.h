// Runs a rank's list of a pipeline schedule: the one runner for all of them.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "parallel/collectives.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/stage_pass.h"

namespace fathom {

// What this rank's stages compute. The memory of what goes over is the work's: input and output until the chunk's
// backward pass in this direction is over, the gradients until end_chunk().
struct PipelineWork {
  std::function<StagePass(ChunkPass)> forward;          // input -> output
  std::function<StagePass(ChunkPass)> backward_input;   // output_gradient -> input_gradient
  std::function<StagePass(ChunkPass)> backward_weight;  // behind it; adds to the weights' gradients
  std::function<StagePass(ChunkPass)> backward;         // both, the second where the first waits for messages
  // What goes over from stage to stage: what a pass reads, to be received into, and what it has made, to be sent. Not
  // asked for where there is no stage before or behind.
  std::function<std::span<std::byte>(ChunkPass)> input, output_gradient;
  std::function<std::span<const std::byte>(ChunkPass)> output, input_gradient;
  std::function<void(ChunkPass)> end_chunk;  // nothing of it is needed any more
  // Where no pass has anything to compute: does a small piece of what goes on beside them. Whether there was one.
  std::function<bool()> beside;
};

// What a rank did, in seconds since `origin_s` of run_pipeline().
struct PipelineTrace {
  struct Span {
    double begin = 0, end = 0;  // of an operation; those that hide each other's messages lie over one another
    bool operator==(const Span&) const = default;
  };
  std::vector<Span> ops;  // [operation]
  // What it did from moment to moment, where PipelineOptions ask for it: pieces of passes and waits, none over another.
  struct Piece {
    enum class Kind { forward, backward, backward_input, backward_weight, beside, exposed, starved };
    Kind kind;
    ChunkPass pass;  // of passes
    double begin, end;
  };
  std::vector<Piece> pieces;
  double computed = 0;  // in passes, without their waits
  double beside = 0;    // in what goes on beside them
  double exposed = 0;   // waited for messages of passes, with nothing to compute meanwhile
  double starved = 0;   // waited for another stage, with nothing begun
  double end = 0;       // when all that was sent had gone
};

struct PipelineOptions {
  double origin_s = 0;
  bool pieces = false;  // to be kept in the trace
  bool overlap = true;  // false: one pass after the other, F&B too, each waiting for its messages
};

// The work of `schedule`'s rank group.index; ranks of the group are those of the schedule. Of the tags
// from group.tag on four a chunk are used. While the passes of an operation wait for messages the next one computes,
// where all that it reads is there; weights' gradients of a stage are added to in the order of the list in any case, so
// that the same bits come out whatever the timing. Throws what the work throws.
PipelineTrace run_pipeline(const RankGroup& group, const PipelineSchedule& schedule, const PipelineWork& work,
                           const PipelineOptions& options);

}  // namespace fathom
