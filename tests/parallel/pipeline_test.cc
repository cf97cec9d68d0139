#include "parallel/pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "parallel/number_pipeline.h"

namespace fathom {
namespace {

using test::number_gradients;
using test::NumberPipeline;
using test::run_numbers;

TEST(Pipeline, GradientsAreThoseOfOneProcess) {
  for (const auto& [name, kind] : kScheduleKinds) {
    for (const int ranks : {1, 2, 4, 6}) {
      if (kind == ScheduleKind::dualpipe && ranks == 1) continue;
      SCOPED_TRACE(std::string(name) + " " + std::to_string(ranks));
      const PipelineSchedule schedule = make_schedule(kind, ranks, 2 * ranks + 2);
      const std::vector<double> expected = number_gradients(schedule.n_stages(), schedule.n_chunks);
      const auto gradients = run_numbers(schedule, 1, true);
      std::vector<double> ours(expected.size());
      for (int r = 0; r < ranks; ++r) {
        for (int d = 0; d < schedule.n_directions(); ++d) {
          ours[static_cast<size_t>(schedule.stage_of(r, d))] +=
              gradients[static_cast<size_t>(r)][static_cast<size_t>(d)];
        }
      }
      EXPECT_THAT(ours, testing::Pointwise(testing::DoubleNear(1e-4), expected));
      // The same bits whenever messages come, and with nothing beside another.
      EXPECT_EQ(run_numbers(schedule, 2, true), gradients);
      EXPECT_EQ(run_numbers(schedule, 3, false), gradients);
    }
  }
}

TEST(Pipeline, AnErrorOfAStageEndsAll) {
  const PipelineSchedule schedule = make_schedule(ScheduleKind::one_f_one_b, 2, 4);
  const auto job = [&] {
    test::on_ranks(2, [&](Communicator& comm) {
      NumberPipeline work(schedule, comm.rank(), 1);
      PipelineWork broken = work.work();
      int n = 0;
      broken.forward = [&, forward = broken.forward](ChunkPass p) {
        if (comm.rank() == 1 && ++n == 2) throw Error("no luck");
        return forward(p);
      };
      run_pipeline(make_group(comm, {0, 1}, 0), schedule, broken, {});
    });
  };
  EXPECT_THROW(job(), Error);
}

}  // namespace
}  // namespace fathom
