#include "eval/math_compare.h"

#include <algorithm>
#include <utility>

#include "eval/math_sets.h"
#include "eval/math_units.h"

namespace fathom::eval {
namespace {

constexpr int kPoints = 3;

bool same(const MathNode& given, const MathNode& expected, Work& work);

bool is_value(const MathNode& node) {
  switch (node.kind) {
    case MathKind::text:
    case MathKind::list:
    case MathKind::tuple:
    case MathKind::set:
    case MathKind::set_union:
    case MathKind::set_minus:
    case MathKind::intersection:
    case MathKind::matrix:
    case MathKind::relation:
    case MathKind::ratio:
    case MathKind::based:
      return false;
    default:
      return true;
  }
}

bool contains(const MathNode& node, MathKind kind) {
  return node.kind == kind ||
         std::ranges::any_of(node.parts, [&](const MathNode& part) { return contains(part, kind); });
}

// The tree with each \pm as one of its two signs.
void choose_sign(MathNode& node, bool upper) {
  if (node.kind == MathKind::plus_minus) {
    const bool plus = (node.text == "+") == upper;
    node = plus ? math_node(MathKind::sum, {}, std::move(node.parts))
                : math_node(MathKind::negative, {}, std::move(node.parts));
  }
  for (MathNode& part : node.parts) choose_sign(part, upper);
}

// 2 * (matrix): the factor goes into its entries.
MathNode scaled(const MathNode& node) {
  const bool minus = node.kind == MathKind::negative && node.parts[0].kind == MathKind::matrix;
  if (!minus && node.kind != MathKind::product && node.kind != MathKind::quotient) return node;
  const auto is_matrix = [](const MathNode& part) { return part.kind == MathKind::matrix && part.text.empty(); };
  if (std::ranges::count_if(node.parts, is_matrix) != 1) return node;
  const auto found = std::ranges::find_if(node.parts, is_matrix);
  MathNode out = *found;
  for (MathNode& row : out.parts) {
    for (MathNode& entry : row.parts) {
      MathNode whole = math_node(node.kind, {}, node.parts);
      whole.parts[static_cast<size_t>(found - node.parts.begin())] = std::move(entry);
      entry = std::move(whole);
    }
  }
  return out;
}

// Lists of lists in square brackets are matrices.
MathNode as_matrix(const MathNode& node) {
  if (node.kind == MathKind::matrix) return node;
  const bool rows =
      node.kind == MathKind::tuple && node.open == '[' && std::ranges::all_of(node.parts, [&](const MathNode& row) {
        return row.kind == MathKind::tuple && row.open == '[' && row.parts.size() == node.parts[0].parts.size();
      });
  return rows ? math_node(MathKind::matrix, {}, node.parts) : node;
}

// What stands on the left of "x = 5" and only says what the value is of: a name, or f(x).
bool is_name(const MathNode& node) {
  if (node.kind == MathKind::variable || node.kind == MathKind::text) return true;
  if (node.kind == MathKind::quantity) return false;
  if (node.kind == MathKind::call) return std::ranges::all_of(node.parts, is_name);
  if (node.kind == MathKind::tuple && node.open == '(' && node.close == ')') {  // (x, y) = (3, 4)
    return std::ranges::all_of(node.parts, [](const MathNode& part) { return part.kind == MathKind::variable; });
  }
  return node.kind == MathKind::product && std::ranges::all_of(node.parts, is_name);
}

bool is_equation(const MathNode& node) {
  return node.kind == MathKind::relation &&
         std::ranges::all_of(node.operators, [](const std::string& op) { return op == "=" || op == "~"; });
}

// The value of "x = 5", "2 + 3 = 5" and "x = 1/3 \approx 0.33", or null. "7 = 5" has none.
const MathNode* value_of(const MathNode& node, Work& work) {
  if (!is_equation(node)) return nullptr;
  size_t last = 0;  // behind "=", never behind "\approx"
  while (last < node.operators.size() && node.operators[last] == "=") ++last;
  if (last == 0) return nullptr;
  for (size_t i = 0; i < last; ++i) {
    if (i == 0 && !is_name(node.parts[0]) && has_variables(node.parts[0])) return nullptr;
    if (!is_name(node.parts[i]) && !same(node.parts[i], node.parts[last], work)) return nullptr;
  }
  return &node.parts[last];
}

// Equal at every point; decided by the first that differs.
bool same_values(const MathNode& a, const MathNode& b, Work& work) {
  const int points = has_variables(a) || has_variables(b) ? kPoints : 1;
  for (int point = 0; point < points; ++point) {
    if (!same_value(evaluate(a, point, work), evaluate(b, point, work))) return false;
  }
  return true;
}

struct Decimal {
  int places = 0, significant = 0;
};

// What a literal (with a sign, perhaps) has behind the point and in all.
std::optional<Decimal> decimal_of(const MathNode& node) {
  if (node.kind == MathKind::negative) return decimal_of(node.parts[0]);
  if (node.kind != MathKind::number) return std::nullopt;
  const size_t point = node.text.find('.');
  if (point == std::string::npos) return std::nullopt;
  Decimal out{.places = static_cast<int>(node.text.size() - point - 1), .significant = 0};
  for (const char c : node.text) out.significant += c != '.' && (c != '0' || out.significant > 0);
  return out;
}

// Whether two numbers are nearer to each other than half a unit in this place behind the point.
bool near(const MathNode& a, const MathNode& b, int places, Work& work) {
  if (has_variables(a) || has_variables(b)) return false;
  const Value x = evaluate(a, 0, work), y = evaluate(b, 0, work);
  if (!x.number || !y.number) return false;
  const Real difference = abs(x.number->re - y.number->re) + abs(x.number->im - y.number->im);
  return difference <= pow(Real(10), -places) / 2 * (1 + Real(1e-30));
}

bool is_literal(const MathNode& node) {
  return node.kind == MathKind::number || (node.kind == MathKind::negative && is_literal(node.parts[0]));
}

// 0.333333 is 1/3: a decimal of six places says what it is rounded from, 0.33 does not. Two literals are what they say.
bool same_rounded(const MathNode& a, const MathNode& b, Work& work) {
  constexpr int kPlaces = 6, kSignificant = 4, kMostSignificant = 15;  // of what a machine computes the rest is chance
  if (is_literal(a) == is_literal(b)) return false;
  const auto decimal = decimal_of(is_literal(a) ? a : b);
  if (!decimal || decimal->places < kPlaces || decimal->significant < kSignificant) return false;
  return near(a, b, decimal->places - std::max(decimal->significant - kMostSignificant, 0), work);
}

struct Quantity {
  const MathNode* value;
  std::string unit;
  bool percent = false;
};

Quantity quantity_of(const MathNode& node) {
  Quantity out{.value = &node, .unit = {}};
  for (;;) {
    if (out.value->kind == MathKind::quantity) {
      out.unit = out.unit.empty() ? out.value->text : out.value->text + " " + out.unit;
      out.value = &out.value->parts[0];
    } else if (out.value->kind == MathKind::degree) {
      out.unit = "°";
      out.value = &out.value->parts[0];
    } else if (out.value->kind == MathKind::percent) {
      out.percent = true;
      out.value = &out.value->parts[0];
    } else {
      return out;
    }
  }
}

// A unit as a number: what it is in metres, seconds, ...
MathNode in_base_unit(const MathNode& value, const Unit& unit) {
  MathNode factor = math_node(MathKind::quotient, {});
  factor.parts.push_back(math_node(MathKind::number, std::to_string(unit.top)));
  factor.parts.push_back(math_node(MathKind::number, std::to_string(unit.bottom)));
  MathNode out = math_node(MathKind::product, {});
  out.parts.push_back(value);
  out.parts.push_back(std::move(factor));
  return out;
}

bool same_structure(const MathNode& a, const MathNode& b, Work& work) {
  if (a.kind != b.kind || a.text != b.text || a.base != b.base || a.operators != b.operators ||
      a.parts.size() != b.parts.size()) {
    return false;
  }
  if (a.parts.empty()) return true;
  for (size_t i = 0; i < a.parts.size(); ++i) {
    if (!same(a.parts[i], b.parts[i], work)) return false;
  }
  return true;
}

bool same_scalar(const MathNode& given, const MathNode& expected, Work& work) {
  const Quantity a = quantity_of(given), b = quantity_of(expected);
  if (a.value != &given || b.value != &expected) {
    const auto unit = a.unit.empty() ? std::nullopt : read_unit(a.unit),
               expected_unit = b.unit.empty() ? std::nullopt : read_unit(b.unit);
    if (unit && expected_unit) {
      if (unit->powers != expected_unit->powers) return false;
      if (unit->top != expected_unit->top || unit->bottom != expected_unit->bottom) {
        return is_value(*a.value) && is_value(*b.value) &&
               same_values(in_base_unit(*a.value, *unit), in_base_unit(*b.value, *expected_unit), work);
      }
    }
    // Of units that are not known the power alone counts: "square units" are not "units".
    if (!a.unit.empty() && !b.unit.empty() && unit_power(a.unit) != unit_power(b.unit)) return false;
    if (a.percent != b.percent && (unit || expected_unit)) return false;  // 25 km is not 25 %
    if (same(*a.value, *b.value, work)) return true;                      // 25 % may be given as 25
    if (a.percent == b.percent) return false;
    const MathNode hundred = math_node(MathKind::percent, {}, {a.percent ? *a.value : *b.value});
    return is_value(*a.value) && is_value(*b.value) && same_values(hundred, a.percent ? *b.value : *a.value, work);
  }
  if (same_values(given, expected, work)) return true;
  if (same_rounded(given, expected, work)) return true;
  return (contains(given, MathKind::constant) || contains(given, MathKind::call)) &&
         same_structure(given, expected, work);
}

using Nodes = std::vector<const MathNode*>;

// In any order, each with one of the others.
bool same_unordered(const Nodes& given, const Nodes& expected, Work& work) {
  if (given.size() != expected.size()) return false;
  std::vector<bool> used(given.size());
  for (const MathNode* wanted : expected) {
    bool found = false;
    for (size_t i = 0; i < given.size() && !found; ++i) {
      if (used[i] || !same(*given[i], *wanted, work)) continue;
      found = used[i] = true;
    }
    if (!found) return false;
  }
  return true;
}

bool same_ordered(const Nodes& given, const Nodes& expected, Work& work) {
  if (given.size() != expected.size()) return false;
  for (size_t i = 0; i < given.size(); ++i) {
    if (!same(*given[i], *expected[i], work)) return false;
  }
  return true;
}

Nodes pointers(const std::vector<MathNode>& parts) {
  Nodes out;
  for (const MathNode& part : parts) out.push_back(&part);
  return out;
}

// "x = 1, x = 2" and "x = 1, 2" are the values of x. Others stay as they are.
Nodes values_in(const std::vector<MathNode>& parts, Work& work) {
  Nodes out;
  const MathNode* name = nullptr;
  for (const MathNode& part : parts) {
    const MathNode* value = value_of(part, work);
    if (value == nullptr && part.kind == MathKind::relation) return pointers(parts);
    if (value != nullptr) {
      const MathNode& left = part.parts[0];
      if (name == nullptr && &part != parts.data()) return pointers(parts);
      if (name != nullptr && (left.kind != name->kind || left.text != name->text)) return pointers(parts);
      name = &left;
    }
    out.push_back(value != nullptr ? value : &part);
  }
  return name != nullptr && name->kind != MathKind::variable ? pointers(parts) : out;
}

// With each element that has a \pm as two.
MathNode with_signs(const MathNode& node) {
  MathNode out = node;
  out.parts.clear();
  for (const MathNode& part : node.parts) {
    if (!contains(part, MathKind::plus_minus)) {
      out.parts.push_back(part);
      continue;
    }
    for (const bool upper : {true, false}) {
      out.parts.push_back(part);
      choose_sign(out.parts.back(), upper);
    }
  }
  return out;
}

// Values of which none is another: what a set in braces is.
Nodes distinct(const Nodes& nodes, Work& work) {
  Nodes out;
  for (const MathNode* node : nodes) {
    if (std::ranges::none_of(out, [&](const MathNode* other) { return same(*node, *other, work); }))
      out.push_back(node);
  }
  return out;
}

bool is_list(const MathNode& node) { return node.kind == MathKind::list || node.kind == MathKind::set; }

bool same_lists(const MathNode& given, const MathNode& expected, Work& work) {
  Nodes a = values_in(given.parts, work), b = values_in(expected.parts, work);
  if (given.kind == MathKind::set && expected.kind == MathKind::set) {
    a = distinct(a, work);
    b = distinct(b, work);
  }
  return same_unordered(a, b, work);
}

// lhs - rhs
MathNode difference(const MathNode& relation) {
  MathNode right = math_node(MathKind::negative, {}, {relation.parts[1]});
  return math_node(MathKind::sum, {}, {relation.parts[0], std::move(right)});
}

// Whether one side minus the other is, of one relation, a constant times what it is of the other; `positive`: one above
// 0.
bool proportional(const MathNode& a, const MathNode& b, bool positive, Work& work) {
  if (!is_value(a.parts[0]) || !is_value(a.parts[1]) || !is_value(b.parts[0]) || !is_value(b.parts[1])) return false;
  const MathNode x = difference(a), y = difference(b);
  if (!has_variables(x) || !has_variables(y)) return false;
  const Value x0 = evaluate(x, 0, work), y0 = evaluate(y, 0, work);
  if (is_zero(x0) || is_zero(y0)) return false;
  for (int point = 1; point <= kPoints; ++point) {
    if (!same_value(multiply(x0, evaluate(y, point, work)), multiply(y0, evaluate(x, point, work)))) return false;
  }
  if (!positive) return true;
  return x0.number && y0.number && (x0.number->re > 0) == (y0.number->re > 0);
}

MathNode reversed(const MathNode& relation) {
  MathNode out = relation;
  std::ranges::reverse(out.parts);
  std::ranges::reverse(out.operators);
  for (std::string& op : out.operators) {
    if (op[0] == '<')
      op[0] = '>';
    else if (op[0] == '>')
      op[0] = '<';
  }
  return out;
}

bool same_relations(const MathNode& given, const MathNode& expected, Work& work) {
  if (same_structure(given, expected, work)) return true;
  const MathNode mirrored = reversed(given);
  if (same_structure(mirrored, expected, work)) return true;
  const MathNode *x = value_of(given, work), *y = value_of(expected, work);
  if (x != nullptr && y != nullptr) {  // x = 1 + 1 = 2 against x = 2
    const MathNode &left = given.parts[0], &right = expected.parts[0];
    if ((given.parts.size() > 2 || expected.parts.size() > 2 || left.kind == MathKind::text ||
         right.kind == MathKind::text) &&
        (same(left, right, work) || !has_variables(left) || !has_variables(right))) {
      return same(*x, *y, work);
    }
  }
  if (given.operators.size() != 1 || expected.operators.size() != 1) return false;
  if (given.operators == expected.operators &&
      proportional(given, expected, given.operators[0] != "=" && given.operators[0] != "!=", work))
    return true;
  return mirrored.operators == expected.operators &&
         proportional(mirrored, expected, given.operators[0] != "=" && given.operators[0] != "!=", work);
}

// Both are words: letters and digits alone count, not their case.
bool same_words(std::string_view a, std::string_view b) {
  const auto plain = [](std::string_view text) {
    std::string out;
    for (const char c : text) {
      if ('A' <= c && c <= 'Z')
        out += static_cast<char>(c - 'A' + 'a');
      else if (c != ' ' && c != '.' && c != ',' && c != '\'' && c != '"' && c != '-')
        out += c;
    }
    return out;
  };
  return plain(a) == plain(b);
}

// The digits of "1010_2" are enough where the base is known from the question; another base is another answer.
bool same_based(const MathNode& given, const MathNode& expected, Work& work) {
  if (given.kind == MathKind::based && expected.kind == MathKind::based) {
    return given.base == expected.base && same_values(given, expected, work);
  }
  const MathNode &based = given.kind == MathKind::based ? given : expected,
                 &other = given.kind == MathKind::based ? expected : given;
  if (based.base == 10) return is_value(other) && same_values(based, other, work);
  // A number that is expected without its base is one to base 10.
  return expected.kind == MathKind::based && other.kind == MathKind::number &&
         same_values(math_node(MathKind::number, expected.text), other, work) &&
         std::ranges::all_of(expected.text, [](char c) { return c <= '9'; });
}

bool same_tuples(const MathNode& given, const MathNode& expected, Work& work) {
  const auto round = [](const MathNode& node) { return (node.open == '(' && node.close == ')') || node.open == '<'; };
  const auto half_open = [](const MathNode& node) {
    return (node.open == '(' && node.close == ']') || (node.open == '[' && node.close == ')');
  };
  const bool same_brackets = given.open == expected.open && given.close == expected.close;
  // Brackets say whether an interval has its ends; longer ones, and vectors, are none.
  const bool may_differ = (given.parts.size() != 2 || given.open == '<' || expected.open == '<') && !half_open(given) &&
                          !half_open(expected);
  if (!same_brackets && !may_differ && !(round(given) && round(expected))) return false;
  return same_ordered(pointers(given.parts), pointers(expected.parts), work);
}

// A column, as a tuple.
std::optional<Nodes> column(const MathNode& node) {
  if (node.kind == MathKind::tuple && ((node.open == '(' && node.close == ')') || node.open == '<')) {
    return pointers(node.parts);
  }
  if (node.kind != MathKind::matrix || node.parts[0].parts.size() != 1 || !node.text.empty()) return std::nullopt;
  Nodes out;
  for (const MathNode& row : node.parts) out.push_back(row.parts.data());
  return out;
}

bool same_matrices(const MathNode& given, const MathNode& expected, Work& work) {
  if (given.kind == MathKind::matrix && expected.kind == MathKind::matrix) {
    if (given.text != expected.text || given.parts.size() != expected.parts.size()) return false;
    for (size_t i = 0; i < given.parts.size(); ++i) {
      if (!same_ordered(pointers(given.parts[i].parts), pointers(expected.parts[i].parts), work)) return false;
    }
    return true;
  }
  const auto a = column(given), b = column(expected);
  return a && b && same_ordered(*a, *b, work);
}

// 2:4 is 1:2. Two digits behind the colon may be minutes: 2:40 is not 1:20.
bool same_ratios(const MathNode& a, const MathNode& b, Work& work) {
  if (same_ordered(pointers(a.parts), pointers(b.parts), work)) return true;
  const auto may_be_time = [](const MathNode& node) {
    return node.kind == MathKind::ratio && node.parts[1].kind == MathKind::number && node.parts[1].text.size() == 2;
  };
  if (a.parts.size() != 2 || b.parts.size() != 2 || may_be_time(a) || may_be_time(b)) return false;
  if (!std::ranges::all_of(a.parts, is_value) || !std::ranges::all_of(b.parts, is_value)) return false;
  return same_values(math_node(MathKind::quotient, {}, a.parts), math_node(MathKind::quotient, {}, b.parts), work);
}

// Lists, tuples, sets and the like against each other.
bool same_collections(const MathNode& a, const MathNode& b, Work& work) {
  if (a.kind == MathKind::matrix || b.kind == MathKind::matrix) return same_matrices(a, b, work);
  if (is_list(a) && is_list(b) && same_lists(a, b, work)) return true;
  if (a.kind == MathKind::tuple && b.kind == MathKind::tuple && same_tuples(a, b, work)) return true;
  // A tuple of three or more without its brackets: of two it might be an interval.
  if (a.kind == MathKind::list && b.kind == MathKind::tuple && a.parts.size() > 2)
    return same_ordered(pointers(a.parts), pointers(b.parts), work);
  if (a.kind == MathKind::list && b.kind == MathKind::tuple && b.open == '(' && b.close == ')') {
    // x = 1, y = 2 for the point (1, 2)
    Nodes values;
    for (const MathNode& part : a.parts) {
      const MathNode* value = value_of(part, work);
      if (value == nullptr || !is_name(part.parts[0])) return false;
      values.push_back(value);
    }
    return same_ordered(values, pointers(b.parts), work);
  }
  const bool ratios = a.kind == MathKind::ratio && (b.kind == MathKind::ratio || b.kind == MathKind::quotient);
  if (ratios || (a.kind == MathKind::quotient && b.kind == MathKind::ratio)) return same_ratios(a, b, work);
  const auto may_be_set = [](const MathNode& node) {
    return node.kind == MathKind::constant || node.kind == MathKind::tuple || node.kind == MathKind::set ||
           node.kind == MathKind::set_union || node.kind == MathKind::set_minus ||
           node.kind == MathKind::intersection || node.kind == MathKind::relation || node.kind == MathKind::list;
  };
  // Two tuples, two lists were compared: an interval against a list of others is none.
  if (may_be_set(a) && may_be_set(b) &&
      !(a.kind == b.kind && (a.kind == MathKind::tuple || a.kind == MathKind::constant))) {
    const auto x = real_set(a, work), y = real_set(b, work);
    if (x && y && same_set(*x, *y)) return true;
  }
  if ((a.kind == MathKind::set_union && b.kind == MathKind::set_union) ||
      (a.kind == MathKind::intersection && b.kind == MathKind::intersection)) {
    return same_unordered(pointers(a.parts), pointers(b.parts), work);
  }
  return a.kind == b.kind && a.kind == MathKind::set_minus && same_structure(a, b, work);
}

// A list of one: braces around a value, and a value with two signs.
MathNode normal(const MathNode& node) {
  if (is_list(node) && contains(node, MathKind::plus_minus)) return with_signs(node);
  if (node.kind == MathKind::relation && node.parts.size() == 2 && is_equation(node) &&
      contains(node.parts[1], MathKind::plus_minus) && !contains(node.parts[0], MathKind::plus_minus) &&
      is_name(node.parts[0])) {
    return with_signs(math_node(MathKind::list, {}, {node.parts[1]}));
  }
  if (is_value(node) && contains(node, MathKind::plus_minus)) return with_signs(math_node(MathKind::list, {}, {node}));
  return as_matrix(scaled(node));
}

bool same(const MathNode& given_node, const MathNode& expected_node, Work& work) {
  work.take(1);
  const bool plain = !contains(given_node, MathKind::plus_minus) && !contains(expected_node, MathKind::plus_minus) &&
                     !contains(given_node, MathKind::matrix) && !contains(expected_node, MathKind::matrix) &&
                     given_node.kind != MathKind::tuple && expected_node.kind != MathKind::tuple;
  std::optional<MathNode> normal_given, normal_expected;
  if (!plain) {
    normal_given = normal(given_node);
    normal_expected = normal(expected_node);
  }
  const MathNode& a = plain ? given_node : *normal_given;
  const MathNode& b = plain ? expected_node : *normal_expected;

  const bool relation_a = a.kind == MathKind::relation, relation_b = b.kind == MathKind::relation;
  if (relation_b && b.operators.back() == "~") {  // rounded, and expected so
    const auto decimal = decimal_of(b.parts.back());
    const MathNode* value = relation_a ? value_of(a, work) : &a;
    if (decimal && value != nullptr && is_value(*value) && near(*value, b.parts.back(), decimal->places, work))
      return true;
  }
  if (relation_a && relation_b && same_relations(a, b, work)) return true;
  if (relation_a != relation_b) {
    const MathNode* value = value_of(relation_a ? a : b, work);
    if (value != nullptr && same(relation_a ? *value : a, relation_a ? b : *value, work)) return true;
  }
  if (a.kind == MathKind::text || b.kind == MathKind::text) return a.kind == b.kind && same_words(a.text, b.text);
  if (a.kind == MathKind::based || b.kind == MathKind::based) return same_based(a, b, work);
  const auto is_negative_based = [](const MathNode& node) {
    return node.kind == MathKind::negative && node.parts[0].kind == MathKind::based;
  };
  if (is_negative_based(a) || is_negative_based(b)) {
    return a.kind == MathKind::negative && b.kind == MathKind::negative && same_based(a.parts[0], b.parts[0], work);
  }
  if (is_value(a) && is_value(b) && a.kind != MathKind::plus_minus) return same_scalar(a, b, work);
  if (a.kind == MathKind::quantity || b.kind == MathKind::quantity || a.kind == MathKind::percent ||
      b.kind == MathKind::percent) {
    return same_scalar(a, b, work);
  }
  if (same_collections(a, b, work)) return true;
  // {5} is a way to say 5.
  if (a.kind == MathKind::set && a.parts.size() == 1 && is_value(b)) return same(a.parts[0], b, work);
  if (b.kind == MathKind::set && b.parts.size() == 1 && is_value(a)) return same(a, b.parts[0], work);
  return false;
}

}  // namespace

bool same_math(const MathNode& given, const MathNode& expected, Work& work) { return same(given, expected, work); }

}  // namespace fathom::eval
