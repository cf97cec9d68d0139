// fathom convert --report: how far the model that was written is from the one it was made from.
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/terminal.h"
#include "checkpoint/stored_model.h"
#include "cli/convert.h"
#include "infer/divergence.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;

constexpr size_t kWorstInFile = 32, kWorstInText = 10;

// DIR/conversion_report, or FILE.report beside FILE.gguf.
fs::path report_path(const std::string& to, const char* extension) {
  if (!is_gguf_path(to)) return fs::path(to) / (std::string("conversion_report") + extension);
  return fs::path(to).replace_extension(std::string(".report") + extension);
}

struct Report {
  Divergence divergence;
  double relative_rms = 0;
  std::vector<WeightDifference> worst;  // the worst first
  std::unique_ptr<StoredModel> source, result;
};

Report make_report(const ConvertCommand& o, const std::vector<std::vector<int32_t>>& windows, ThreadPool& pool) {
  Arena arena;
  Context ctx{pool, arena};
  int64_t tokens = 0;
  for (const auto& window : windows) tokens += std::ssize(window);
  const auto watched = [&](const char* what, int64_t total, const auto& work) {
    Progress progress(what, total);
    work([&](int64_t done) {
      progress.update(done);
      stop_when_interrupted();
    });
    progress.finish();
  };
  Report report;
  Predictions predictions;
  {  // never both models in memory
    const PackedModel model = load_packed_model(o.from, pool);
    watched("reading with the source", tokens, [&](const OnTokens& on_tokens) {
      predictions = predict(ctx, make_model(model.config, model.weights), windows, on_tokens);
    });
  }
  {
    const PackedModel model = load_packed_model(o.to, pool);
    watched("reading with the result", tokens, [&](const OnTokens& on_tokens) {
      report.divergence = diverge(ctx, predictions, make_model(model.config, model.weights), windows, on_tokens);
    });
  }
  const Divergence& d = report.divergence;
  for (const double loss : {d.loss, d.other_loss}) {
    if (!std::isfinite(loss)) throw Error("{}: the loss of {} is not finite: the weights overflow", o.to, o.report);
  }
  report.source = open_stored_model(o.from);
  report.result = open_stored_model(o.to);
  int64_t numbers = 0;
  for (const StoredWeight& weight : report.source->weights) numbers += weight.shape.size();
  watched("comparing weights", numbers, [&](const OnTokens& on_numbers) {
    ModelDifference difference = compare_weights(*report.source, *report.result, pool, on_numbers);
    report.relative_rms = difference.relative_rms;
    report.worst = std::move(difference.weights);
  });
  std::stable_sort(report.worst.begin(), report.worst.end(), [](const WeightDifference& a, const WeightDifference& b) {
    return a.relative_rms > b.relative_rms;
  });
  report.worst.resize(std::min(report.worst.size(), kWorstInFile));
  return report;
}

nlohmann::ordered_json json_of(const ConvertCommand& o, const Report& report, int64_t window) {
  const Divergence& d = report.divergence;
  nlohmann::ordered_json json{
      {"source", o.from},
      {"result", o.to},
      {"to", o.format},
      {"imatrix", o.imatrix.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(o.imatrix)},
      {"text", o.report},
      {"window", window},
      {"tokens", d.tokens},
      {"kl", {{"mean", d.kl_mean}, {"median", d.kl_median}, {"p99", d.kl_p99}, {"max", d.kl_max}}},
      {"same_top_1", d.same_top_1},
      {"perplexity", {{"source", std::exp(d.loss)}, {"result", std::exp(d.other_loss)}}},
      {"relative_rms", report.relative_rms},
      {"worst_tensors", nlohmann::ordered_json::array()}};
  for (const WeightDifference& weight : report.worst) {
    json["worst_tensors"].push_back({{"name", weight.weight->name},
                                     {"format", format_traits(weight.weight->format()).name},
                                     {"relative_rms", weight.relative_rms}});
  }
  return json;
}

std::string text_of(const ConvertCommand& o, const Report& report, int64_t window) {
  const Divergence& d = report.divergence;
  std::string text = fmt::format(
      "{} as {}{}, beside {}\n"
      "over {} tokens of {}, in windows of {}\n"
      "KL divergence      mean {:.6f}  median {:.6f}  99 % {:.6f}  max {:.6f} nats\n"
      "same likeliest token   {:.2f} %\n"
      "perplexity             {:.4f}, of the source {:.4f}\n"
      "weights                differ by {:.6f} (root mean square of differences, of the numbers'); the worst:\n",
      printable(o.to), o.format, o.imatrix.empty() ? "" : " with " + printable(o.imatrix), printable(o.from), d.tokens,
      printable(o.report), window, d.kl_mean, d.kl_median, d.kl_p99, d.kl_max, 100 * d.same_top_1,
      std::exp(d.other_loss), std::exp(d.loss), report.relative_rms);
  for (size_t i = 0; i < std::min(report.worst.size(), kWorstInText); ++i) {
    const WeightDifference& weight = report.worst[i];
    text += fmt::format("  {:.6f}  {:<5} {}\n", weight.relative_rms, format_traits(weight.weight->format()).name,
                        weight.weight->name);
  }
  return text;
}

}  // namespace

void remove_report(const std::string& to) {
  std::error_code ignored;  // mostly there is none
  for (const char* extension : {".json", ".txt"}) fs::remove(report_path(to, extension), ignored);
}

void write_report(const ConvertCommand& o, const CommonOptions& common,
                  const std::vector<std::vector<int32_t>>& windows, ThreadPool& pool) {
  const Report report = make_report(o, windows, pool);
  const auto window = std::ssize(windows[0]);
  const nlohmann::ordered_json json = json_of(o, report, window);
  const std::string text = text_of(o, report, window);
  write_file_atomically(report_path(o.to, ".json"), json.dump(2) + "\n");
  write_file_atomically(report_path(o.to, ".txt"), text);
  write_stdout(common.json ? json.dump() + "\n" : text);
}

}  // namespace fathom::cli
