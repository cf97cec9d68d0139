#include "eval/math_units.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace fathom::eval {
namespace {

constexpr std::array<int, 6> kLength = {1, 0, 0, 0, 0, 0}, kVolume = {3, 0, 0, 0, 0, 0}, kArea = {2, 0, 0, 0, 0, 0},
                             kMass = {0, 1, 0, 0, 0, 0}, kTime = {0, 0, 1, 0, 0, 0}, kMoney = {0, 0, 0, 1, 0, 0},
                             kAngle = {0, 0, 0, 0, 1, 0}, kData = {0, 0, 0, 0, 0, 1}, kSpeed = {1, 0, -1, 0, 0, 0};

struct Name {
  std::string_view singular;  // with an s at the end too, where it has three letters or more
  Unit unit;
};

constexpr Name kNames[] = {
    {"m", {kLength, 1, 1}},
    {"meter", {kLength, 1, 1}},
    {"metre", {kLength, 1, 1}},
    {"cm", {kLength, 1, 100}},
    {"centimeter", {kLength, 1, 100}},
    {"centimetre", {kLength, 1, 100}},
    {"mm", {kLength, 1, 1000}},
    {"millimeter", {kLength, 1, 1000}},
    {"millimetre", {kLength, 1, 1000}},
    {"km", {kLength, 1000, 1}},
    {"kilometer", {kLength, 1000, 1}},
    {"kilometre", {kLength, 1000, 1}},
    {"inch", {kLength, 127, 5000}},
    {"inches", {kLength, 127, 5000}},
    {"in", {kLength, 127, 5000}},
    {"ft", {kLength, 381, 1250}},
    {"foot", {kLength, 381, 1250}},
    {"feet", {kLength, 381, 1250}},
    {"yd", {kLength, 1143, 1250}},
    {"yard", {kLength, 1143, 1250}},
    {"mi", {kLength, 201168, 125}},
    {"mile", {kLength, 201168, 125}},
    {"kg", {kMass, 1, 1}},
    {"kilogram", {kMass, 1, 1}},
    {"g", {kMass, 1, 1000}},
    {"gm", {kMass, 1, 1000}},
    {"gram", {kMass, 1, 1000}},
    {"mg", {kMass, 1, 1'000'000}},
    {"milligram", {kMass, 1, 1'000'000}},
    {"lb", {kMass, 45359237, 100'000'000}},
    {"lbs", {kMass, 45359237, 100'000'000}},
    {"pound", {kMass, 45359237, 100'000'000}},
    {"oz", {kMass, 45359237, 1'600'000'000}},
    {"ounce", {kMass, 45359237, 1'600'000'000}},
    {"s", {kTime, 1, 1}},
    {"sec", {kTime, 1, 1}},
    {"second", {kTime, 1, 1}},
    {"min", {kTime, 60, 1}},
    {"minute", {kTime, 60, 1}},
    {"h", {kTime, 3600, 1}},
    {"hr", {kTime, 3600, 1}},
    {"hrs", {kTime, 3600, 1}},
    {"hour", {kTime, 3600, 1}},
    {"day", {kTime, 86400, 1}},
    {"week", {kTime, 604800, 1}},
    {"dollar", {kMoney, 1, 1}},
    {"$", {kMoney, 1, 1}},
    {"usd", {kMoney, 1, 1}},
    {"cent", {kMoney, 1, 100}},
    {"°", {kAngle, 1, 1}},
    {"degree", {kAngle, 1, 1}},
    {"mph", {kSpeed, 201168, 450'000}},
    {"kph", {kSpeed, 1000, 3600}},
    {"kmh", {kSpeed, 1000, 3600}},
    {"l", {kVolume, 1, 1000}},
    {"liter", {kVolume, 1, 1000}},
    {"litre", {kVolume, 1, 1000}},
    {"ml", {kVolume, 1, 1'000'000}},
    {"milliliter", {kVolume, 1, 1'000'000}},
    {"millilitre", {kVolume, 1, 1'000'000}},
    {"hectare", {kArea, 10'000, 1}},
    {"bit", {kData, 1, 1}},
    {"byte", {kData, 8, 1}},
};

const Unit* named(std::string_view word) {
  const auto find = [](std::string_view name) -> const Unit* {
    const auto* const found = std::ranges::find(kNames, name, &Name::singular);
    return found == std::end(kNames) ? nullptr : &found->unit;
  };
  if (const Unit* unit = find(word)) return unit;
  return word.size() > 3 && word.ends_with('s') ? find(word.substr(0, word.size() - 1)) : nullptr;
}

struct Magnitude {
  std::string_view word;
  int64_t top, bottom;
};
// With an s at the end too.
constexpr Magnitude kMagnitudes[] = {
    {"dozen", 12, 1},
    {"hundred", 100, 1},
    {"thousand", 1000, 1},
    {"million", 1'000'000, 1},
    {"billion", 1'000'000'000, 1},
    {"trillion", 1'000'000'000'000, 1},
    {"half", 1, 2},
    {"halve", 1, 2},
    {"third", 1, 3},
    {"fourth", 1, 4},
    {"fifth", 1, 5},
    {"sixth", 1, 6},
    {"seventh", 1, 7},
    {"eighth", 1, 8},
    {"ninth", 1, 9},
    {"tenth", 1, 10},
    {"hundredth", 1, 100},
    {"thousandth", 1, 1000},
};

constexpr std::string_view kSmallNumbers[] = {"zero",     "one",      "two",      "three",   "four",    "five",
                                              "six",      "seven",    "eight",    "nine",    "ten",     "eleven",
                                              "twelve",   "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
                                              "eighteen", "nineteen", "twenty"};

// What is never said by a unit, but about a number.
constexpr std::string_view kNoUnits[] = {
    "thirty",    "forty",  "fifty",  "sixty", "seventy",   "eighty",   "ninety",
    "or",        "not",    "no",     "plus",  "minus",     "negative", "more",
    "less",      "fewer",  "most",   "least", "greater",   "smaller",  "larger",
    "than",      "above",  "below",  "over",  "under",     "about",    "approximately",
    "almost",    "nearly", "to",     "if",    "mod",       "modulo",   "base",
    "factorial", "twice",  "double", "wrong", "incorrect", "k"};

const Magnitude* magnitude(std::string_view word) {
  if (word.ends_with('s')) word.remove_suffix(1);
  const auto* const found = std::ranges::find(kMagnitudes, word, &Magnitude::word);
  return found == std::end(kMagnitudes) ? nullptr : found;
}

// one^power into unit. False where a number is too large.
bool take(Unit& unit, const Unit& one, int power) {
  for (size_t i = 0; i < unit.powers.size(); ++i) unit.powers[i] += one.powers[i] * power;
  int64_t top = one.top, bottom = one.bottom;
  if (power < 0) std::swap(top, bottom);
  for (int n = power < 0 ? -power : power; n > 0; --n) {
    if (__builtin_mul_overflow(unit.top, top, &unit.top) || __builtin_mul_overflow(unit.bottom, bottom, &unit.bottom)) {
      return false;
    }
  }
  return true;
}

// Words in lower case; "/" and "^" with its number are words too.
std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  const auto end_word = [&] {
    if (!word.empty()) words.push_back(std::exchange(word, {}));
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '/') {
      end_word();
      words.emplace_back("/");
    } else if (c == '^') {
      end_word();
      word = "^";
    } else if (c == ' ' || c == '.' || c == ',' || c == '{' || c == '}' || c == '*') {
      if (word != "^") end_word();
    } else {
      word += 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    }
  }
  end_word();
  return words;
}

}  // namespace

std::optional<int> small_number(std::string_view word) {
  const auto* const found = std::ranges::find(kSmallNumbers, word);
  return found == std::end(kSmallNumbers) ? std::nullopt : std::optional(static_cast<int>(found - kSmallNumbers));
}

std::optional<NumberWords> read_number_words(std::string_view unit) {
  NumberWords out;
  const std::vector<std::string> words = words_of(unit);
  size_t n = 0;
  for (; n < words.size(); ++n) {
    if (n == 0 && (words[n] == "squared" || words[n] == "cubed")) {
      out.power = words[n] == "squared" ? 2 : 3;
    } else if (const Magnitude* m = magnitude(words[n])) {
      if (__builtin_mul_overflow(out.top, m->top, &out.top) ||
          __builtin_mul_overflow(out.bottom, m->bottom, &out.bottom))
        return std::nullopt;
    } else {
      break;
    }
  }
  if (n == 0) {
    out.rest = unit;
  } else {
    for (size_t i = n; i < words.size(); ++i) out.rest += (out.rest.empty() ? "" : " ") + words[i];
  }
  for (size_t i = n; i < words.size(); ++i) {
    const std::string& word = words[i];
    const bool digit = word[0] >= '0' && word[0] <= '9';
    if (digit || magnitude(word) != nullptr || small_number(word) ||
        std::ranges::find(kNoUnits, word) != std::end(kNoUnits)) {
      return std::nullopt;
    }
  }
  return out;
}

bool is_unit_name(std::string_view word) { return word.size() > 1 && named(word) != nullptr; }

std::optional<Unit> read_unit(std::string_view text) {
  Unit unit{{}, 1, 1};
  int sign = 1, next_power = 1;
  bool any = false;
  const std::vector<std::string> words = words_of(text);
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "/" || word == "per") {
      sign = -1;
    } else if (word == "square" || word == "sq" || word == "cubic" || word == "cu") {
      next_power = word[0] == 's' ? 2 : 3;
    } else {
      const Unit* one = named(word);
      if (one == nullptr) return std::nullopt;
      int power = std::exchange(next_power, 1);
      if (i + 1 < words.size() && (words[i + 1] == "^2" || words[i + 1] == "squared"))
        power = 2, ++i;
      else if (i + 1 < words.size() && (words[i + 1] == "^3" || words[i + 1] == "cubed"))
        power = 3, ++i;
      if (!take(unit, *one, sign * power)) return std::nullopt;
      any = true;
    }
  }
  return any ? std::optional(unit) : std::nullopt;
}

int unit_power(std::string_view text) {
  for (const std::string& word : words_of(text)) {
    if (word == "square" || word == "sq" || word == "squared" || word == "^2") return 2;
    if (word == "cubic" || word == "cu" || word == "cubed" || word == "^3") return 3;
  }
  return 1;
}

}  // namespace fathom::eval
