// fathom bench --url: a load of requests on a server, measured as its clients see it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/command.h"

namespace CLI {
class Option;
}

namespace fathom::cli {

struct ServeBenchOptions {
  std::string url, prompts, endpoint = "chat", key_file, extra_body, save;
  std::vector<int64_t> clients;
  std::vector<double> rates;  // requests/s
  int64_t requests = 64, warmup = 1, shared_prefix = 0;
  double burstiness = 1, temperature = 0, timeout_s = 600;
  double slo_ttft_ms = 0, slo_tpot_ms = 0, slo_e2e_ms = 0;  // 0: none
  bool stops_at_eos = false, closes = false;
};

// Adds --url and the options that need it. `prompt` is bench's own option, which --prompts replaces.
void add_serve_bench_options(CLI::App& command, ServeBenchOptions& options, CLI::Option* prompt);

// model: its name there, or empty for the server's first; prompt, gen: tokens of each.
void run_serve_bench(const ServeBenchOptions& options, const std::string& model, int64_t prompt, int64_t gen,
                     const CommonOptions& common);

}  // namespace fathom::cli
