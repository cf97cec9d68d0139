#include "eval/answers.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace fathom::eval {
namespace {

struct Pair {
  std::string_view given, expected;
};

void expect_all(bool same, const std::vector<Pair>& pairs, bool both_ways = true) {
  for (const Pair& pair : pairs) {
    EXPECT_EQ(same_answer(pair.given, pair.expected), same) << pair.given << " for " << pair.expected;
    if (both_ways) {
      EXPECT_EQ(same_answer(pair.expected, pair.given), same) << pair.expected << " for " << pair.given;
    }
  }
}

TEST(Answers, NumbersAreTheSameHoweverTheyAreWritten) {
  expect_all(true, {
                       {"5", "5.0"},
                       {"5.", "5"},
                       {"05", "5"},
                       {"+5", "5"},
                       {"-5", "−5"},
                       {".5", "0.5"},
                       {"1/2", "0.5"},
                       {"\\frac12", "1/2"},
                       {"\\dfrac{1}{2}", "\\frac{1}{2}"},
                       {"\\tfrac{3}{6}", "\\cfrac{1}{2}"},
                       {"\\frac 34", "0.75"},
                       {"\\frac1{72}", "1/72"},
                       {"\\frac{625}4", "156.25"},
                       {"½", "0.5"},
                       {"-\\frac{1}{2}", "\\frac{-1}{2}"},
                       {"-\\frac{1}{2}", "\\frac{1}{-2}"},
                       {"1\\frac{1}{4}", "5/4"},
                       {"11 \\frac{2}{3}", "\\frac{35}{3}"},
                       {"-1\\frac{3}{4}", "-1.75"},
                       {"1 1/2", "3/2"},
                       {"10,080", "10080"},
                       {"10,\\!080", "10080"},
                       {"10{,}080", "10,080"},
                       {"10\\,080", "10080"},
                       {"11,\\! 111,\\! 111,\\! 100", "11111111100"},
                       {"1,234,567.25", "1234567.25"},
                       {"\\frac{12}{5,\\!525}", "12/5525"},
                       {"1.5e3", "1500"},
                       {"1.5\\times 10^{3}", "1500"},
                       {"6.02 \\cdot 10^{23}", "6.02e23"},
                       {"6.72 \\times 10^{-5}", ".0000672"},
                       {"2E-3", "0.002"},
                       {"2^{10}", "1024"},
                       {"2^10", "1024"},
                       {"2**10", "1024"},
                       {"5!", "120"},
                       {"\\binom{5}{2}", "10"},
                       {"\\dbinom52", "10"},
                       {"0.\\overline{3}", "\\frac13"},
                       {"0.1\\overline{6}", "1/6"},
                       {"0.\\overline{142857}", "1/7"},
                       {"0.333333", "1/3"},
                       {"0.66666667", "2/3"},
                       {"1.41421356", "\\sqrt{2}"},
                       {"25\\%", "0.25"},
                       {"25\\%", "25"},
                       {"25%", "\\frac14"},
                       {"25 percent", "25\\%"},
                       {"2^{2005}", "2 \\cdot 2^{2004}"},
                       {"\\frac{1}{2004!}", "\\frac{2005}{2005!}"},
                       {"|-3|", "3"},
                       {"\\left|2-5\\right|", "3"},
                       {"\\lfloor 3.7 \\rfloor", "3"},
                       {"\\lceil \\pi \\rceil", "4"},
                       {"3(4+1)", "15"},
                       {"2\\cdot 3", "6"},
                       {"12 \\div 4", "3"},
                       {"$5$", "5"},
                       {"\\(5\\)", "5"},
                       {"\\boxed{5}", "5"},
                       {"**5**", "5"},
                       {" 5 ", "5"},
                       {"５", "５"},
                       {"5,", "5"},
                       {"12345678901234567890123456789012345678901234567890",
                        "12345678901234567890123456789012345678901234567890.0"},
                   });
}

TEST(Answers, DifferentNumbersAreDifferent) {
  expect_all(false, {
                        {"5", "6"},
                        {"5", "-5"},
                        {"5", "50"},
                        {"5", "5.1"},
                        {"0.33", "1/3"},
                        {"0.3333", "1/3"},
                        {"0.333334", "1/3"},
                        {"3.14", "\\pi"},
                        {"3.1416", "\\pi"},
                        {"22/7", "\\pi"},
                        {"0.67", "2/3"},
                        {"1.414", "\\sqrt2"},
                        {"0.1", "0.11"},
                        {"0.000001", "0.000002"},
                        {"0.0000001", "0"},
                        {"0.00000012", "0.00000013"},
                        {"1e-7", "2e-7"},
                        {"1/3", "1/4"},
                        {"2/3", "3/2"},
                        {"1\\frac{1}{4}", "1/4"},
                        {"1\\frac{1}{4}", "11/4"},
                        {"1\\frac{11}{10}", "1\\frac{1}{10}"},
                        {"10,080", "10,081"},
                        {"10,080", "1080"},
                        {"1,234", "1.234"},
                        {"12", "1 2"},
                        {"2^{2005}", "2^{2005}+1"},
                        {"2^{2005}", "2^{2004}"},
                        {"10^{100}", "10^{100}+1"},
                        {"10^{-60}", "0"},
                        {"e^{-200.5}", "e^{-201.5}"},
                        {"e^{\\pi\\sqrt{163}}", "262537412640768744"},
                        {"12345678901234567890123456789012345678901234567890",
                         "12345678901234567890123456789012345678901234567891"},
                        {"25\\%", "2.5"},
                        {"25\\%", "2500"},
                        {"25\\%", "26\\%"},
                        {"25\\%", "0.25\\%"},
                        {"5!", "5"},
                        {"\\binom{5}{2}", "\\binom{5}{1}"},
                        {"\\binom{5}{2}", "5/2"},
                        {"0.\\overline{3}", "0.3"},
                        {"0.\\overline{9}", "0.9"},
                        {"2^10", "20"},
                        {"1.5e3", "1.5"},
                        {"\\frac{1}{0}", "0"},
                        {"1/0", "2/0"},
                        {"\\sqrt{4}", "-2"},
                        {"", "5"},
                        {"", ""},
                        {" ", " "},
                    });
}

TEST(Answers, UnitsMayBeLeftOutButNotExchanged) {
  expect_all(true, {
                       {"45", "45^\\circ"},
                       {"45°", "45^{\\circ}"},
                       {"45 degrees", "45^\\circ"},
                       {"\\frac{270}7\\text{ degrees}", "\\frac{270}{7}"},
                       {"5", "5\\text{ cm}"},
                       {"5 cm", "5\\text{ centimeters}"},
                       {"5 m", "5"},
                       {"15\\mbox{ cm}^2", "15"},
                       {"15 cm^2", "15 \\text{ square centimeters}"},
                       {"144 \\mbox{ m}^3", "144\\text{ cubic meters}"},
                       {"$\\$4.50$", "4.50"},
                       {"\\$4.50", "4.5 dollars"},
                       {"\\$32,\\!348", "32348"},
                       {"50 cents", "\\$0.50"},
                       {"60\\text{ minutes}", "1 hour"},
                       {"100 cm", "1 m"},
                       {"1 km^2", "1000000\\text{ m}^2"},
                       {"12 inches", "1 foot"},
                       {"60 mph", "60 miles per hour"},
                       {"10\\text{ m/s}", "36\\text{ km/h}"},
                       {"18 integers", "18"},
                       {"18\\text{ ways.}", "18"},
                       {"8\\sqrt{3} \\text { square inches}", "8\\sqrt3"},
                       {"99\\pi \\text{ square inches}", "99\\pi"},
                       {"\\text{5 apples}", "5"},
                       {"5\\text{ inches}", "5\\,\\text{in}"},
                       {"\\frac{3}{4}\\pi\\text{ inches}", "\\frac{3\\pi}{4}"},
                       {"18美元", "18"},
                       {"x = 5\\text{ cm}", "5"},
                       {"120\\text{ square units}", "120"},
                   });
  expect_all(false, {
                        {"5 cm", "5 m"},
                        {"5 cm", "5 kg"},
                        {"5 cm", "5 cm^2"},
                        {"5\\text{ units}", "5\\text{ square units}"},
                        {"5 cm", "6 cm"},
                        {"50 cents", "\\$50"},
                        {"60 minutes", "1 minute"},
                        {"60 mph", "60 km"},
                        {"45^\\circ", "46^\\circ"},
                        {"45^\\circ", "\\frac{\\pi}{4}"},
                        {"25\\text{ km}", "25\\%"},
                        {"5x", "5"},
                        {"5m", "5"},
                        {"\\$5", "\\$6"},
                        {"2 hours", "2 seconds"},
                    });
}

TEST(Answers, ExpressionsAreEqualWhereTheirValuesAre) {
  expect_all(true, {
                       {"\\sqrt{12}", "2\\sqrt{3}"},
                       {"\\sqrt3", "\\sqrt{3}"},
                       {"√3", "sqrt(3)"},
                       {"\\frac{1}{\\sqrt{3}}", "\\frac{\\sqrt{3}}{3}"},
                       {"\\frac{\\sqrt6}3", "\\sqrt{2/3}"},
                       {"\\sqrt{2}\\sqrt{3}", "\\sqrt{6}"},
                       {"\\sqrt{3+2\\sqrt2}", "1+\\sqrt2"},
                       {"\\sqrt[3]{54}", "3\\sqrt[3]{2}"},
                       {"\\sqrt[3]{-8}", "-2"},
                       {"2^{1/2}", "\\sqrt2"},
                       {"8^{2/3}", "4"},
                       {"\\sqrt[4]{4}", "\\sqrt{2}"},
                       {"\\frac{1+\\sqrt5}{2}", "\\frac12+\\frac{\\sqrt5}2"},
                       {"(1+\\sqrt2)^2", "3+2\\sqrt2"},
                       {"\\sqrt{-4}", "2i"},
                       {"\\sqrt{3^2+4^2}", "5"},
                       {"2\\pi", "\\pi\\cdot2"},
                       {"\\frac{2\\pi}{3}", "\\frac{2}{3}\\pi"},
                       {"6π+2", "2+6\\pi"},
                       {"e^2", "e \\cdot e"},
                       {"\\sin 30^\\circ", "\\frac12"},
                       {"\\cos\\frac{\\pi}{3}", "0.5"},
                       {"\\sin(\\pi/4)", "\\frac{\\sqrt{2}}{2}"},
                       {"\\tan 45^\\circ", "1"},
                       {"\\cos 58^\\circ", "\\sin 32^\\circ"},
                       {"2\\cos 15^{\\circ}", "\\frac{\\sqrt{2}+\\sqrt{6}}{2}"},
                       {"\\sin^2 x", "1-\\cos^2 x"},
                       {"\\sin 3x", "3\\sin x - 4\\sin^3 x"},
                       {"2 \\tan x", "\\frac{2\\sin x}{\\cos x}"},
                       {"\\sec x", "1/\\cos x"},
                       {"\\arctan 1", "\\frac{\\pi}{4}"},
                       {"\\sin^{-1}\\frac12", "\\frac\\pi6"},
                       {"\\log_2 8", "3"},
                       {"\\log_{10} 1000", "3"},
                       {"\\ln e^2", "2"},
                       {"\\ln 8", "3\\ln 2"},
                       {"\\log_3 2", "\\frac{\\ln 2}{\\ln 3}"},
                       {"3+4i", "4i+3"},
                       {"(1+i)^2", "2i"},
                       {"\\frac{i}{5}", "0.2i"},
                       {"i^2", "-1"},
                       {"e^{i\\pi}", "-1"},
                       {"\\frac{1}{1+i}", "\\frac{1-i}{2}"},
                       {"x^2+2x+1", "(x+1)^2"},
                       {"(x-5)(x^2-4x+7)", "x^3-9x^2+27x-35"},
                       {"x^2-1", "(x-1)(x+1)"},
                       {"7(x+3)(x-3)", "7x^2-63"},
                       {"-34+12x", "12x-34"},
                       {"\\frac{x+2}{7}", "\\frac{x}{7}+\\frac27"},
                       {"\\frac{1}{y}+y", "\\frac{1+y^2}{y}"},
                       {"\\frac{1}{2-x}", "-\\frac1{x-2}"},
                       {"x^2y", "yx^2"},
                       {"3 s^{2}", "3s^2"},
                       {"5 m + 1", "1+5m"},
                       {"5 m", "5m"},
                       {"2x*3", "6x"},
                       {"36x \\sqrt{35x}", "36\\sqrt{35}x\\sqrt{x}"},
                       {"x_1+x_2", "x_{2}+x_{1}"},
                       {"\\alpha+\\beta", "β+α"},
                       {"x^{-1}", "\\frac1x"},
                       {"2^{n+1}", "2\\cdot2^n"},
                       {"3 - 2f(x)", "-2f(x)+3"},
                       {"n!", "n!"},
                       {"7z^{96}(4z+1)", "28z^{97}+7z^{96}"},
                       {"\\frac{\\pi^2}{6}", "\\pi^2/6"},
                       {"\\mathrm{e}^{2}", "e^2"},
                       {"\\left(\\frac{3}{2}\\right)^2", "\\frac94"},
                   });
  expect_all(false, {
                        {"\\sqrt{12}", "3\\sqrt{2}"},
                        {"\\sqrt3", "\\sqrt2"},
                        {"\\sqrt3", "-\\sqrt3"},
                        {"\\sqrt{3}", "3"},
                        {"\\sqrt[3]{2}", "\\sqrt2"},
                        {"1+\\sqrt2", "1-\\sqrt2"},
                        {"\\sqrt2+\\sqrt3", "\\sqrt5"},
                        {"\\sqrt{x^2}", "x"},
                        {"2\\pi", "2"},
                        {"2\\pi", "3\\pi"},
                        {"\\pi^2", "2\\pi"},
                        {"e", "2.718"},
                        {"3+4i", "3-4i"},
                        {"3+4i", "4+3i"},
                        {"5i", "5"},
                        {"x+1", "x-1"},
                        {"x+1", "y+1"},
                        {"x", "X"},
                        {"x^2", "x^3"},
                        {"x^2", "2x"},
                        {"(x+1)^2", "x^2+1"},
                        {"\\frac{x}{2}", "\\frac{2}{x}"},
                        {"x^2y", "xy^2"},
                        {"x_1", "x_2"},
                        {"\\sin x", "\\cos x"},
                        {"\\sin x", "x"},
                        {"\\sin 30", "\\frac12"},
                        {"\\cos 58^\\circ", "\\cos 57^\\circ"},
                        {"\\log_2 8", "\\log_3 8"},
                        {"\\ln 2", "\\log_{10} 2"},
                        {"\\sin 3x", "3\\sin x"},
                        {"2^{n+1}", "2^n"},
                        {"x^2+2x+1", "x^2+2x+2"},
                        {"6x^{20}+1", "6x^{20}"},
                        {"10^{40}x+1", "10^{40}x+2"},
                        {"2^{1/2}", "2^{1/3}"},
                        {"a+b", "ab"},
                        {"\\frac{a}{b}", "\\frac{b}{a}"},
                        {"-x", "x"},
                        {"|x|", "x"},
                    });
}

TEST(Answers, EquationsAndInequalities) {
  expect_all(true, {
                       {"x = 5", "5"},
                       {"5", "x=5"},
                       {"y = 2x + 3", "2x+3"},
                       {"y = 2x+3", "y=3+2x"},
                       {"2x + 3 = y", "y=2x+3"},
                       {"y - 2x = 3", "y = 2x + 3"},
                       {"f(x) = x^2", "x^2"},
                       {"2x + 4y = 6", "x + 2y = 3"},
                       {"x - 3z = 0", "3z - x = 0"},
                       {"10x - 4y - 5z - 20 = 0", "4y+5z=10x-20"},
                       {"\\frac{x^2}{16} - \\frac{y^2}{9} = 1", "9x^2 - 16y^2 = 144"},
                       {"x^2 + y^2 = 13", "y^2 = 13 - x^2"},
                       {"2+3=5", "5"},
                       {"A = B = 5", "5"},
                       {"x = \\frac{6}{4} = \\frac32", "\\frac32"},
                       {"x = \\frac13 \\approx 0.33", "\\frac13"},
                       {"\\text{Area} = 12", "12"},
                       {"x > 3", "3 < x"},
                       {"x > 3", "(3, \\infty)"},
                       {"x \\ge 3", "[3,\\infty)"},
                       {"x >= 3", "x \\geq 3"},
                       {"-2 \\le x \\le 7", "x \\in [-2,7]"},
                       {"x \\in [-2,7]", "[-2,7]"},
                       {"2 < x < 5", "5 > x > 2"},
                       {"2x > 6", "x > 3"},
                       {"-x < -3", "x > 3"},
                       {"x < -1 \\text{ or } x > 2", "(-\\infty,-1)\\cup(2,\\infty)"},
                       {"x \\ne 3", "(-\\infty,3)\\cup(3,\\infty)"},
                       {"f(2) < f(1) < f(4)", "f(4) > f(1) > f(2)"},
                       {"x + y > 3", "3 < y + x"},
                       {"a^2+b^2=c^2", "c^2=a^2+b^2"},
                   });
  expect_all(false, {
                        {"x = 5", "6"},
                        {"7 = 5", "5"},
                        {"x = 7 = 5", "5"},
                        {"5 = 7", "5"},
                        {"x = 5", "y = 5"},
                        {"x = 5", "x = -5"},
                        {"y = 2x+3", "y = 2x-3"},
                        {"y = 2x+3", "y = 3x+2"},
                        {"y = 2x + 3", "x = 2y + 3"},
                        {"2x + 4y = 6", "x + 2y = 4"},
                        {"x^2+y^2=13", "x^2+y^2=14"},
                        {"x > 3", "x < 3"},
                        {"x > 3", "x \\ge 3"},
                        {"x > 3", "x = 3"},
                        {"x > 3", "3"},
                        {"x > 3", "y > 3"},
                        {"x > 3", "[3,\\infty)"},
                        {"-2 \\le x \\le 7", "-2 \\le x < 7"},
                        {"f(2) < f(1) < f(4)", "f(1) < f(2) < f(4)"},
                        {"x \\ne 3", "3"},
                        {"x \\ne 3", "x = 3"},
                        {"x + y > 3", "x + y < 3"},
                        {"-x < -3", "x < 3"},
                        {"0 = 0", "1 = 1"},
                        {"x = 5", "x"},
                    });
}

TEST(Answers, IntervalsSetsAndTuples) {
  expect_all(true,
             {
                 {"(1,2)", "\\left( 1, 2 \\right)"},
                 {"(1, 2)", "( 1 , \\frac{4}{2} )"},
                 {"(0.5, 3)", "\\left(\\frac12, 3\\right)"},
                 {"[0,1)", "\\left[0, 1\\right)"},
                 {"[0,\\infty)", "[0,+\\infty)"},
                 {"(-\\infty, 2)", "(-∞, 2)"},
                 {"(-inf, 2)", "(-\\infty,2)"},
                 {"(-\\infty,-2] \\cup [2,\\infty)", "[2,\\infty) \\cup (-\\infty,-2]"},
                 {"(1,3) U (5,7)", "(5,7)\\cup(1,3)"},
                 {"[1,2] \\cup [2,3]", "[1,3]"},
                 {"\\{-1\\} \\cup [0,7)", "[0,7)\\cup\\{-1\\}"},
                 {"\\mathbb{R} \\setminus \\{3\\}", "(-\\infty,3)\\cup(3,\\infty)"},
                 {"\\mathbb{R}", "(-\\infty,\\infty)"},
                 {"\\{1,2,3\\}", "\\{3,2,1\\}"},
                 {"\\{1,2\\}", "1, 2"},
                 {"{1, 2}", "\\{2,1\\}"},
                 {"\\{1,1,2\\}", "\\{1,2\\}"},
                 {"1,2", "2, 1"},
                 {"1 and 2", "2,1"},
                 {"12\\text{ and }13", "12, 13"},
                 {"7, -2, \\text{ and } -5", "-5,-2,7"},
                 {"x = 1 \\text{ or } x = 2", "1,2"},
                 {"x = 1, 2", "2, 1"},
                 {"x=1,y=2", "(1,2)"},
                 {"1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}"},
                 {"x = \\pm 2", "-2, 2"},
                 {"\\{1\\pm\\sqrt{5},-2\\}", "\\{-2, 1-\\sqrt5, 1+\\sqrt5\\}"},
                 {"3 \\pm 2 \\sqrt{2}", "3 \\mp \\sqrt{8}"},
                 {"\\{5\\}", "5"},
                 {"(1,2,3)", "\\langle 1, 2, 3 \\rangle"},
                 {
                     "1,2,3",
                     "(1,2,3)",
                 },
                 {"(1,2),(3,4)", "(3,4),(1,2)"},
                 {"\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"},
                 {"\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "[[1,2],[3,4]]"},
                 {"\\begin{pmatrix} 1/2 \\\\ 0.25 \\end{pmatrix}", "\\begin{pmatrix} 0.5 \\\\ \\frac14 \\end{pmatrix}"},
                 {"\\frac15\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1/5 \\\\ 2/5 \\end{pmatrix}"},
                 {"\\begin{pmatrix} 1 \\\\ 2 \\\\ 3 \\end{pmatrix}", "(1,2,3)"},
                 {"1:2", "1 : 2"},
                 {"1:2", "\\frac{1}{2}"},
                 {"\\$-81", "-81"},
                 {"\\emptyset", "\\varnothing"},
                 {"100,200", "100200"},
                 {"45^\\circ, 135^\\circ", "135, 45"},
                 {"\\{x \\mid x > 3\\}", "(3,\\infty)"},
                 {"(0,9) \\cup (9,36)", "(0,36) \\setminus \\{9\\}"},
             },
             /*both_ways=*/false);
  expect_all(
      false,
      {
          {"(1,2)", "(2,1)"},
          {"(1,2)", "[1,2]"},
          {"(1,2]", "(1,2)"},
          {"[1,2)", "(1,2]"},
          {"(1, -2]", "(1,-2)"},
          {"(1,2)", "(1,2,3)"},
          {"(1,2)", "1,2"},
          {"(1,2)", "3"},
          {"(1,2)", "12"},
          {"[0,\\infty)", "(0,\\infty)"},
          {"(-\\infty, 0]", "(-\\infty, 0)"},
          {"(-\\infty,2)", "(2,\\infty)"},
          {"(-\\infty,-2] \\cup [2,\\infty)", "(-\\infty,-2) \\cup [2,\\infty)"},
          {"[1,2] \\cup [4,5]", "[1,5]"},
          {"(1,2) \\cup (2,3)", "(1,3)"},
          {"\\{1,2,3\\}", "\\{1,2\\}"},
          {"\\{1,2\\}", "(1,2)"},
          {"1,2", "1,2,3"},
          {"1,2", "1"},
          {"1,1,2", "1,2,2"},
          {"1,2", "12"},
          {"1 \\pm \\sqrt{19}", "1+\\sqrt{19}"},
          {"\\pm 2", "2"},
          {"\\mathbb{R} \\setminus \\{3\\}", "\\mathbb{R}"},
          {"\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}"},
          {"\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\end{pmatrix}"},
          {"\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{pmatrix} 1 & 3 \\\\ 2 & 4 \\end{pmatrix}"},
          {"\\begin{vmatrix} 1 & 2 \\\\ 3 & 4 \\end{vmatrix}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}"},
          {"1:2", "2:1"},
          {"1:2", "2/1"},
          {"1:2", "0.5"},
          {"1:2", "12"},
          {"10:30", "10:31"},
          {"10:30", "1:3"},
          {"x=1,y=2", "(2,1)"},
          {"x = 1 \\text{ or } x = 2", "x = 1"},
          {"100,200", "200,100"},
          {"(1,2),(3,4)", "(1,4),(3,2)"},
          {"\\infty", "-\\infty"},
          {"\\infty", "5"},
          {"\\emptyset", "0"},
          {"(3,\\infty)", "3,\\infty"},
      });
}

TEST(Answers, BasesTimesWordsAndLetters) {
  expect_all(true,
             {
                 {"1010_2", "1010_{2}"},
                 {"152A_{11}", "152A_{11}"},
                 {"1010", "1010_2"},
                 {"5_{10}", "5"},
                 {"-221_3", "-221_{3}"},
                 {"0.0011_{2}", "0.0011_2"},
                 {"4:30 PM", "\\text{4:30 p.m.}"},
                 {"9 a.m.", "9:00 AM"},
                 {"09:05am", "9:05 a.m."},
                 {"Monday", "\\text{Monday}"},
                 {"monday", "Monday"},
                 {"\\mbox{Saturday}", "Saturday."},
                 {"\\text{June 20}", "june 20"},
                 {"Yes", "yes."},
                 {"\\text{even}", "even"},
                 {"no solution", "\\text{No solution}"},
                 {"B", "\\text{(B)}"},
                 {"(B)", "\\text{B}"},
                 {"B.", "(B)"},
                 {"\\textbf{(B)}", "B"},
                 {"\\textbf{(B) } 12", "B"},
                 {"B) Paris", "(B)"},
                 {"\\text{A,C,F}", "F, C, A"},
                 {"\\overline{CD}", "\\overline{DC}"},
                 {"\\text{ACF}", "ACF"},
                 {"\\text{13}", "13"},
             },
             /*both_ways=*/false);
  expect_all(false,
             {
                 {"1010_2", "1010_3"},
                 {"10", "1010_2"},
                 {"10_{10}", "1010_2"},
                 {"1010_2", "10"},
                 {"1010_2", "1011_2"},
                 {"4:30 AM", "4:30 PM"},
                 {"4:30", "4:31"},
                 {"9 a.m.", "9:01 a.m."},
                 {"Monday", "Tuesday"},
                 {"\\text{even}", "\\text{odd}"},
                 {"yes", "no"},
                 {"east", "seat"},
                 {"on", "no"},
                 {"\\text{June 20}", "\\text{June 21}"},
                 {"June 20", "20"},
                 {"A", "B"},
                 {"(A)", "(B)"},
                 {"A", "A, B"},
                 {"(A) and (B)", "A"},
                 {"\\text{A,D}", "\\text{A}"},
                 {"\\textbf{(B) } 12", "A"},
                 {"\\text{A,C,F}", "A,C"},
                 {"Dana", "Devon"},
                 {"five", "four"},
                 {"not even", "even"},
                 {"no solution", "solution"},
                 {"circle", "5"},
             },
             /*both_ways=*/false);
}

TEST(Answers, ARoundedNumberIsRightOnlyWhereOneIsExpected) {
  EXPECT_TRUE(same_answer("\\sqrt2", "x \\approx 1.41"));
  EXPECT_TRUE(same_answer("1.414", "x \\approx 1.41"));
  EXPECT_FALSE(same_answer("1.42", "x \\approx 1.41"));
  EXPECT_FALSE(same_answer("x \\approx 1.41", "\\sqrt2"));
}

TEST(Answers, HostileTextTakesNoTime) {
  const std::vector<std::string> texts = {
      "9^9^9",
      "9^{9^{9^{9^{9}}}}",
      "(9^9^9)!",
      "99999999999!",
      "100000!",
      "100000!/99999!",
      "\\binom{10^{18}}{10^{17}}",
      "10^{999999999999}",
      "2^{2^{100}}",
      "0^0",
      "0^{-1}",
      "\\sqrt[0]{2}",
      "\\sqrt[10^{30}]{2}",
      "\\sin 10^{500}",
      "e^{e^{e^{e^{e}}}}",
      "\\ln 0",
      "\\arcsin 2",
      "1/(1-1)",
      std::string(9000, '('),
      std::string(9000, '{'),
      std::string(9000, '['),
      std::string(9000, '-'),
      std::string(9000, '!'),
      std::string(9000, '|'),
      std::string(9000, '9'),
      std::string(9000, '^'),
      std::string(9000, 'x'),
      std::string(9000, ','),
      std::string(20'000, '1'),
      std::string("a\0b", 3),
      "\\",
      "\\frac",
      "\\frac{1}",
      "\\sqrt",
      "\\boxed{",
      "\\text{",
      "\\begin{pmatrix}",
      "\\begin{pmatrix} 1 & 2 \\\\ 3 \\end{pmatrix}",
      "\\left(",
      "}{",
      "\xff\xfe",
      "\xe2\x88",
      "1e999999",
      "1e9999999999",
  };
  for (const std::string& text : texts) {
    EXPECT_TRUE(same_answer(text, text)) << text.substr(0, 50);
    EXPECT_FALSE(same_answer(text, "17")) << text.substr(0, 50);
    EXPECT_FALSE(same_answer("x+17", text)) << text.substr(0, 50);
    EXPECT_FALSE(same_answer(text + "+1", text)) << text.substr(0, 50);
    final_answer(text);
  }
  std::string list = "1", tower = "2", roots = "2", sum = "x";
  for (int i = 2; i < 1500; ++i) list += "," + std::to_string(i);
  for (int i = 0; i < 500; ++i) tower += "^{2";
  for (int i = 0; i < 500; ++i) roots = i < 50 ? "\\sqrt{1+" + roots + "}" : roots;
  for (int i = 0; i < 1000; ++i) sum += "+\\sin x^{0.5}";
  EXPECT_FALSE(same_answer(list, list + ",7"));
  EXPECT_FALSE(same_answer(tower, tower + "}"));
  EXPECT_FALSE(same_answer(sum, sum + "+1"));
  EXPECT_FALSE(same_answer(roots, roots + "+1"));
}

TEST(Answers, TheFinalAnswerIsTheLastBox) {
  EXPECT_EQ(final_answer("So $x = \\boxed{5}$."), "5");
  EXPECT_EQ(final_answer("\\boxed{1} then \\boxed{ \\frac{1}{2} }"), "\\frac{1}{2}");
  EXPECT_EQ(final_answer("\\fbox{7}"), "7");
  EXPECT_EQ(final_answer("$\\boxed 9$ is it"), "9");
  EXPECT_EQ(final_answer("\\boxed{\\{1,2\\}}"), "\\{1,2\\}");
  EXPECT_EQ(final_answer("\\boxed{3} and \\boxed{4"), "3");
  EXPECT_EQ(final_answer("\\boxed{3} in \\boxed{}"), "3");
  EXPECT_EQ(final_answer("\\boxed{\\boxed{3}}"), "3");
  EXPECT_EQ(final_answer("The answer is 4. \\boxed{5}"), "5");
}

TEST(Answers, WithoutABoxTheSentenceThenTheLastNumberCounts) {
  EXPECT_EQ(final_answer("6 + 12 = 18\n#### 18"), "18");
  EXPECT_EQ(final_answer("The final answer is $\\frac{1}{2}$. I hope it is correct."), "\\frac{1}{2}");
  EXPECT_EQ(final_answer("the answer is: 3.5 miles."), "3.5 miles");
  EXPECT_EQ(final_answer("So the ANSWER IS 12"), "12");
  EXPECT_EQ(final_answer("**Answer:** Monday"), "Monday");
  EXPECT_EQ(final_answer("Answer: \\(x^2\\)\nDone."), "x^2");
  EXPECT_EQ(final_answer("We get 3, then 1,234.50 in all."), "1,234.50");
  EXPECT_EQ(final_answer("It costs $-5."), "-5");
  EXPECT_EQ(final_answer("from 3-4"), "4");
  EXPECT_EQ(final_answer("which makes 3/4."), "3/4");
  EXPECT_EQ(final_answer("it is -4"), "-4");
  EXPECT_EQ(final_answer("Answer: $$"), std::nullopt);
  EXPECT_EQ(final_answer("nothing"), std::nullopt);
  EXPECT_EQ(final_answer(""), std::nullopt);
}

TEST(Answers, ThoughtsHoldNoAnswer) {
  EXPECT_EQ(final_answer("<think>\\boxed{1}</think> It is \\boxed{2}."), "2");
  EXPECT_EQ(final_answer("<think>\\boxed{1}</think> I do not know."), std::nullopt);
  EXPECT_EQ(final_answer("<think>maybe \\boxed{1}"), std::nullopt);
  EXPECT_EQ(final_answer("\\boxed{1}</think>2"), "2");
}

TEST(Answers, WhatDataExpectIsAnAnswerOrASolution) {
  EXPECT_EQ(expected_answer("5/7"), "5/7");
  EXPECT_EQ(expected_answer("6 + 12 = 18\n#### 18"), "18");
  EXPECT_EQ(expected_answer("So $x = \\boxed{42}$, as 6 times 7."), "42");
}

TEST(Answers, NumberWordsAreFactors) {
  expect_all(true, {
                       {"12\\text{ million}", "12000000"},
                       {"1.5\\text{ million}", "1500000"},
                       {"1.5 million", "1,500,000"},
                       {"12\\text{ million dollars}", "\\$12000000"},
                       {"3\\text{ hundred thousand}", "300000"},
                       {"3\\text{ dozen}", "36"},
                       {"12\\text{ dozen eggs}", "144"},
                       {"5\\text{ thirds}", "\\frac53"},
                       {"5\\text{ halves}", "2.5"},
                       {"5\\text{ squared}", "25"},
                       {"2\\text{ cubed}", "8"},
                       {"5\\text{ (five)}", "5"},
                       {"5\\text{ feet squared}", "5\\text{ square feet}"},
                   });
  expect_all(false, {
                        {"12\\text{ million}", "12"},
                        {"12\\text{ billion}", "12\\text{ million}"},
                        {"5\\text{ thirds}", "5"},
                        {"2\\text{ thirds}", "2"},
                        {"12\\text{ dozen}", "12"},
                        {"5\\text{ squared}", "5"},
                        {"5\\text{ or more}", "5"},
                        {"5\\text{ to 6}", "5"},
                        {"5\\text{ plus six}", "5"},
                        {"5\\text{ not six}", "5"},
                        {"5\\text{ and a half}", "5"},
                        {"5\\text{ is wrong, it is } 6", "5"},
                        {"5\\text{ (six)}", "5"},
                    });
}

TEST(Answers, ADecimalIsRoundedInItsOwnLastPlace) {
  expect_all(true, {
                       {"0.333333", "1/3"},
                       {"0.33333333", "1/3"},
                       {"0.6666666666666666", "2/3"},  // as machines print it
                       {"0.30000000000000004", "3/10"},
                       {"3.14159265", "\\pi"},
                   });
  expect_all(false, {
                        {"0.33333339", "1/3"},
                        {"0.3333339", "1/3"},
                        {"0.50000001", "1/2"},
                        {"1.0000004", "1"},
                        {"0.9999999", "1"},
                        {"0.9999999", "2/2"},
                        {"4.9999996", "5"},
                        {"0.3333333", "0.33333333"},
                        {"0.30000000000000004", "0.3"},
                    });
}

TEST(Answers, OtherWaysToWriteTheSame) {
  expect_all(true, {
                       {"(x,y)=(3,4)", "(3,4)"},
                       {"1:2", "2:4"},
                       {"2:4", "\\frac12"},
                       {"{5 \\choose 2}", "10"},
                       {"\\text{The answer is } 5", "5"},
                       {"１５", "15"},
                       {"（３，４）", "(3,4)"},
                       {"\\text{no solution}", "\\emptyset"},
                       {"No solutions", "\\{\\}"},
                       {"7:30\\text{ PM}", "7:30 p.m."},
                   });
  expect_all(false, {
                        {"(x,y)=(3,4)", "(4,3)"},
                        {"(x,y)=(3,4)", "(y,x)=(3,4)"},
                        {"1:2", "2:1"},
                        {"2:40", "1:20"},
                        {"{5 \\choose 2}", "5"},
                        {"\\text{no solution}", "0"},
                        {"7:30", "7:30\\text{ PM}"},
                        {"7:30\\text{ AM}", "7:30\\text{ PM}"},
                    });
}

}  // namespace
}  // namespace fathom::eval
