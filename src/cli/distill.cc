// fathom distill: a student learns from a teacher, by its answers and by its logits.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/checksum.h"
#include "base/file.h"
#include "base/terminal.h"
#include "cli/command.h"
#include "cli/model_under_test.h"
#include "cli/sft_options.h"
#include "infer/page_store.h"
#include "train/saved_state.h"
#include "tune/sft.h"
#include "tune/teacher_pass.h"
#include "tune/traces.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTraces = "distill traces";
constexpr const char* kLogits = "distill logits";
constexpr const char* kStudent = "distill student";

struct TraceCommandOptions {
  ModelUnderTestOptions teacher;
  std::vector<fs::path> questions;
  tune::TraceOptions traces;
  std::string thinking, keep = "verified";
  double code_timeout = eval::SandboxLimits{}.cpu_s;
  const char* keep_option = "--keep";  // what a command calls it
};

struct LogitsCommandOptions {
  std::string teacher;
  PlacementOptions placement;
  std::string student, type = "f32";
  tune::TeacherPassOptions pass;
  SftCommandOptions conversations;
};

struct StudentCommandOptions {
  TraceCommandOptions traces;
  SftCommandOptions sft;
  bool with_logits = false;
  std::string type = "f32";
  tune::TeacherPassOptions pass;
};

// How a teacher is asked and what of its answers stays; add_model_under_test_options() says whom.
void add_trace_options(CLI::App& c, TraceCommandOptions& options) {
  tune::TraceOptions& t = options.traces;
  c.add_option("--data", options.questions,
               "Questions: .jsonl with `question`, `prompt` or `messages`, and `answer` or `tests` to verify answers "
               "by; also .gz, .zst")
      ->required()
      ->type_name("PATH...");
  c.add_option("--samples", t.samples, "Answers to each question")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  c.add_option("--temperature", t.temperature, "Of the answers; 0: the likeliest token always")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  c.add_option("--top-p", t.top_p, "Draw from the likeliest tokens that reach this share")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c.add_option("--top-k", t.top_k, "Draw from the K likeliest tokens (0: all)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
  c.add_option("--max-tokens", t.max_tokens, "Tokens of an answer at most, thoughts included; longer ones are not kept")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  c.add_option("--teacher-thinking", options.thinking, "Ask for thoughts before the answer: on, off")
      ->check(CLI::IsMember({"on", "off"}))
      ->default_str("as its template has it");
  c.add_option("--system", t.system, "A message of the system before each question");
  c.add_flag("--keep-system", t.keeps_system, "Keep it in the traces");
  c.add_option(options.keep_option, options.keep,
               "verified: all right answers; first-verified: of each question the first, and none is asked behind it; "
               "shortest: of each the shortest right one; all: right or wrong")
      ->check(CLI::IsMember({"all", "verified", "first-verified", "shortest"}))
      ->capture_default_str();
  c.add_option("--code-timeout", options.code_timeout,
               "Seconds of CPU that a test of code may take, twice that on the clock")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  c.add_option("--max-per-question", t.max_per_question, "Traces of one question at most (0: all)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
}

// `type` must live as long as the parse.
void add_pass_options(CLI::App& c, tune::TeacherPassOptions& pass, std::string& type) {
  c.add_option("--logits-top-k", pass.k, "Likeliest tokens whose log probabilities are kept; the rest is one number")
      ->check(CLI::Range(int64_t{1}, kMaxTeacherTokens))
      ->capture_default_str();
  c.add_option("--temperatures", pass.temperatures, "That --distill-temperature may be")
      ->delimiter(',')
      ->expected(1, static_cast<int>(kMaxTeacherTemperatures))
      ->check(CLI::Range(0.01, 1000.0))
      ->default_str("1,2,4");
  c.add_option("--logits-type", type, "Stored type of log probabilities: f32 or f16")
      ->check(CLI::IsMember({"f32", "f16"}))
      ->capture_default_str();
}

// What tells a teacher's numbers from another's: its files.
std::string files_of(const std::string& model) {
  return fmt::format("{} ({})", printable(model), xxh3_of(identity_of_model(model)));
}

// What tells a teacher's answers from another's, beside how it is asked.
std::string teacher_of(const ModelUnderTestOptions& options, const ModelUnderTest& teacher) {
  const auto* const local = std::get_if<eval::LocalModel>(&*teacher.answerer);
  if (local == nullptr) return fmt::format("{} at {}", printable(teacher.name), printable(options.url));
  const BatchingOptions& batching = local->batching;
  return fmt::format("{}, template {}, ctx {}, kv-type {}, {} drafts", files_of(options.model),
                     xxh3_of(local->chat_template), batching.context, format_traits(batching.kv_type).name,
                     batching.draft_tokens);
}

// Before hours of work.
void check_pass(const tune::TeacherPassOptions& pass, std::string_view command) {
  for (auto t = pass.temperatures.begin(); t != pass.temperatures.end(); ++t) {
    if (std::find(pass.temperatures.begin(), t, *t) == t) continue;
    throw UsageError("{}: --temperatures: {} stands there twice", command, *t);
  }
}

// Nothing when interrupted.
std::optional<tune::TraceCounts> run_traces(const TraceCommandOptions& options, ModelUnderTest& teacher,
                                            const CommonOptions& common, const fs::path& out,
                                            std::string_view command) {
  tune::TraceOptions traces = options.traces;
  traces.out = out;
  traces.keep = tune::keep_traces_named(options.keep);
  traces.seed = common.seed;
  traces.at_a_time = thread_count(common);
  traces.limits = eval::limits_of_time(options.code_timeout);
  traces.teacher = teacher_of(options.teacher, teacher);
  if (!options.thinking.empty()) traces.thinking = options.thinking == "on";
  if (!teacher.can_chat) {
    throw UsageError("{}: {} has no chat template to ask questions with; give one with {}", command,
                     printable(teacher.name), options.teacher.template_option);
  }
  const std::vector<tune::AskedQuestion> questions = tune::read_asked_questions(options.questions);
  if (traces.keep != tune::KeepTraces::all && tune::have_tests(questions)) {  // before anything is asked
    if (const std::string why = eval::why_no_sandbox(); !why.empty()) {
      throw Error("{}: some questions have \"tests\", and programs cannot be run here: {}", command, why);
    }
  }
  const auto counts =
      tune::make_traces(questions, *teacher.answerer, traces, tune::verify_trace, [] { return interrupted_by != 0; });
  if (counts) {
    log("{}: {} traces of {} questions, of {} answers: {} right, {} wrong, {} not verified, {} cut at --max-tokens, {} "
        "refused, {} said twice",
        printable(out.native()), counts->kept, counts->kept_questions, counts->asked, counts->right, counts->wrong,
        counts->unknown, counts->cut, counts->refused, counts->twice);
  }
  return counts;
}

void report(const CommonOptions& common, const nlohmann::ordered_json& object, const std::string& text) {
  write_stdout(common.json ? object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"
                           : text + "\n");
}

// The conversations as the student learns them, and what the teacher says of them.
TeacherInfo run_pass(Context& ctx, const Model& model, const Tokenizer& teacher_tokenizer, const std::string& teacher,
                     const tune::SftOptions& reading, tune::TeacherPassOptions pass, const std::string& type) {
  pass.teacher = files_of(teacher);
  pass.type = type == "f16" ? Format::f16 : Format::f32;
  const tune::LearnedData data = tune::read_learned_data(reading, ctx.pool);
  tune::check_same_tokens(teacher_tokenizer, data.tokenizer);
  const int64_t n = data.set.counts.trained_tokens;
  log("{} tokens to learn in {} sequences: their logits take {}", n, data.set.counts.sequences,
      human_bytes(static_cast<double>(tune::teacher_bytes(pass, n))));
  const auto info = tune::write_teacher_logits(ctx, model, data, pass, [] { return interrupted_by != 0; });
  if (!info) throw Interrupted{};
  return *info;
}

void run_logits(const LogitsCommandOptions& options, const CommonOptions& common) {
  require_cpu(common, kLogits);
  check_pass(options.pass, kLogits);
  tune::SftOptions reading = reading_options(options.conversations);
  ThreadPool pool = make_pool(options.placement, common);
  const Tokenizer tokenizer = load_tokenizer(options.teacher);
  const ReadyModel ready = load_ready_model(options.teacher, options.placement, pool);
  check_vocabulary(tokenizer, ready.model.config, options.teacher);
  Arena arena;
  Context ctx{pool, arena};
  const TeacherInfo info = run_pass(ctx, ready.model, tokenizer, options.teacher, reading, options.pass, options.type);
  int64_t rows = 0, sequences = 0;
  for (const TeacherShard& shard : info.shards) rows += shard.rows, sequences += shard.sequences;
  const std::string out = options.pass.out.string();
  report(
      common, {{"out", out}, {"sequences", sequences}, {"tokens", rows}, {"k", info.k}},
      fmt::format("{}: {} likeliest tokens for each of {} in {} sequences", printable(out), info.k, rows, sequences));
}

void run_student(const StudentCommandOptions& options, const CommonOptions& common) {
  require_cpu(common, kStudent);
  check_pass(options.pass, kStudent);
  tune::SftOptions sft = sft_options(options.sft, common);
  const fs::path traces = sft.train.out / "traces.jsonl";
  sft.train.data = {traces};
  tune::check_sft_options(sft);  // hours before it begins
  if (!sft.train.resume && has_checkpoints(sft.train.out)) {
    throw UsageError("{}: {} holds checkpoints of an earlier run; go on with --resume or give another --out", kStudent,
                     printable(sft.train.out.native()));
  }
  const TraceCommandOptions& asking = options.traces;
  if (options.with_logits && asking.teacher.model.empty()) {
    throw UsageError("{}: --logits needs {} M: a server does not tell them", kStudent, asking.teacher.model_option);
  }
  std::optional<tune::TraceCounts> counts;
  {
    const auto teacher = open_model_under_test(asking.teacher, common, kStudent);
    if (options.with_logits) tune::check_same_tokens(*teacher->tokenizer, load_tokenizer(sft.train.init));
    counts = run_traces(asking, *teacher, common, traces, kStudent);
    if (!counts) throw Interrupted{};
    if (options.with_logits) {
      tune::TeacherPassOptions pass = options.pass;
      pass.out = sft.teacher.logits = sft.train.out / "logits";
      run_pass(*teacher->ctx, teacher->ready.model, *teacher->tokenizer, asking.teacher.model, sft, pass, options.type);
    }
  }  // the teacher's memory is free for the student
  ThreadPool pool(thread_count(common));
  const tune::SftResult result = tune::fine_tune(sft, pool, [] { return interrupted_by != 0; });
  nlohmann::ordered_json more = counts_of(result);
  more["traces"] = counts->json();
  report_training(sft.train, result.train, common, more);
}

void add_traces(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<TraceCommandOptions>();
  options->teacher.model_option = "--teacher";
  CLI::App* c = app.add_subcommand("traces", "Have a teacher answer questions, and keep right answers for sft");
  c->add_option("--out", options->traces.out, "Becomes .jsonl for fathom sft; all answers are in FILE.answers")
      ->required()
      ->type_name("FILE");
  add_trace_options(*c, *options);
  add_model_under_test_options(*c, options->teacher);
  c->callback([options, &common] {
    const auto teacher = open_model_under_test(options->teacher, common, kTraces);
    const auto counts = run_traces(*options, *teacher, common, options->traces.out, kTraces);
    if (!counts) throw Interrupted{};
    const std::string out = options->traces.out.string();
    nlohmann::ordered_json object{{"out", out}};
    object.update(counts->json());
    report(common, object,
           fmt::format("{}: {} traces of {} of {} questions", printable(out), counts->kept, counts->kept_questions,
                       counts->questions));
  });
}

void add_logits(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<LogitsCommandOptions>();
  TrainOptions& o = options->conversations.trainer.train;
  CLI::App* c = app.add_subcommand("logits", "Keep a teacher's logits of conversations, for sft --teacher-logits");
  c->add_option("--teacher", options->teacher, "Model directory or .gguf file")->required()->type_name("MODEL");
  c->add_option("--student", o.init,
                "Who will learn them: conversations are told with its template (default: the teacher)")
      ->type_name("MODEL");
  c->add_option("--tokenizer", o.tokenizer,
                "The student's: tokenizer.json, or a directory with one (default: its own)");
  c->add_option("--data", o.data, "The conversations that it will learn, as fathom sft takes them")
      ->required()
      ->type_name("PATH...");
  c->add_option("--out", options->pass.out, "Directory of the logits")->required()->type_name("DIR");
  c->add_option("--seq-len", o.seq_len, "As sft will have it (default: 4096, or the student's longest)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
  add_conversation_options(*c, options->conversations);
  add_pass_options(*c, options->pass, options->type);
  add_placement_options(*c, options->placement);
  c->callback([options, &common] {
    std::filesystem::path& student = options->conversations.trainer.train.init;
    if (student.empty()) student = options->teacher;
    run_logits(*options, common);
  });
}

void add_student(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<StudentCommandOptions>();
  ModelUnderTestOptions& teacher = options->traces.teacher;
  teacher.model_option = "--teacher";
  teacher.template_option = "--teacher-template";
  options->traces.keep_option = "--keep-traces";  // --keep is the checkpoints'
  TrainOptions& o = options->sft.trainer.train;
  CLI::App* c = app.add_subcommand("student", "Both and fathom sft in one: a student learns what a teacher answers");
  add_trace_options(*c, options->traces);
  add_model_under_test_options(*c, teacher);
  c->add_option("--init", o.init, "The student: a model directory or .gguf file")->required()->type_name("MODEL");
  c->add_option("--tokenizer", o.tokenizer, "tokenizer.json, a directory with one, or bytes (default: that of --init)");
  c->add_flag("--logits", options->with_logits, "Learn the teacher's logits of its answers, too");
  add_pass_options(*c, options->pass, options->type);
  add_sft_options(*c, options->sft);
  for (const char* of_logits :
       {"--logits-top-k", "--temperatures", "--logits-type", "--distill-weight", "--distill-temperature"}) {
    c->get_option(of_logits)->needs("--logits");
  }
  c->callback([options, &common] { run_student(*options, common); });
}

}  // namespace

void add_distill(CLI::App& app, CommonOptions& common) {
  CLI::App* distill = app.add_subcommand("distill", "A student learns from a teacher: traces, logits, or all in one");
  distill->require_subcommand(1);
  add_traces(*distill, common);
  add_logits(*distill, common);
  add_student(*distill, common);
}

}  // namespace fathom::cli
