#include "ops/embedding.h"

#include <gmock/gmock.h>

#include "each_isa.h"
#include "ops/cpu/row_kernels.h"
#include "test_tensors.h"

namespace fathom {
namespace {

Tensor random_ids(int64_t n, int64_t vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < n; ++t) ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  return i32_tensor(ids);
}

TEST(Embedding, CopiesRowsAndSumsGradientsInOrder) {
  for (const auto& [tokens, vocab, hidden] :
       std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {3, 7, 5}, {129, 3, 65}, {65, 1000, 33}, {300, 17, 259}}) {
    SCOPED_TRACE(testing::Message() << tokens << " of " << vocab << " by " << hidden);
    const Tensor ids = random_ids(tokens, vocab, 1), table = random_f32(vocab, hidden, 2, hidden + 3);
    const Tensor y = filled_f32(tokens, hidden, 0, hidden + 1), want = filled_f32(tokens, hidden, 0);
    embedding(ctx(), y, ids, table);
    plain::embedding(want, ids, table);
    EXPECT_TRUE(same_bits(y, want));
    EXPECT_TRUE(gaps_untouched(y));

    const Tensor dy = random_f32(tokens, hidden, 3, hidden + 1);
    const Tensor dtable = random_f32(vocab, hidden, 4, hidden + 3), want_dtable = copy_of(dtable);
    embedding_backward_weight(ctx(), dtable, dy, ids);
    plain::embedding_backward_weight(want_dtable, dy, ids);
    EXPECT_TRUE(same_bits(dtable, want_dtable));
    EXPECT_TRUE(gaps_untouched(dtable));
  }
}

TEST(Embedding, GradientIsThatOfTheFunction) {
  const Tensor ids = i32_tensor({3, 0, 3, 1, 3}), table = random_f32(5, 7, 1), dy = random_f32(5, 7, 2);
  const Tensor y = filled_f32(5, 7, 0), dtable = zeros_like(table);
  embedding_backward_weight(ctx(), dtable, dy, ids);
  const auto loss = [&] {
    embedding(ctx(), y, ids, table);
    return dot(y, dy);
  };
  EXPECT_LT(gradient_error(loss, table, dtable), 1e-3);
}

TEST(Embedding, RefusesIdsOutsideTheVocabulary) {
  const Tensor table = random_f32(4, 3, 1), y = filled_f32(2, 3, 0);
  for (const int32_t bad : {-1, 4, INT32_MAX, INT32_MIN}) {
    const Tensor ids = i32_tensor({3, bad});
    EXPECT_THAT([&] { embedding(ctx(), y, ids, table); },
                testing::ThrowsMessage<Error>(testing::HasSubstr(fmt::format("token id {} at position 1", bad))));
    EXPECT_THROW(embedding_backward_weight(ctx(), table, y, ids), Error);
  }
}

TEST(Embedding, BitsDoNotDependOnThreads) {
  const Tensor ids = random_ids(2000, 11, 1), dy = random_f32(2000, 300, 2);
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 5}) {
    ThreadedContext c(threads);
    const Tensor dtable = filled_f32(11, 300, 0);
    embedding_backward_weight(c.ctx, dtable, dy, ids);
    first.push_back(dtable);
    EXPECT_TRUE(same_bits(dtable, first[0]));
  }
}

TEST(Add, AddsElementwiseAndInPlace) {
  for (const int64_t cols : {1, 3, 7, 8, 16, 17, 65, 129, 1000}) {
    const Tensor a = random_f32(37, cols, 1, cols + 1), b = random_f32(37, cols, 2), out = filled_f32(37, cols, 0);
    const Tensor want = filled_f32(37, cols, 0);
    for (int64_t r = 0; r < 37; ++r) {
      for (int64_t i = 0; i < cols; ++i) want.f32(r, i) = a.f32(r, i) + b.f32(r, i);
    }
    add(ctx(), out, a, b);
    EXPECT_TRUE(same_bits(out, want));
    const Tensor a_copy = copy_of(a);
    add(ctx(), a_copy, a_copy, b);
    EXPECT_TRUE(same_bits(a_copy, want));
    EXPECT_TRUE(gaps_untouched(a_copy));
    add(ctx(), b, a, b);
    EXPECT_TRUE(same_bits(b, want));
  }
}

TEST(AddBias, AndItsBackwardPassMatchPlainTwins) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, {37, 7}, {5, 129}, {300, 66}}) {
    const Tensor bias = random_f32(cols, 1), x = random_f32(rows, cols, 2, cols + 1), want = copy_of(x);
    add_bias(ctx(), x, bias);
    plain::add_bias(want, bias);
    EXPECT_TRUE(same_bits(x, want));
    EXPECT_TRUE(gaps_untouched(x));
    const Tensor dx = random_f32(rows, cols, 3, cols + 2), d_bias = random_f32(cols, 4), want_bias = copy_of(d_bias);
    add_bias_backward(ctx(), d_bias, dx);
    plain::add_bias_backward(want_bias, dx);
    EXPECT_TRUE(same_bits(d_bias, want_bias));
  }
}

TEST(Add, EveryInstructionSetAgrees) {
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::row_kernels, cpu::avx2::row_kernels, cpu::avx512::row_kernels)) {
    for (int64_t n = 0; n <= 70; ++n) {
      const Tensor a = random_f32(n, 1), b = random_f32(n, 2), out = filled_like(a, 0);
      kernels.add(out.f32(), a.f32(), b.f32(), n);
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(out.f32()[i], a.f32()[i] + b.f32()[i]) << isa;
    }
  }
}

}  // namespace
}  // namespace fathom
