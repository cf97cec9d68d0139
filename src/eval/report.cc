#include "eval/report.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "base/terminal.h"
#include "eval/task_files.h"

namespace fathom::eval {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxResults = size_t{64} << 20;

bool is_share(const Measure& measure) { return measure.name != "perplexity" && measure.name != "bits_per_byte"; }

std::string model_text(const ordered_json& model) {
  const auto part = [&](const char* key) {
    return model.contains(key) && model[key].is_string() ? model[key].get<std::string>() : std::string();
  };
  const std::string name = part("model"), url = part("url");
  return url.empty() ? name : fmt::format("{} at {}", name, url);
}

std::string setting_text(const ordered_json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string settings_text(const TaskResult& r) {
  std::string text;
  for (const auto& [key, value] : r.settings.items()) {
    if (key == "task" || value.is_null()) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", key, setting_text(value));
  }
  return text;
}

std::vector<PublishedScore> published_of(const TaskResult& r) {
  std::vector<PublishedScore> rows;
  for (const PublishedScore& score : published_scores()) {
    if (score.task == r.task) rows.push_back(score);
  }
  return rows;
}

// What may be wrong with the figures.
std::string doubts(const TaskResult& r) {
  std::vector<std::string> all;
  if (r.answered < r.items) all.push_back(fmt::format("{} of {} items are answered", r.answered, r.items));
  if (r.failed > 0) all.push_back(fmt::format("{} answers failed and count as wrong", r.failed));
  if (r.cut > 0) all.push_back(fmt::format("{} answers were cut by the limit of tokens", r.cut));
  if (r.truncated > 0) all.push_back(fmt::format("{} prompts were too long and lost their begin", r.truncated));
  if (r.settings.contains("limit") && !r.settings["limit"].is_null())
    all.push_back("not all items were asked (--limit)");
  return fmt::format("{}", fmt::join(all, "; "));
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// In a table of Markdown.
std::string cell(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|' || c == '<' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

constexpr const char* kStyle =
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse;margin:.7em 0 1.5em}th,td{padding:.25em .8em;border-bottom:1px solid "
    "#ddd;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:2em}.small{color:#666;font-size:13px}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}th,td{border-color:#444}.small{color:#999}}";

// A share as a bar, its interval as a line.
std::string bar(const Measure& m) {
  if (!is_share(m)) return "";
  return fmt::format(
      "<svg width=\"200\" height=\"14\" role=\"img\" aria-label=\"{}\"><rect width=\"200\" height=\"14\" rx=\"2\" "
      "fill=\"#8884\"/><rect width=\"{:.1f}\" height=\"14\" rx=\"2\" fill=\"#4d7fd6\"/><path d=\"M{:.1f} "
      "7H{:.1f}\" stroke=\"#d33\" stroke-width=\"2\"/></svg>",
      escaped(value_text(m)), 200 * m.value, 200 * m.low, 200 * m.high);
}

std::string html_table(std::span<const Measure> measures, const char* first) {
  std::string out = fmt::format("<table><tr><th>{}<th>value<th>95 % interval<th>n<th></tr>\n", first);
  for (const Measure& m : measures) {
    out += fmt::format("<tr><td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td>{}</tr>\n", escaped(m.name),
                       value_text(m), interval_text(m), m.n, bar(m));
  }
  return out + "</table>\n";
}

std::string totals_text(const TaskResult& r) {
  return fmt::format("{} items{}, {} tokens of prompts, {} of answers, {}", r.items,
                     r.samples > 1 ? fmt::format(" with {} samples each", r.samples) : "", r.prompt_tokens, r.tokens,
                     r.seconds > 0
                         ? fmt::format("{} of answering, added up over answers that were written at the same time",
                                       human_duration(r.seconds))
                         : "scored");
}

}  // namespace

std::string value_text(const Measure& m) {
  return is_share(m) ? fmt::format("{:.1f} %", 100 * m.value) : fmt::format("{:.4f}", m.value);
}

std::string interval_text(const Measure& m) {
  return is_share(m) ? fmt::format("{:.1f} to {:.1f} %", 100 * m.low, 100 * m.high)
                     : fmt::format("{:.4f} to {:.4f}", m.low, m.high);
}

std::string markdown_report(const Report& report) {
  std::string out =
      fmt::format("# Scores of {}\n\nMeasured by {}.\n\n", cell(model_text(report.model)), report.version);
  out += "| task | measure | value | 95 % interval | n |\n| --- | --- | --- | --- | --- |\n";
  for (const TaskResult& r : report.results) {
    for (const Measure& m : r.measures) {
      out += fmt::format("| {} | {} | {} | {} | {} |\n", r.task, cell(m.name), value_text(m), interval_text(m), m.n);
    }
  }
  for (const TaskResult& r : report.results) {
    out += fmt::format("\n## {}\n\n{}.\n\nSettings: {}.\n", r.task, totals_text(r), cell(settings_text(r)));
    if (const std::string text = doubts(r); !text.empty()) out += fmt::format("\n**{}.**\n", text);
    if (!r.subjects.empty()) {
      out += "\n| subject | value | 95 % interval | n |\n| --- | --- | --- | --- |\n";
      for (const Measure& m : r.subjects) {
        out += fmt::format("| {} | {} | {} | {} |\n", cell(m.name), value_text(m), interval_text(m), m.n);
      }
    }
    if (const auto rows = published_of(r); !rows.empty()) {
      out += "\nPublished, not measured here:\n\n| model | value | how | source |\n| --- | --- | --- | --- |\n";
      for (const PublishedScore& p : rows) {
        out += fmt::format("| {} | {:.1f} % | {} | {} |\n", p.model, p.percent, p.how, p.source);
      }
    }
  }
  return out;
}

std::string html_report(const Report& report) {
  const std::string name = escaped(model_text(report.model));
  std::string out = fmt::format(
      "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport "
      "content=\"width=device-width\"><title>Scores of {}</title>\n<style>{}</style>\n<h1>Scores of {}</h1>\n<p "
      "class=small>Measured by {}.</p>\n",
      name, kStyle, name, escaped(report.version));
  std::vector<Measure> leads;
  for (const TaskResult& r : report.results) {
    for (Measure m : r.measures) {
      m.name = r.task + ", " + m.name;
      leads.push_back(std::move(m));
    }
  }
  out += html_table(leads, "task");
  for (const TaskResult& r : report.results) {
    out += fmt::format("<h2>{}</h2>\n<p>{}.<p class=small>Settings: {}.\n", escaped(r.task), totals_text(r),
                       escaped(settings_text(r)));
    if (const std::string text = doubts(r); !text.empty())
      out += fmt::format("<p><strong>{}.</strong>\n", escaped(text));
    if (!r.subjects.empty()) out += html_table(r.subjects, "subject");
    if (const auto rows = published_of(r); !rows.empty()) {
      out += "<p>Published, not measured here:\n<table><tr><th>model<th>value<th>how<th>source</tr>\n";
      for (const PublishedScore& p : rows) {
        out += fmt::format("<tr><td>{}<td class=n>{:.1f} %<td>{}<td>{}</tr>\n", escaped(p.model), p.percent,
                           escaped(p.how), escaped(p.source));
      }
      out += "</table>\n";
    }
  }
  return out + "</html>\n";
}

ordered_json report_json(const Report& report) {
  ordered_json json{{"model", report.model}, {"version", report.version}, {"results", ordered_json::array()}};
  for (const TaskResult& r : report.results) {
    ordered_json one = result_json(r);
    for (const PublishedScore& p : published_of(r)) {
      one["published"].push_back({{"model", p.model}, {"percent", p.percent}, {"how", p.how}, {"source", p.source}});
    }
    json["results"].push_back(std::move(one));
  }
  return json;
}

Report read_report(const std::filesystem::path& path) {
  const JsonDocument document = JsonDocument::read(path, kMaxResults);
  Report report;
  report.version = text_field(document.root(), "version", document.where());
  simdjson::dom::element model;
  simdjson::dom::array results;
  if (document.root()["model"].get(model) || document.root()["results"].get(results)) {
    throw Error("{}: has no model and results", document.where());
  }
  report.model = ordered_json::parse(simdjson::to_string(model));
  for (const simdjson::dom::element result : results) report.results.push_back(read_result(result, document.where()));
  return report;
}

}  // namespace fathom::eval
