// Random templates, rendered here and by Python's jinja2. FATHOM_JINJA_SEED and FATHOM_JINJA_COUNT make longer runs.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "text/chat_template.h"

namespace fathom {
namespace {

using nlohmann::ordered_json;

std::string environment_or(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

// The text, or the error behind "error: ".
std::string rendered(const std::string& source, const ordered_json& variables) {
  try {
    return render_template(source, variables);
  } catch (const Error& error) {
    return std::string("error: ") + error.what();
  }
}

TEST(JinjaDifferential, RandomTemplatesRenderAsJinja2DoesIt) {
  const std::string script = FATHOM_TEST_DATA "/../text/jinja_differential.py";
  const std::string command = "python3 '" + script + "' " + environment_or("FATHOM_JINJA_SEED", "1") + " " +
                              environment_or("FATHOM_JINJA_COUNT", "800");
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string output;
  char buffer[1 << 16];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.append(buffer, n);
  const int status = pclose(pipe);
  if (WIFEXITED(status) && (WEXITSTATUS(status) == 77 || WEXITSTATUS(status) == 127)) {
    GTEST_SKIP() << "python3 with the package jinja2 is not installed";
  }
  ASSERT_EQ(status, 0) << command;

  ordered_json variables;
  int compared = 0, refused = 0, different = 0;
  for (size_t begin = 0, end; (end = output.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const ordered_json line = ordered_json::parse(output.substr(begin, end - begin));
    if (begin == 0) {
      variables = line;
      continue;
    }
    const std::string text = rendered(line["template"], variables);
    const bool is_error = text.starts_with("error: ");
    // Integers here have 128 bits, Python's have no end.
    if (is_error && text.find("an integer is too large") != std::string::npos) continue;
    ++compared;
    refused += is_error;
    if (line.contains("text") ? text == line["text"] : is_error) continue;
    if (++different > 20) break;
    ADD_FAILURE() << line["template"]
                  << "\n  jinja2: " << line.value("text", ordered_json("error: " + line.value("error", "")))
                  << "\n  here:   " << ordered_json(text);
  }
  EXPECT_EQ(different, 0);
  EXPECT_GT(compared, 0);
  EXPECT_GT(compared, refused) << "most templates fail: the comparison says little";
}

}  // namespace
}  // namespace fathom
