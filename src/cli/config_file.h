// --config FILE: the options of the command line as TOML. Keys that stand before any [section] belong to the subcommand
// that runs (or to the whole program); a section bears a subcommand's name.
#pragma once

#include <memory>

namespace CLI {
class App;
class Config;
}  // namespace CLI

namespace fathom::cli {

// Reads the part of TOML that options need: comments, [section], and key = string, number, boolean or array of these.
// Throws UsageError with file and line for anything else, and for a key that is no option.
std::shared_ptr<CLI::Config> config_file_reader(const CLI::App& app);

}  // namespace fathom::cli
