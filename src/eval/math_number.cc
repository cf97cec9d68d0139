#include "eval/math_number.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "eval/math_functions.h"

namespace fathom::eval {
namespace {

// Magnitudes are kept far from the ends of Real's range.
const Real kLargest = ldexp(Real(1), 4'000'000), kSmallest = ldexp(Real(1), -4'000'000);

Int128 gcd(Int128 a, Int128 b) {
  while (b != 0) a = std::exchange(b, a % b);
  return a < 0 ? -a : a;
}

constexpr Int128 kMostExact = static_cast<Int128>(1) << 120;

std::optional<Fraction> fraction(Int128 top, Int128 bottom) {
  if (bottom == 0) return std::nullopt;
  const Int128 divisor = gcd(top, bottom) * (bottom < 0 ? -1 : 1);
  const Fraction out{top / divisor, bottom / divisor};
  if (out.top > kMostExact || out.top < -kMostExact || out.bottom > kMostExact) return std::nullopt;
  return out;
}

std::optional<Int128> product_of(Int128 a, Int128 b) {
  Int128 out;
  if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
  return out;
}

std::optional<Fraction> add(const Fraction& a, const Fraction& b) {
  const auto x = product_of(a.top, b.bottom), y = product_of(b.top, a.bottom), bottom = product_of(a.bottom, b.bottom);
  Int128 top;
  if (!x || !y || !bottom || __builtin_add_overflow(*x, *y, &top)) return std::nullopt;
  return fraction(top, *bottom);
}

std::optional<Fraction> multiply(const Fraction& a, const Fraction& b) {
  const auto top = product_of(a.top, b.top), bottom = product_of(a.bottom, b.bottom);
  if (!top || !bottom) return std::nullopt;
  return fraction(*top, *bottom);
}

__extension__ using Unsigned128 = unsigned __int128;

uint64_t times(uint64_t a, uint64_t b) { return static_cast<uint64_t>(Unsigned128{a} * b % kPrime); }
uint64_t plus(uint64_t a, uint64_t b) { return (a + b) % kPrime; }
uint64_t minus(uint64_t a, uint64_t b) { return (a + kPrime - b) % kPrime; }

uint64_t to_power(uint64_t base, uint64_t exponent) {
  uint64_t out = 1;
  for (; exponent > 0; exponent >>= 1, base = times(base, base)) {
    if ((exponent & 1) != 0) out = times(out, base);
  }
  return out;
}

uint64_t inverse(uint64_t a) { return to_power(a, kPrime - 2); }

Residue add(const Residue& a, const Residue& b) { return {plus(a.re, b.re), plus(a.im, b.im)}; }

Residue multiply(const Residue& a, const Residue& b) {
  return {minus(times(a.re, b.re), times(a.im, b.im)), plus(times(a.re, b.im), times(a.im, b.re))};
}

std::optional<Residue> inverse(const Residue& a) {
  const uint64_t norm = plus(times(a.re, a.re), times(a.im, a.im));
  if (norm == 0) return std::nullopt;
  const uint64_t factor = inverse(norm);
  return Residue{times(a.re, factor), times(minus(0, a.im), factor)};
}

Residue to_power(Residue base, uint64_t exponent) {
  Residue out{1, 0};
  for (; exponent > 0; exponent >>= 1, base = multiply(base, base)) {
    if ((exponent & 1) != 0) out = multiply(out, base);
  }
  return out;
}

uint64_t residue_of(Int128 value) {
  const auto rest = static_cast<int64_t>(value % static_cast<Int128>(kPrime));
  return rest < 0 ? static_cast<uint64_t>(rest + static_cast<int64_t>(kPrime)) : static_cast<uint64_t>(rest);
}

Value of(const std::optional<Fraction>& exact) {
  if (!exact) return {};
  Value out{.exact = exact};
  const uint64_t bottom = residue_of(exact->bottom);
  if (bottom != 0) out.residue = Residue{times(residue_of(exact->top), inverse(bottom)), 0};
  const Real re = Real(exact->top) / Real(exact->bottom);
  out.number = Number{re, 0, abs(re) * kRounding};
  return out;
}

Value add(const Value& a, const Value& b) {
  Value out;
  if (a.exact && b.exact) out.exact = add(*a.exact, *b.exact);
  if (a.residue && b.residue) out.residue = add(*a.residue, *b.residue);
  if (a.number && b.number) out.number = checked(add(*a.number, *b.number));
  return out;
}

Value negated(Value a) {
  if (a.exact) a.exact->top = -a.exact->top;
  if (a.residue) a.residue = Residue{minus(0, a.residue->re), minus(0, a.residue->im)};
  if (a.number) a.number = Number{-a.number->re, -a.number->im, a.number->error};
  return a;
}

Value reciprocal(const Value& a) {
  Value out;
  if (a.exact && a.exact->top == 0) return out;
  if (a.exact) out.exact = fraction(a.exact->bottom, a.exact->top);
  if (a.residue) out.residue = inverse(*a.residue);
  if (a.number) out.number = checked(divide({1, 0, 0}, *a.number));
  return out;
}

// A literal: digits with at most one point. As many digits as there are go into the residue.
Value literal(std::string_view digits) {
  Value out;
  uint64_t residue = 0, scale = 1;
  std::optional<Int128> top = 0, bottom = 1;
  Real real = 0;
  int significant = 0;
  int64_t exponent = 0;
  bool behind_point = false;
  for (const char c : digits) {
    if (c == '.') {
      behind_point = true;
      continue;
    }
    const auto digit = static_cast<uint64_t>(c - '0');
    residue = plus(times(residue, 10), digit);
    if (behind_point) scale = times(scale, 10);
    if (top) top = product_of(*top, 10);
    if (top) *top += static_cast<Int128>(digit);
    if (behind_point && bottom) bottom = product_of(*bottom, 10);
    if (significant < 60) {
      real = real * 10 + static_cast<unsigned>(digit);
      significant += significant > 0 || digit > 0;
      exponent -= behind_point;
    } else {
      exponent += !behind_point;
    }
  }
  if (top && *top < kMostExact && bottom) out.exact = fraction(*top, *bottom);
  out.residue = Residue{times(residue, inverse(scale)), 0};
  if (real != 0) real *= pow(Real(10), static_cast<int>(exponent));
  out.number = Number{real, 0, abs(real) * kRounding * 8};
  return out;
}

// Letters count from 10. The digits are those of the base (math_parser.cc asks).
Value based_literal(const MathNode& node) {
  Value out = of(Fraction{0, 1}), scale = of(Fraction{1, 1});
  const Value base = of(Fraction{node.base, 1}), down = reciprocal(base);
  bool behind_point = false;
  for (const char c : node.text) {
    if (c == '.') {
      behind_point = true;
      continue;
    }
    const int digit = c <= '9' ? c - '0' : c - 'A' + 10;
    if (behind_point) scale = multiply(scale, down);
    if (!behind_point) out = multiply(out, base);
    out = add(out, multiply(of(Fraction{digit, 1}), scale));
  }
  return out;
}

uint64_t mixed(std::string_view name, uint64_t salt) {  // FNV-1a, then splitmix64's end
  uint64_t hash = 1469598103934665603U ^ salt * 0x9e3779b97f4a7c15U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211U;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9U;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111ebU;
  return hash ^ hash >> 31;
}

// A variable at a point, or a constant that no equation over fractions has: any residue does for it.
Residue random_residue(std::string_view name, int point) {
  return {mixed(name, static_cast<uint64_t>(point) * 2 + 1) % kPrime, 0};
}

Value variable(std::string_view name, int point) {
  const uint64_t random = mixed(name, static_cast<uint64_t>(point) * 2);
  const Real size = Real(300 + random % 2000) / 997;  // 0.3 to 2.3
  const bool negative = point % 2 == 1 || (point == 2 && (random >> 40 & 1) != 0);
  return {.residue = random_residue(name, point), .number = Number{negative ? -size : size, 0, kRounding}};
}

// The root of degree `degree` of the prime `q` modulo kPrime, the same for each way to it.
std::optional<Residue> root_of_prime(uint64_t q, int64_t degree) {
  constexpr uint64_t kHalf = (kPrime - 1) / 2;
  Residue root{q, 0};
  int64_t odd = degree;
  while (odd % 2 == 0) odd /= 2;
  if (odd > 1) {  // the exponent d with odd * d = 1 modulo kPrime - 1
    Int128 a = odd, b = static_cast<Int128>(kPrime) - 1, x = 1, y = 0;
    while (b != 0) {
      const Int128 times_b = a / b;
      a = std::exchange(b, a - times_b * b);
      x = std::exchange(y, x - times_b * y);
    }
    const Int128 order = static_cast<Int128>(kPrime) - 1;
    root.re = to_power(q, static_cast<uint64_t>((x % order + order) % order));
  }
  for (int64_t even = degree / odd; even > 1; even /= 2) {
    if (root.im != 0) return std::nullopt;
    const bool square = to_power(root.re, kHalf) == 1;
    const uint64_t found =
        to_power(square ? root.re : minus(0, root.re), (kPrime + 1) / 4);  // itself a square, as is every power of one
    root = square ? Residue{found, 0} : Residue{0, found};
  }
  return root;
}

// value^(top / bottom) modulo kPrime by its prime factors, value > 0. Nothing where they are too large.
std::optional<Residue> fractional_power(Int128 value, int64_t top, int64_t bottom, Work& work) {
  Residue out{1, 0};
  const auto take = [&](uint64_t q, int64_t times_q) {
    const auto root = root_of_prime(q, bottom);
    if (!root) return false;
    out = multiply(out, to_power(*root, static_cast<uint64_t>(top * times_q)));
    return true;
  };
  constexpr int64_t kMostDivisor = 50'000;
  for (int64_t q = 2; q <= kMostDivisor && static_cast<Int128>(q) * q <= value; q += q == 2 ? 1 : 2) {
    if (q % 64 == 1) work.take(1);
    int64_t n = 0;
    if (value > std::numeric_limits<int64_t>::max()) {
      for (; value % q == 0; value /= q) ++n;
    } else {
      auto small = static_cast<int64_t>(value);
      for (; small % q == 0; small /= q) ++n;
      value = small;
    }
    if (n > 0 && !take(static_cast<uint64_t>(q), n)) return std::nullopt;
  }
  if (value == 1) return out;
  if (value > static_cast<Int128>(kMostDivisor) * kMostDivisor) return std::nullopt;  // it may have factors yet
  if (!take(static_cast<uint64_t>(value), 1)) return std::nullopt;
  return out;
}

std::optional<Fraction> exact_power(const Fraction& base, int64_t n) {
  std::optional<Fraction> out = Fraction{1, 1};
  if (n < 0) return base.top == 0 ? std::nullopt : exact_power(*fraction(base.bottom, base.top), -n);
  if (n > 128 && base.bottom == 1 && (base.top == 0 || base.top == 1)) return base;
  if (n > 128) return std::nullopt;
  for (int64_t i = 0; i < n && out; ++i) out = multiply(*out, base);
  return out;
}

constexpr int64_t kMostExponent = int64_t{1} << 62;

// base^n of a whole n.
Value whole_power(const Value& base, Int128 n) {
  Value out;
  if (n > kMostExponent || n < -kMostExponent) return out;
  const auto exponent = static_cast<int64_t>(n);
  if (base.exact) out.exact = exact_power(*base.exact, exponent);
  if (base.residue) {
    const auto from = exponent < 0 ? inverse(*base.residue) : base.residue;
    if (from) out.residue = to_power(*from, static_cast<uint64_t>(exponent < 0 ? -exponent : exponent));
  }
  if (base.number) out.number = number_to_power(*base.number, exponent);
  return out;
}

// Of an exponent that is a fraction in lowest terms. Odd roots of negative numbers are real, as MATH has them.
Value fractional_power(const Value& base, int64_t top, int64_t bottom, Work& work) {
  work.take(100);
  Value out;
  const bool real = base.number && abs(base.number->im) <= base.number->error;
  const bool negative = real && base.number->re < 0;
  if (base.exact && base.exact->top == 0) return top > 0 ? of(Fraction{0, 1}) : out;
  if (base.number && negative && bottom % 2 == 1) {
    const Value positive = fractional_power(negated(base), top, bottom, work);
    return top % 2 == 0 ? positive : negated(positive);
  }
  if (base.number) {
    const Number exponent{Real(top) / bottom, 0, kRounding * (1 + abs(Real(top)) / bottom)};
    out.number = bottom == 2 && top == 1 ? number_sqrt(*base.number) : number_to_power(*base.number, exponent);
  }
  const int64_t size = top < 0 ? -top : top;
  if (!base.exact || bottom > 64 || size > 1000) return out;
  const Int128 above = base.exact->top < 0 ? -base.exact->top : base.exact->top;
  if (base.exact->top < 0 && bottom != 2) return out;
  auto over = fractional_power(above, size, bottom, work),
       under = fractional_power(base.exact->bottom, size, bottom, work);
  if (!over || !under) return out;
  if (top < 0) std::swap(over, under);
  if (const auto inverted = inverse(*under)) out.residue = multiply(*over, *inverted);
  if (base.exact->top < 0 && out.residue) {  // times i^top
    const auto turn = top < 0 ? inverse(Residue{0, 1}) : Residue{0, 1};
    out.residue = multiply(*out.residue, to_power(*turn, static_cast<uint64_t>(size)));
  }
  if (bottom == 2 && size == 1 && base.exact->top > 0) {  // exact where it is, for roots of sums of squares
    const auto whole_root = [](Int128 value) -> Int128 {
      const auto root = static_cast<Int128>(sqrt(Real(value)) + Real(0.5));
      return root * root == value ? root : 0;
    };
    const Int128 a = whole_root(above), b = whole_root(base.exact->bottom);
    if (a != 0 && b != 0) out.exact = top > 0 ? fraction(a, b) : fraction(b, a);
  }
  return out;
}

Value power(const Value& base, const Value& exponent, Work& work) {
  if (exponent.exact && exponent.exact->bottom == 1) {
    if (exponent.exact->top == 0 && base.exact && base.exact->top == 0) return {};
    return whole_power(base, exponent.exact->top);
  }
  constexpr Int128 kMost = 1 << 20;
  if (exponent.exact && exponent.exact->bottom <= kMost && exponent.exact->top <= kMost &&
      exponent.exact->top >= -kMost) {
    return fractional_power(base, static_cast<int64_t>(exponent.exact->top),
                            static_cast<int64_t>(exponent.exact->bottom), work);
  }
  work.take(200);
  Value out;
  if (base.number && exponent.number) out.number = number_to_power(*base.number, *exponent.number);
  return out;
}

// n! of a whole n up to a bound; larger ones, and others, have no value.
Value factorial(const Value& of_what, Work& work) {
  Value out;
  if (!of_what.exact || of_what.exact->bottom != 1) return out;
  const Int128 n = of_what.exact->top;
  if (n < 0 || n > 100'000) return out;
  const auto last = static_cast<int64_t>(n);
  work.take(last / 10 + 1);
  out = of(Fraction{1, 1});
  uint64_t residue = 1;
  for (int64_t i = 2; i <= last; ++i) residue = times(residue, static_cast<uint64_t>(i));
  out.residue = Residue{residue, 0};
  Real real = 1;
  for (int64_t i = 2; i <= last; ++i) {
    if (out.exact) out.exact = multiply(*out.exact, Fraction{i, 1});
    real *= i;
  }
  out.number = checked(Number{real, 0, real * kRounding * (last + 1)});
  return out;
}

Value binomial(const Value& n, const Value& k, Work& work) {
  if (!n.exact || !k.exact || n.exact->bottom != 1 || k.exact->bottom != 1) return {};
  Int128 below = k.exact->top;
  const Int128 above = n.exact->top;
  if (above < 0 || above > (Int128{1} << 60) || below < 0) return {};
  if (below > above) return of(Fraction{0, 1});
  below = std::min(below, above - below);
  if (below > 2000) return {};
  work.take(static_cast<int64_t>(below) + 1);
  Value out = of(Fraction{1, 1});
  for (Int128 i = 1; i <= below; ++i) {
    out = multiply(out, of(Fraction{above - below + i, 1}));
    out = multiply(out, of(Fraction{1, i}));
  }
  return out;
}

// |x|, floor and ceiling, of real numbers.
Value rounded(const std::string& name, const Value& a) {
  if (a.exact) {
    const Int128 top = a.exact->top, bottom = a.exact->bottom;
    if (name == "abs") return of(Fraction{top < 0 ? -top : top, bottom});
    const Int128 down = top / bottom - (top % bottom < 0);
    return of(Fraction{name == "floor" ? down : down + (top % bottom != 0), 1});
  }
  if (!a.number) return {};
  const bool real = abs(a.number->im) <= a.number->error;
  if (name == "abs" && real && abs(a.number->re) > a.number->error) return a.number->re < 0 ? negated(a) : a;
  Value out;
  if (name == "abs") out.number = number_abs(*a.number);
  if (name == "abs" || !real || a.number->error > Real(1e-20)) return out;
  const Real whole = name == "floor" ? floor(a.number->re) : ceil(a.number->re);
  if (abs(whole) < Real(1e15)) out = of(Fraction{static_cast<Int128>(whole.convert_to<int64_t>()), 1});
  return out;
}

Value constant(const std::string& name) {
  if (name == "i") return {.residue = Residue{0, 1}, .number = Number{0, 1, 0}};
  if (name != "pi" && name != "e") return {};
  return {.residue = random_residue("\\" + name, 0), .number = number_constant(name == "pi")};
}

// What degrees are inside of a trigonometric function; outside they are a unit (math_compare.cc).
Value in_radians(const MathNode& node, int point, Work& work) {
  if (node.kind == MathKind::degree) {
    Value out = evaluate(node.parts[0], point, work);
    out = multiply(out, constant("pi"));
    return multiply(out, of(Fraction{1, 180}));
  }
  if (node.kind != MathKind::sum && node.kind != MathKind::product && node.kind != MathKind::negative) {
    return evaluate(node, point, work);
  }
  Value out = of(Fraction{node.kind == MathKind::product, 1});
  for (const MathNode& part : node.parts) {
    const Value value = in_radians(part, point, work);
    out = node.kind == MathKind::product ? multiply(out, value) : add(out, value);
  }
  return node.kind == MathKind::negative ? negated(out) : out;
}

Value call(const MathNode& node, int point, Work& work) {
  const std::string& name = node.text;
  if (name == "abs" || name == "floor" || name == "ceil") return rounded(name, evaluate(node.parts[0], point, work));
  if (name == "exp") {
    return power(constant("e"), evaluate(node.parts[0], point, work), work);
  }
  work.take(60);
  Value out;
  const Value a = in_radians(node.parts[0], point, work);
  if (name == "log" && node.parts.size() == 2) {
    const Value base = evaluate(node.parts[1], point, work);
    if (a.exact && base.exact) {  // whole where it is
      for (int n = -128; n <= 128; ++n) {
        if (base.exact->top > 0 && *base.exact != Fraction{1, 1} && exact_power(*base.exact, n) == a.exact) {
          return of(Fraction{n, 1});
        }
      }
    }
    if (!a.number || !base.number) return out;
    const auto over = number_call("ln", *a.number), under = number_call("ln", *base.number);
    if (over && under) out.number = checked(divide(*over, *under));
    return out;
  }
  if (node.parts.size() == 1 && a.number) out.number = number_call(name, *a.number);
  return out;
}

}  // namespace

std::optional<Number> checked(const Number& a) {
  const Real size = abs(a.re) + abs(a.im);
  if (!isfinite(size) || !isfinite(a.error) || size > kLargest || (size != 0 && size < kSmallest)) return std::nullopt;
  return a;
}

Value multiply(const Value& a, const Value& b) {
  Value out;
  if (a.exact && b.exact) out.exact = multiply(*a.exact, *b.exact);
  if (a.residue && b.residue) out.residue = multiply(*a.residue, *b.residue);
  if (a.number && b.number) out.number = checked(multiply(*a.number, *b.number));
  return out;
}

Value subtract(const Value& a, const Value& b) { return add(a, negated(b)); }

Value evaluate(const MathNode& node, int point, Work& work) {
  work.take(1);
  const auto part = [&](size_t i) { return evaluate(node.parts[i], point, work); };
  switch (node.kind) {
    case MathKind::number:
      work.take(static_cast<int64_t>(node.text.size()) / 16);
      return literal(node.text);
    case MathKind::based:
      work.take(static_cast<int64_t>(node.text.size()));
      return based_literal(node);
    case MathKind::variable:
      return variable(node.text, point);
    case MathKind::constant:
      return constant(node.text);
    case MathKind::sum:
    case MathKind::product: {
      Value out = part(0);
      for (size_t i = 1; i < node.parts.size(); ++i) {
        out = node.kind == MathKind::sum ? add(out, part(i)) : multiply(out, part(i));
      }
      return out;
    }
    case MathKind::negative:
      return negated(part(0));
    case MathKind::quotient:
      return multiply(part(0), reciprocal(part(1)));
    case MathKind::power:
      return power(part(0), part(1), work);
    case MathKind::root:
      return power(part(0), reciprocal(part(1)), work);
    case MathKind::call:
      return call(node, point, work);
    case MathKind::factorial:
      return factorial(part(0), work);
    case MathKind::binomial:
      return binomial(part(0), part(1), work);
    case MathKind::percent:
      return multiply(part(0), of(Fraction{1, 100}));
    case MathKind::degree:
    case MathKind::quantity:
      return part(0);
    default:
      return {};
  }
}

bool has_variables(const MathNode& node) {
  return node.kind == MathKind::variable || std::ranges::any_of(node.parts, has_variables);
}

bool same_value(const Value& a, const Value& b) {
  if (a.exact && b.exact) return *a.exact == *b.exact;
  const bool residues = a.residue && b.residue, numbers = a.number && b.number;
  if (residues && *a.residue != *b.residue) return false;
  if (!numbers) return residues;
  const Real difference = abs(a.number->re - b.number->re) + abs(a.number->im - b.number->im);
  const Real size = abs(a.number->re) + abs(a.number->im), error = (a.number->error + b.number->error) * 1000;
  // Where rounding left too few digits to tell, only the residues may.
  if (error > Real(1e-25) && error > size * Real(1e-25)) return residues;
  return difference <= error;
}

bool is_zero(const Value& value) { return same_value(value, of(Fraction{0, 1})); }

}  // namespace fathom::eval
