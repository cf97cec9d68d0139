#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "base/error.h"
#include "text/chat.h"

namespace fathom {
namespace {

using nlohmann::ordered_json;

const std::string kData = FATHOM_TEST_DATA "/chat/";

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<ordered_json> read_lines(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  std::vector<ordered_json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(ordered_json::parse(line));
  return lines;
}

ChatOptions options_of(const ordered_json& kwargs) {
  ChatOptions options{.kwargs = kwargs, .bos_token = "<｜begin▁of▁sentence｜>", .eos_token = "<｜end▁of▁sentence｜>"};
  options.add_generation_prompt = kwargs.value("add_generation_prompt", false);
  return options;
}

std::string rendered_alone(std::string_view source, const ordered_json& messages, const ChatOptions& options) {
  return render_template(source, {{"messages", messages},
                                  {"add_generation_prompt", options.add_generation_prompt},
                                  {"bos_token", options.bos_token},
                                  {"eos_token", options.eos_token}});
}

std::string error_of(std::string_view source, const ordered_json& variables = ordered_json::object(),
                     const TemplateLimits& limits = {}) {
  try {
    return "no error: " + render_template(source, variables, limits);
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(ChatTemplate, PublishedTemplatesGiveTheTextsOfTheReference) {
  const auto vectors = read_lines(kData + "vectors.jsonl");
  EXPECT_EQ(vectors.size(), 261u);
  for (const ordered_json& vector : vectors) {
    const std::string name = vector["template"];
    const std::string source = name == kDeepseekV32Encoding ? name : read(kData + name + ".jinja");
    const ChatOptions options = options_of(vector["kwargs"]);
    // What these templates lose or misplace render_chat() mends (ChatMessages.CallsAreToldWhateverStandsBesideThem), so
    // that the template is compared alone.
    const bool is_mended = vector["case"] == "tool call with text" && (name == "deepseek-v3" || name == "deepseek-r1");
    const std::string text = is_mended ? rendered_alone(source, vector["messages"], options)
                                       : render_chat(source, vector["messages"], options);
    EXPECT_EQ(text, vector["text"]) << name << ": " << vector["case"];
  }
}

TEST(ChatTemplate, OfATinyModelGivesTheTextsOfTheReference) {
  const std::string source = read(kData + "tiny.jinja");
  for (const ordered_json& vector : read_lines(kData + "tiny_vectors.jsonl")) {
    EXPECT_EQ(render_chat(source, vector["messages"],
                          options_of({{"add_generation_prompt", vector["add_generation_prompt"]},
                                      {"thinking", vector["thinking"]}})),
              vector["text"]);
  }
}

TEST(ChatTemplate, ErrorsNameTheLineAndAreOneLine) {
  EXPECT_EQ(error_of("a\n{{ raise_exception('roles\\nmust alternate') }}"),
            "chat template, line 2: roles\\x0amust alternate");
  EXPECT_EQ(error_of("\n\n{{ x.y }}"), "chat template, line 3: 'x' is undefined");
  EXPECT_EQ(error_of("{{ x.y.z }}", {{"x", ordered_json::object()}}),
            "chat template, line 1: 'dict' has no attribute 'y'");
  EXPECT_EQ(error_of("\n{% if x %}"), "chat template, line 2: the template ends where 'endif' is missing");
  EXPECT_EQ(error_of("\n{{ 1|nothing }}"), "chat template, line 2: there is no filter named 'nothing'");
  EXPECT_EQ(error_of("{% include 'x' %}"), "chat template, line 1: unknown or misplaced tag 'include'");
}

TEST(ChatTemplate, NothingOutsideTheValuesIsInReach) {
  EXPECT_EQ(render_template("{{ ''.__class__ }}{{ [].__class__ }}{{ x.__init__ }}", {{"x", 1}}), "");
  EXPECT_THAT(error_of("{{ ''.__class__.__mro__ }}"), testing::HasSubstr("out of reach"));
  EXPECT_THAT(error_of("{{ [].append(1) }}"), testing::HasSubstr("may not change"));
  EXPECT_THAT(error_of("{{ {}.update({}) }}"), testing::HasSubstr("may not change"));
  EXPECT_THAT(error_of("{{ '{0.__class__}'.format(1) ~ '{0.__class__.x}'.format(1) }}"),
              testing::HasSubstr("out of reach"));
}

TEST(ChatTemplate, HostileTemplatesEndEarlyWithOneLine) {
  const std::string deep(100000, '(');
  for (const std::string& source : std::vector<std::string>{
           "{{ 'a' * 1000000000 }}",
           "{{ [0] * 1000000000 }}",
           "{{ range(1000000000000) }}",
           "{{ 'a'.center(1000000000) }}",
           "{{ '%1000000000d' % 1 }}",
           "{{ '{:1000000000}'.format(1) }}",
           "{{ 10 ** 10 ** 10 }}",
           "{{ 1|tojson(indent=1000000000) }}",
           "{{ ('a' * 10000000).replace('', 'a' * 10000000) }}",
           "{{ 'a'|indent(1000000000) }}",
           "{{ [1]|batch(1000000000, 0)|list }}",
           "{{ [1]|slice(1000000000)|list }}",
           "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
           "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
           "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
           "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
           "{% set n = namespace(x=[1]) %}{% for i in range(999) %}{% set n.x = [n.x] %}{% endfor %}",
           "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
           "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
           "{{ " + deep,
           "{{ " + std::string(100000, '-') + "1 }}",
           "{{ x" + std::string(100000, '|') + " }}",
           "{{ x is not" + std::string(100000, ' ') + "}}",
       }) {
    const std::string error = error_of(source, ordered_json::object(), {.steps = 2'000'000, .bytes = 64 << 20});
    EXPECT_THAT(error, testing::StartsWith("chat template, line 1: ")) << source.substr(0, 80);
    EXPECT_LT(error.size(), 300u);
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
}

TEST(ChatTemplate, AssignmentsStayInTheirBlock) {
  EXPECT_EQ(render_template("{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}",
                            ordered_json::object()),
            "15151");
  EXPECT_EQ(render_template("{% if not x is defined %}{% set x = 2 %}{% endif %}{{ x }}", ordered_json::object()), "2");
  EXPECT_EQ(render_template("{% set y %}{% set x = 3 %}a{{ x }}{% endset %}{{ y }}{{ x }}", {{"x", 1}}), "a31");
  EXPECT_EQ(
      render_template("{% macro m(a, b='c') %}{{ a }}{{ b }}{{ x }}{% endmacro %}{% set x = 2 %}{{ m(1) }}{{ m(b=3) }}",
                      ordered_json::object()),
      "1c232");
}

TEST(ChatTemplate, WhiteSpaceGoesWhereTheSignsSay) {
  EXPECT_EQ(render_template("a\n  {% if true %}\n  b\n  {% endif %}\nc\n", ordered_json::object()), "a\n  b\nc");
  EXPECT_EQ(render_template("a  {%- if true -%}  b  {%- endif %}\n\nc", ordered_json::object()), "ab\nc");
  EXPECT_EQ(render_template("  {%+ if true %}x{% endif +%}\n{# note #}\n{{ 1 }}\n", ordered_json::object()), "  x\n1");
  EXPECT_EQ(render_template("{% raw %}{{ x }}{% endraw %}\ny", ordered_json::object()), "{{ x }}y");
}

TEST(Chat, RefusesMessagesThatAreNone) {
  EXPECT_THROW(render_chat("{{ 1 }}", {{"role", "user"}}, {}), Error);
  EXPECT_THROW(render_chat("{{ 1 }}", ordered_json::array({1}), {}), Error);
  EXPECT_THROW(render_chat("", ordered_json::array(), {}), Error);
  EXPECT_THROW(render_chat(kDeepseekV32Encoding, ordered_json::array({{{"role", "tool"}, {"content", "x"}}}), {}),
               Error);
  EXPECT_THROW(render_chat(kDeepseekV32Encoding, ordered_json::array({{{"role", 1}}}), {}), Error);
}

}  // namespace
}  // namespace fathom
