// fathom convert --make-imatrix: what the columns of every matrix see in a text.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/terminal.h"
#include "checkpoint/packed_model.h"
#include "cli/convert.h"
#include "infer/importance.h"

namespace fathom::cli {
namespace {

struct Coverage {
  std::vector<ExpertCoverage> layers;
  int64_t experts = 0, unseen = 0;
};

// "3, 7, 9": the experts of a layer that no token came to.
std::string unseen_of(const ExpertCoverage& layer) {
  std::string list;
  for (size_t e = 0; e < layer.tokens.size(); ++e) {
    if (layer.tokens[e] == 0) list += fmt::format("{}{}", list.empty() ? "" : ", ", e);
  }
  return list;
}

std::string text_of(const Coverage& coverage) {
  std::string text;
  for (const ExpertCoverage& layer : coverage.layers) {
    std::vector<int64_t> sorted = layer.tokens;
    std::sort(sorted.begin(), sorted.end());
    text += fmt::format("layer {:>3}: {} experts saw {} to {} tokens, half of them at least {}", layer.layer,
                        sorted.size(), sorted.front(), sorted.back(), sorted[sorted.size() / 2]);
    if (sorted.front() == 0) {
      text += fmt::format("; {} saw none: {}", std::count(sorted.begin(), sorted.end(), 0), unseen_of(layer));
    }
    text += '\n';
  }
  if (coverage.unseen > 0) {
    text += fmt::format(
        "{} of {} experts saw no token, and will be quantized with equal weights; more text reaches "
        "more of them\n",
        coverage.unseen, coverage.experts);
  }
  return text;
}

nlohmann::ordered_json json_of(const Coverage& coverage) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const ExpertCoverage& layer : coverage.layers) {
    layers.push_back({{"layer", layer.layer}, {"tokens", layer.tokens}});
  }
  return layers;
}

}  // namespace

void make_imatrix(const ConvertCommand& o, const CommonOptions& common) {
  const auto windows = read_windows(o, o.make_imatrix);
  const NewDirectory folder(std::filesystem::path(o.to).parent_path());
  AtomicFile file(o.to);  // a place that takes no file is told before the work
  ThreadPool pool(thread_count(common));
  Arena arena;
  Context ctx{pool, arena};
  const PackedModel packed = load_packed_model(o.from, pool);
  int64_t tokens = 0;
  for (const auto& window : windows) tokens += std::ssize(window);
  Progress progress("reading", tokens);
  Imatrix imatrix = measure_importance(ctx, make_model(packed.config, packed.weights), windows, [&](int64_t done) {
    progress.update(done);
    stop_when_interrupted();
  });
  progress.finish();
  imatrix.text = std::filesystem::path(o.make_imatrix).filename();
  write_imatrix(file, imatrix);
  file.commit();

  Coverage coverage{expert_coverage(imatrix, packed.config)};
  for (const ExpertCoverage& layer : coverage.layers) {
    coverage.experts += std::ssize(layer.tokens);
    coverage.unseen += std::count(layer.tokens.begin(), layer.tokens.end(), 0);
  }
  const auto matrices = std::ssize(imatrix.entries);
  if (common.json) {
    const nlohmann::ordered_json json{{"imatrix", o.to},
                                      {"tokens", tokens},
                                      {"windows", windows.size()},
                                      {"entries", matrices},
                                      {"experts", json_of(coverage)},
                                      {"experts_without_tokens", coverage.unseen}};
    write_stdout(json.dump() + "\n");
    return;
  }
  write_stdout(fmt::format("{}: {} tensors over {} tokens in windows of {}\n{}", printable(o.to), matrices, tokens,
                           windows[0].size(), text_of(coverage)));
}

}  // namespace fathom::cli
