#include "parallel/pipeline_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "parallel/schedule_picture.h"

namespace fathom {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::Le;

ScheduleKind kind_named(const std::string& name) {
  for (const auto& each : kScheduleKinds) {
    if (each.name == name) return each.kind;
  }
  throw Error("no schedule is called {}", name);
}

// All that there are for up to 16 ranks and 64 chunks.
template <class Visit>
void for_each_schedule(const Visit& visit) {
  for (const auto& [name, kind] : kScheduleKinds) {
    for (int ranks = 1; ranks <= 16; ++ranks) {
      if (kind == ScheduleKind::dualpipe && ranks % 2 != 0) continue;
      const bool dual = kind >= ScheduleKind::dualpipe;
      for (int chunks = dual ? 2 * ranks : 1; chunks <= 64; chunks += kind == ScheduleKind::dualpipe ? 2 : 1) {
        SCOPED_TRACE(std::string(name) + " " + std::to_string(ranks) + " ranks " + std::to_string(chunks) + " chunks");
        visit(make_schedule(kind, ranks, chunks));
      }
    }
  }
}

TEST(PipelineSchedule, IsThePublishedOne) {
  const json all = json::parse(std::ifstream(FATHOM_TEST_DATA "/parallel/pipeline.schedules.json"));
  for (const json& expected : all) {
    SCOPED_TRACE(expected["schedule"].get<std::string>() + " " + expected["ranks"].dump());
    const PipelineSchedule schedule =
        make_schedule(kind_named(expected["schedule"]), expected["ranks"], expected["chunks"]);
    for (size_t rank = 0; rank < schedule.ops.size(); ++rank) {
      EXPECT_EQ(schedule_text(schedule.ops[rank]), expected["ops"][rank]);
    }
    for (const json& sim : expected["sim"]) {
      const Simulation ours = simulate(schedule, {sim["F"], sim["B"], sim["W"], sim["FB"]});
      EXPECT_EQ(ours.makespan, sim["makespan"]);
      EXPECT_EQ(json(ours.idle), sim["idle"]);
      EXPECT_EQ(json(ours.peak_live), sim["peak_live"]);
    }
  }
  EXPECT_EQ(all.size(), 8);
}

// Every F before its B, every W behind its I, no deadlock; time and memory as the formulas say.
TEST(PipelineSchedule, HoldsForAllSizes) {
  int n = 0;
  for_each_schedule([&](const PipelineSchedule& schedule) {
    ++n;
    ASSERT_NO_THROW(check_schedule(schedule));
    const OpTimes equal;  // F = I = W = 1
    const Simulation sim = simulate(schedule, equal);
    const bool zb1p = schedule.kind == ScheduleKind::zb1p;
    if (!zb1p || schedule.n_chunks >= schedule.n_ranks) {
      EXPECT_THAT(sim.idle, Each(bubble_by_formula(schedule.kind, schedule.n_ranks, equal)));
    }
    const int peak = peak_by_formula(schedule.kind, schedule.n_ranks, schedule.n_chunks);
    EXPECT_THAT(zb1p ? sim.peak_held : sim.peak_live, AllOf(Each(Le(peak)), Contains(peak)));
  });
  EXPECT_GT(n, 4000);
}

TEST(PipelineSchedule, FormulasAreUpperBounds) {
  const OpTimes uneven{10, 24, 11, 30};
  for_each_schedule([&](const PipelineSchedule& schedule) {
    if (schedule.kind < ScheduleKind::dualpipe) return;
    EXPECT_THAT(simulate(schedule, uneven).idle, Each(Le(bubble_by_formula(schedule.kind, schedule.n_ranks, uneven))));
  });
}

TEST(PipelineSchedule, TransferTakesTime) {
  const PipelineSchedule schedule = make_schedule(ScheduleKind::one_f_one_b, 2, 1);
  EXPECT_EQ(simulate(schedule, {}, 0.5).makespan, 1 + 0.5 + 1 + 2 + 0.5 + 2);
  // Between the two halves of a rank nothing is sent.
  const PipelineSchedule folded = make_schedule(ScheduleKind::dualpipev, 1, 2);
  EXPECT_EQ(simulate(folded, {}, 100).makespan, simulate(folded, {}).makespan);
}

TEST(PipelineSchedule, RefusesSizesThatItDoesNotExistFor) {
  EXPECT_THROW(make_schedule(ScheduleKind::gpipe, 0, 1), Error);
  EXPECT_THROW(make_schedule(ScheduleKind::gpipe, 1, 0), Error);
  EXPECT_THROW(make_schedule(ScheduleKind::dualpipe, 3, 8), Error);
  EXPECT_THROW(make_schedule(ScheduleKind::dualpipe, 4, 9), Error);
  EXPECT_THROW(make_schedule(ScheduleKind::dualpipe, 4, 6), Error);
  EXPECT_THROW(make_schedule(ScheduleKind::dualpipev, 4, 7), Error);
}

TEST(PipelineSchedule, WhatIsWrongIsFound) {
  const PipelineSchedule good = make_schedule(ScheduleKind::zb1p, 2, 3);
  const auto broken = [&](const auto& change) {
    PipelineSchedule schedule = good;
    change(schedule);
    return schedule;
  };
  EXPECT_NO_THROW(check_schedule(good));
  EXPECT_THROW(check_schedule(broken([](auto& s) { s.ops[1].pop_back(); })), Error);                  // a W is missing
  EXPECT_THROW(check_schedule(broken([](auto& s) { std::swap(s.ops[1][0], s.ops[1][1]); })), Error);  // I before F
  EXPECT_THROW(check_schedule(broken([](auto& s) { s.ops[0].push_back(s.ops[0][0]); })), Error);      // F twice
  EXPECT_THROW(check_schedule(broken([](auto& s) { s.ops[0][0].forward.chunk = 3; })), Error);
  EXPECT_THROW(check_schedule(broken([](auto& s) { s.ops.pop_back(); })), Error);
  // Each rank's list is well; together they wait for each other: the first wants chunk 0 back before chunk 1 goes.
  PipelineSchedule stuck = make_schedule(ScheduleKind::one_f_one_b, 2, 2);
  stuck.ops[0] = {{PipelineOp::Kind::forward, {0, 0}, {}},
                  {PipelineOp::Kind::backward, {}, {0, 0}},
                  {PipelineOp::Kind::forward, {0, 1}, {}},
                  {PipelineOp::Kind::backward, {}, {0, 1}}};
  stuck.ops[1] = {{PipelineOp::Kind::forward, {0, 0}, {}},
                  {PipelineOp::Kind::forward, {0, 1}, {}},
                  {PipelineOp::Kind::backward, {}, {0, 0}},
                  {PipelineOp::Kind::backward, {}, {0, 1}}};
  EXPECT_THROW(check_schedule(stuck), Error);
}

TEST(SchedulePicture, ShowsEveryOperation) {
  const PipelineSchedule schedule = make_schedule(ScheduleKind::dualpipe, 4, 10);
  const Simulation sim = simulate(schedule, {});
  const std::string svg = schedule_svg(schedule, sim.spans, "a <title>", "ms");
  EXPECT_THAT(svg, testing::HasSubstr("a &lt;title>"));
  size_t boxes = 0, expected = 2 + 8 + 4;  // background and legend's; of the ranks
  for (size_t at = 0; (at = svg.find("<rect", at)) != std::string::npos; ++at) ++boxes;
  for (const auto& ops : schedule.ops) {
    for (const PipelineOp& op : ops) expected += op.kind == PipelineOp::Kind::forward_and_backward ? 2 : 1;
  }
  EXPECT_EQ(boxes, expected - 1);
  const std::string drawing = schedule_drawing(schedule, sim.spans, 32);
  EXPECT_THAT(drawing, testing::StartsWith("FFFfiwfXXX.xxx"));
  EXPECT_EQ(drawing.size(), 4 * 33);
}

}  // namespace
}  // namespace fathom
