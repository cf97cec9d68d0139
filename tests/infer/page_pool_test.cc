#include "infer/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/rng.h"

namespace fathom {
namespace {

constexpr int64_t kTokens = 4;  // of a page

std::vector<int32_t> ids_of(const std::string& text) { return {text.begin(), text.end()}; }

// What a sequence does: finds what it can, takes the rest, writes its tokens there, shares what is full. Nothing, with
// all released, when there is no room.
std::optional<std::vector<PageId>> read(PagePool& pool, const std::string& salt, const std::vector<int32_t>& ids,
                                        int64_t* found = nullptr) {
  std::vector<PageId> pages = pool.find(salt, ids);
  if (found != nullptr) *found = std::ssize(pages);
  const size_t n = kTokens;
  for (size_t begin = pages.size() * n; begin < ids.size(); begin += n) {
    const std::optional<PageId> page = pool.take();
    if (!page) {
      for (const PageId held : pages) pool.release(held);
      return std::nullopt;
    }
    pages.push_back(*page);
    const size_t end = std::min(begin + n, ids.size());
    std::copy(ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end),
              reinterpret_cast<int32_t*>(pool.data(*page)));
    if (end - begin < n) continue;
    const auto before = pages.size() > 1 ? std::optional(pages[pages.size() - 2]) : std::nullopt;
    pages.back() = pool.share(salt, before, std::span(ids).subspan(begin, n), *page);
  }
  return pages;
}

void release(PagePool& pool, const std::vector<PageId>& pages) {
  for (const PageId page : pages) pool.release(page);
}

TEST(PagePool, FindsWhatBeganTheSame) {
  PagePool pool(64, kTokens, 8);
  int64_t found = -1;
  const auto first = read(pool, "", ids_of("aaaabbbbcc"), &found);
  EXPECT_EQ(found, 0);
  EXPECT_EQ(pool.n_held(), 3);
  EXPECT_EQ(pool.n_shared(), 2);
  const auto second = read(pool, "", ids_of("aaaabbbbcccc"), &found);
  EXPECT_EQ(found, 2);
  EXPECT_EQ(second->at(1), first->at(1));
  EXPECT_NE(second->at(2), first->at(2));
  EXPECT_EQ(pool.n_held(), 4);
  const auto third = read(pool, "", ids_of("aaaaxxxx"), &found);
  EXPECT_EQ(found, 1);
  // Something is left to compute, whatever is there.
  const auto fourth = read(pool, "", ids_of("aaaabbbb"), &found);
  EXPECT_EQ(found, 1);
  EXPECT_EQ(fourth->at(1), first->at(1)) << "an equal page takes the place of one's own";
  EXPECT_EQ(pool.n_held(), 5);
  const auto other = read(pool, "salt", ids_of("aaaabb"), &found);
  EXPECT_EQ(found, 0) << "of somebody else";
  for (const auto& pages : {first, second, third, fourth, other}) release(pool, *pages);
  EXPECT_EQ(pool.n_held(), 0);
  EXPECT_EQ(pool.n_shared(), 5);
  pool.clear();
  EXPECT_EQ(pool.n_shared(), 0);
}

TEST(PagePool, EvictsWhatWasUsedLongestAgoAndNeverWhatIsHeld) {
  PagePool pool(64, kTokens, 4);
  release(pool, *read(pool, "", ids_of("aaaabbbb")));
  release(pool, *read(pool, "", ids_of("cccc")));
  release(pool, *read(pool, "", ids_of("aaaad")));  // the first page is used again
  const auto held = read(pool, "", ids_of("eeee"));
  EXPECT_EQ(pool.n_evicted(), 0);
  const auto more = read(pool, "", ids_of("ffffgggg"));
  ASSERT_TRUE(more);
  EXPECT_EQ(pool.n_evicted(), 2);
  int64_t found = -1;
  const auto again = read(pool, "", ids_of("aaaab"), &found);
  EXPECT_EQ(found, 1) << "bbbb and cccc went";
  EXPECT_FALSE(again);
  release(pool, *held);
  release(pool, *more);
  EXPECT_TRUE(read(pool, "", ids_of("aaaab")));
}

// Against a plain list of what was shared: what is found holds the right tokens, nothing held is lost, and pages are
// found as long as nothing had to be evicted.
TEST(PagePool, RandomUseKeepsItsPromises) {
  for (const int64_t n_pages : {6, 40}) {
    Rng rng(static_cast<uint64_t>(n_pages));
    PagePool pool(64, kTokens, n_pages);
    struct Sequence {
      std::string salt;
      std::vector<int32_t> ids;
      std::vector<PageId> pages;
    };
    std::vector<Sequence> sequences;
    for (int round = 0; round < 20000; ++round) {
      if (rng.below(3) > 0) {
        std::string text;
        for (uint64_t n = 1 + rng.below(18); n > 0; --n) text += text.size() < 9 ? 'a' : "ab"[rng.below(2)];
        if (rng.below(4) == 0) text[rng.below(text.size())] = 'c';
        const std::string salt = rng.below(5) == 0 ? "s" : "";
        if (auto pages = read(pool, salt, ids_of(text))) sequences.push_back({salt, ids_of(text), *pages});
      } else if (!sequences.empty()) {
        std::swap(sequences[rng.below(sequences.size())], sequences.back());
        release(pool, sequences.back().pages);
        sequences.pop_back();
      }
      std::map<PageId, int> held;
      for (const Sequence& sequence : sequences) {
        for (size_t i = 0; i < sequence.ids.size(); ++i) {
          const PageId page = sequence.pages[i / kTokens];
          const auto* ids = reinterpret_cast<const int32_t*>(pool.data(page));
          ASSERT_EQ(ids[i % kTokens], sequence.ids[i]) << round;
          held[page] = 1;
        }
      }
      ASSERT_EQ(pool.n_held(), std::ssize(held)) << round;
      // Whoever holds a page that is full finds it.
      if (!sequences.empty()) {
        const Sequence& sequence = sequences[rng.below(sequences.size())];
        const std::vector<PageId> found = pool.find(sequence.salt, sequence.ids);
        ASSERT_EQ(std::ssize(found), (std::ssize(sequence.ids) - 1) / kTokens) << round;
        ASSERT_TRUE(std::equal(found.begin(), found.end(), sequence.pages.begin())) << round;
        release(pool, found);
      }
      if (rng.below(2000) == 0) pool.clear();
    }
    for (const Sequence& sequence : sequences) release(pool, sequence.pages);
    EXPECT_EQ(pool.n_held(), 0);
    pool.clear();
    for (int64_t page = 0; page < n_pages; ++page) EXPECT_TRUE(pool.take());
    EXPECT_FALSE(pool.take());
  }
}

}  // namespace
}  // namespace fathom
