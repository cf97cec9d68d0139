#include "ops/indexer.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>
#include <vector>

#include "ops/attention.h"
#include "ops/cpu/indexer_variants.h"
#include "ops/each_isa.h"
#include "ops/test_tensors.h"

namespace fathom {
namespace {

constexpr IndexFormat kFormats[] = {IndexFormat::f32, IndexFormat::i8, IndexFormat::f8};
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Lengths {
  int64_t length, n_new;
};

struct Problem {
  IndexerDims dims;
  Tensor q, w;
  std::vector<LatentCacheView> sequences;
  int64_t longest = 0;

  Tensor new_selection(int64_t gap = 0) const {
    Tensor t(test_memory<int32_t>(q.rows() * (dims.topk + gap), -7), Format::i32, {q.rows(), dims.topk});
    t.row_stride = dims.topk + gap;
    return t;
  }
  Tensor select(Context& context, int64_t gap = 0) const {
    const Tensor selected = new_selection(gap);
    select_keys(context, selected, q, w, sequences, dims);
    return selected;
  }
  Tensor scores() const {
    const Tensor all = filled_f32(q.rows(), longest, -7);
    index_scores(ctx(), all, q, w, sequences, dims);
    return all;
  }
  // Calls f(t, rows that token t sees).
  void each_token(const std::function<void(int64_t t, int64_t visible, const LatentCacheView&)>& f) const {
    int64_t t = 0;
    for (const LatentCacheView& sequence : sequences) {
      for (int64_t i = 0; i < sequence.n_new; ++i) f(t++, sequence.length - sequence.n_new + i + 1, sequence);
    }
  }
};

using Keys = std::function<void(Tensor keys)>;  // changes the random keys of a sequence

Problem make_problem(
    IndexFormat format, const IndexerDims& dims, const std::vector<Lengths>& lengths, int64_t gap = 0,
    const Keys& change = [](Tensor) {}) {
  uint64_t seed = 1;
  Problem p;
  p.dims = dims;
  const IndexKeyLayout layout{format, dims.head_dim};
  const int64_t bytes = index_block_bytes(layout);
  int64_t n_tokens = 0;
  for (const auto& [length, n_new] : lengths) {
    const Tensor keys = random_f32(length, dims.head_dim, seed++);
    change(keys);
    // Rows that nobody wrote are NaN, codes and scales too.
    auto* const blocks = test_memory<char>((length + 63) / 64 * bytes, static_cast<char>(0xFF));
    for (int64_t i = 0; i < length; ++i) {
      write_index_key(layout, blocks + i / kIndexBlock * bytes, i % kIndexBlock, keys.f32_row(i));
    }
    LatentCacheView view;
    view.length = length;
    view.n_new = n_new;
    view.index_keys = layout;
    view.index_blocks = blocks;
    p.sequences.push_back(view);
    p.longest = std::max(p.longest, length);
    n_tokens += n_new;
  }
  const int64_t q_dim = dims.n_heads * dims.head_dim;
  p.q = random_f32(n_tokens, q_dim, seed++, q_dim + gap);
  p.w = random_f32(n_tokens, dims.n_heads, seed++, dims.n_heads + gap);
  return p;
}

int64_t order_of(float score) {
  if (std::isnan(score)) return std::numeric_limits<int64_t>::max();
  const auto bits = std::bit_cast<int32_t>(score + 0.0f);
  return bits < 0 ? -int64_t{bits & 0x7FFFFFFF} : bits;
}

// The selection that a row of scores asks for.
std::vector<int32_t> best_of(const float* scores, int64_t visible, int64_t topk) {
  std::vector<int32_t> rows(static_cast<size_t>(visible));
  std::iota(rows.begin(), rows.end(), 0);
  std::stable_sort(rows.begin(), rows.end(),
                   [&](int32_t a, int32_t b) { return order_of(scores[a]) > order_of(scores[b]); });
  rows.resize(static_cast<size_t>(std::min(topk, visible)));
  std::sort(rows.begin(), rows.end());
  rows.resize(static_cast<size_t>(topk), -1);
  return rows;
}

std::vector<int32_t> selected_row(Tensor selected, int64_t t) {
  const int32_t* const row = selected.i32() + t * selected.row_stride;
  return {row, row + selected.cols()};
}

void expect_best(const Problem& p, Tensor selected, Tensor scores) {
  p.each_token([&](int64_t t, int64_t visible, const LatentCacheView&) {
    ASSERT_EQ(selected_row(selected, t), best_of(scores.f32_row(t), visible, p.dims.topk)) << "token " << t;
  });
}

bool same_selection(const Problem& p, Tensor a, Tensor b) {
  for (int64_t t = 0; t < p.q.rows(); ++t) {
    if (selected_row(a, t) != selected_row(b, t)) return false;
  }
  return true;
}

// Part of the rows chosen in `a` that are chosen in `b` too.
double overlap(const Problem& p, Tensor a, Tensor b) {
  int64_t shared = 0, all = 0;
  for (int64_t t = 0; t < p.q.rows(); ++t) {
    const std::vector<int32_t> rows = selected_row(b, t);
    for (const int32_t row : selected_row(a, t)) {
      if (row < 0) continue;
      ++all;
      shared += std::binary_search(rows.begin(), std::find(rows.begin(), rows.end(), -1), row);
    }
  }
  return static_cast<double>(shared) / static_cast<double>(all);
}

TEST(Hadamard, IsItsMatrix) {
  for (const int64_t n : {1, 2, 4, 8, 16, 32, 64, 128, 256, 5, 48}) {
    const Tensor x = random_f32(1, n, 1), fast = copy_of(x), slow = copy_of(x);
    hadamard(fast.f32(), n);
    plain::hadamard(slow.f32(), n);
    EXPECT_LE(max_abs_error(fast, slow), 1e-6) << n;
    hadamard(fast.f32(), n);
    EXPECT_LE(max_abs_error(fast, x), 2e-6) << "its own inverse, " << n;
  }
}

TEST(IndexKeys, HaveTheDocumentedSizes) {
  EXPECT_EQ(index_block_bytes({IndexFormat::f32, 128}), 64 * 512);
  EXPECT_EQ(index_block_bytes({IndexFormat::i8, 128}), 64 * 132);
  EXPECT_EQ(index_block_bytes({IndexFormat::f8, 128}), 64 * 132);
  EXPECT_EQ(index_block_bytes({IndexFormat::i8, 5}), 64 * 12);
  EXPECT_EQ(index_block_bytes({IndexFormat::i8, 0}), 0);
}

TEST(IndexKeys, AreReadAsTheyWereWritten) {
  for (const IndexFormat format : kFormats) {
    for (const int64_t dim : {1, 5, 16, 128}) {
      const IndexKeyLayout layout{format, dim};
      const Tensor keys = random_f32(kIndexBlock, dim, 7);
      std::vector<char> block(static_cast<size_t>(index_block_bytes(layout)), static_cast<char>(0xFF));
      // In an order of their own, so that a key which disturbs another is found out.
      for (int64_t i = 0; i < kIndexBlock; ++i) {
        const int64_t row = i * 29 % kIndexBlock;
        write_index_key(layout, block.data(), row, keys.f32_row(row));
      }
      const Tensor read = filled_like(keys, NAN);
      for (int64_t row = 0; row < kIndexBlock; ++row) read_index_key(layout, read.f32_row(row), block.data(), row);
      if (format != IndexFormat::f32) {
        for (int64_t row = 0; row < kIndexBlock; ++row) plain::hadamard(keys.f32_row(row), dim);
      }
      double worst = 0;  // as part of a key's largest number
      for (int64_t row = 0; row < kIndexBlock; ++row) {
        worst = std::max(worst, max_relative_error(read.slice(row, 1), keys.slice(row, 1)));
      }
      const double bound = format == IndexFormat::f32 ? 0 : format == IndexFormat::i8 ? 0.504 / 127 : 1.01 / 16;
      EXPECT_LE(worst, bound) << static_cast<int>(format) << " " << dim;
    }
  }
}

TEST(IndexKeys, OfF8HaveThePublishedScale) {
  const IndexKeyLayout layout{IndexFormat::f8, 128};
  std::vector<char> block(static_cast<size_t>(index_block_bytes(layout)));
  std::vector<float> key(128);
  for (const auto& [first, scale] : std::vector<std::pair<float, float>>{
           {448 * std::sqrt(128.0f), 1}, {449 * std::sqrt(128.0f), 2}, {std::sqrt(128.0f), 0x1p-8f}, {0, 0x1p-22f}}) {
    key[0] = first;  // behind the transform all are first / sqrt(128)
    write_index_key(layout, block.data(), 3, key.data());
    float stored;
    std::memcpy(&stored, block.data() + 64 * 128 + 3 * 4, 4);
    EXPECT_EQ(stored, scale) << first;
  }
}

TEST(IndexKeys, TakeAnyFloats) {
  for (const IndexFormat format : {IndexFormat::i8, IndexFormat::f8}) {
    const IndexKeyLayout layout{format, 5};
    std::vector<char> block(static_cast<size_t>(index_block_bytes(layout)));
    std::vector<float> read(5);
    for (const float bad : {kInf, -kInf, NAN}) {
      const std::vector<float> key = {1, 2, bad, 4, 5};
      write_index_key(layout, block.data(), 9, key.data());
      read_index_key(layout, read.data(), block.data(), 9);
      for (const float x : read) EXPECT_TRUE(std::isnan(x));
    }
    for (const float small : {0.0f, -0.0f, 1e-45f, 1e-38f}) {
      const std::vector<float> key(5, small);
      write_index_key(layout, block.data(), 9, key.data());
      read_index_key(layout, read.data(), block.data(), 9);
      for (const float x : read) EXPECT_NEAR(x, small, 1e-38);
    }
    const std::vector<float> key(5, 3e38f);
    write_index_key(layout, block.data(), 9, key.data());
    read_index_key(layout, read.data(), block.data(), 9);
    for (const float x : read) EXPECT_NEAR(x / key[0], 1, 0.05);
  }
}

struct Case {
  IndexerDims dims;
  std::vector<Lengths> lengths;
  int64_t gap = 0;
};
std::vector<Case> odd_cases() {
  return {{{1, 1, 1}, {{1, 1}}},
          {{1, 5, 1}, {{65, 1}, {1, 1}, {130, 130}, {7, 0}, {64, 3}}, 3},
          {{3, 5, 7}, {{300, 70}, {63, 1}}, 1},
          {{3, 16, 64}, {{65, 65}, {640, 2}, {64, 1}}},
          {{8, 16, 100}, {{700, 40}, {99, 5}, {101, 5}, {100, 100}}, 2},
          {{8, 128, 33}, {{130, 9}}},
          {{64, 128, 20}, {{200, 11}}},
          {{5, 128, 2000}, {{150, 150}}},
          {{130, 4, 5}, {{70, 4}}}};
}

TEST(IndexScores, MatchThePlainTwinOnOddShapes) {
  for (const IndexFormat format : kFormats) {
    for (const Case& c : odd_cases()) {
      const Problem p = make_problem(format, c.dims, c.lengths, c.gap);
      const Tensor fast = filled_f32(p.q.rows(), p.longest + 2, -7, p.longest + 5), slow = filled_like(fast, -7);
      index_scores(ctx(), fast, p.q, p.w, p.sequences, p.dims);
      plain::index_scores(slow, p.q, p.w, p.sequences, p.dims);
      double worst = 0, largest = 0;
      p.each_token([&](int64_t t, int64_t visible, const LatentCacheView& sequence) {
        for (int64_t s = 0; s < p.longest + 2; ++s) {
          if (s < visible) {
            worst = std::max(worst, std::fabs(static_cast<double>(fast.f32(t, s)) - slow.f32(t, s)));
            largest = std::max(largest, std::fabs(static_cast<double>(slow.f32(t, s))));
          } else {
            ASSERT_EQ(fast.f32(t, s), s < sequence.length ? -kInf : -7);
            ASSERT_EQ(slow.f32(t, s), fast.f32(t, s));
          }
        }
      });
      EXPECT_LE(worst / largest, 1e-6) << static_cast<int>(format) << ": " << c.dims.n_heads << " x "
                                       << c.dims.head_dim;
      EXPECT_TRUE(gaps_untouched(fast));
    }
  }
}

// The selection is that of the scores to the last, and the plain twin's but for scores that rounding makes change
// places.
TEST(SelectKeys, TakesTheLargest) {
  for (const IndexFormat format : kFormats) {
    for (const Case& c : odd_cases()) {
      const Problem p = make_problem(format, c.dims, c.lengths, c.gap);
      const Tensor selected = p.select(ctx(), c.gap), plain = p.new_selection();
      expect_best(p, selected, p.scores());
      plain::select_keys(plain, p.q, p.w, p.sequences, p.dims);
      const Tensor exact = filled_f32(p.q.rows(), p.longest, NAN);
      plain::index_scores(exact, p.q, p.w, p.sequences, p.dims);
      const double tolerance = 1e-6 * [&] {
        double largest = 0;
        p.each_token([&](int64_t t, int64_t visible, const LatentCacheView&) {
          for (int64_t s = 0; s < visible; ++s) largest = std::max<double>(largest, std::fabs(exact.f32(t, s)));
        });
        return largest;
      }();
      p.each_token([&](int64_t t, int64_t visible, const LatentCacheView&) {
        const std::vector<int32_t> want = selected_row(plain, t);
        ASSERT_EQ(want, best_of(exact.f32_row(t), visible, c.dims.topk));
        float least = kInf;
        for (const int32_t row : want) least = row < 0 ? least : std::min(least, exact.f32(t, row));
        for (const int32_t row : selected_row(selected, t)) {
          if (row >= 0) {
            ASSERT_GE(exact.f32(t, row), least - tolerance);
          }
        }
      });
      for (int64_t t = 0; t + 1 < p.q.rows(); ++t) {
        for (int64_t i = 0; i < c.gap; ++i) ASSERT_EQ(selected.i32()[t * selected.row_stride + c.dims.topk + i], -7);
      }
    }
  }
}

// Long enough for candidates to be thinned out on the way and for several chunks, which threads share.
TEST(SelectKeys, IsTheSameForAnyNumberOfThreads) {
  for (const IndexFormat format : kFormats) {
    for (const Case& c : {Case{{3, 5, 50}, {{30000, 3}, {9000, 9}, {40, 1}}}, Case{{64, 8, 700}, {{5000, 1}}},
                          Case{{40, 4, 3}, {{1500, 200}}}}) {
      const Problem p = make_problem(format, c.dims, c.lengths);
      Tensor first;
      for (const int threads : {1, 2, 7}) {
        ThreadedContext own(threads);
        const Tensor selected = p.select(own.ctx);
        EXPECT_EQ(own.arena.mark().offset, 0u);
        if (!first) {
          first = selected;
          expect_best(p, selected, p.scores());
        }
        EXPECT_TRUE(same_selection(p, first, selected)) << threads;
      }
    }
  }
}

TEST(SelectKeys, OfATokenDoesNotDependOnItsNeighbours) {
  for (const IndexFormat format : kFormats) {
    const Problem p = make_problem(format, {6, 16, 30}, {{400, 300}, {70, 3}});
    const Tensor all = p.select(ctx()), scores = p.scores();
    p.each_token([&](int64_t t, int64_t visible, const LatentCacheView& sequence) {
      Problem alone = p;
      alone.q = p.q.slice(t, 1);
      alone.w = p.w.slice(t, 1);
      alone.sequences = {sequence};
      alone.sequences[0].length = visible;
      alone.sequences[0].n_new = 1;
      ASSERT_EQ(selected_row(alone.select(ctx()), 0), selected_row(all, t));
      const Tensor own = filled_f32(1, visible, NAN);
      index_scores(ctx(), own, alone.q, alone.w, alone.sequences, p.dims);
      Tensor there = scores.slice(t, 1);
      there.shape[1] = visible;
      ASSERT_TRUE(same_bits(own, there)) << t;
    });
  }
}

TEST(SelectKeys, ReadsPages) {
  constexpr int64_t kOffset = 64, kRows = 320;  // of a page's rows, and from them to its keys; neither is aligned
  for (const IndexFormat format : kFormats) {
    const Problem p = make_problem(format, {8, 16, 20}, {{300, 5}, {64, 64}, {1, 1}, {129, 2}});
    const int64_t bytes = index_block_bytes(p.sequences[0].index_keys);
    Problem paged = p;
    std::vector<std::vector<const char*>> pages(p.sequences.size());
    for (size_t s = 0; s < pages.size(); ++s) {
      for (int64_t block = 0; block * kIndexBlock < p.sequences[s].length; ++block) {
        auto* const page = test_memory<char>(kOffset + kRows + 1 + bytes, 0) + 1;
        std::memcpy(page + kOffset + kRows, p.sequences[s].index_block(block, bytes), static_cast<size_t>(bytes));
        pages[s].push_back(page);
      }
      paged.sequences[s].index_blocks = nullptr;
      paged.sequences[s].pages = pages[s].data();
      paged.sequences[s].page_offset = kOffset;
      paged.sequences[s].index_offset = kRows;
    }
    EXPECT_TRUE(same_selection(p, p.select(ctx()), paged.select(ctx())));
    const Tensor scores = p.scores(), again = paged.scores();
    EXPECT_TRUE(same_bits(scores, again));
  }
}

TEST(SelectKeys, TakesTheEarlierOfEqualScores) {
  const std::vector<Lengths> lengths = {{9000, 2}, {300, 200}};
  for (const IndexFormat format : kFormats) {
    for (const int64_t topk : {1, 70, 1500}) {
      const IndexerDims dims = {2, 16, topk};
      const auto all_equal = [](Tensor keys) {
        for (int64_t i = 1; i < keys.rows(); ++i) std::copy_n(keys.f32_row(0), keys.cols(), keys.f32_row(i));
      };
      Problem p = make_problem(format, dims, lengths, 0, all_equal);
      const Tensor selected = p.select(ctx());
      p.each_token([&](int64_t t, int64_t visible, const LatentCacheView&) {
        std::vector<int32_t> first(static_cast<size_t>(topk), -1);
        std::iota(first.begin(), first.begin() + std::min(topk, visible), 0);
        ASSERT_EQ(selected_row(selected, t), first);
      });
      // Nothing but a few scores, and zeros of either sign.
      p = make_problem(format, dims, lengths, 0, [](Tensor keys) {
        for (int64_t i = 0; i < keys.rows(); ++i) {
          for (int64_t d = 0; d < keys.cols(); ++d) keys.f32(i, d) = static_cast<float>(i * i % 7 - 3);
        }
      });
      for (int64_t t = 0; t < p.q.rows(); ++t) {
        for (int64_t i = 0; i < p.q.cols(); ++i) p.q.f32(t, i) = i < 16 ? 1 : -1;
        p.w.f32(t, 0) = t % 2 == 0 ? 1 : -1;
        p.w.f32(t, 1) = t % 3 == 0 ? -1 : 0;
      }
      expect_best(p, p.select(ctx()), p.scores());
    }
  }
}

TEST(SelectKeys, TakesAnyFloats) {
  const std::vector<Lengths> lengths = {{5000, 3}, {300, 150}};
  for (const IndexFormat format : kFormats) {
    for (const int64_t topk : {1, 40, 200}) {
      Problem p = make_problem(format, {3, 8, topk}, lengths, 0, [](Tensor keys) {
        for (int64_t i = 0; i < keys.rows(); i += 3) {
          const float odd[] = {NAN, kInf, -kInf, 3e38f, -3e38f, 0, -0.0f, 1e-42f};
          keys.f32(i, i % 8) = odd[i / 3 % 8];
        }
      });
      p.q.f32(1, 3) = NAN;
      p.q.f32(2, 9) = kInf;
      p.w.f32(5, 0) = NAN;
      p.w.f32(6, 1) = -kInf;
      p.w.f32(7, 2) = 3e38f;
      for (int64_t i = 0; i < 3; ++i) p.w.f32(8, i) = -1;
      const Tensor selected = p.select(ctx());
      expect_best(p, selected, p.scores());
      const Tensor plain = p.new_selection();
      plain::select_keys(plain, p.q, p.w, p.sequences, p.dims);
      for (int64_t t = 0; t < p.q.rows(); ++t) {
        const std::vector<int32_t> rows = selected_row(selected, t);
        ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end(), std::less_equal<>()) || rows.back() == -1);
      }
      // Floats overflow where the twin's doubles do not.
      EXPECT_GE(overlap(p, selected, plain), 0.95) << static_cast<int>(format) << " " << topk;
    }
  }
}

// Everything about a block that was not written is NaN here (make_problem). Other garbage changes nothing either.
TEST(SelectKeys, IgnoresRowsThatAreNotWritten) {
  for (const IndexFormat format : kFormats) {
    const Problem p = make_problem(format, {3, 16, 10}, {{70, 6}, {3, 3}, {129, 100}});
    const int64_t bytes = index_block_bytes(p.sequences[0].index_keys);
    Problem other = p;
    for (LatentCacheView& sequence : other.sequences) {
      const int64_t n_blocks = (sequence.length + kIndexBlock - 1) / kIndexBlock;
      auto* const blocks = test_memory<char>(n_blocks * bytes, 0x7E);
      std::vector<float> key(16);
      for (int64_t i = 0; i < sequence.length; ++i) {
        // What was written, copied byte by byte where the row's own lie.
        for (int64_t b = 0; b < bytes; ++b) {
          const int64_t tiles = 4 * 16 * 16 * (format == IndexFormat::f32 ? 4 : 1);
          const int64_t row = b < tiles ? b / (tiles / 4) * 16 + b / 4 % 16 : (b - tiles) / 4;
          if (row == i % kIndexBlock) {
            blocks[i / kIndexBlock * bytes + b] = sequence.index_block(i / kIndexBlock, bytes)[b];
          }
        }
      }
      sequence.index_blocks = blocks;
    }
    EXPECT_TRUE(same_selection(p, p.select(ctx()), other.select(ctx())));
    const Tensor scores = p.scores(), again = other.scores();
    EXPECT_TRUE(same_bits(scores, again));
  }
}

TEST(SelectKeys, NeedsNoMoreMemoryForALongerContext) {
  for (const IndexFormat format : kFormats) {
    std::vector<size_t> peaks;
    for (const int64_t length : {20000, 80000}) {
      const Problem p = make_problem(format, {8, 4, 300}, {{length, 64}});
      ThreadedContext own(2);
      p.select(own.ctx);
      peaks.push_back(own.arena.peak_bytes());
    }
    EXPECT_LE(static_cast<double>(peaks[1]), 1.02 * static_cast<double>(peaks[0]));
    EXPECT_LE(peaks[1], size_t{8} << 20);
  }
}

// How much of the selection rounding leaves as it is, for keys and queries without any structure: with such the scores
// are as close together as they can be.
TEST(SelectKeys, OfRoundedKeysIsMostlyThatOfExactOnes) {
  const IndexerDims dims = {16, 128, 256};
  const std::vector<Lengths> lengths = {{2048, 8}};
  const Problem exact = make_problem(IndexFormat::f32, dims, lengths),
                i8 = make_problem(IndexFormat::i8, dims, lengths), f8 = make_problem(IndexFormat::f8, dims, lengths);
  const Tensor want = exact.select(ctx());
  const double of_i8 = overlap(exact, i8.select(ctx()), want), of_f8 = overlap(exact, f8.select(ctx()), want);
  RecordProperty("i8", std::to_string(of_i8));
  RecordProperty("f8", std::to_string(of_f8));
  EXPECT_GE(of_i8, 0.97);
  EXPECT_GE(of_f8, 0.9);
  EXPECT_GT(of_i8, of_f8);
}

// ---- Kernels of every instruction set

struct Product {
  std::vector<char> keys;
  std::vector<float> scales, weights, scores;
  std::vector<int8_t> codes;
  std::vector<int32_t> offsets;
  Tensor q;
  int64_t n_heads, dim;
};

Product random_product(int64_t n_heads, int64_t dim) {
  constexpr int64_t kQueries = 3;
  Product p;
  p.n_heads = n_heads;
  p.dim = dim;
  p.q = random_f32(kQueries * n_heads, dim, 3);
  const Tensor w = random_f32(1, kQueries * n_heads, 4), scales = random_f32(1, kIndexBlock, 5);
  p.weights.assign(w.f32(), w.f32() + w.size());
  p.scales.assign(scales.f32(), scales.f32() + scales.size());
  Rng rng(6);
  const int64_t quads = (dim + 3) / 4;
  for (int64_t i = 0; i < kIndexBlock * quads * 4; ++i) p.keys.push_back(static_cast<char>(rng.below(256)));
  for (int64_t i = 0; i < kQueries * n_heads; ++i) {
    int32_t sum = 0;
    for (int64_t d = 0; d < quads * 4; ++d) {
      // The largest products that there are, for the first head.
      const int code = d >= dim ? 0 : i == 0 ? -127 : static_cast<int>(rng.below(255)) - 127;
      p.codes.push_back(static_cast<int8_t>(code));
      sum += code;
    }
    p.offsets.push_back(-128 * sum);
  }
  for (int64_t i = 0; i < 16; ++i) {  // the first quads of a tile
    std::memset(p.keys.data() + i * 4, i % 2 == 0 ? 0 : 255, 4);
  }
  return p;
}

cpu::IndexProduct kernel_call(Product& p, const void* keys, const void* queries, int64_t head_bytes) {
  p.scores.assign(static_cast<size_t>(3 * kIndexBlock), NAN);
  return {keys,
          p.dim,
          3,
          p.n_heads,
          queries,
          p.n_heads * head_bytes,
          head_bytes,
          p.weights.data(),
          p.n_heads,
          p.scores.data(),
          p.keys.data(),
          static_cast<int64_t>(p.keys.size()),
          nullptr,
          nullptr};
}

std::vector<float> scores_i8(const cpu::IndexerKernels& kernels, Product p) {
  cpu::IndexProduct call = kernel_call(p, p.keys.data(), p.codes.data(), (p.dim + 3) / 4 * 4);
  call.dim = (p.dim + 3) / 4;
  call.offsets = p.offsets.data();
  call.scales = p.scales.data();
  kernels.score_i8(call);
  return p.scores;
}

std::vector<float> scores_f32(const cpu::IndexerKernels& kernels, Product p) {
  const Tensor keys = random_f32(4 * p.dim, 16, 8);
  kernels.score_f32(kernel_call(p, keys.f32(), p.q.f32(), p.dim * 4));
  return p.scores;
}

template <class T>
bool equal_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

std::vector<cpu::IndexerVariant> variants() {
  std::vector<cpu::IndexerVariant> found;
  for (const cpu::IndexerVariant& variant : cpu::kIndexerVariants) {
    if (cpu_has(variant.isa)) found.push_back(variant);
  }
  return found;
}

TEST(IndexerKernels, ScoreAlikeOnEveryInstructionSet) {
  for (const int64_t heads : {1, 2, 3, 4, 5, 8, 13, 64}) {
    for (const int64_t dim : {1, 4, 5, 16, 127, 128}) {
      const Product p = random_product(heads, dim);
      std::vector<double> want;
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t s = 0; s < kIndexBlock; ++s) {
          double score = 0;
          for (int64_t j = i * heads; j < (i + 1) * heads; ++j) {
            int64_t sum = 0;
            for (int64_t d = 0; d < dim; ++d) {
              const int64_t quads = (dim + 3) / 4, at = ((s / 16 * quads + d / 4) * 16 + s % 16) * 4 + d % 4;
              const int key = static_cast<uint8_t>(p.keys[static_cast<size_t>(at)]) - 128;
              sum += key * p.codes[static_cast<size_t>(j * quads * 4 + d)];
            }
            score += p.weights[static_cast<size_t>(j)] * static_cast<double>(std::max<int64_t>(sum, 0));
          }
          want.push_back(score * p.scales[static_cast<size_t>(s)]);
        }
      }
      double largest = 0;
      for (const double score : want) largest = std::max(largest, std::fabs(score));
      for (const cpu::IndexerVariant& variant : variants()) {
        const std::vector<float> i8 = scores_i8(variant.kernels, p);
        for (size_t i = 0; i < want.size(); ++i) {
          ASSERT_NEAR(i8[i], want[i], 1e-6 * largest) << isa_name(variant.isa) << " " << heads << " x " << dim;
        }
        if (!cpu_has(variant.same_bits_as)) continue;
        const cpu::IndexerKernels& same = cpu::indexer_kernels_of(variant.same_bits_as);
        EXPECT_TRUE(equal_bits(i8, scores_i8(same, p))) << isa_name(variant.isa);
        EXPECT_TRUE(equal_bits(scores_f32(variant.kernels, p), scores_f32(same, p))) << isa_name(variant.isa);
      }
    }
  }
}

TEST(IndexerKernels, RoundAlikeOnEveryInstructionSet) {
  for (const cpu::IndexerVariant& variant : variants()) {
    const cpu::IndexerKernels &kernels = variant.kernels, &baseline = cpu::indexer_kernels_of(Isa::baseline);
    for (int64_t n = 1; n <= 256; n = n < 40 ? n + 1 : n * 2) {
      const Tensor x = random_f32(n, static_cast<uint64_t>(n)).reshape({1, n});
      if (std::has_single_bit(static_cast<uint64_t>(n))) {
        const Tensor here = copy_of(x), there = copy_of(x);
        kernels.hadamard(here.f32(), n, 0.3f);
        baseline.hadamard(there.f32(), n, 0.3f);
        EXPECT_TRUE(same_bits(here, there)) << isa_name(variant.isa) << " " << n;
      }
      EXPECT_EQ(kernels.largest(x.f32(), n), static_cast<float>(max_abs(x)));
      const auto room = static_cast<size_t>((n + 3) / 4 * 4);
      std::vector<int8_t> codes(room, 1), expected(room, 2);
      int32_t sum, expected_sum;
      EXPECT_EQ(kernels.round_i8(codes.data(), &sum, x.f32(), n),
                baseline.round_i8(expected.data(), &expected_sum, x.f32(), n));
      EXPECT_EQ(codes, expected);
      EXPECT_EQ(sum, std::accumulate(codes.begin(), codes.end(), 0));
      EXPECT_EQ(sum, expected_sum);
    }
    for (const int64_t dim : {1, 6, 128}) {
      const IndexKeyLayout layout{IndexFormat::f8, dim};
      std::vector<uint8_t> block(static_cast<size_t>(index_block_bytes(layout)));
      for (int64_t row = 0; row < kIndexBlock; ++row) {
        write_index_key(layout, block.data(), row, random_f32(dim, static_cast<uint64_t>(row)).f32());
      }
      std::vector<float> tiles(static_cast<size_t>(kIndexBlock * dim)), key(static_cast<size_t>(dim));
      kernels.widen_f8(tiles.data(), block.data(), block.data() + kIndexBlock * ((dim + 3) / 4) * 4, dim);
      for (int64_t row = 0; row < kIndexBlock; ++row) {
        read_index_key(layout, key.data(), block.data(), row);
        for (int64_t d = 0; d < dim; ++d) {
          ASSERT_EQ(tiles[static_cast<size_t>((row / 16 * dim + d) * 16 + row % 16)], key[static_cast<size_t>(d)]);
        }
      }
    }
  }
}

TEST(IndexerKernels, ChooseAlikeOnEveryInstructionSet) {
  Rng rng(9);
  for (const cpu::IndexerVariant& variant : variants()) {
    const cpu::IndexerKernels& kernels = variant.kernels;
    for (int64_t n = 0; n <= 64; ++n) {
      std::vector<float> scores(64);
      for (float& x : scores) {
        const float some[] = {0, -0.0f, NAN, kInf, -kInf, 1, -1, -NAN};
        x = rng.below(3) == 0 ? some[rng.below(8)] : static_cast<float>(rng.normal());
      }
      for (const int32_t bound :
           {std::numeric_limits<int32_t>::min(), -1, 0, 0x3F000000, 0x7F800000, std::numeric_limits<int32_t>::max()}) {
        std::vector<int32_t> orders(3 + 64 + 16, 5), rows = orders, want_orders(3, 5), want_rows(3, 5);
        for (int64_t i = 0; i < n; ++i) {
          const float x = scores[static_cast<size_t>(i)];
          const auto bits = std::bit_cast<int32_t>(x + 0.0f);
          const int32_t order = std::isnan(x) ? std::numeric_limits<int32_t>::max()
                                : bits < 0    ? bits ^ 0x7FFFFFFF
                                              : bits;
          if (order <= bound) continue;
          want_orders.push_back(order);
          want_rows.push_back(static_cast<int32_t>(100 + i));
        }
        const int64_t count = kernels.append(orders.data(), rows.data(), 3, scores.data(), n, 100, bound);
        ASSERT_EQ(count, static_cast<int64_t>(want_orders.size()));
        orders.resize(static_cast<size_t>(count));
        rows.resize(static_cast<size_t>(count));
        ASSERT_EQ(orders, want_orders);
        ASSERT_EQ(rows, want_rows);
      }
    }
    for (int64_t n = 1; n < 200; n += 1 + n / 7) {
      std::vector<int32_t> orders;
      for (int64_t i = 0; i < n; ++i) orders.push_back(static_cast<int32_t>(rng.below(9)) - 4);
      int32_t least, largest;
      kernels.range(orders.data(), n, &least, &largest);
      EXPECT_EQ(least, *std::min_element(orders.begin(), orders.end()));
      EXPECT_EQ(largest, *std::max_element(orders.begin(), orders.end()));
      for (int32_t bound = -5; bound <= 5; ++bound) {
        const auto above = [bound](int32_t x) { return x > bound; };
        EXPECT_EQ(kernels.count_above(orders.data(), n, bound), std::count_if(orders.begin(), orders.end(), above));
        std::vector<int32_t> want, picked(static_cast<size_t>(n + 16));
        std::copy_if(orders.begin(), orders.end(), std::back_inserter(want),
                     [bound](int32_t x) { return x > bound - 2 && x <= bound; });
        picked.resize(static_cast<size_t>(kernels.pick(picked.data(), orders.data(), n, bound - 2, bound)));
        EXPECT_EQ(picked, want);
        for (const int64_t n_equal : {0, 1, 3, 17, 500}) {
          std::vector<int32_t> kept = orders, rows(orders.size()), want_rows;
          std::iota(rows.begin(), rows.end(), 0);
          want.clear();
          int64_t left = n_equal;
          for (size_t i = 0; i < orders.size(); ++i) {
            if (orders[i] < bound || (orders[i] == bound && left-- <= 0)) continue;
            want.push_back(orders[i]);
            want_rows.push_back(static_cast<int32_t>(i));
          }
          kept.resize(kept.size() + 16);
          rows.resize(rows.size() + 16);
          const auto count = static_cast<size_t>(kernels.keep(kept.data(), rows.data(), n, bound, n_equal));
          kept.resize(count);
          rows.resize(count);
          ASSERT_EQ(kept, want);
          ASSERT_EQ(rows, want_rows);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fathom
