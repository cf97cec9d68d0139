#include "plan/page.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "plan/formulas.h"

namespace fathom::plan {
namespace {

constexpr std::string_view kHostile = "</script><script>alert(1)</script>{{policy}}<!--";

PageContent content() {
  ModelFacts facts = model_facts(known_model("deepseek-v2-lite"), std::string(kHostile));
  Hardware device = known_devices().front();
  device.title = device.sources["memory_gib"] = kHostile;
  return {"fathom", {{facts, std::string(kHostile)}}, {{device, true}}, std::string(kHostile), {{"memory", "sure"}}};
}

std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t at = text.find(begin);
  if (at == std::string::npos) return "";
  return text.substr(at + begin.size(), text.find(end, at + begin.size()) - at - begin.size());
}

size_t count(const std::string& text, std::string_view part) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++n;
  return n;
}

TEST(PlanPage, NoTextEndsTheElementThatItIsIn) {
  const std::string page = plan_page(content());
  EXPECT_EQ(count(page, "<script"), 3U);  // theme, data, page
  EXPECT_EQ(count(page, "</script>"), 3U);
  EXPECT_EQ(count(page, "<!--"), 0U);
  EXPECT_EQ(count(page, "{{policy}}"), 5U);  // as texts: a name, an argument, a title, a source, a file
}

TEST(PlanPage, HoldsFormulasAndFactsAsTheyAre) {
  const PageContent given = content();
  const auto data = nlohmann::json::parse(between(plan_page(given), "id=\"data\">", "</script>"));
  ASSERT_EQ(data["formulas"]["lines"].size(), formulas().lines.size());
  for (size_t i = 0; i < formulas().lines.size(); ++i) {
    const Line& line = formulas().lines[i];
    EXPECT_EQ(data["formulas"]["lines"][i]["name"], line.name);
    EXPECT_EQ(data["formulas"]["lines"][i]["value"], line.value.text());
    EXPECT_EQ(data["formulas"]["lines"][i]["when"], line.when.text());
  }
  EXPECT_EQ(data["models"][0]["name"], kHostile);
  for (const auto& [name, value] : given.models[0].facts.values) EXPECT_EQ(data["models"][0]["values"][name], value);
  for (const auto& [name, value] : given.devices[0].hardware.values)
    EXPECT_EQ(data["devices"][0]["values"][name], value);
}

TEST(PlanPage, AsksForNothingAndNamesItsScriptsByHash) {
  const std::string page = plan_page(content());
  const std::string policy = between(page, "http-equiv=\"Content-Security-Policy\" content=\"", "\"");
  EXPECT_TRUE(policy.starts_with("default-src 'none'; script-src 'sha256-")) << policy;
  EXPECT_EQ(count(policy, "'sha256-"), 3U);
  EXPECT_EQ(policy.find("unsafe"), std::string::npos);
  EXPECT_EQ(count(page, " src="), 0U);
  EXPECT_EQ(count(page, "stylesheet"), 0U);
  const std::string script = between(page, "<script type=\"module\">", "</script>");
  EXPECT_EQ(count(script, "\nimport "), 0U);
  EXPECT_EQ(count(script, "\nexport "), 0U);
}

}  // namespace
}  // namespace fathom::plan
