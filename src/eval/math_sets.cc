#include "eval/math_sets.h"

#include <algorithm>
#include <utility>

namespace fathom::eval {
namespace {

struct NotReal {};

constexpr size_t kMostIntervals = 64;

// -1, 0 or 1.
int order(const RealEnd& a, const RealEnd& b) {
  if (a.infinite != 0 || b.infinite != 0) return a.infinite < b.infinite ? -1 : a.infinite > b.infinite ? 1 : 0;
  if (same_value(a.value, b.value)) return 0;
  if (!a.value.number || !b.value.number) throw NotReal{};
  return a.value.number->re < b.value.number->re ? -1 : 1;
}

bool is_infinite(const MathNode& node) { return node.kind == MathKind::constant && node.text == "infinity"; }

RealEnd end_of(const MathNode& node, Work& work) {
  if (is_infinite(node)) return {.infinite = 1};
  const bool is_signed = node.kind == MathKind::negative || (node.kind == MathKind::sum && node.parts.size() == 1);
  if (is_signed && is_infinite(node.parts[0])) return {.infinite = node.kind == MathKind::negative ? -1 : 1};
  if (has_variables(node)) throw NotReal{};
  RealEnd out{.value = evaluate(node, 0, work)};
  if (!out.value.number || abs(out.value.number->im) > out.value.number->error) throw NotReal{};
  return out;
}

bool is_empty(const RealInterval& interval) {
  const int order_of_ends = order(interval.low, interval.high);
  return order_of_ends > 0 || (order_of_ends == 0 && !(interval.low_closed && interval.high_closed));
}

// In order, joined where nothing is missing between two.
std::vector<RealInterval> joined(std::vector<RealInterval> parts) {
  std::erase_if(parts, is_empty);
  std::ranges::sort(parts, [](const RealInterval& a, const RealInterval& b) {
    const int by_low = order(a.low, b.low);
    return by_low != 0 ? by_low < 0 : a.low_closed && !b.low_closed;
  });
  std::vector<RealInterval> out;
  for (const RealInterval& part : parts) {
    if (!out.empty()) {
      RealInterval& last = out.back();
      const int gap = order(last.high, part.low);
      if (gap > 0 || (gap == 0 && (last.high_closed || part.low_closed))) {
        const int further = order(last.high, part.high);
        if (further < 0) {
          last.high = part.high;
          last.high_closed = part.high_closed;
        } else if (further == 0) {
          last.high_closed |= part.high_closed;
        }
        continue;
      }
    }
    out.push_back(part);
  }
  return out;
}

std::vector<RealInterval> common(const std::vector<RealInterval>& a, const std::vector<RealInterval>& b) {
  std::vector<RealInterval> out;
  for (const RealInterval& x : a) {
    for (const RealInterval& y : b) {
      const int low = order(x.low, y.low), high = order(x.high, y.high);
      RealInterval part = x;
      if (low < 0) std::tie(part.low, part.low_closed) = std::pair(y.low, y.low_closed);
      if (low == 0) part.low_closed = x.low_closed && y.low_closed;
      if (high > 0) std::tie(part.high, part.high_closed) = std::pair(y.high, y.high_closed);
      if (high == 0) part.high_closed = x.high_closed && y.high_closed;
      out.push_back(std::move(part));
    }
  }
  if (out.size() > kMostIntervals) throw NotReal{};
  return joined(std::move(out));
}

const RealEnd kLowest{.infinite = -1}, kHighest{.infinite = 1};

std::vector<RealInterval> complement(const std::vector<RealInterval>& of) {
  std::vector<RealInterval> out;
  RealEnd low = kLowest;
  bool closed = false;
  for (const RealInterval& interval : of) {
    out.push_back({low, interval.low, closed, !interval.low_closed && interval.low.infinite == 0});
    low = interval.high;
    closed = !interval.high_closed && low.infinite == 0;
  }
  if (low.infinite != 1) out.push_back({low, kHighest, closed, false});
  return joined(std::move(out));
}

std::vector<RealInterval> intervals_of(const MathNode& node, std::string& variable, Work& work);

// One relation "a op b" with the variable on one side.
std::vector<RealInterval> half(const MathNode& left, std::string op, const MathNode& right, std::string& variable,
                               Work& work) {
  const bool on_left = left.kind == MathKind::variable;
  if (!on_left && right.kind != MathKind::variable) throw NotReal{};
  const std::string& name = (on_left ? left : right).text;
  if (!variable.empty() && variable != name) throw NotReal{};
  variable = name;
  const MathNode& other = on_left ? right : left;
  if (op == "in") {
    if (!on_left) throw NotReal{};
    std::string none;
    std::vector<RealInterval> out = intervals_of(other, none, work);
    if (!none.empty()) throw NotReal{};
    return out;
  }
  const RealEnd end = end_of(other, work);
  if (!on_left && op[0] == '<')
    op[0] = '>';
  else if (!on_left && op[0] == '>')
    op[0] = '<';
  const bool closed = op.size() == 2 && end.infinite == 0;
  if (op[0] == '<') return {{kLowest, end, false, closed}};
  if (op[0] == '>') return {{end, kHighest, closed, false}};
  if (op == "!=") return {{kLowest, end, false, false}, {end, kHighest, false, false}};
  throw NotReal{};  // an equation is a value
}

std::vector<RealInterval> intervals_of(const MathNode& node, std::string& variable, Work& work) {
  std::vector<RealInterval> out;
  switch (node.kind) {
    case MathKind::constant:
      if (node.text == "reals") return {{kLowest, kHighest, false, false}};
      if (node.text == "empty") return {};
      throw NotReal{};
    case MathKind::tuple: {
      if (node.parts.size() != 2 || node.open == '<') throw NotReal{};
      const RealEnd low = end_of(node.parts[0], work), high = end_of(node.parts[1], work);
      if (low.infinite > 0 || high.infinite < 0 || order(low, high) > 0) throw NotReal{};
      return joined({{low, high, node.open == '[' && low.infinite == 0, node.close == ']' && high.infinite == 0}});
    }
    case MathKind::set:
      for (const MathNode& part : node.parts) {
        const RealEnd end = end_of(part, work);
        if (end.infinite != 0) throw NotReal{};
        out.push_back({end, end, true, true});
      }
      break;
    case MathKind::set_union:
      for (const MathNode& part : node.parts) {
        std::ranges::move(intervals_of(part, variable, work), std::back_inserter(out));
        if (out.size() > kMostIntervals) throw NotReal{};
      }
      break;
    case MathKind::intersection:
      return common(intervals_of(node.parts[0], variable, work), intervals_of(node.parts[1], variable, work));
    case MathKind::set_minus:
      return common(intervals_of(node.parts[0], variable, work),
                    complement(intervals_of(node.parts[1], variable, work)));
    case MathKind::relation:
      if (node.operators.size() > 2) throw NotReal{};
      out = half(node.parts[0], node.operators[0], node.parts[1], variable, work);
      if (node.operators.size() == 2) {
        out = common(joined(std::move(out)),
                     joined(half(node.parts[1], node.operators[1], node.parts[2], variable, work)));
      }
      break;
    case MathKind::list:  // "x < 1 or x > 2": parts that overlap would be meant together
      for (const MathNode& part : node.parts) {
        if (part.kind != MathKind::relation && part.kind != MathKind::tuple && part.kind != MathKind::set_union)
          throw NotReal{};
        const std::vector<RealInterval> more = intervals_of(part, variable, work);
        if (!common(out, more).empty()) throw NotReal{};
        std::ranges::move(more, std::back_inserter(out));
        out = joined(std::move(out));
      }
      break;
    default:
      throw NotReal{};
  }
  if (out.size() > kMostIntervals) throw NotReal{};
  return joined(std::move(out));
}

}  // namespace

std::optional<RealSet> real_set(const MathNode& node, Work& work) {
  try {
    RealSet out;
    out.intervals = intervals_of(node, out.variable, work);
    return out;
  } catch (const NotReal&) {
    return std::nullopt;
  }
}

bool same_set(const RealSet& a, const RealSet& b) {
  if (a.intervals.size() != b.intervals.size()) return false;
  if (!a.variable.empty() && !b.variable.empty() && a.variable != b.variable) return false;
  return std::ranges::equal(a.intervals, b.intervals, [](const RealInterval& x, const RealInterval& y) {
    return x.low_closed == y.low_closed && x.high_closed == y.high_closed && order(x.low, y.low) == 0 &&
           order(x.high, y.high) == 0;
  });
}

}  // namespace fathom::eval
