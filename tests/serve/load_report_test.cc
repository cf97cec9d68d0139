#include "serve/load_report.h"

#include <gmock/gmock.h>

namespace fathom::serve {
namespace {

using testing::DoubleNear;

TEST(Percentile, LiesBetweenTwoValuesInProportion) {
  const std::vector<double> values{10, 20, 30, 50};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 10);
  EXPECT_DOUBLE_EQ(percentile(values, 0.5), 25);   // place 1.5
  EXPECT_DOUBLE_EQ(percentile(values, 0.9), 44);   // place 2.7
  EXPECT_DOUBLE_EQ(percentile(values, 0.95), 47);  // place 2.85
  EXPECT_DOUBLE_EQ(percentile(values, 1), 50);
  EXPECT_DOUBLE_EQ(percentile(std::vector<double>{7}, 0.99), 7);
}

TEST(Distribution, IsThatOfTheValuesInAnyOrder) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Distribution d = *distribution_of(values);
  EXPECT_DOUBLE_EQ(d.mean, 50);
  EXPECT_DOUBLE_EQ(d.p50, 50);
  EXPECT_DOUBLE_EQ(d.p90, 90);
  EXPECT_DOUBLE_EQ(d.p95, 95);
  EXPECT_DOUBLE_EQ(d.p99, 99);
  EXPECT_DOUBLE_EQ(d.max, 100);
  EXPECT_FALSE(distribution_of({}));
}

RequestRecord record(double begin_s, double end_s, std::vector<double> pieces_s = {0}, ToldUsage usage = {}) {
  RequestRecord r;
  r.begin_s = begin_s;
  r.end_s = end_s;
  r.pieces_s = std::move(pieces_s);
  r.usage = usage;
  return r;
}

TEST(RequestRecord, TimeOfATokenIsThatOfTheTokensBehindTheFirst) {
  // Five tokens in three pieces: (1.7 - 0.5) / 4.
  const RequestRecord told = record(9, 1.7, {0.5, 1.0, 1.6}, {.completion_tokens = 5});
  EXPECT_DOUBLE_EQ(*time_per_output_token_s(told), 0.3);
  EXPECT_EQ(output_tokens(told), 5);
  const RequestRecord counted = record(9, 1.7, {0.5, 1.0, 1.6});
  EXPECT_DOUBLE_EQ(*time_per_output_token_s(counted), 0.6);
  EXPECT_FALSE(time_per_output_token_s(record(9, 1.7, {0.5})));
  EXPECT_FALSE(time_per_output_token_s(record(9, 1.7, {0.5, 0.6}, {.completion_tokens = 1})));
}

TEST(PeakConcurrency, CountsWhatRunsAtOneMoment) {
  const auto peak = [](std::vector<RequestRecord> records) { return peak_concurrency(records); };
  EXPECT_EQ(peak({}), 0);
  EXPECT_EQ(peak({record(0, 1), record(1, 1), record(2, 1)}), 1);  // one behind the other
  EXPECT_EQ(peak({record(0, 3), record(1, 1), record(2, 1), record(2.5, 9)}), 3);
  EXPECT_EQ(peak({record(0, -1), record(5, -1), record(-1, -1)}), 2);  // two that never ended, one never begun
}

TEST(Objectives, AreKeptUpToTheirVeryEdge) {
  const RequestRecord r = record(0, 1.5, {0.5, 1.0, 1.5}, {.completion_tokens = 3});  // 500 ms, 500 ms a token, 1.5 s
  EXPECT_TRUE(keeps(r, {}));
  EXPECT_TRUE(keeps(r, {.ttft_s = 0.5, .tpot_s = 0.5, .e2e_s = 1.5}));
  EXPECT_FALSE(keeps(r, {.ttft_s = 0.49}));
  EXPECT_FALSE(keeps(r, {.tpot_s = 0.49}));
  EXPECT_FALSE(keeps(r, {.e2e_s = 1.49}));
  EXPECT_TRUE(keeps(record(0, 1, {0.5}), {.tpot_s = 0.001}));  // one token
  EXPECT_FALSE(Objectives{}.any());
  EXPECT_TRUE(Objectives{.e2e_s = 1}.any());
}

TEST(LoadReport, HasTheFiguresOfAWorkedExample) {
  LoadResult result;
  result.duration_s = 4;
  result.client_cpu_s = 0.25;
  result.records = {record(0, 1.0, {0.2, 0.6, 1.0}, {.prompt_tokens = 10, .completion_tokens = 3, .cached_tokens = 4}),
                    record(0.5, 2.5, {0.5, 1.5, 2.5}, {.prompt_tokens = 20, .completion_tokens = 5}),
                    record(1.0, 0.1, {}),
                    record(1.0, 0.2, {0.1}),
                    record(2.0, -1, {0.3}),
                    record(-1, -1, {})};
  result.records[1].late_s = 0.03;
  result.records[2].failure = "http_429";
  result.records[2].message = "full";
  result.records[3].failure = "cut";
  const LoadReport r = report_of(result, {.ttft_s = 0.3});
  EXPECT_EQ(r.completed, 2);
  EXPECT_EQ(r.failed, 2);
  EXPECT_EQ(r.unfinished, 2);
  ASSERT_EQ(r.failures.size(), 2);
  EXPECT_EQ(r.failures.at("http_429").n, 1);
  EXPECT_EQ(r.failures.at("http_429").message, "full");
  EXPECT_EQ(r.input_tokens, 30);
  EXPECT_EQ(r.cached_tokens, 4);
  EXPECT_EQ(r.output_tokens, 8);
  EXPECT_EQ(r.pieces, 6);
  EXPECT_TRUE(r.server_counts);
  EXPECT_DOUBLE_EQ(r.per_s(r.output_tokens), 2);
  EXPECT_EQ(r.peak_concurrency, 3);  // from 1.0, when the first has just ended
  EXPECT_DOUBLE_EQ(r.ttft_s->mean, 0.35);
  EXPECT_DOUBLE_EQ(r.tpot_s->max, 0.5);  // (2.5 - 0.5) / 4; the other (1 - 0.2) / 2
  EXPECT_DOUBLE_EQ(r.tpot_s->mean, 0.45);
  EXPECT_THAT(r.itl_s->mean, DoubleNear(0.7, 1e-12));  // 0.4, 0.4, 1, 1
  EXPECT_DOUBLE_EQ(r.e2e_s->p50, 1.75);
  EXPECT_EQ(r.good, 1);
  EXPECT_DOUBLE_EQ(r.good_percent(), 25);
  EXPECT_DOUBLE_EQ(r.late_s, 0.03);
  result.records[0].usage.completion_tokens = -1;
  EXPECT_FALSE(report_of(result, {}).server_counts);
  EXPECT_EQ(report_of(result, {}).output_tokens, 8);  // three pieces
}

TEST(LoadReport, OfNothingHasNoFigures) {
  const LoadReport r = report_of({}, {});
  EXPECT_EQ(r.completed + r.failed + r.unfinished, 0);
  EXPECT_EQ(r.input_tokens, -1);
  EXPECT_FALSE(r.ttft_s || r.tpot_s || r.itl_s || r.e2e_s);
  EXPECT_EQ(r.per_s(5), 0);
  EXPECT_EQ(r.good_percent(), 0);
}

}  // namespace
}  // namespace fathom::serve
