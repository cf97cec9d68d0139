#include "parallel/schedule_picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace fathom {
namespace {

using Kind = PipelineOp::Kind;

constexpr double kWidth = 1200, kLeft = 64, kRow = 26, kBox = 20, kTop = 54, kBottom = 34;
constexpr double kLeastForText = 11;  // pixels

// By the part and its direction; text on them is dark.
constexpr const char* kForward[2] = {"#f6c667", "#f6a45e"};
constexpr const char* kBackward[2] = {"#7fb3e8", "#74c9c4"};
constexpr const char* kInput[2] = {"#a9cdf2", "#a5e0dc"};
constexpr const char* kWeight[2] = {"#8fcf8f", "#b7d98a"};

double end_of(const std::vector<std::vector<Simulation::Span>>& spans) {
  double end = 0;
  for (const auto& of_rank : spans) {
    for (const Simulation::Span& span : of_rank) end = std::max(end, span.end);
  }
  return end;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

struct Box {
  double x, y, width, height;
};
void add_box(std::string& svg, const Box& box, const char* fill, const std::string& text) {
  svg += fmt::format("<rect x='{:.2f}' y='{:.2f}' width='{:.2f}' height='{:.2f}' fill='{}'/>", box.x, box.y, box.width,
                     box.height, fill);
  if (box.width < kLeastForText || text.empty()) return;
  svg += fmt::format("<text x='{:.2f}' y='{:.2f}' class='n'>{}</text>", box.x + box.width / 2,
                     box.y + box.height / 2 + 3, text);
}

const char* backward_color(Kind kind, int direction) {
  if (kind == Kind::backward_input) return kInput[direction];
  return kind == Kind::backward_weight ? kWeight[direction] : kBackward[direction];
}

void add_operation(std::string& svg, const PipelineOp& op, const Box& box) {
  if (op.kind == Kind::forward) {
    add_box(svg, box, kForward[op.forward.direction], std::to_string(op.forward.chunk));
  } else if (op.kind == Kind::forward_and_backward) {  // one above the other
    Box half = box;
    half.height = box.height / 2;
    add_box(svg, half, kForward[op.forward.direction], std::to_string(op.forward.chunk));
    half.y += half.height;
    add_box(svg, half, kBackward[op.backward.direction], std::to_string(op.backward.chunk));
  } else {
    add_box(svg, box, backward_color(op.kind, op.backward.direction), std::to_string(op.backward.chunk));
  }
}

// What the colours mean, above the rows.
void add_legend(std::string& svg, bool two_directions) {
  const std::pair<const char* const*, const char*> parts[] = {
      {kForward, "forward"}, {kBackward, "backward"}, {kInput, "for inputs only"}, {kWeight, "for weights only"}};
  double x = kLeft;
  for (const auto& [colors, name] : parts) {
    for (int d = 0; d < (two_directions ? 2 : 1); ++d) {
      add_box(svg, {x, 30, 14, 12}, colors[d], "");
      x += 16;
    }
    svg += fmt::format("<text x='{:.2f}' y='40' class='l'>{}</text>", x + 2, name);
    x += 130;
  }
}

// About ten, at round numbers.
double axis_step(double end) {
  const double rough = end / 10, power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power) return factor * power;
  }
  return 10 * power;
}

}  // namespace

std::string schedule_svg(const PipelineSchedule& schedule, const std::vector<std::vector<Simulation::Span>>& spans,
                         const std::string& title, const std::string& unit) {
  const double end = end_of(spans);
  if (!(end > 0)) throw Error("nothing takes any time: there is nothing to draw");
  const double scale = (kWidth - kLeft - 12) / end, height = kTop + kRow * schedule.n_ranks + kBottom;
  std::string svg = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0} {1}' width='{0}' height='{1}' font-family='sans-serif'>"
      "<style>.n{{font-size:9px;text-anchor:middle;fill:#222}}.l{{font-size:12px;fill:#222}}"
      ".a{{font-size:10px;fill:#555;text-anchor:middle}}</style><rect width='100%' height='100%' fill='#fff'/>\n"
      "<text x='{2}' y='20' class='l' font-weight='bold'>{3}</text>",
      kWidth, height, kLeft, escaped(title));
  add_legend(svg, schedule.n_directions() == 2);
  svg += '\n';
  for (int rank = 0; rank < schedule.n_ranks; ++rank) {
    const double y = kTop + kRow * rank;
    svg += fmt::format("<text x='8' y='{:.2f}' class='l'>rank {}</text>", y + 14, rank);
    add_box(svg, {kLeft, y, end * scale, kBox}, "#ececec", "");
    const auto& of_rank = spans[static_cast<size_t>(rank)];
    for (size_t i = 0; i < of_rank.size(); ++i) {
      // A hair of white between neighbours.
      const double width = std::max((of_rank[i].end - of_rank[i].begin) * scale - 0.6, 0.3);
      add_operation(svg, schedule.ops[static_cast<size_t>(rank)][i],
                    {kLeft + of_rank[i].begin * scale, y, width, kBox});
    }
    svg += '\n';
  }
  const double bottom = kTop + kRow * schedule.n_ranks;
  const double step = axis_step(end);
  for (int i = 0; i * step <= end; ++i) {
    svg += fmt::format("<text x='{:.2f}' y='{:.2f}' class='a'>{:g}{}{}</text>", kLeft + i * step * scale, bottom + 14,
                       i * step, unit.empty() ? "" : " ", escaped(unit));
  }
  return svg + "\n</svg>\n";
}

std::string schedule_drawing(const PipelineSchedule& schedule, const std::vector<std::vector<Simulation::Span>>& spans,
                             int columns) {
  constexpr std::string_view kLetters[2] = {"FBIWX", "fbiwx"};
  const double end = end_of(spans);
  std::string drawing;
  for (int rank = 0; rank < schedule.n_ranks; ++rank) {
    std::string line(static_cast<size_t>(columns), '.');
    const auto& of_rank = spans[static_cast<size_t>(rank)];
    for (size_t i = 0; i < of_rank.size() && end > 0; ++i) {
      const PipelineOp& op = schedule.ops[static_cast<size_t>(rank)][i];
      const int direction = op.goes_forward() ? op.forward.direction : op.backward.direction;
      const auto column = [&](double time) { return static_cast<size_t>(std::lround(time / end * columns)); };
      const size_t first = column(of_rank[i].begin), last = column(of_rank[i].end);
      line.replace(first, last - first, last - first,
                   kLetters[static_cast<size_t>(direction)][static_cast<size_t>(op.kind)]);
    }
    drawing += line + "\n";
  }
  return drawing;
}

}  // namespace fathom
