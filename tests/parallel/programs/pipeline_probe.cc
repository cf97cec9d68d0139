// Runs a pipeline schedule by the real runner over real messages, with stages whose computing is a wait of a given
// time, so that any number of ranks on any number of cores behave like as many devices. To be started by mpirun; rank 0
// prints one JSON object. Messages of passes are waits too, or bytes that go over to ranks of other columns, as rows of
// experts do.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/terminal.h"
#include "parallel/expert_parallel.h"
#include "parallel/pipeline.h"
#include "parallel/programs/over_mpi.h"
#include "train/trace.h"

namespace fathom {
namespace {

struct Options {
  std::string kind = "dualpipe", trace;
  int chunks = 8, columns = 1, ranks_per_node = 1;
  double f = 10, b = 20, w = 10, wait = 0;  // seconds, once they are read
  size_t handover = 1 << 16, across = 0, within = 0;
  bool overlap = true;
};

Options options_of(int argc, char** argv) {
  Options o;
  CLI::App app("a pipeline schedule on stages that wait");
  app.add_option("--kind", o.kind, "of the schedule");
  app.add_option("--chunks", o.chunks, "");
  app.add_option("--f", o.f, "ms of a forward pass");
  app.add_option("--b", o.b, "ms of a backward pass");
  app.add_option("--w", o.w, "ms of its part for weights");
  app.add_option("--messages", o.wait, "ms that the messages of each pass take, as a wait");
  app.add_option("--handover", o.handover, "bytes from stage to stage");
  app.add_option("--columns", o.columns, "ranks at one place of the pipeline, which exchange rows");
  app.add_option("--ranks-per-node", o.ranks_per_node, "of them");
  app.add_option("--across", o.across, "bytes of each pass that a rank sends to other nodes");
  app.add_option("--within", o.within, "and inside its own");
  app.add_flag("!--no-overlap", o.overlap, "one pass after the other");
  app.add_option("--trace", o.trace, "write a file as fathom train --trace does");
  app.parse(argc, argv);
  for (double* ms : {&o.f, &o.b, &o.w, &o.wait}) *ms /= 1e3;
  return o;
}

void compute(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

StagePass::Arrived message_of(double seconds) {
  return [until = monotonic_s() + seconds] { return monotonic_s() >= until; };
}

// What the passes of a rank send, half of it with each dispatch and half with each combine.
class Messages {
 public:
  Messages(const Options& o, const ExpertGroup& group) : options_(o), group_(group), beside_(*group.across.comm) {}

  // In two hops, as rows of experts go; a combine comes back the other way round.
  StagePass::Arrived begin(int tag, bool combines) const { return beside_.run(go(tag, combines)); }

 private:
  StagePass go(int tag, bool combines) const {
    if (options_.wait > 0) co_await message_of(options_.wait / 2);
    for (int hop = 0; hop < 2; ++hop) {
      const bool across = (hop == 0) != combines;
      const RankGroup& group = across ? group_.across : group_.within;
      const size_t bytes = (across ? options_.across : options_.within) / 2;
      if (group.size() == 1 || bytes == 0) continue;
      const auto n = static_cast<size_t>(group.size());
      std::vector<std::vector<std::byte>> from(n), to(n);
      for (size_t i = 0; i < n; ++i) {
        if (std::cmp_equal(i, group.index)) continue;
        from[i].resize(bytes / (n - 1));
        to[i].resize(bytes / (n - 1));
      }
      const std::vector<std::span<const std::byte>> sent(from.begin(), from.end());
      const std::vector<std::span<std::byte>> received(to.begin(), to.end());
      const auto exchange = std::make_shared<Exchange>(all_to_all(group, sent, received, 2 * tag + hop));
      co_await StagePass::Arrived([exchange] { return exchange->done(); });
    }
  }

  const Options& options_;
  const ExpertGroup& group_;
  mutable PassThread beside_;
};

// Attention, dispatch, MLP, combine (V3 section 3.2.1): half of the time each way.
StagePass pass(double seconds, const Messages& messages, int tag) {
  for (int part = 0; part < 2; ++part) {
    compute(seconds / 2);
    co_await messages.begin(tag + part, part == 1);
  }
}

// The weights' part hides the messages of the other one.
StagePass backward_pass(const Options& o, const Messages& messages, int tag) {
  for (int part = 0; part < 2; ++part) {
    compute((o.b - o.w) / 2);
    StagePass::Arrived away = messages.begin(tag + part, part == 1);
    for (int piece = 0; piece < 2; ++piece) {
      co_await StagePass::after_others();
      compute(o.w / 4);
    }
    co_await std::move(away);
  }
}

StagePass weight_pass(double seconds) {
  compute(seconds);
  co_return;
}

struct Chunk {
  std::vector<int64_t> input, output, output_gradient, input_gradient;
};

// What goes over is checked too: a chunk's number, counted up by every stage.
class Probe {
 public:
  Probe(const PipelineSchedule& schedule, int place, const Options& o, const Messages& messages)
      : schedule_(schedule), place_(place), options_(o), messages_(messages), n_(std::max(o.handover / 8, size_t{1})) {}

  PipelineWork work() {
    PipelineWork work;
    work.forward = [this](ChunkPass p) {
      const bool first = stage(p) == 0;
      chunks_[key(p)].output.assign(n_, first ? 1000 * p.direction + p.chunk : chunks_[key(p)].input.at(0) + 1'000'000);
      return pass(options_.f, messages_, tag(p, false));
    };
    const auto make_input_gradient = [this](ChunkPass p) {
      const bool last = stage(p) == schedule_.n_stages() - 1;
      Chunk& chunk = chunks_[key(p)];
      chunk.input_gradient.assign(n_, last ? chunk.output.at(0) : chunk.output_gradient.at(0) - 1'000'000);
      const int64_t direction = schedule_.kind == ScheduleKind::dualpipev ? 0 : p.direction;
      FATHOM_CHECK(chunk.input_gradient[0] == 1'000'000 * stage(p) + 1000 * direction + p.chunk);
    };
    work.backward_input = [this, make_input_gradient](ChunkPass p) {
      make_input_gradient(p);
      return pass(options_.b - options_.w, messages_, tag(p, true));
    };
    work.backward = [this, make_input_gradient](ChunkPass p) {
      make_input_gradient(p);
      return backward_pass(options_, messages_, tag(p, true));
    };
    work.backward_weight = [this](ChunkPass) { return weight_pass(options_.w); };
    work.input = [this](ChunkPass p) { return room(chunks_[key(p)].input); };
    work.output_gradient = [this](ChunkPass p) { return room(chunks_[key(p)].output_gradient); };
    work.output = [this](ChunkPass p) { return std::as_bytes(std::span<const int64_t>(chunks_[key(p)].output)); };
    work.input_gradient = [this](ChunkPass p) {
      return std::as_bytes(std::span<const int64_t>(chunks_[key(p)].input_gradient));
    };
    work.end_chunk = [this](ChunkPass p) { chunks_.erase(key(p)); };
    return work;
  }
  size_t n_left() const { return chunks_.size(); }

 private:
  int stage(ChunkPass p) const { return schedule_.stage_of(place_, p.direction); }
  // Of its messages, behind those of the pipeline.
  static int tag(ChunkPass p, bool backward) {
    return (1 << 20) + 2 * (2 * (2 * p.chunk + p.direction) + (backward ? 1 : 0));
  }
  static std::pair<int, int> key(ChunkPass p) { return {p.direction, p.chunk}; }
  std::span<std::byte> room(std::vector<int64_t>& values) const {
    values.resize(n_);
    return std::as_writable_bytes(std::span(values));
  }
  const PipelineSchedule& schedule_;
  const int place_;
  const Options& options_;
  const Messages& messages_;
  const size_t n_;
  std::map<std::pair<int, int>, Chunk> chunks_;
};

void run(const Options& o, Communicator& comm) {
  const auto* const kind = std::find_if(std::begin(kScheduleKinds), std::end(kScheduleKinds),
                                        [&](const auto& each) { return each.name == o.kind; });
  if (kind == std::end(kScheduleKinds)) throw Error("--kind {} is no schedule", o.kind);
  const PipelineSchedule schedule = make_schedule(kind->kind, comm.size() / o.columns, o.chunks);
  const int place = comm.rank() / o.columns;
  std::vector<int> all, column, row;
  for (int r = 0; r < comm.size(); ++r) {
    all.push_back(r);
    if (r % o.columns == comm.rank() % o.columns) column.push_back(r);
    if (r / o.columns == place) row.push_back(r);
  }
  const RankGroup group = make_group(comm, column, 1), sums = make_group(comm, all, 0);
  const ExpertGroup experts = make_expert_group(comm, row, o.ranks_per_node, 1);
  const Messages messages(o, experts);
  Probe probe(schedule, place, o, messages);
  barrier(sums);
  StepTrace step{.origin_s = monotonic_s()};
  const bool traced = !o.trace.empty();
  step.pipeline =
      run_pipeline(group, schedule, probe.work(), {.origin_s = step.origin_s, .pieces = traced, .overlap = o.overlap});
  FATHOM_CHECK(probe.n_left() == 0);
  const PipelineTrace& trace = step.pipeline;
  if (traced) {
    step.end = trace.end;
    TraceWriter writer;
    writer.add(1, step);
    writer.write(sums, o.trace);
  }
  barrier(sums);
  const auto n = static_cast<size_t>(comm.size()), own = static_cast<size_t>(comm.rank());
  std::vector<double> end(n), computed(n), exposed(n);
  end[own] = trace.ops.back().end;
  computed[own] = trace.computed;
  exposed[own] = trace.exposed;
  for (std::vector<double>* values : {&end, &computed, &exposed}) sum_over(sums, std::span(*values));
  if (comm.rank() == 0) {
    const double makespan = *std::max_element(end.begin(), end.end());
    std::cout << nlohmann::json{{"makespan", makespan}, {"computed", computed}, {"exposed", exposed}}.dump()
              << std::endl;
  }
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  fathom::test::over_mpi("pipeline_probe",
                         [&](fathom::Communicator& comm) { fathom::run(fathom::options_of(argc, argv), comm); });
}
