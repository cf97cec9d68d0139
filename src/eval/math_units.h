// Units of measure as answers have them: "cm^2", "square inches", "miles per hour", "dollars".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
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

}  // namespace fathom::eval
