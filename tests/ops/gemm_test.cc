#include "ops/gemm.h"

#include "base/cpu.h"
#include "ops/cpu/gemm_kernels.h"
#include "ops/test_tensors.h"

namespace fathom {
namespace {

constexpr double kTolerance = 2e-6;  // of the largest magnitude

struct Problem {
  GemmShape shape;
  Tensor a, b, c, want;
};

// Matrices with gaps between their rows, and the product in double.
Problem make_problem(int64_t m, int64_t n, int64_t k, bool a_transposed, bool b_transposed, bool accumulate) {
  Problem p;
  p.a = a_transposed ? random_f32(k, m, 1, m + 3) : random_f32(m, k, 1, k + 5);
  p.b = b_transposed ? random_f32(n, k, 2, k + 1) : random_f32(k, n, 2, n + 2);
  p.c = random_f32(m, n, 3, n + 7);
  p.want = copy_of(p.c);
  p.shape = {m, n, k, a_transposed, b_transposed, p.a.row_stride, p.b.row_stride, p.c.row_stride};
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = accumulate ? p.c.f32(i, j) : 0;
      for (int64_t q = 0; q < k; ++q) {
        sum += static_cast<double>(a_transposed ? p.a.f32(q, i) : p.a.f32(i, q)) *
               (b_transposed ? p.b.f32(j, q) : p.b.f32(q, j));
      }
      p.want.f32(i, j) = static_cast<float>(sum);
    }
  }
  return p;
}

// Odd shapes: below, at and above the tiles of every instruction set, the blocks of k and the blocks of rows.
template <class Body>
void for_each_problem(const Body& body) {
  struct Sizes {
    int64_t m, n, k;
  };
  for (const auto& [m, n, k] : std::vector<Sizes>{{1, 1, 1},
                                                  {1, 17, 65},
                                                  {3, 7, 129},
                                                  {7, 33, 17},
                                                  {12, 32, 16},
                                                  {17, 65, 3},
                                                  {65, 1, 257},
                                                  {129, 31, 30},
                                                  {97, 96, 64},
                                                  {5, 530, 19},
                                                  {200, 7, 40},
                                                  {13, 15, 700},
                                                  {2, 3, 0}}) {
    for (const bool a_transposed : {false, true}) {
      for (const bool b_transposed : {false, true}) {
        for (const bool accumulate : {false, true}) {
          SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k << (a_transposed ? " T" : " N")
                                          << (b_transposed ? "T" : "N") << (accumulate ? " +=" : " ="));
          body(make_problem(m, n, k, a_transposed, b_transposed, accumulate), accumulate);
        }
      }
    }
  }
}

TEST(Gemm, EqualsTheSumsOfProducts) {
  for_each_problem([](const Problem& p, bool accumulate) {
    gemm(ctx(), p.shape, p.a.f32(), p.b.f32(), p.c.f32(), accumulate);
    EXPECT_LT(max_relative_error(p.c, p.want), kTolerance);
    EXPECT_TRUE(gaps_untouched(p.c));
  });
}

TEST(GemmOneThread, HasTheBitsOfGemmAndKeepsToItsScratch) {
  for_each_problem([](const Problem& p, bool accumulate) {
    const Tensor c = copy_of(p.c);
    float* scratch = test_memory(gemm_scratch_floats(p.shape), std::numeric_limits<float>::quiet_NaN());
    gemm_one_thread(p.shape, p.a.f32(), p.b.f32(), c.f32(), accumulate, scratch);
    gemm(ctx(), p.shape, p.a.f32(), p.b.f32(), p.c.f32(), accumulate);
    EXPECT_TRUE(same_bits(c, p.c));
    EXPECT_TRUE(gaps_untouched(c));
  });
}

TEST(Gemm, ManyAtOnceAreEachAsIfAlone) {
  std::vector<Problem> problems;
  std::vector<GemmCall> calls;
  for_each_problem([&](const Problem& p, bool accumulate) {
    problems.push_back(p);
    problems.back().want = copy_of(p.c);
    calls.push_back({p.shape, p.a.f32(), p.b.f32(), p.c.f32(), accumulate});
  });
  for (size_t i = 0; i < calls.size(); ++i) {
    gemm(ctx(), calls[i].shape, calls[i].a, calls[i].b, problems[i].want.f32(), calls[i].accumulate);
  }
  gemm_many(ctx(), calls);
  for (size_t i = 0; i < calls.size(); ++i) EXPECT_TRUE(same_bits(problems[i].c, problems[i].want)) << i;
}

TEST(Gemm, BitsDependNeitherOnThreadsNorOnRowsAndColumnsBeside) {
  constexpr int64_t kM = 230, kN = 140, kK = 530;
  const Problem p = make_problem(kM, kN, kK, false, true, false);
  gemm(ctx(), p.shape, p.a.f32(), p.b.f32(), p.c.f32(), false);
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    for (const int64_t m : {1, 2, 5, 6, 7, 13, 97, 230}) {
      for (const int64_t n : {1, 9, 17, 33, 140}) {
        const int64_t row = (kM - m) / 2, col = (kN - n) / 2;
        const Tensor c = filled_f32(m, n, 0);
        const GemmShape shape = {m, n, kK, false, true, p.shape.lda, p.shape.ldb, c.row_stride};
        gemm(context, shape, p.a.f32_row(row), p.b.f32_row(col), c.f32(), false);
        EXPECT_TRUE(same_bits(c, p.c.slice(row, m).columns(col, n)))
            << m << " x " << n << ", " << threads << " threads";
      }
    }
  }
}

TEST(Gemm, PacksOnlyAPartOfALargeB) {
  constexpr int64_t kM = 100, kN = 2500, kK = 4000;
  ThreadPool pool(2);
  Arena arena;
  Context context{pool, arena};
  const Tensor a = random_f32(kM, kK, 1), b = random_f32(kN, kK, 2), c = filled_f32(kM, kN, 0);
  gemm(context, {kM, kN, kK, false, true, kK, kK, kN}, a.f32(), b.f32(), c.f32(), false);
  EXPECT_LT(arena.peak_bytes(), static_cast<size_t>(b.size_bytes()) / 2 + (1 << 20));
  for (const int64_t i : {int64_t{0}, kM / 2, kM - 1}) {
    for (const int64_t j : {int64_t{0}, kN / 2, kN - 1}) {
      EXPECT_NEAR(c.f32(i, j), dot(a.slice(i, 1), b.slice(j, 1)), 1e-3);
    }
  }
}

// Every instruction set that this CPU has, whichever the program chose.
std::vector<const cpu::GemmKernels*> all_kernels() {
  std::vector<const cpu::GemmKernels*> all = {&cpu::baseline::gemm_kernels};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(&cpu::avx2::gemm_kernels);
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    all.push_back(&cpu::avx512::gemm_kernels);
  }
#endif
  return all;
}

TEST(GemmKernels, OfEveryInstructionSetMultiplyTilesOfEverySize) {
  constexpr int64_t kK = 37;
  for (const cpu::GemmKernels* kernels : all_kernels()) {
    for (int64_t m = 1; m <= 2 * kernels->mr + 1; ++m) {
      for (int64_t n = 1; n <= 2 * kernels->nr + 1; ++n) {
        const bool a_transposed = (m + n) % 2 == 0, b_transposed = n % 3 == 0, accumulate = m % 2 == 0;
        const Problem p = make_problem(m, n, kK, a_transposed, b_transposed, accumulate);
        const int64_t n_panels = (n + kernels->nr - 1) / kernels->nr;
        const float nan = std::numeric_limits<float>::quiet_NaN();
        float* b = test_memory(n_panels * kernels->nr * kK, nan);
        for (int64_t j = 0; j < n; j += kernels->nr) {
          const float* source = b_transposed ? p.b.f32_row(j) : p.b.f32() + j;
          kernels->pack_b(b + j * kK, source, p.shape.ldb, b_transposed, kK, std::min(kernels->nr, n - j));
        }
        float* a = test_memory((m + kernels->mr) * kK + 16, nan);
        if (a_transposed) kernels->pack_a(a, p.a.f32(), p.shape.lda, kK, m);
        kernels->multiply({m, n, kK, a_transposed ? a : p.a.f32(), p.shape.lda, a_transposed, b, kernels->nr * kK,
                           p.c.f32(), p.shape.ldc, accumulate});
        EXPECT_LT(max_relative_error(p.c, p.want), kTolerance) << m << " x " << n << ", tiles of " << kernels->nr;
        EXPECT_TRUE(gaps_untouched(p.c));
      }
    }
  }
}

}  // namespace
}  // namespace fathom
