#include "parallel/pipeline.h"

#include <cstring>
#include <deque>
#include <list>
#include <optional>

#include "base/error.h"
#include "base/terminal.h"

namespace fathom {
namespace {

using Kind = PipelineOp::Kind;

constexpr size_t kAhead = 3;       // operations whose messages may come before it is their turn
constexpr size_t kMostActive = 2;  // operations at a time: more would hold more chunks' memory

// To the other end of the fold, which is on the same rank.
void copy(std::span<std::byte> to, std::span<const std::byte> from) {
  FATHOM_CHECK(to.size() == from.size());
  if (!to.empty()) std::memcpy(to.data(), from.data(), from.size());
}

class Runner {
 public:
  Runner(const RankGroup& group, const PipelineSchedule& schedule, const PipelineWork& work,
         const PipelineOptions& options)
      : group_(group),
        schedule_(schedule),
        work_(work),
        options_(options),
        rank_(group.index),
        ops_(schedule.ops[static_cast<size_t>(group.index)]) {
    FATHOM_CHECK(group.size() == schedule.n_ranks);
    trace_.ops.resize(ops_.size());
  }

  PipelineTrace run() {
    int n_looks = 0;
    counted_ = now();
    while (next_ < ops_.size() || !active_.empty()) {
      while (n_awaited_ < ops_.size() && n_awaited_ < next_ + kAhead) receive_for(ops_[n_awaited_++]);
      drop_sent();
      if (compute_something() || begin_next() || do_beside()) {
        n_looks = 0;
        continue;
      }
      group_.comm->pause(n_looks++);
      count_wait();
    }
    for (; !sent_.empty(); drop_first_sent()) sent_.front().exchange.wait();
    trace_.end = now();
    return std::move(trace_);
  }

 private:
  struct Active {
    size_t index;  // of the operation
    StagePass forward{}, backward{};
    bool sent_on = false, sent_back = false;  // or nothing was to be sent
  };
  struct Sent {
    Exchange exchange;
    std::optional<ChunkPass> ends;  // a chunk of which this was the last
  };

  using PieceKind = PipelineTrace::Piece::Kind;
  static PieceKind backward_kind(Kind kind) {
    if (kind == Kind::backward_input) return PieceKind::backward_input;
    return kind == Kind::backward_weight ? PieceKind::backward_weight : PieceKind::backward;
  }
  // Looks in vain one after the other are one wait, and so are pieces of what goes on beside.
  void keep(PieceKind kind, ChunkPass pass, double begin, double end) {
    if (!options_.pieces) return;
    std::vector<PipelineTrace::Piece>& pieces = trace_.pieces;
    const bool is_pass = kind < PieceKind::beside;
    if (!is_pass && !pieces.empty() && pieces.back().kind == kind) {
      pieces.back().end = end;
    } else {
      pieces.push_back({kind, pass, begin, end});
    }
  }

  // All time that passes do not compute is waited, for their messages or, where none is begun, for another stage.
  void count_wait() {
    const double end = now();
    const bool begun = !active_.empty();
    (begun ? trace_.exposed : trace_.starved) += end - counted_;
    keep(begun ? PieceKind::exposed : PieceKind::starved, {}, counted_, end);
    counted_ = end;
  }

  double now() const { return monotonic_s() - options_.origin_s; }
  // Chunks may overtake each other.
  int tag(ChunkPass pass, bool backward) const {
    return group_.tag + 4 * pass.chunk + 2 * pass.direction + (backward ? 1 : 0);
  }
  int rank_of(const StagePlace& place) const { return group_.ranks[static_cast<size_t>(place.rank)]; }
  bool is_last_stage(ChunkPass pass) const {
    return schedule_.stage_of(rank_, pass.direction) == schedule_.n_stages() - 1;
  }

  void receive_for(const PipelineOp& op) {
    Exchange exchange(*group_.comm);
    if (op.goes_forward()) {
      const StagePlace from = neighbour(schedule_, rank_, op.forward.direction, -1);
      if (from.rank >= 0 && from.rank != rank_) {
        exchange.receive(rank_of(from), tag({from.direction, op.forward.chunk}, false), work_.input(op.forward));
      }
    }
    if (op.goes_backward()) {
      const StagePlace from = neighbour(schedule_, rank_, op.backward.direction, +1);
      if (from.rank >= 0 && from.rank != rank_) {
        exchange.receive(rank_of(from), tag({from.direction, op.backward.chunk}, true),
                         work_.output_gradient(op.backward));
      }
    }
    awaited_.push_back(std::move(exchange));
  }

  // The direction whose stage's gradients an operation adds to; at the last stage the loss is part of going forward.
  bool adds_to(const PipelineOp& op, int direction) const {
    return (op.makes_weight_gradients() && op.backward.direction == direction) ||
           (op.goes_forward() && op.forward.direction == direction && is_last_stage(op.forward));
  }

  // Whether the next operation reads nothing, and adds to nothing, that an active one still makes.
  bool may_begin(const PipelineOp& next) const {
    if (active_.empty()) return true;
    if (!options_.overlap || active_.size() >= kMostActive) return false;
    for (const Active& active : active_) {
      const PipelineOp& op = ops_[active.index];
      for (int direction = 0; direction < schedule_.n_directions(); ++direction) {
        if (adds_to(op, direction) && adds_to(next, direction)) return false;
      }
      if (next.kind != Kind::forward) {
        if (op.goes_forward() && op.forward == next.backward) return false;
        if (op.goes_backward() && op.backward == next.backward) return false;
      }
      // The other end of the fold.
      const StagePlace before =
          next.goes_forward() ? neighbour(schedule_, rank_, next.forward.direction, -1) : StagePlace{-1, -1};
      const StagePlace behind =
          next.goes_backward() ? neighbour(schedule_, rank_, next.backward.direction, +1) : StagePlace{-1, -1};
      if (before.rank == rank_ && op.goes_forward() && op.forward == ChunkPass{before.direction, next.forward.chunk}) {
        return false;
      }
      if (behind.rank == rank_ && op.goes_backward() &&
          op.backward == ChunkPass{behind.direction, next.backward.chunk}) {
        return false;
      }
    }
    return true;
  }

  bool begin_next() {
    if (next_ == ops_.size() || !may_begin(ops_[next_]) || !awaited_.front().done()) return false;
    awaited_.pop_front();
    const PipelineOp& op = ops_[next_];
    Active& active = active_.emplace_back(Active{next_});
    trace_.ops[next_].begin = now();
    group_.comm->tell(fmt::format("operation {} of {} of a step ({})", next_, ops_.size(), schedule_text({op})));
    ++next_;
    if (op.goes_forward()) active.forward = work_.forward(op.forward);
    if (op.kind == Kind::backward_input) {
      active.backward = work_.backward_input(op.backward);
    } else if (op.kind == Kind::backward_weight) {
      active.backward = work_.backward_weight(op.backward);
    } else if (op.goes_backward()) {
      active.backward = work_.backward(op.backward);
    }
    active.sent_on = !op.goes_forward();
    active.sent_back = !op.goes_backward();
    return true;
  }

  // A piece of a pass that has all it waits for: of the oldest operation, whose two passes take turns.
  bool compute_something() {
    for (auto active = active_.begin(); active != active_.end(); ++active) {
      StagePass* passes[] = {&active->forward, &active->backward};
      if (last_ == passes[0] && options_.overlap) std::swap(passes[0], passes[1]);
      for (StagePass* pass : passes) {
        if (pass->over()) continue;
        if (pass->can_go_on()) {
          count_wait();  // what looking took
          const double begin = counted_;
          pass->go_on();
          counted_ = now();
          trace_.computed += counted_ - begin;
          const PipelineOp& op = ops_[active->index];
          const bool forward = pass == &active->forward;
          keep(forward ? PieceKind::forward : backward_kind(op.kind), forward ? op.forward : op.backward, begin,
               counted_);
          last_ = pass;
          if (hand_over(*active)) active_.erase(active);
          return true;
        }
        if (!options_.overlap) break;
      }
    }
    return false;
  }

  bool do_beside() {
    if (!work_.beside) return false;
    count_wait();
    const double begin = counted_;
    if (!work_.beside()) return false;
    counted_ = now();
    trace_.beside += counted_ - begin;
    keep(PieceKind::beside, {}, begin, counted_);
    return true;
  }

  // What is ready goes to the other stages. Whether the operation is over.
  bool hand_over(Active& active) {
    const PipelineOp& op = ops_[active.index];
    if (active.forward.over() && !std::exchange(active.sent_on, true)) send_on(op.forward);
    if (active.backward.over() && !std::exchange(active.sent_back, true)) send_back(op.backward);
    if (!active.forward.over() || !active.backward.over()) return false;
    trace_.ops[active.index].end = now();
    // Its memory may go as soon as what was sent of it has gone.
    if (op.makes_weight_gradients()) sent_.push_back(Sent{Exchange(*group_.comm), op.backward});
    if (schedule_.forward_only) sent_.push_back(Sent{Exchange(*group_.comm), op.forward});
    return true;
  }

  void send_on(ChunkPass pass) {
    const StagePlace to = neighbour(schedule_, rank_, pass.direction, +1);
    if (to.rank < 0) return;
    if (to.rank == rank_) return copy(work_.input({to.direction, pass.chunk}), work_.output(pass));
    Sent& sent = sent_.emplace_back(Sent{Exchange(*group_.comm), {}});
    sent.exchange.send(rank_of(to), tag(pass, false), work_.output(pass));
  }

  void send_back(ChunkPass pass) {
    const StagePlace to = neighbour(schedule_, rank_, pass.direction, -1);
    if (to.rank < 0) return;
    if (to.rank == rank_) return copy(work_.output_gradient({to.direction, pass.chunk}), work_.input_gradient(pass));
    Sent& sent = sent_.emplace_back(Sent{Exchange(*group_.comm), {}});
    sent.exchange.send(rank_of(to), tag(pass, true), work_.input_gradient(pass));
  }

  void drop_sent() {
    while (!sent_.empty() && sent_.front().exchange.done()) drop_first_sent();
  }
  void drop_first_sent() {
    const std::optional<ChunkPass> ended = sent_.front().ends;
    sent_.pop_front();
    if (ended) work_.end_chunk(*ended);
  }

  const RankGroup& group_;
  const PipelineSchedule& schedule_;
  const PipelineWork& work_;
  const PipelineOptions options_;
  const int rank_;
  const std::vector<PipelineOp>& ops_;
  size_t next_ = 0;               // operation to begin
  size_t n_awaited_ = 0;          // operations whose messages are, or were, in awaited_
  std::deque<Exchange> awaited_;  // of the operations from next_ on
  std::list<Active> active_;      // begun, the oldest first
  const StagePass* last_ = nullptr;
  double counted_ = 0;     // up to when the trace tells
  std::deque<Sent> sent_;  // in the order of sending
  PipelineTrace trace_;
};

}  // namespace

PipelineTrace run_pipeline(const RankGroup& group, const PipelineSchedule& schedule, const PipelineWork& work,
                           const PipelineOptions& options) {
  Runner runner(group, schedule, work, options);
  try {
    return runner.run();
  } catch (const std::exception& error) {
    // While all is there that messages are on their way to.
    group.comm->fail(fmt::format("rank {}: {}", group.comm->rank(), error.what()));
    throw;
  }
}

}  // namespace fathom
