// Units of measure as answers have them: "cm^2", "square inches", "miles per hour", "dollars".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fathom::eval {

// Of length, mass, time, money, angle, data: the power of each, and how many of metre, kilogram, second, ... one of it
// is.
struct Unit {
  std::array<int, 6> powers;
  int64_t top, bottom;
};

// Whether the lower-case word is a unit's name or sign; "in" and others that are words too are not.
bool is_unit_name(std::string_view word);

// Nothing where any word of it is none that is known ("red balls"): such words say nothing that is compared.
std::optional<Unit> read_unit(std::string_view text);

// 2 of "square tiles" and "units^2", 3 of cubic ones, else 1.
int unit_power(std::string_view text);

// What number words make of the value that they stand behind ("million", "dozen", "thirds", "squared"): value^power
// times top / bottom. `rest` is the unit behind them.
struct NumberWords {
  int64_t top = 1, bottom = 1;
  int power = 1;
  std::string rest{};
};
// Nothing where words say more about the value than what it counts: other numbers, comparisons, signs ("or more",
// "plus six").
std::optional<NumberWords> read_number_words(std::string_view unit);

// 0 to 20 of "zero" to "twenty", in lower case.
std::optional<int> small_number(std::string_view word);

}  // namespace fathom::eval
