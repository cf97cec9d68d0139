// An answer, and behind a zero byte another one. What is understood is the same as itself; nothing is the same as two
// different numbers; where no rule of one side alone applies, both ways of asking agree. A final answer is a part of
// the solution.
#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "eval/answers.h"
#include "eval/math_parser.h"

namespace {

using namespace fathom::eval;

// Rounded numbers, bases, bare tuples and letters of choices are taken one way alone (docs/evaluation_answers.md).
bool has_sides(std::string_view text) {
  static constexpr std::array<std::string_view, 8> kSides = {"approx", "\\simeq", "\\doteq", "≈", "_", ",", ";", "、"};
  for (const std::string_view side : kSides) {
    if (text.find(side) != std::string_view::npos) return true;
  }
  return text.size() > 200 || text.find_first_of("ABCDEFGHIJ") != std::string_view::npos;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const std::string_view a = all.substr(0, all.find('\0')), b = all.substr(std::min(a.size() + 1, all.size()));
  if (parse_math(a)) FATHOM_CHECK(same_answer(a, a), "{}", fathom::printable(a));
  FATHOM_CHECK(!(same_answer(a, "5") && same_answer(a, "7")), "{}", fathom::printable(a));
  const bool same = same_answer(a, b);
  if (!has_sides(a) && !has_sides(b)) {
    FATHOM_CHECK(same == same_answer(b, a), "{} {}", fathom::printable(a), fathom::printable(b));
  }
  const auto found = final_answer(all);
  FATHOM_CHECK(!found || (!found->empty() && found->size() <= all.size()));
  return 0;
}
