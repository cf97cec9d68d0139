// Pipeline schedules as data: for every rank the list of what it does, in order. The trainer runs these lists, the
// planner draws them.
//
// A model is cut into stages of layers, a batch into chunks. F is a chunk's forward pass through a stage, B its whole
// backward pass, I the part of it that gives the gradient of the input, W the part that gives those of the weights:
// B = I + W. In F&B one chunk's forward pass and another's backward pass run together, so that what one sends hides
// behind what the other computes (V3 section 3.2.1).
//
// gpipe, 1f1b, zb1p   rank r holds stage r.
// dualpipe            rank r holds the stages r and P-1-r; half of the chunks enter at either end: direction 0 runs
// from
//                     rank 0 up, 1 from the last rank down (V3 section 3.2.1, figure 5).
// dualpipev           rank r holds the stages r and 2P-1-r, so that a chunk comes back: direction 0 is the way up.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

enum class ScheduleKind { gpipe, one_f_one_b, zb1p, dualpipe, dualpipev };
inline constexpr struct {
  std::string_view name;
  ScheduleKind kind;
} kScheduleKinds[] = {{"gpipe", ScheduleKind::gpipe},
                      {"1f1b", ScheduleKind::one_f_one_b},
                      {"zb1p", ScheduleKind::zb1p},
                      {"dualpipe", ScheduleKind::dualpipe},
                      {"dualpipev", ScheduleKind::dualpipev}};

// A chunk on its way through a rank. Chunks of a direction are counted from 0 in the order in which they enter; in
// dualpipev a chunk has the same number in both.
struct ChunkPass {
  int direction = -1, chunk = -1;
  bool operator==(const ChunkPass&) const = default;
};

struct PipelineOp {
  enum class Kind { forward, backward, backward_input, backward_weight, forward_and_backward };
  Kind kind;
  ChunkPass forward{}, backward{};  // what goes forward, and what backward (W too)
  bool operator==(const PipelineOp&) const = default;
  bool goes_forward() const { return kind == Kind::forward || kind == Kind::forward_and_backward; }
  // Whether it makes the gradient of the input.
  bool goes_backward() const { return kind != Kind::forward && kind != Kind::backward_weight; }
  bool makes_weight_gradients() const { return kind != Kind::forward && kind != Kind::backward_input; }
};

struct PipelineSchedule {
  ScheduleKind kind;
  int n_ranks, n_chunks;                     // chunks of both directions together
  std::vector<std::vector<PipelineOp>> ops;  // [rank]
  bool forward_only = false;                 // chunks are over behind their forward pass

  int n_stages() const { return kind == ScheduleKind::dualpipev ? 2 * n_ranks : n_ranks; }
  int n_directions() const { return kind >= ScheduleKind::dualpipe ? 2 : 1; }
  int stage_of(int rank, int direction) const { return direction == 0 ? rank : n_stages() - 1 - rank; }
  // Of each direction.
  int chunks_of_direction() const { return kind == ScheduleKind::dualpipe && !forward_only ? n_chunks / 2 : n_chunks; }
};

// Where a chunk that is in `direction` on a rank is one stage later (step +1) or earlier (-1): {-1, -1} for nowhere.
struct StagePlace {
  int rank, direction;
};
StagePlace neighbour(const PipelineSchedule& schedule, int rank, int direction, int step);

// Error for numbers that the schedule does not exist for: dualpipe wants an even number of ranks and of chunks, and
// both dualpipes at least two chunks a stage pair (2P and 2P).
PipelineSchedule make_schedule(ScheduleKind kind, int n_ranks, int n_chunks);

// Forward passes alone, on the stages as `kind` has them (of dualpipe in direction 0 alone): of any number of chunks.
PipelineSchedule make_forward_schedule(ScheduleKind kind, int n_ranks, int n_chunks);

// F0, B1, I0, W, FB01 (forward in direction 0, backward in 1), one behind the other.
std::string schedule_text(const std::vector<PipelineOp>& ops);

// Error, with rank and place, unless every chunk goes once forward and once backward through every stage, the weight
// part stands behind the input part, and the ranks, each strictly in order, reach their ends.
void check_schedule(const PipelineSchedule& schedule);

// In any unit of time. fb: of an F&B pair.
struct OpTimes {
  double f = 1, b = 2, w = 1, fb = 3;
  double of(PipelineOp::Kind kind) const;
};

struct Simulation {
  struct Span {
    double begin, end;
  };
  double makespan = 0;
  std::vector<double> idle;              // [rank]
  std::vector<int> peak_live;            // [rank]: chunks between their forward pass and the gradient of their input
  std::vector<int> peak_held;            // [rank]: and that of the weights, of which something is still kept
  std::vector<std::vector<Span>> spans;  // [rank][op]
};
// Every rank works strictly in order, and what it hands over is there at once, or `transfer` later. Error where ranks
// wait for each other for ever.
Simulation simulate(const PipelineSchedule& schedule, const OpTimes& times, double transfer = 0);

// Of every rank, by the report's table 2 and the schedules' papers, for no fewer chunks than ranks. Exact where F, I
// and W take equally long and fb = f + b, else an upper bound.
double bubble_by_formula(ScheduleKind kind, int n_ranks, const OpTimes& times);
// Chunks whose activations a rank holds at most, by the same: peak_live, but peak_held of zb1p.
int peak_by_formula(ScheduleKind kind, int n_ranks, int n_chunks);

}  // namespace fathom
