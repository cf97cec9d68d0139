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
constexpr const char *kIdle = "#ececec", *kExposed = "#e77f7f", *kSums = "#c3b1e1";

constexpr double kHidden = 0.5;  // pixels: shorter waits between pieces are not drawn

// Of a rank's row.
struct Bar {
  double begin, end;
  enum class Part { all, upper, lower } part;
  const char* fill;
  std::string text;
};
struct LegendPart {
  std::vector<const char*> fills;
  const char* name;
  double width;  // pixels, of its name
};

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

const char* color(Kind kind, ChunkPass pass) {
  if (kind == Kind::forward) return kForward[pass.direction];
  if (kind == Kind::backward_input) return kInput[pass.direction];
  return kind == Kind::backward_weight ? kWeight[pass.direction] : kBackward[pass.direction];
}

void add_bars(std::vector<Bar>& bars, const PipelineOp& op, const Simulation::Span& span) {
  const auto add = [&](Bar::Part part, Kind kind, ChunkPass pass) {
    bars.push_back({span.begin, span.end, part, color(kind, pass), std::to_string(pass.chunk)});
  };
  if (op.kind == Kind::forward_and_backward) {  // one above the other
    add(Bar::Part::upper, Kind::forward, op.forward);
    add(Bar::Part::lower, Kind::backward, op.backward);
  } else {
    add(Bar::Part::all, op.kind, op.kind == Kind::forward ? op.forward : op.backward);
  }
}

// What the colours mean, above the rows.
std::vector<LegendPart> legend_of_passes(int n_directions) {
  std::vector<LegendPart> legend;
  for (const auto& [colors, name] : {std::pair(kForward, "forward"), std::pair(kBackward, "backward"),
                                     std::pair(kInput, "for inputs only"), std::pair(kWeight, "for weights only")}) {
    legend.push_back({{colors, colors + n_directions}, name, 130});
  }
  return legend;
}

void add_legend(std::string& svg, const std::vector<LegendPart>& legend) {
  double x = kLeft;
  for (const LegendPart& part : legend) {
    for (const char* const fill : part.fills) {
      add_box(svg, {x, 30, 14, 12}, fill, "");
      x += 16;
    }
    svg += fmt::format("<text x='{:.2f}' y='40' class='l'>{}</text>", x + 2, part.name);
    x += part.width;
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

double pixels_per_time(double end) { return (kWidth - kLeft - 12) / end; }

std::string picture(const std::vector<std::vector<Bar>>& rows, double end, const std::vector<LegendPart>& legend,
                    const std::string& title, const std::string& unit) {
  if (!(end > 0)) throw Error("nothing takes any time: there is nothing to draw");
  const double scale = pixels_per_time(end), height = kTop + kRow * static_cast<double>(rows.size()) + kBottom;
  std::string svg = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0} {1}' width='{0}' height='{1}' font-family='sans-serif'>"
      "<style>.n{{font-size:9px;text-anchor:middle;fill:#222}}.l{{font-size:12px;fill:#222}}"
      ".a{{font-size:10px;fill:#555;text-anchor:middle}}</style><rect width='100%' height='100%' fill='#fff'/>\n"
      "<text x='{2}' y='20' class='l' font-weight='bold'>{3}</text>",
      kWidth, height, kLeft, escaped(title));
  add_legend(svg, legend);
  svg += '\n';
  double y = kTop;
  for (size_t rank = 0; rank < rows.size(); ++rank, y += kRow) {
    svg += fmt::format("<text x='8' y='{:.2f}' class='l'>rank {}</text>", y + 14, rank);
    add_box(svg, {kLeft, y, end * scale, kBox}, kIdle, "");
    for (const Bar& bar : rows[rank]) {
      // A hair of white between neighbours.
      Box box{kLeft + bar.begin * scale, y, std::max((bar.end - bar.begin) * scale - 0.6, 0.3), kBox};
      if (bar.part != Bar::Part::all) box.height /= 2;
      if (bar.part == Bar::Part::lower) box.y += box.height;
      add_box(svg, box, bar.fill, bar.text);
    }
    svg += '\n';
  }
  const double step = axis_step(end);
  for (int i = 0; i * step <= end; ++i) {
    svg += fmt::format("<text x='{:.2f}' y='{:.2f}' class='a'>{:g}{}{}</text>", kLeft + i * step * scale, y + 14,
                       i * step, unit.empty() ? "" : " ", escaped(unit));
  }
  return svg + "\n</svg>\n";
}

using Piece = PipelineTrace::Piece;

bool is_pass(const Piece& piece) { return piece.kind < Piece::Kind::beside; }

double end_of(std::span<const MeasuredRank> ranks) {
  double end = 0;
  for (const MeasuredRank& rank : ranks) {
    for (const Piece& piece : rank.pieces) end = std::max(end, piece.end);
    for (const PipelineTrace::Span& sum : rank.sums) end = std::max(end, sum.end);
  }
  return end;
}

const char* color(const Piece& piece) {
  switch (piece.kind) {
    case Piece::Kind::forward:
      return kForward[piece.pass.direction];
    case Piece::Kind::backward:
      return kBackward[piece.pass.direction];
    case Piece::Kind::backward_input:
      return kInput[piece.pass.direction];
    case Piece::Kind::backward_weight:
      return kWeight[piece.pass.direction];
    case Piece::Kind::beside:
      return kSums;
    case Piece::Kind::exposed:
      return kExposed;
    default:
      return kIdle;
  }
}

// Pieces of a pass between which nothing can be seen are one.
std::vector<Bar> bars_of(const MeasuredRank& rank, double hidden) {
  std::vector<Bar> bars;
  const Piece* last = nullptr;
  for (const Piece& piece : rank.pieces) {
    if (piece.kind == Piece::Kind::starved || (!is_pass(piece) && piece.end - piece.begin < hidden)) continue;
    if (last != nullptr && last->kind == piece.kind && last->pass == piece.pass &&
        piece.begin - bars.back().end < hidden) {
      bars.back().end = std::max(bars.back().end, piece.end);
    } else {
      bars.push_back({piece.begin, piece.end, Bar::Part::all, color(piece),
                      is_pass(piece) ? std::to_string(piece.pass.chunk) : ""});
    }
    last = &piece;
  }
  for (const PipelineTrace::Span& sum : rank.sums) {
    if (sum.end - sum.begin >= hidden) bars.push_back({sum.begin, sum.end, Bar::Part::all, kSums, ""});
  }
  return bars;
}

// Between two moments of a line that is `columns` long and ends with `end`.
void draw(std::string& line, double begin, double until, double end, char letter) {
  const auto column = [&](double time) {
    return static_cast<size_t>(std::lround(time / end * static_cast<double>(line.size())));
  };
  const size_t first = column(begin), n = column(until) - first;
  line.replace(first, n, n, letter);
}

}  // namespace

std::string schedule_svg(const PipelineSchedule& schedule, const std::vector<std::vector<Simulation::Span>>& spans,
                         const std::string& title, const std::string& unit) {
  std::vector<std::vector<Bar>> rows(spans.size());
  for (size_t rank = 0; rank < spans.size(); ++rank) {
    for (size_t i = 0; i < spans[rank].size(); ++i) add_bars(rows[rank], schedule.ops[rank][i], spans[rank][i]);
  }
  return picture(rows, end_of(spans), legend_of_passes(schedule.n_directions()), title, unit);
}

std::string schedule_svg(std::span<const MeasuredRank> ranks, const std::string& title) {
  const double end = end_of(ranks);
  int n_directions = 1;
  bool has_sums = false;
  std::vector<std::vector<Bar>> rows;
  for (const MeasuredRank& rank : ranks) {
    rows.push_back(bars_of(rank, kHidden / pixels_per_time(end)));
    for (const Piece& piece : rank.pieces) n_directions = std::max(n_directions, piece.pass.direction + 1);
    has_sums = has_sums || std::ranges::find(rows.back(), kSums, &Bar::fill) != rows.back().end();
  }
  std::vector<LegendPart> legend = legend_of_passes(n_directions);
  for (LegendPart& part : legend) part.width = 112;
  legend.push_back({{kExposed}, "waits for messages", 130});
  legend.push_back({{kIdle}, "waits for a stage", 115});
  if (has_sums) legend.push_back({{kSums}, "sums of gradients", 0});
  const bool in_ms = end < 10;
  for (std::vector<Bar>& row : rows) {
    for (Bar& bar : row) {
      bar.begin *= in_ms ? 1e3 : 1;
      bar.end *= in_ms ? 1e3 : 1;
    }
  }
  return picture(rows, end * (in_ms ? 1e3 : 1), legend, title, in_ms ? "ms" : "s");
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
      draw(line, of_rank[i].begin, of_rank[i].end, end,
           kLetters[static_cast<size_t>(direction)][static_cast<size_t>(op.kind)]);
    }
    drawing += line + "\n";
  }
  return drawing;
}

std::string schedule_drawing(std::span<const MeasuredRank> ranks, int columns) {
  constexpr std::string_view kLetters[2] = {"FBIWS:.", "fbiwS:."};
  const double end = end_of(ranks);
  std::string drawing;
  for (const MeasuredRank& rank : ranks) {
    std::string line(static_cast<size_t>(columns), '.');
    for (const Piece& piece : rank.pieces) {
      draw(line, piece.begin, piece.end, end,
           kLetters[piece.pass.direction == 1 ? 1 : 0][static_cast<size_t>(piece.kind)]);
    }
    for (const PipelineTrace::Span& sum : rank.sums) draw(line, sum.begin, sum.end, end, 'S');
    drawing += line + "\n";
  }
  return drawing;
}

}  // namespace fathom
