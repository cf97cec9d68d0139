#include "text/fim.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/utf8.h"
#include "refusal.h"
#include "text/tokenizer_fixture.h"

namespace fathom {
namespace {

class FillInTheMiddle : public testing::Test {
 protected:
  const Tokenizer tokenizer_ = Tokenizer::load(test::text_data() / "tiny");
  const int32_t begin_ = tokenizer_.id_of("<｜fim▁begin｜>"), hole_ = tokenizer_.id_of("<｜fim▁hole｜>"),
                end_ = tokenizer_.id_of("<｜fim▁end｜>");
};

TEST_F(FillInTheMiddle, PiecesAreThoseOfTheDocumentInTheOrderOfPsm) {
  const Fim fim(tokenizer_, 1, 3);
  const std::string text = "The wïnd 中文😀 é\n";
  std::set<size_t> prefixes, middles;
  for (int64_t document = 0; document < 2000; ++document) {
    const std::vector<int32_t> ids = fim.encode(tokenizer_, text, document);
    const auto hole = std::ranges::find(ids, hole_), end = std::ranges::find(ids, end_);
    ASSERT_TRUE(ids[0] == begin_ && hole < end && end != ids.end());
    const auto said = [&](auto from, auto to) {
      return tokenizer_.decode(std::vector<int32_t>(from, to), false, true);
    };
    const std::string prefix = said(ids.begin() + 1, hole), suffix = said(hole + 1, end),
                      middle = said(end + 1, ids.end());
    ASSERT_EQ(prefix + middle + suffix, text);
    for (const std::string& piece : {prefix, middle, suffix}) ASSERT_EQ(first_invalid_utf8(piece), kNoPosition);
    prefixes.insert(prefix.size());
    middles.insert(middle.size());
  }
  const auto characters = static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
  EXPECT_EQ(prefixes.size(), characters + 1) << "not every place is taken";
  EXPECT_TRUE(middles.contains(0) && middles.contains(text.size()));
  EXPECT_EQ(fim.encode(tokenizer_, "", 0), (std::vector<int32_t>{begin_, hole_, end_}));
}

TEST_F(FillInTheMiddle, AsManyDocumentsAsAskedForAndAlwaysTheSame) {
  constexpr int64_t kDocuments = 20'000;
  const std::string text = "The hollow window";
  const std::vector<int32_t> plain = tokenizer_.encode(text, false);
  for (const double rate : {0.0, 0.1, 0.5, 1.0}) {
    const Fim fim(tokenizer_, rate, 1), again(tokenizer_, rate, 1), other(tokenizer_, rate, 2);
    int64_t filled = 0, differ = 0;
    for (int64_t document = 0; document < kDocuments; ++document) {
      const auto ids = fim.encode(tokenizer_, text, document);
      ASSERT_EQ(ids, again.encode(tokenizer_, text, document));
      differ += ids != other.encode(tokenizer_, text, document);
      filled += ids[0] == begin_;
      ASSERT_TRUE(ids[0] == begin_ || ids == plain);
    }
    const double deviation = std::sqrt(kDocuments * rate * (1 - rate));
    EXPECT_NEAR(static_cast<double>(filled), kDocuments * rate, 4 * deviation + 1e-9);
    EXPECT_EQ(differ > 0, rate > 0);
  }
}

TEST_F(FillInTheMiddle, ATokenizerWithoutTheTokensIsRefused) {
  const Tokenizer bytes = Tokenizer::bytes();
  EXPECT_NO_THROW(Fim(bytes, 0, 1));
  EXPECT_THROW(Fim(bytes, 0.1, 1), UsageError);
  EXPECT_THAT(refusal([&] { Fim(bytes, 0.1, 1); }),
              testing::HasSubstr("--fim-rate 0.1: the tokenizer has no token <｜fim▁begin｜>"));
  EXPECT_NO_THROW(Fim(test::released_tokenizer("deepseek-v3"), 0.1, 1));
}

}  // namespace
}  // namespace fathom
