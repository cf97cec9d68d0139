// fathom score: log-probabilities, hidden states and gradients of given tokens.
#include "infer/score.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/json.h"
#include "base/terminal.h"
#include "checkpoint/hf_model.h"
#include "checkpoint/safetensors.h"
#include "cli/command.h"
#include "text/tokenizer.h"

namespace fathom::cli {
namespace {

constexpr size_t kMaxTokensFile = size_t{1} << 30;
constexpr size_t kMaxTextFile = size_t{1} << 30;

struct ScoreCommandOptions {
  std::string model, tokens, text, out, grads, attention = "auto";
  bool all = false, mtp = false, fp8_activations = false;
  double mtp_weight = 0;
  int64_t window = 0;
  PlacementOptions placement;
};

// A list of lists of token ids.
std::vector<std::vector<int32_t>> read_token_lists(const std::string& path) {
  const JsonDocument document = JsonDocument::read(path, kMaxTokensFile);
  const auto wrong = [&](const std::string& what) {
    return Error("{}: {}: expected a list of lists of token ids, like [[0, 17, 4], [0, 9]]", document.where(), what);
  };
  if (!document.root().is_array()) throw wrong("is not a list");
  std::vector<std::vector<int32_t>> sequences;
  for (const simdjson::dom::element list : simdjson::dom::array(document.root())) {
    if (!list.is_array()) throw wrong(fmt::format("element {} is not a list", sequences.size()));
    auto& ids = sequences.emplace_back();
    for (const simdjson::dom::element element : simdjson::dom::array(list)) {
      int64_t id = 0;
      if (element.get_int64().get(id) != simdjson::SUCCESS || id < INT32_MIN || id > INT32_MAX) {
        throw wrong(fmt::format("element {} of list {} is no token id", ids.size(), sequences.size() - 1));
      }
      ids.push_back(static_cast<int32_t>(id));
    }
  }
  return sequences;
}

std::vector<std::vector<int32_t>> read_text(const ScoreCommandOptions& options, const ModelConfig& config) {
  const Tokenizer tokenizer = load_tokenizer(options.model);
  check_vocabulary(tokenizer, config, options.model);
  const std::string text = read_file(options.text, kMaxTextFile);
  return text_windows(text, printable(options.text), tokenizer, config, options.window, "score");
}

void write_outputs(AtomicFile& file, std::vector<ScoreTensor>& tensors) {
  std::vector<std::vector<int32_t>> narrow;  // i32 outputs, narrowed from the collected ids
  narrow.reserve(tensors.size());
  std::vector<TensorToWrite> list;
  for (ScoreTensor& t : tensors) {
    void* data = t.values.data();
    size_t n = t.values.size();
    if (t.format == Format::i64) {
      data = t.ids.data();
      n = t.ids.size();
    } else if (t.format == Format::i32) {
      narrow.emplace_back(t.ids.begin(), t.ids.end());
      data = narrow.back().data();
      n = t.ids.size();
    }
    std::vector<int64_t> shape{static_cast<int64_t>(n)};
    for (const int64_t d : t.row_shape) {
      shape[0] /= std::max<int64_t>(d, 1);
      shape.push_back(d);
    }
    list.push_back({t.name, Tensor(data, t.format, shape.data(), static_cast<int>(shape.size())), t.format});
  }
  write_safetensors(file, list);
}

void run(const ScoreCommandOptions& options, const CommonOptions& common) {
  if (options.tokens.empty() == options.text.empty()) {
    throw UsageError("score: give either --tokens FILE.json or --text FILE");
  }
  if (options.window > 0 && options.text.empty()) {
    throw UsageError("score: --window cuts a --text; --tokens come as the sequences that they are");
  }
  if (options.all && options.out.empty()) throw UsageError("score: --all needs --out FILE.safetensors to write to");
  if (options.mtp && options.out.empty()) throw UsageError("score: --mtp needs --out FILE.safetensors to write to");
  if (!options.out.empty() && !options.grads.empty() && same_path(options.out, options.grads)) {
    throw UsageError("score: --out and --grads name the same file");
  }
  if (options.mtp_weight < 0) {
    throw UsageError("score: --mtp-weight is {}, must be 0 or more", options.mtp_weight);
  }
  if (options.fp8_activations && !options.grads.empty()) {
    throw UsageError("score: --fp8-activations rounds the forward pass only, leave --grads out");
  }
  const bool in_f32 = !options.grads.empty() || options.fp8_activations;
  if (in_f32 && (options.placement.lock || options.placement.huge_pages)) {
    throw UsageError("score: --mlock and --hugepages are for weights as they are stored, leave {} out",
                     options.grads.empty() ? "--fp8-activations" : "--grads");
  }
  ThreadPool pool = make_pool(options.placement, common);
  if (in_f32 && common.device != "cpu") {
    throw UsageError("score: --grads and --fp8-activations run on the CPU alone so far, leave --device {} out",
                     common.device);
  }
  const std::unique_ptr<Device> device = open_device(common);
  Arena arena = make_arena(device.get());
  Context ctx{pool, arena, device.get()};
  // Gradients, and activations rounded to FP8, are computed from weights in f32; all else from those that are stored.
  LoadedModel whole;
  ReadyModel packed;
  if (in_f32) {
    whole = load_model(options.model, pool);
  } else {
    packed = load_ready_model(options.model, options.placement, pool, device.get());
  }
  Model model = in_f32 ? make_model(whole.config, whole.parameters.weights) : packed.model;
  const ModelConfig& config = model.config;
  model.fp8_activations = options.fp8_activations;
  model.dense_attention = options.attention == "dense";
  if (model.dense_attention && !config.is_sparse()) {
    throw UsageError("score: --attention dense is for models with an indexer, {} attends to all tokens in any case",
                     printable(options.model));
  }
  if (options.fp8_activations && config.weight_block_rows == 0) {
    throw UsageError("score: --fp8-activations needs a model with FP8 weights, {} has none", printable(options.model));
  }
  const auto sequences = options.tokens.empty() ? read_text(options, config) : read_token_lists(options.tokens);
  errors_at(printable(options.tokens.empty() ? options.text : options.tokens),
            [&] { check_sequences(config, sequences); });

  // Made before the work, so that a place that takes no files is told at once; then they appear when both are whole.
  std::optional<AtomicFile> out, grads;
  if (!options.out.empty()) out.emplace(options.out);
  if (!options.grads.empty()) grads.emplace(options.grads);

  Parameters gradients;
  ScoreOptions score_options{
      .tensors = !options.out.empty(), .all = options.all, .mtp = options.mtp, .mtp_weight = options.mtp_weight};
  if (!options.grads.empty()) {
    gradients = allocate_parameters(config, /*with_bias=*/false);
    score_options.gradients = &gradients.weights;
  }
  ScoreResult result = score(ctx, model, sequences, score_options);
  if (!std::isfinite(result.loss.loss_sum) || !std::isfinite(result.loss.mtp_loss_sum)) {
    throw Error("{}: the loss of these tokens is not finite: the weights overflow", printable(options.model));
  }
  if (out) write_outputs(*out, result.tensors);
  if (grads) {
    std::vector<TensorToWrite> list;
    for_each_tensor(gradients.weights, config, [&](const NamedTensor& t) {
      if (t.name.find(".indexer.") != std::string::npos) return;  // the loss does not depend on it but by its choices
      list.push_back({t.name, t.view, Format::f32});
    });
    write_safetensors(*grads, list);
  }
  if (out) out->commit();
  if (grads) grads->commit();

  const LossResult& loss = result.loss;
  const double total = loss.loss() + options.mtp_weight * loss.mtp_loss();
  if (common.json) {
    nlohmann::ordered_json object{{"loss", nullptr}, {"tokens", loss.main_targets}, {"perplexity", nullptr}};
    if (loss.main_targets > 0) {
      object["loss"] = total;
      object["perplexity"] = std::exp(loss.loss());
    }
    if (options.mtp_weight > 0) {
      object["loss_main"] = loss.loss();
      object["loss_mtp"] = loss.mtp_loss();
    }
    fmt::print("{}\n", object.dump());
  } else if (loss.main_targets > 0) {
    fmt::print("loss {:.6f}  perplexity {:.4f}  over {} tokens\n", total, std::exp(loss.loss()), loss.main_targets);
  } else {
    fmt::print("no token to predict: every sequence has one token\n");
  }
}

}  // namespace

void add_score(CLI::App& app, CommonOptions& common) {
  auto options = std::make_shared<ScoreCommandOptions>();
  CLI::App* command = app.add_subcommand("score", "Log-probabilities, hidden states and gradients of given tokens");
  command->add_option("--model", options->model, "Model directory or .gguf file")->required();
  command->add_option("--tokens", options->tokens, "JSON file with a list of lists of token ids, one a sequence");
  command->add_option("--text", options->text,
                      "Text file, cut into windows of the model's context (at most 2048 tokens)");
  command
      ->add_option("--window", options->window, "Tokens in a window of --text (default: 2048, or the model's context)")
      ->check(CLI::Range(2, 1 << 30));
  command->add_option("--out", options->out,
                      "Write input_ids, seq_offsets, logits, final_hidden, router.i.topk_ids and router.i.topk_weights "
                      "(.safetensors)");
  command->add_flag("--all", options->all, "With --out: hidden.i, attn_out.i, mlp_out.i and router.i.logits too");
  command->add_flag("--mtp", options->mtp, "With --out: mtp_hidden and mtp_logits too");
  command->add_option("--grads", options->grads,
                      "Write the gradient of the loss for every parameter under its checkpoint name (.safetensors)");
  command->add_option("--mtp-weight", options->mtp_weight, "Adds this much of the MTP loss to loss and gradients");
  command
      ->add_option("--attention", options->attention,
                   "Of a model with an indexer: to what it chooses, or to all tokens (dense)")
      ->check(CLI::IsMember({"auto", "dense"}));
  command->add_flag("--fp8-activations", options->fp8_activations,
                    "FP8 models: round the inputs of FP8 matrices to e4m3 too, in groups of 128");
  add_placement_options(*command, options->placement);
  add_gpu_memory_option(*command, options->placement);
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace fathom::cli
