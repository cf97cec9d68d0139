// Complex numbers of 50 digits and the elementary functions, with a bound of what rounding does (math_number.h).
#pragma once

#include <optional>
#include <string_view>

#include "eval/math_number.h"

namespace fathom::eval {

inline const Real kRounding = ldexp(Real(1), -160);  // Real has 168 bits

std::optional<Number> checked(const Number& a);  // nothing where it is not finite, or near the ends of the range

Number add(const Number& a, const Number& b);
Number multiply(const Number& a, const Number& b);
Number divide(const Number& a, const Number& b);  // not finite where b may be 0

Number number_constant(bool pi);  // pi, or e
std::optional<Number> number_abs(const Number& a);
std::optional<Number> number_sqrt(const Number& a);
std::optional<Number> number_to_power(const Number& base, int64_t exponent);
std::optional<Number> number_to_power(const Number& base, const Number& exponent);

// sin, cos, tan, cot, sec, csc, sinh, cosh, tanh, their inverses (arcsin, ...), ln. Nothing for other names, outside of
// where they are defined over real numbers (sin, cos, tan, ln: over complex ones), and of arguments too large.
std::optional<Number> number_call(std::string_view name, const Number& a);

}  // namespace fathom::eval
