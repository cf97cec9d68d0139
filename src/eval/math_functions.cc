#include "eval/math_functions.h"

#include <boost/math/constants/constants.hpp>

namespace fathom::eval {
namespace {

Real size_of(const Number& a) { return abs(a.re) + abs(a.im); }

Number rounded(Real re, Real im, const Real& error) {
  const Real size = abs(re) + abs(im);
  return {std::move(re), std::move(im), error + size * kRounding};
}

bool is_real(const Number& a) { return abs(a.im) <= a.error; }

const Real& pi() {
  static const Real value = boost::math::constants::pi<Real>();
  return value;
}

std::optional<Number> exponential(const Number& a) {
  if (abs(a.re) > 1'000'000 || abs(a.im) > 1'000'000) return std::nullopt;
  const Real size = exp(a.re);
  const Real error = size * (a.error + kRounding * (1 + size_of(a))) * 2;
  if (a.im == 0) return checked(rounded(size, 0, error));
  return checked(rounded(size * cos(a.im), size * sin(a.im), error));
}

std::optional<Number> logarithm(const Number& a) {
  const Real size = size_of(a);
  if (size <= a.error * 2) return std::nullopt;
  const Real error = a.error / size * 2 + kRounding;
  if (is_real(a)) return rounded(log(abs(a.re)), a.re < 0 ? pi() : Real(0), error);
  return rounded(log(a.re * a.re + a.im * a.im) / 2, atan2(a.im, a.re), error);
}

}  // namespace

Number add(const Number& a, const Number& b) { return rounded(a.re + b.re, a.im + b.im, a.error + b.error); }

Number multiply(const Number& a, const Number& b) {
  const Real error =
      size_of(a) * b.error + size_of(b) * a.error + a.error * b.error + size_of(a) * size_of(b) * kRounding;
  if (a.im == 0 && b.im == 0) return {a.re * b.re, 0, error};
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re, error};
}

Number divide(const Number& a, const Number& b) {
  const Real size = size_of(b);
  if (size <= b.error * 2) return {0, 0, std::numeric_limits<Real>::infinity()};
  Number out{0, 0, 0};
  if (b.im == 0) {
    out.re = a.re / b.re;
    if (a.im != 0) out.im = a.im / b.re;
  } else {
    const Real norm = b.re * b.re + b.im * b.im;
    out.re = (a.re * b.re + a.im * b.im) / norm;
    out.im = (a.im * b.re - a.re * b.im) / norm;
  }
  out.error = (a.error + size_of(out) * b.error) / size * 2 + size_of(out) * kRounding * 2;
  return out;
}

Number number_constant(bool of_pi) {
  static const Real e = boost::math::constants::e<Real>();
  return {of_pi ? pi() : e, 0, kRounding};
}

std::optional<Number> number_abs(const Number& a) { return rounded(sqrt(a.re * a.re + a.im * a.im), 0, a.error * 2); }

std::optional<Number> number_sqrt(const Number& a) {
  const Real size = sqrt(size_of(a));
  // Near 0 the error of the root is the root of the error.
  const Real error = size_of(a) > a.error * 4 ? a.error / size : sqrt(a.error) * 2;
  if (is_real(a)) return a.re < 0 ? rounded(0, sqrt(-a.re), error) : rounded(sqrt(a.re), 0, error);
  const Real norm = sqrt(a.re * a.re + a.im * a.im);
  // The larger part first; the other by division, without cancellation.
  if (a.re >= 0) {
    const Real re = sqrt((norm + a.re) / 2);
    return rounded(re, a.im / (re * 2), error);
  }
  const Real im = sqrt((norm - a.re) / 2) * (a.im < 0 ? -1 : 1);
  return rounded(a.im / (im * 2), im, error);
}

std::optional<Number> number_to_power(const Number& base, int64_t exponent) {
  if (exponent < 0) {
    const auto positive = number_to_power(base, -exponent);
    if (!positive) return std::nullopt;
    return checked(divide({1, 0, 0}, *positive));
  }
  std::optional<Number> out = Number{1, 0, 0}, square = base;
  for (;; exponent >>= 1) {
    if ((exponent & 1) != 0) out = square ? checked(multiply(*out, *square)) : std::nullopt;
    if (exponent <= 1 || !out) return out;
    if (square) square = checked(multiply(*square, *square));
  }
}

std::optional<Number> number_to_power(const Number& base, const Number& exponent) {
  const auto log_base = logarithm(base);
  return log_base ? exponential(multiply(*log_base, exponent)) : std::nullopt;
}

std::optional<Number> number_call(std::string_view name, const Number& a) {
  if (size_of(a) > Real(1e9)) return std::nullopt;
  if (name == "ln") return logarithm(a);
  const Number one{1, 0, 0};
  if (name == "sin" || name == "cos") {
    if (a.im == 0) return rounded(name == "sin" ? sin(a.re) : cos(a.re), 0, a.error + kRounding);
    if (abs(a.im) > 1000) return std::nullopt;
    const Real up = exp(a.im), down = 1 / up, half_sum = (up + down) / 2, half_difference = (up - down) / 2;
    const Real error = (a.error + kRounding) * half_sum * 4;
    if (name == "sin") return rounded(sin(a.re) * half_sum, cos(a.re) * half_difference, error);
    return rounded(cos(a.re) * half_sum, -sin(a.re) * half_difference, error);
  }
  if (name == "tan" || name == "cot" || name == "sec" || name == "csc") {
    const auto sine = number_call("sin", a), cosine = number_call("cos", a);
    if (!sine || !cosine) return std::nullopt;
    if (name == "tan") return checked(divide(*sine, *cosine));
    if (name == "cot") return checked(divide(*cosine, *sine));
    return checked(divide(one, name == "sec" ? *cosine : *sine));
  }
  if (!is_real(a)) return std::nullopt;
  if (name == "sinh" || name == "cosh" || name == "tanh") {
    if (abs(a.re) > 1000) return std::nullopt;
    const Real value = name == "sinh" ? sinh(a.re) : name == "cosh" ? cosh(a.re) : tanh(a.re);
    return rounded(value, 0, (a.error + kRounding) * cosh(a.re) * 2);
  }
  if (name == "arctan") return rounded(atan(a.re), 0, a.error + kRounding);
  if (name == "arccot") return rounded(pi() / 2 - atan(a.re), 0, a.error + kRounding);
  if (name == "arcsec" || name == "arccsc") {
    const auto under = checked(divide(one, a));
    return under ? number_call(name == "arcsec" ? "arccos" : "arcsin", *under) : std::nullopt;
  }
  if (name == "arcsin" || name == "arccos") {
    if (abs(a.re) > 1) return std::nullopt;
    const Real slope = 1 - a.re * a.re;  // of the angle: 1 / sqrt of this; at its ends sqrt(error) is lost
    const Real error = slope > Real(1e-20) ? a.error / sqrt(slope) : sqrt(a.error) * 2;
    return rounded(name == "arcsin" ? asin(a.re) : acos(a.re), 0, error + kRounding);
  }
  return std::nullopt;
}

}  // namespace fathom::eval
