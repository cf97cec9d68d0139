#include "plan/expression.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "refusal.h"

namespace fathom::plan {
namespace {

double value_of(const char* text, const Values& values = {}) { return Expression(text).evaluate(values); }

TEST(Expression, OperatorsBindAsInJavaScript) {
  EXPECT_EQ(value_of("1 + 2 * 3"), 7);
  EXPECT_EQ(value_of("8 / 4 / 2"), 1);
  EXPECT_EQ(value_of("10 - 4 - 3"), 3);
  EXPECT_EQ(value_of("-2 * 3"), -6);
  EXPECT_EQ(value_of("2 - -3"), 5);
  EXPECT_EQ(value_of("1 < 2 == 2 > 1"), 1);
  EXPECT_EQ(value_of("1 || 0 && 0"), 1);
  EXPECT_EQ(value_of("!0 + 1"), 2);
  EXPECT_EQ(value_of("0 ? 1 : 0 ? 2 : 3"), 3);
  EXPECT_EQ(value_of("1 ? 0 ? 4 : 5 : 6"), 5);
  EXPECT_EQ(value_of("(1 + 2) * 3"), 9);
  EXPECT_EQ(value_of("3 <= 3 && 3 >= 4"), 0);
  EXPECT_EQ(value_of("2 && 5"), 5);  // the second one's value, as there
  EXPECT_EQ(value_of("0 || 7"), 7);
}

TEST(Expression, FunctionsAreThoseOfMath) {
  EXPECT_EQ(value_of("min(3, 2, 5) + max(1, 4)"), 6);
  EXPECT_EQ(value_of("ceil(1.2) + floor(1.8) + round(2.5) + round(-2.5)"), 2 + 1 + 3 - 2);
  EXPECT_EQ(value_of("sqrt(9) + pow(2, 10)"), 1027);
  EXPECT_NEAR(value_of("log(exp(2))"), 2, 1e-12);
}

TEST(Expression, LeastPartsAreTheFewestThatHoldAll) {
  for (const double room : {1.0, 9.0, 10.0, 12.0, 17.0, 40.0, 1000.0}) {
    for (const double things : {0.0, 1.0, 7.0, 64.0}) {
      for (const double others : {0.0, 1.0, 16.0, 200.0}) {
        double want = 0;
        for (double n = std::max({1.0, things, others}); n >= 1; --n) {
          if (std::ceil(things / n) * 7 + std::ceil(others / n) * 3 <= room) want = n;
        }
        const Values values = {{"things", things}, {"others", others}, {"room", room}};
        EXPECT_EQ(value_of("least_parts(things, 7, others, 3, room)", values), want)
            << things << " " << others << " " << room;
      }
    }
  }
  EXPECT_EQ(value_of("least_parts(1 / 0, 1, 1, 1, 1)"), 0);
  EXPECT_NE(refusal([] { (void)Expression("least_parts(1, 2, 3, 4)"); }).find("five numbers"), std::string::npos);
  EXPECT_EQ(value_of("least_parts(2, 0 / 0, 1, 1, 9)"), 0);
}

TEST(Expression, ADivisionByZeroIsInfinite) { EXPECT_TRUE(std::isinf(value_of("1 / 0"))); }

TEST(Expression, WhatIsNotChosenIsNotEvaluated) {
  EXPECT_EQ(value_of("a > 0 ? 1 : missing", {{"a", 1}}), 1);
  EXPECT_EQ(value_of("0 && missing"), 0);
}

TEST(Expression, NamesAreFoundAndReplacedByNumbers) {
  const Expression e("layers * (rank + 64) * layers / 2e3");
  EXPECT_EQ(e.names(), (std::vector<std::string>{"layers", "rank"}));
  const auto show = [](double x) { return std::to_string(static_cast<int>(x)); };
  EXPECT_EQ(e.with_numbers({{"layers", 61}, {"rank", 512}}, show), "61 * (512 + 64) * 61 / 2e3");
  EXPECT_TRUE(refusal([&] { (void)e.evaluate({{"layers", 1}}); }).find("rank has no value") != std::string::npos);
}

TEST(Expression, WhatIsNoFormulaIsRefusedWithItsPlace) {
  for (const char* text : {"",      " ",      "1 +",           "* 2",    "(1",      "1)",     "1 2",
                           "a b",   "min(1)", "pow(1, 2, 3)",  "sqrt()", "sqrt 4",  "1 ? 2",  "1..2",
                           "1.",    ".5",     "012",           "1e",     "1e999",   "0x10",   "1n",
                           "A",     "a.b",    "a[0]",          "a = 1",  "a === b", "--a",    "a--b",
                           "1 ++2", "2 ** 3", "a // b",        "a /* b", "a?.b",    "a ?? b", "new",
                           "this",  "eval",   "constructor()", "\"a\"",  "a; b",    "a, b",   "a & b",
                           "a | b", "~a",     "a % b",         "\xff",   "1\t2"}) {
    EXPECT_NE(refusal([&] { (void)Expression(text); }).find("character "), std::string::npos) << text;
  }
}

TEST(Expression, DepthAndLengthAreBounded) {
  const auto nested = [](size_t n) { return std::string(n, '(') + "1" + std::string(n, ')'); };
  EXPECT_EQ(Expression(nested(40)).evaluate({}), 1);
  for (const std::string& text :
       {nested(1000), std::string(1000, '!') + "1", "1" + std::string(5000, ' '), std::string(800, '-') + "1"}) {
    EXPECT_NE(refusal([&] { (void)Expression(text); }), "(accepted)");
  }
  std::string chain = "1", choices = "1";
  for (int i = 0; i < 1000; ++i) chain += "+1";
  for (int i = 0; i < 500; ++i) choices += "?1:1";
  EXPECT_EQ(Expression(chain).evaluate({}), 1001);
  EXPECT_NE(refusal([&] { (void)Expression(choices); }).find("deeply"), std::string::npos);
}

TEST(Expression, NamesAreThoseOfJavaScriptsVariables) {
  EXPECT_TRUE(is_formula_name("layer_2_bytes"));
  for (const char* name : {"", "2a", "A", "if", "arguments", "min", "a-b", "a b"})
    EXPECT_FALSE(is_formula_name(name)) << name;
}

}  // namespace
}  // namespace fathom::plan
