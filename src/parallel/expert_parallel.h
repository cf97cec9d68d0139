// Experts on other ranks (V3 section 3.2.2): tokens' rows go to the ranks that hold their experts and come back as
// sums, in two hops where ranks are on several nodes: a row crosses once to each node that has one of its experts, to
// the rank with the same place there, which passes it on inside the node; on the way back the node's outputs are summed
// before they cross. Exact counts, nothing dropped, nothing padded.
#pragma once

#include "model/layer.h"
#include "parallel/collectives.h"
#include "parallel/pass_thread.h"
#include "parallel/row_codec.h"
#include "parallel/stage_pass.h"

namespace fathom {

// Over which ranks the experts of a layer are spread: member i of `ranks` holds the i-th part of them, in order, and
// members are on nodes of ranks_per_node one behind the other.
struct ExpertGroup {
  RankGroup across, within;  // the members with this rank's place on every node; those of its node
  int size() const { return across.size() * within.size(); }
  int index() const { return across.index * within.size() + within.index; }
};
// Error where the ranks do not fill nodes.
ExpertGroup make_expert_group(Communicator& comm, const std::vector<int>& ranks, int ranks_per_node, int tag);
// First and last of a member's experts; Error where they cannot be dealt out evenly.
struct ExpertRange {
  int64_t first, end;
};
ExpertRange experts_of(int64_t n_routed_experts, int size, int index);

// Rows on their way between the members of one group.
struct Hop {
  std::vector<std::vector<int32_t>> sent;  // [member]: rows that go there, ascending
  std::vector<int64_t> received;           // [member]: how many come from there; those of one behind those of the other
  int64_t n_received() const;
};

// What of a layer and a chunk is computed here for tokens of all members.
struct ExpertsHere {
  Hop across, within;
  MoeSaved saved;  // of the rows that came
  MoeGrads grads;
};

// Counts of what went over, in bytes of rows.
struct Traffic {
  int64_t across_nodes = 0, within_node = 0;
  struct Message {
    bool returns;       // combine, not dispatch
    double begin, end;  // monotonic_s(): sent; seen to have come
    int64_t bytes;      // that left
  };
  std::vector<Message>* messages = nullptr;  // each, where they are wanted
};

// out += what the chosen experts give for tokens' rows, behind layer_route(): s.input goes to the experts' ranks, their
// outputs, weighted, come back. w: this rank's experts. `tag` is counted up by what is used, and must be the same on
// all members; memory from ctx.arena, or of what is not kept for the backward pass (its product with the second matrix,
// rows on their way) from made_again's, both of which must be the pass' own. Rows are moved on by `beside`, which uses
// `traffic` too.
StagePass experts_forward(Context& ctx, const Model& model, const ExpertGroup& group, const MoeWeights& w, Tensor out,
                          const MoeSaved& s, ExpertsHere& here, Context& made_again, PassThread& beside, int& tag,
                          Traffic& traffic);
// d_input += dL/d(s.input) through the experts, d_weights = dL/d(s.topk_weights). The gradients of this rank's experts
// are layer_experts_backward_weight() of here.saved and here.grads.
StagePass experts_backward(Context& ctx, const Model& model, const ExpertGroup& group, const MoeWeights& w,
                           Tensor d_input, Tensor d_weights, Tensor d_out, ExpertsHere& here, PassThread& beside,
                           int& tag, Traffic& traffic);

// Who of a group has which expert of a layer: [expert] members, one at least, in any order.
using ExpertHomes = std::vector<std::vector<int>>;

// How rows of a served model travel: to the experts, and back.
struct RowFormats {
  RowFormat there = RowFormat::f32, back = RowFormat::f32;
};

// For a model that is served (V3 section 3.4): y_sorted [slots of s.dispatch, hidden] = the output of each chosen
// expert by itself, unweighted, so that the sum is made where the token is, in the order and bits of one process,
// wherever the experts are. One hop, to any of an expert's homes, this one first. w: all experts of the layer, of which
// those at home here are read. Without rows of its own (s.topk_ids absent) a member computes for the others.
// `meanwhile` is called once while rows are on their way. Of tags from group.tag on three are used.
StagePass experts_at_homes(Context& ctx, const Model& model, const RankGroup& group, const ExpertHomes& homes,
                           const MoeWeights& w, Tensor y_sorted, const MoeSaved& s, RowFormats formats,
                           Traffic& traffic, const std::function<void()>& meanwhile);

}  // namespace fathom
