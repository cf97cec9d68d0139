#include "plan/page.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "plan/embedded.h"
#include "plan/formulas.h"

namespace fathom::plan {
namespace {

using nlohmann::json;

// Each behind those that it imports.
constexpr std::string_view kModules[] = {"dom.js",   "theme_choice.js", "formats.js", "expression.js",
                                         "show.js",  "plan.js",         "state.js",   "controls.js",
                                         "lines.js", "charts.js",       "planner.js"};
constexpr std::string_view kStyles[] = {"base.css", "style.css"};

std::string_view file_of(std::string_view name) {
  const std::string_view content = embedded_file(fmt::format("page/{}", name));
  FATHOM_CHECK(!content.empty(), "{}", name);
  return content;
}

// Browsers import nothing from beside a file: the modules become one, so that what one of them names no other may.
std::string one_module() {
  std::string script = "\n";
  for (const std::string_view name : kModules) {
    std::string_view text = file_of(name);
    while (!text.empty()) {
      const size_t end = std::min(text.find('\n'), text.size());
      std::string_view line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      if (line.starts_with("import ")) {
        FATHOM_CHECK(line.ends_with("';"), "{}: an import has a line for itself", name);
        continue;
      }
      if (line.starts_with("export ")) line.remove_prefix(7);
      script.append(line).append("\n");
    }
  }
  return script;
}

std::string one_style() {
  std::string style = "\n";
  for (const std::string_view name : kStyles) style += file_of(name);
  return style;
}

// As a Content-Security-Policy names an inline script or style.
std::string hash_of(std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned n = 0;
  FATHOM_CHECK(EVP_Digest(text.data(), text.size(), digest.data(), &n, EVP_sha256(), nullptr) == 1, "SHA-256");
  std::array<unsigned char, 2 * EVP_MAX_MD_SIZE> base64{};
  const int length = EVP_EncodeBlock(base64.data(), digest.data(), static_cast<int>(n));
  return fmt::format("'sha256-{}'", std::string(base64.begin(), base64.begin() + length));
}

json formula_data() {
  const Formulas& all = formulas();
  json inputs = json::array(), constants = inputs, lines = inputs;
  for (const Input& each : all.inputs) {
    inputs.push_back({{"plans", each.plans},
                      {"name", each.name},
                      {"option", each.option},
                      {"title", each.title},
                      {"unit", each.unit},
                      {"standard", each.standard.text()},
                      {"least", each.least},
                      {"most", each.most},
                      {"whole", each.whole},
                      {"choices", each.choices}});
  }
  for (const Constant& each : all.constants)
    constants.push_back({{"name", each.name}, {"title", each.title}, {"source", each.source}, {"value", each.value}});
  for (const Line& each : all.lines) {
    lines.push_back({{"plans", each.plans},
                     {"section", each.section},
                     {"name", each.name},
                     {"title", each.title},
                     {"unit", each.unit},
                     {"source", each.source},
                     {"basis", each.basis},
                     {"value", each.value.text()},
                     {"when", each.when.text()},
                     {"show", each.show}});
  }
  const auto remarks = [](const std::vector<Remark>& of) {
    json list = json::array();
    for (const Remark& each : of)
      list.push_back({{"plans", each.plans}, {"when", each.when.text()}, {"text", each.text}});
    return list;
  };
  return {{"inputs", inputs},
          {"constants", constants},
          {"lines", lines},
          {"checks", remarks(all.checks)},
          {"advice", remarks(all.advice)}};
}

json page_data(const PageContent& content) {
  json models = json::array(), devices = models;
  for (const PageModel& each : content.models) {
    models.push_back({{"name", each.facts.name},
                      {"argument", each.argument},
                      {"values", each.facts.values},
                      {"of_choice", each.facts.of_choice}});
  }
  for (const auto& [each, of_file] : content.devices) {
    devices.push_back({{"name", each.name},
                       {"of_file", of_file},
                       {"title", each.title},
                       {"is_host", each.is_host},
                       {"values", each.values},
                       {"sources", each.sources}});
  }
  return {{"version", content.version}, {"formulas", formula_data()},   {"models", models},
          {"devices", devices},         {"sureness", content.sureness}, {"hardware_file", content.hardware_file}};
}

// Where an element that holds JSON cannot end early, whatever the texts in it.
std::string inline_json(const json& data) {
  std::string out;
  for (const char c : data.dump(-1, ' ', false, json::error_handler_t::replace)) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

std::string plan_page(const PageContent& content) {
  const std::string theme = fmt::format("\n{}", file_of("theme.js"));
  const std::string script = one_module(), style = one_style();
  for (const std::string& each : {theme, script, style})
    FATHOM_CHECK(each.find("</") == std::string::npos, "'</' could end the element that it is in");
  const std::string policy = fmt::format(
      "default-src 'none'; script-src {} {}; style-src {}; img-src data:; base-uri 'none'; form-action 'none'; "
      "require-trusted-types-for 'script'; trusted-types 'none'",
      hash_of(theme), hash_of(script), hash_of(style));
  const std::pair<std::string_view, std::string> parts[] = {{"policy", policy},
                                                            {"theme", theme},
                                                            {"style", style},
                                                            {"data", inline_json(page_data(content))},
                                                            {"script", script}};
  std::string page;
  std::string_view frame = file_of("index.html");
  for (size_t open = 0; (open = frame.find("{{")) != std::string_view::npos;) {
    const size_t close = frame.find("}}", open);
    FATHOM_CHECK(close != std::string_view::npos, "index.html");
    const std::string_view name = frame.substr(open + 2, close - open - 2);
    const auto* part = std::find_if(std::begin(parts), std::end(parts), [&](const auto& p) { return p.first == name; });
    FATHOM_CHECK(part != std::end(parts), "{}", name);
    page.append(frame.substr(0, open)).append(part->second);
    frame.remove_prefix(close + 2);
  }
  return page.append(frame);
}

}  // namespace fathom::plan
