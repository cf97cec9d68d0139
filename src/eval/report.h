// Results as a page for people: Markdown, and HTML that needs nothing else.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "eval/results.h"

namespace fathom::eval {

struct Report {
  nlohmann::ordered_json model;  // as RunOptions has it
  std::string version;           // of the program that measured
  std::vector<TaskResult> results;
};

// "61.2 %", or for a perplexity "4.5288".
std::string value_text(const Measure& measure);
// "58.1 to 64.3 %"
std::string interval_text(const Measure& measure);

std::string markdown_report(const Report& report);
std::string html_report(const Report& report);
nlohmann::ordered_json report_json(const Report& report);
// As report_json() writes it.
Report read_report(const std::filesystem::path& results_json);

}  // namespace fathom::eval
