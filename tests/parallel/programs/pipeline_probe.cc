// Runs a pipeline schedule by the real runner over real messages, with stages whose computing is a wait of a given
// time, so that any number of ranks on any number of cores behave like as many devices. To be started by mpirun; rank 0
// prints one JSON object.
//   pipeline_probe KIND CHUNKS F B W COMM BYTES overlap|none [TRACE]   times in ms; COMM: of the messages of each pass;
//                                                                      TRACE: a file, as fathom train --trace has it
#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "base/terminal.h"
#include "parallel/mpi.h"
#include "parallel/pipeline.h"
#include "train/trace.h"

namespace fathom {
namespace {

struct Times {
  double f, b, w, communication;  // seconds
};

void compute(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

StagePass::Arrived message_of(double seconds) {
  return [until = monotonic_s() + seconds] { return monotonic_s() >= until; };
}

// Attention, dispatch, MLP, combine (V3 section 3.2.1): half of the time each way.
StagePass pass(double seconds, double communication) {
  for (int part = 0; part < 2; ++part) {
    compute(seconds / 2);
    if (communication > 0) co_await message_of(communication / 2);
  }
}

// The weights' part hides the messages of the other one.
StagePass backward_pass(const Times& times) {
  for (int part = 0; part < 2; ++part) {
    compute((times.b - times.w) / 2);
    const StagePass::Arrived message = message_of(times.communication / 2);
    compute(times.w / 2);
    co_await message;
  }
}

struct Chunk {
  std::vector<int64_t> input, output, output_gradient, input_gradient;
};

// What goes over is checked too: a chunk's number, counted up by every stage.
class Probe {
 public:
  Probe(const PipelineSchedule& schedule, int rank, const Times& times, size_t bytes)
      : schedule_(schedule), rank_(rank), times_(times), n_((bytes + 7) / 8) {}

  PipelineWork work() {
    PipelineWork work;
    work.forward = [this](ChunkPass p) {
      const bool first = stage(p) == 0;
      chunks_[key(p)].output.assign(n_, first ? 1000 * p.direction + p.chunk : chunks_[key(p)].input.at(0) + 1'000'000);
      return pass(times_.f, times_.communication);
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
      return pass(times_.b - times_.w, times_.communication);
    };
    work.backward = [this, make_input_gradient](ChunkPass p) {
      make_input_gradient(p);
      return backward_pass(times_);
    };
    work.backward_weight = [this](ChunkPass) { return pass(times_.w, 0); };
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
  int stage(ChunkPass p) const { return schedule_.stage_of(rank_, p.direction); }
  static std::pair<int, int> key(ChunkPass p) { return {p.direction, p.chunk}; }
  std::span<std::byte> room(std::vector<int64_t>& values) const {
    values.resize(n_);
    return std::as_writable_bytes(std::span(values));
  }
  const PipelineSchedule& schedule_;
  const int rank_;
  const Times times_;
  const size_t n_;
  std::map<std::pair<int, int>, Chunk> chunks_;
};

int run(const std::vector<std::string>& arguments) {
  const std::unique_ptr<Communicator> comm = join_mpi();
  const auto kind = std::find_if(std::begin(kScheduleKinds), std::end(kScheduleKinds), [&](const auto& each) {
                      return each.name == arguments.at(0);
                    })->kind;
  const auto number = [&](size_t i) { return std::stod(arguments.at(i)); };
  const PipelineSchedule schedule = make_schedule(kind, comm->size(), std::stoi(arguments.at(1)));
  const Times times{number(2) / 1e3, number(3) / 1e3, number(4) / 1e3, number(5) / 1e3};
  std::vector<int> ranks;
  for (int r = 0; r < comm->size(); ++r) ranks.push_back(r);
  const RankGroup group = make_group(*comm, ranks, 1), sums = make_group(*comm, ranks, 0);
  Probe probe(schedule, comm->rank(), times, static_cast<size_t>(number(6)));
  barrier(sums);
  StepTrace step{.origin_s = monotonic_s()};
  const bool traced = arguments.size() > 8;
  step.pipeline = run_pipeline(group, schedule, probe.work(),
                               {.origin_s = step.origin_s, .pieces = traced, .overlap = arguments.at(7) == "overlap"});
  FATHOM_CHECK(probe.n_left() == 0);
  const PipelineTrace& trace = step.pipeline;
  if (traced) {
    step.reduce_begin = step.reduce_end = trace.end;
    TraceWriter writer;
    writer.add(1, step);
    writer.write(sums, arguments[8]);
  }
  barrier(sums);
  const auto n = static_cast<size_t>(comm->size()), own = static_cast<size_t>(comm->rank());
  std::vector<double> end(n), computed(n), exposed(n);
  end[own] = trace.ops.back().end;
  computed[own] = trace.computed;
  exposed[own] = trace.exposed;
  for (std::vector<double>* values : {&end, &computed, &exposed}) sum_over(sums, std::span(*values));
  if (comm->rank() == 0) {
    const double makespan = *std::max_element(end.begin(), end.end());
    std::cout << nlohmann::json{{"makespan", makespan}, {"computed", computed}, {"exposed", exposed}}.dump()
              << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  try {
    return fathom::run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& error) {
    std::cerr << "pipeline_probe: " << error.what() << '\n';
    return 1;
  }
}
