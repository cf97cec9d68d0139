#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <array>
#include <deque>

#include "base/error.h"

namespace fathom {
namespace {

using Kind = PipelineOp::Kind;

// One rank's list as it is written down: counts chunks, and keeps the weight parts that wait, first in, first out.
class RankList {
 public:
  void forward(int direction) { ops_.push_back({Kind::forward, next(entered_, direction), {}}); }
  void backward(int direction) { ops_.push_back({Kind::backward, {}, next(returned_, direction)}); }
  void backward_input(int direction) {
    ops_.push_back({Kind::backward_input, {}, next(returned_, direction)});
    waiting_.push_back(ops_.back().backward);
  }
  void backward_weight() {
    FATHOM_CHECK(!waiting_.empty());
    ops_.push_back({Kind::backward_weight, {}, waiting_.front()});
    waiting_.pop_front();
  }
  void forward_and_backward(int forward_direction, int backward_direction) {
    const ChunkPass forward = next(entered_, forward_direction);
    ops_.push_back({Kind::forward_and_backward, forward, next(returned_, backward_direction)});
  }
  bool weights_wait() const { return !waiting_.empty(); }
  std::vector<PipelineOp> take() { return std::move(ops_); }

 private:
  static ChunkPass next(std::array<int, 2>& counts, int direction) {
    return {direction, counts[static_cast<size_t>(direction)]++};
  }
  std::vector<PipelineOp> ops_;
  std::array<int, 2> entered_{}, returned_{};
  std::deque<ChunkPass> waiting_;
};

// All forward, then all backward (arXiv 1811.06965).
std::vector<PipelineOp> gpipe(int n_chunks) {
  RankList list;
  for (int i = 0; i < n_chunks; ++i) list.forward(0);
  for (int i = 0; i < n_chunks; ++i) list.backward(0);
  return list.take();
}

// As many forward as stages follow, then one backward for one forward (arXiv 2006.09503).
std::vector<PipelineOp> one_f_one_b(int rank, int n_ranks, int n_chunks) {
  RankList list;
  const int ahead = std::min(n_ranks - 1 - rank, n_chunks);
  for (int i = 0; i < ahead; ++i) list.forward(0);
  for (int i = ahead; i < n_chunks; ++i) {
    list.forward(0);
    list.backward(0);
  }
  for (int i = 0; i < ahead; ++i) list.backward(0);
  return list.take();
}

// The same with B in its two parts: W stays behind I by as many chunks as there are stages in front, so that every rank
// holds the same, and fills the end (ZB-H1, arXiv 2401.10241).
std::vector<PipelineOp> zb1p(int rank, int n_ranks, int n_chunks) {
  RankList list;
  const int ahead = std::min(n_ranks - 1 - rank, n_chunks);
  const auto input_and_weight = [&](int i) {
    list.backward_input(0);
    if (i >= rank) list.backward_weight();
  };
  for (int i = 0; i < ahead; ++i) list.forward(0);
  for (int i = 0; i < n_chunks; ++i) {
    if (i < n_chunks - ahead) list.forward(0);
    input_and_weight(i);
  }
  while (list.weights_wait()) list.backward_weight();
  return list.take();
}

// The report's figure 5, from left to right. half: ranks to the fold; depth: how many of them are outside of this one.
// own, other: the direction that enters on this side, and that which comes from the other one. pairs: step 4's.
std::vector<PipelineOp> dualpipe(int half, int depth, int own, int other, int pairs) {
  RankList list;
  const int inside = half - depth - 1;
  // 1. The pipeline fills from this end,
  for (int i = 0; i < 2 * inside; ++i) list.forward(own);
  // 2. and what entered at the other one arrives.
  for (int i = 0; i < depth + 1; ++i) {
    list.forward(own);
    list.forward(other);
  }
  // 3. Its gradients come back; weights wait for no one, and fill.
  for (int i = 0; i < inside; ++i) {
    list.backward_input(other);
    list.backward_weight();
    list.forward(other);
  }
  // 4. Both directions at full load. Where both meet the first forward pass has nothing to run beside yet.
  for (int i = 0; i < pairs; ++i) {
    if (i == 0 && inside == 0) {
      list.forward(own);
      list.backward(other);
    } else {
      list.forward_and_backward(own, other);
    }
    list.forward_and_backward(other, own);
  }
  // 5. Nothing enters on this side any more,
  for (int i = 0; i < inside; ++i) {
    list.backward(other);
    list.forward_and_backward(other, own);
  }
  // 6. nor on the other. From half way on weights are left for the end.
  bool input_only = false;
  for (int i = 0; i < depth + 1; ++i) {
    const bool half_way = i == (depth + 1) / 2;
    if (half_way && depth % 2 == 1) input_only = true;
    input_only ? list.backward_input(other) : list.backward(other);
    if (half_way && depth % 2 == 0) input_only = true;
    input_only ? list.backward_input(own) : list.backward(own);
  }
  // 7. and 8. What is left.
  for (int i = 0; i < inside; ++i) {
    list.backward_weight();
    list.backward_input(own);
  }
  while (list.weights_wait()) list.backward_weight();
  return list.take();
}

// When something of each chunk was done: [rank][direction][chunk], or less than 0.
class Done {
 public:
  explicit Done(const PipelineSchedule& s)
      : chunks_(s.chunks_of_direction()), times_(static_cast<size_t>(s.n_ranks * 2 * chunks_), -1) {}
  double& at(int rank, ChunkPass pass) {
    return times_[static_cast<size_t>((rank * 2 + pass.direction) * chunks_ + pass.chunk)];
  }

 private:
  int chunks_;
  std::vector<double> times_;
};

void check_counts(const PipelineSchedule& s, int rank) {
  const auto chunks = static_cast<size_t>(s.chunks_of_direction());
  enum State : uint8_t { waits, forward, input, weight };
  std::array<std::vector<State>, 2> states;
  states.fill(std::vector<State>(chunks, waits));
  const auto go = [&](size_t place, ChunkPass pass, State from, State to) {
    if (pass.direction < 0 || pass.direction >= s.n_directions() || pass.chunk < 0 ||
        pass.chunk >= s.chunks_of_direction()) {
      throw Error("rank {}, operation {}: there is no chunk {} of direction {}", rank, place, pass.chunk,
                  pass.direction);
    }
    State& state = states[static_cast<size_t>(pass.direction)][static_cast<size_t>(pass.chunk)];
    if (state != from) {
      throw Error("rank {}, operation {}: chunk {} of direction {} is not due", rank, place, pass.chunk,
                  pass.direction);
    }
    state = to;
  };
  const std::vector<PipelineOp>& ops = s.ops[static_cast<size_t>(rank)];
  for (size_t i = 0; i < ops.size(); ++i) {
    const PipelineOp& op = ops[i];
    if (op.goes_forward()) go(i, op.forward, waits, forward);
    if (op.goes_backward()) go(i, op.backward, forward, input);
    if (op.makes_weight_gradients()) go(i, op.backward, input, weight);
  }
  for (int d = 0; d < s.n_directions(); ++d) {
    for (size_t c = 0; c < chunks; ++c) {
      if (states[static_cast<size_t>(d)][c] == weight) continue;
      throw Error("rank {}: chunk {} of direction {} does not reach its end", rank, c, d);
    }
  }
}

}  // namespace

StagePlace neighbour(const PipelineSchedule& s, int rank, int direction, int step) {
  const int stage = s.stage_of(rank, direction) + step;
  if (stage < 0 || stage >= s.n_stages()) return {-1, -1};
  if (s.kind == ScheduleKind::dualpipev) {
    return stage < s.n_ranks ? StagePlace{stage, 0} : StagePlace{2 * s.n_ranks - 1 - stage, 1};
  }
  return {direction == 0 ? stage : s.n_ranks - 1 - stage, direction};
}

PipelineSchedule make_schedule(ScheduleKind kind, int n_ranks, int n_chunks) {
  if (n_ranks < 1 || n_chunks < 1) throw Error("a pipeline has 1 rank and 1 chunk or more");
  if (kind == ScheduleKind::dualpipe && (n_ranks % 2 != 0 || n_chunks % 2 != 0)) {
    throw Error("dualpipe needs an even number of ranks and of chunks, not {} and {}", n_ranks, n_chunks);
  }
  if (kind >= ScheduleKind::dualpipe && n_chunks < 2 * n_ranks) {
    throw Error("{} ranks of {} need {} chunks or more, not {}", n_ranks,
                kScheduleKinds[static_cast<size_t>(kind)].name, 2 * n_ranks, n_chunks);
  }
  PipelineSchedule schedule{kind, n_ranks, n_chunks, {}};
  for (int rank = 0; rank < n_ranks; ++rank) {
    const int outside = std::min(rank, n_ranks - 1 - rank), own = rank < n_ranks / 2 ? 0 : 1;
    switch (kind) {
      case ScheduleKind::gpipe:
        schedule.ops.push_back(gpipe(n_chunks));
        break;
      case ScheduleKind::one_f_one_b:
        schedule.ops.push_back(one_f_one_b(rank, n_ranks, n_chunks));
        break;
      case ScheduleKind::zb1p:
        schedule.ops.push_back(zb1p(rank, n_ranks, n_chunks));
        break;
      case ScheduleKind::dualpipe:
        schedule.ops.push_back(dualpipe(n_ranks / 2, outside, own, 1 - own, n_chunks / 2 - n_ranks + outside + 1));
        break;
      case ScheduleKind::dualpipev:
        schedule.ops.push_back(dualpipe(n_ranks, rank, 0, 1, n_chunks - 2 * n_ranks + rank + 1));
        break;
    }
  }
  return schedule;
}

PipelineSchedule make_forward_schedule(ScheduleKind kind, int n_ranks, int n_chunks) {
  PipelineSchedule schedule{kind, n_ranks, n_chunks, {}, /*forward_only=*/true};
  for (int rank = 0; rank < n_ranks; ++rank) {
    RankList list;
    // Of a fold the way up first, as far ahead as chunks need to come back.
    const int ahead = kind == ScheduleKind::dualpipev ? std::min(2 * (n_ranks - 1 - rank) + 1, n_chunks) : n_chunks;
    for (int i = 0; i < ahead; ++i) list.forward(0);
    for (int i = ahead; i < n_chunks + ahead && kind == ScheduleKind::dualpipev; ++i) {
      list.forward(1);
      if (i < n_chunks) list.forward(0);
    }
    schedule.ops.push_back(list.take());
  }
  return schedule;
}

std::string schedule_text(const std::vector<PipelineOp>& ops) {
  std::string text;
  for (const PipelineOp& op : ops) {
    constexpr std::array<const char*, 5> kNames = {"F", "B", "I", "W", "FB"};
    if (!text.empty()) text += ' ';
    text += kNames[static_cast<size_t>(op.kind)];
    if (op.goes_forward()) text += std::to_string(op.forward.direction);
    if (op.goes_backward()) text += std::to_string(op.backward.direction);
  }
  return text;
}

void check_schedule(const PipelineSchedule& schedule) {
  if (std::ssize(schedule.ops) != schedule.n_ranks) throw Error("a list is missing");
  for (int rank = 0; rank < schedule.n_ranks; ++rank) check_counts(schedule, rank);
  simulate(schedule, {});
}

double OpTimes::of(PipelineOp::Kind kind) const {
  switch (kind) {
    case Kind::forward:
      return f;
    case Kind::backward:
      return b;
    case Kind::backward_input:
      return b - w;
    case Kind::backward_weight:
      return w;
    case Kind::forward_and_backward:
      break;
  }
  return fb;
}

Simulation simulate(const PipelineSchedule& s, const OpTimes& times, double transfer) {
  const auto n_ranks = static_cast<size_t>(s.n_ranks);
  Simulation sim{0, std::vector<double>(n_ranks), std::vector<int>(n_ranks), std::vector<int>(n_ranks), {}};
  sim.spans.resize(n_ranks);
  Done forward(s), backward(s);
  std::vector<size_t> next(n_ranks);
  std::vector<double> free_at(n_ranks), busy(n_ranks);
  std::vector<int> live(n_ranks), held(n_ranks);

  // When what the operation reads is there; less than 0 where it has not been made.
  const auto ready = [&](int rank, const PipelineOp& op) {
    double at = 0;
    const auto needs = [&](Done& done, int from_rank, ChunkPass pass, double later) {
      const double made = done.at(from_rank, pass);
      at = made < 0 || at < 0 ? -1 : std::max(at, made + later);
    };
    if (op.goes_forward()) {
      const auto [from, direction] = neighbour(s, rank, op.forward.direction, -1);
      if (from >= 0) needs(forward, from, {direction, op.forward.chunk}, from == rank ? 0 : transfer);
    }
    if (op.goes_backward()) {
      needs(forward, rank, op.backward, 0);
      const auto [from, direction] = neighbour(s, rank, op.backward.direction, +1);
      if (from >= 0) needs(backward, from, {direction, op.backward.chunk}, from == rank ? 0 : transfer);
    }
    return at;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (int rank = 0; rank < s.n_ranks; ++rank) {
      const auto r = static_cast<size_t>(rank);
      for (; next[r] < s.ops[r].size(); ++next[r]) {
        const PipelineOp& op = s.ops[r][next[r]];
        const double there = ready(rank, op);
        if (there < 0) break;
        const double begin = std::max(free_at[r], there), end = begin + times.of(op.kind);
        if (op.goes_forward()) {
          forward.at(rank, op.forward) = end;
          sim.peak_live[r] = std::max(sim.peak_live[r], ++live[r]);
          sim.peak_held[r] = std::max(sim.peak_held[r], ++held[r]);
        }
        if (op.goes_backward()) {
          backward.at(rank, op.backward) = end;
          --live[r];
        }
        if (op.makes_weight_gradients()) --held[r];
        busy[r] += end - begin;
        free_at[r] = end;
        sim.spans[r].push_back({begin, end});
        moved = true;
      }
    }
  }
  for (size_t r = 0; r < n_ranks; ++r) {
    if (next[r] < s.ops[r].size()) throw Error("rank {} waits for ever in front of its operation {}", r, next[r]);
    sim.makespan = std::max(sim.makespan, free_at[r]);
  }
  for (size_t r = 0; r < n_ranks; ++r) sim.idle[r] = sim.makespan - busy[r];
  return sim;
}

double bubble_by_formula(ScheduleKind kind, int n_ranks, const OpTimes& t) {
  switch (kind) {
    case ScheduleKind::gpipe:
    case ScheduleKind::one_f_one_b:
      return (n_ranks - 1) * (t.f + t.b);
    case ScheduleKind::zb1p:
      return (n_ranks - 1) * (t.f + t.b - 2 * t.w);
    case ScheduleKind::dualpipe:
      return (n_ranks / 2 - 1) * (t.fb + t.b - 3 * t.w);
    case ScheduleKind::dualpipev:
      break;
  }
  return (n_ranks - 1) * (t.fb + t.b - 3 * t.w);
}

int peak_by_formula(ScheduleKind kind, int n_ranks, int n_chunks) {
  switch (kind) {
    case ScheduleKind::gpipe:
      return n_chunks;
    case ScheduleKind::one_f_one_b:
    case ScheduleKind::zb1p:
      return std::min(n_ranks, n_chunks);
    case ScheduleKind::dualpipe:
      return n_ranks + 1;
    case ScheduleKind::dualpipev:
      break;
  }
  return 2 * n_ranks + 1;
}

}  // namespace fathom
