// Values of mathematical answers, in three ways at once: as an exact fraction where it is small; modulo a prime, which
// tells large and irrational algebraic numbers and polynomials apart for certain; and as a complex number of 50 digits.
#pragma once

#include <array>
#include <boost/multiprecision/cpp_bin_float.hpp>
#include <cstdint>
#include <optional>

#include "eval/math_tree.h"

namespace fathom::eval {

using Real = boost::multiprecision::cpp_bin_float_50;
__extension__ using Int128 = __int128;

struct Fraction {  // in lowest terms, bottom > 0
  Int128 top, bottom;
  bool operator==(const Fraction&) const = default;
};

// a + b i modulo kPrime. kPrime is 3 modulo 4, so that -1 has no square root beside i, and (kPrime - 1) / 2 is prime,
// so that every number has one root of each odd degree: what is true of roots is true of these residues.
inline constexpr uint64_t kPrime = 2305843009213691579;
struct Residue {
  uint64_t re, im;
  bool operator==(const Residue&) const = default;
};

struct Number {  // with what rounding may have made of it
  Real re, im, error;
};

// What is known of a value; absent is what is not.
struct Value {
  std::optional<Fraction> exact = {};
  std::optional<Residue> residue = {};
  std::optional<Number> number = {};
};

// What evaluation may still cost, in steps of about a microsecond. Thrown where there are none left.
struct OutOfWork {};
struct Work {
  int64_t steps;
  void take(int64_t n) {
    if ((steps -= n) < 0) throw OutOfWork{};
  }
};

// The value of the tree with its variables at one of the points 0, 1, 2, ...: random numbers by name and point,
// positive and negative ones. What has no value (sets, relations, words, infinity, 1/0) has none of the three.
Value evaluate(const MathNode& node, int point, Work& work);

bool has_variables(const MathNode& node);

Value subtract(const Value& a, const Value& b);
Value multiply(const Value& a, const Value& b);

// Whether two values are the same number: by residues, and by digits too where they are known. Unknown is not the same.
bool same_value(const Value& a, const Value& b);
bool is_zero(const Value& value);

}  // namespace fathom::eval
