// The smallest model that a pipeline can compute, for tests of what moves its chunks.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <map>

#include "base/rng.h"
#include "base/terminal.h"
#include "parallel/in_process_ranks.h"
#include "parallel/pipeline.h"

namespace fathom::test {

inline constexpr size_t kWidth = 5;
using Row = std::vector<float>;

// A model of one number a stage: y = w x, and of a loss that is the sum of the last stage's y times the chunk's weight.
inline float weight_of(int stage) { return 0.9f + 0.05f * static_cast<float>(stage); }
inline Row input_of(int chunk) {
  Row x(kWidth);
  Rng rng(static_cast<uint64_t>(chunk) + 1);
  for (float& v : x) v = static_cast<float>(rng.normal());
  return x;
}

// Gradient of each stage's number over all chunks, in one process.
inline std::vector<double> number_gradients(int n_stages, int n_chunks) {
  std::vector<double> gradients(static_cast<size_t>(n_stages));
  for (int c = 0; c < n_chunks; ++c) {
    for (const float x0 : input_of(c)) {
      for (int s = 0; s < n_stages; ++s) {
        double product = x0;
        for (int other = 0; other < n_stages; ++other) product *= other == s ? 1.0 : double{weight_of(other)};
        gradients[static_cast<size_t>(s)] += product;
      }
    }
  }
  return gradients;
}

struct NumberChunk {
  Row input = Row(kWidth), output = Row(kWidth), output_gradient = Row(kWidth, 1), input_gradient = Row(kWidth);
};

// Messages that come at random moments.
class Delays {
 public:
  explicit Delays(uint64_t seed) : rng_(seed) {}
  StagePass::Arrived next() {
    return [n = static_cast<int>(rng_.below(4))]() mutable { return n-- <= 0; };
  }

 private:
  Rng rng_;
};

class NumberPipeline {
 public:
  NumberPipeline(const PipelineSchedule& schedule, int rank, uint64_t seed)
      : schedule_(schedule), rank_(rank), delays_(seed) {}

  PipelineWork work() {
    PipelineWork work;
    work.forward = [this](ChunkPass p) { return forward(p); };
    work.backward_input = [this](ChunkPass p) { return backward(p, true, false); };
    work.backward_weight = [this](ChunkPass p) { return backward(p, false, true); };
    work.backward = [this](ChunkPass p) { return backward(p, true, true); };
    work.input = [this](ChunkPass p) { return std::as_writable_bytes(std::span(chunk(p).input)); };
    work.output_gradient = [this](ChunkPass p) { return std::as_writable_bytes(std::span(chunk(p).output_gradient)); };
    work.output = [this](ChunkPass p) { return std::as_bytes(std::span<const float>(chunk(p).output)); };
    work.input_gradient = [this](ChunkPass p) {
      return std::as_bytes(std::span<const float>(chunk(p).input_gradient));
    };
    work.end_chunk = [this](ChunkPass p) { EXPECT_EQ(chunks_.erase({p.direction, p.chunk}), 1u); };
    return work;
  }
  float gradient(int direction) const { return gradients_[direction]; }
  size_t n_left() const { return chunks_.size(); }

 private:
  int stage(ChunkPass p) const { return schedule_.stage_of(rank_, p.direction); }
  NumberChunk& chunk(ChunkPass p) { return chunks_[{p.direction, p.chunk}]; }
  // Both directions of dualpipe have chunks of their own.
  int number(ChunkPass p) const {
    return p.chunk + (schedule_.kind == ScheduleKind::dualpipe ? p.direction * schedule_.chunks_of_direction() : 0);
  }

  StagePass forward(ChunkPass p) {
    NumberChunk& c = chunk(p);
    if (stage(p) == 0) c.input = input_of(number(p));
    co_await delays_.next();
    for (size_t i = 0; i < kWidth; ++i) c.output[i] = weight_of(stage(p)) * c.input[i];
    co_await delays_.next();
  }
  StagePass backward(ChunkPass p, bool input, bool weight) {
    NumberChunk& c = chunk(p);
    co_await delays_.next();
    for (size_t i = 0; input && i < kWidth; ++i) c.input_gradient[i] = weight_of(stage(p)) * c.output_gradient[i];
    co_await delays_.next();
    for (size_t i = 0; weight && i < kWidth; ++i) {
      gradients_[p.direction] += c.input[i] * c.output_gradient[i];
      if (i == 2) co_await delays_.next();
    }
  }

  const PipelineSchedule& schedule_;
  const int rank_;
  Delays delays_;
  std::map<std::pair<int, int>, NumberChunk> chunks_;
  float gradients_[2] = {0, 0};
};

using OnRanks = std::function<void(int n, const std::function<void(Communicator&)>& work)>;
// [rank][direction] -> gradient.
inline std::vector<std::array<float, 2>> run_numbers(const PipelineSchedule& schedule, uint64_t seed, bool overlap,
                                                     const OnRanks& on_ranks_of = on_ranks) {
  std::vector<std::array<float, 2>> gradients(static_cast<size_t>(schedule.n_ranks));
  on_ranks_of(schedule.n_ranks, [&](Communicator& comm) {
    std::vector<int> ranks;
    for (int r = 0; r < schedule.n_ranks; ++r) ranks.push_back(r);
    NumberPipeline work(schedule, comm.rank(), seed * 100 + static_cast<uint64_t>(comm.rank()));
    const PipelineTrace trace = run_pipeline(make_group(comm, ranks, 0), schedule, work.work(),
                                             {.origin_s = monotonic_s(), .overlap = overlap});
    EXPECT_EQ(work.n_left(), 0u);
    EXPECT_EQ(trace.ops.size(), schedule.ops[static_cast<size_t>(comm.rank())].size());
    for (const PipelineTrace::Span& span : trace.ops) EXPECT_LE(span.begin, span.end);
    gradients[static_cast<size_t>(comm.rank())] = {work.gradient(0), work.gradient(1)};
  });
  return gradients;
}

}  // namespace fathom::test
