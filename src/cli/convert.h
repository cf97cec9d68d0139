// What the files of `fathom convert` share.
#pragma once

#include <string>
#include <vector>

#include "cli/command.h"

namespace fathom::cli {

struct ConvertCommand {
  std::string from, to, format, imatrix, report, make_imatrix;
  bool dry_run = false, packed = false;
  int64_t window = 0;  // 0: as fathom score takes them
};

// A text for the model `from` as windows of tokens.
std::vector<std::vector<int32_t>> read_windows(const ConvertCommand& o, const std::string& text_file);

// --report: how far `to` is from `from` over these windows; writes the report and prints it.
void write_report(const ConvertCommand& o, const CommonOptions& common,
                  const std::vector<std::vector<int32_t>>& windows, ThreadPool& pool);

void remove_report(const std::string& to);

// --make-imatrix
void make_imatrix(const ConvertCommand& o, const CommonOptions& common);

}  // namespace fathom::cli
