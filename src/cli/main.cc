// The program: common options, subcommands, and the one place where errors become a line on stderr and an exit code.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "base/error.h"
#include "base/terminal.h"
#include "base/thread_pool.h"
#include "cli/command.h"
#include "cli/config_file.h"
#include "parallel/mpi.h"

namespace fathom::cli {

std::atomic<int> interrupted_by = 0;
static_assert(std::atomic<int>::is_always_lock_free);  // a handler of signals may write it

void stop_when_interrupted() {
  if (interrupted_by != 0) throw Interrupted{};
}

int thread_count(const CommonOptions& common) { return common.threads > 0 ? common.threads : usable_cores(); }

void write_stdout(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw OutputClosed{};
  throw Error("cannot write to standard output: {}", std::strerror(errno));
}

// Nothing is left to do when stderr cannot take it.
int report(std::string message, int exit_code) {
  if (const size_t last = message.find_last_not_of(" \n"); last != std::string::npos) message.resize(last + 1);
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fputs(("fathom: " + printable(message, 10'000) + "\n").c_str(), stderr);
  return exit_code;
}

namespace {

enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2, kSignalled = 128 };

// The first signal asks; a second one does not wait for a safe point.
void on_signal(int signal) {
  if (interrupted_by != 0) _exit(kSignalled + signal);
  interrupted_by = signal;
}

// SIGBUS: memory of a mapped file that is not there, since the file was cut or its disk fails. Names the file by the
// system's list of mappings; a handler may use system calls and its own stack alone.
void on_lost_memory(int, siginfo_t* info, void*) {
  const auto say = [](const char* text, size_t n) { (void)!write(STDERR_FILENO, text, n); };
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  constexpr char kBegin[] = "fathom: ", kEnd[] = ": was cut or cannot be read any more while it was in use\n";
  say(kBegin, sizeof kBegin - 1);
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  char line[4352];
  size_t length = 0, path = 0;
  bool named = false;
  for (char c; !named && maps >= 0 && read(maps, &c, 1) == 1;) {
    if (c == '\n') {
      char* end = nullptr;
      line[length] = 0;
      const uintptr_t first = std::strtoull(line, &end, 16),
                      last = *end == '-' ? std::strtoull(end + 1, nullptr, 16) : 0;
      named = path > 0 && address >= first && address < last;
      if (named) say(line + path, length - path);
      length = path = 0;
      continue;
    }
    if (c == '/' && path == 0) path = length;
    if (length + 1 < sizeof line) line[length++] = c;
  }
  if (!named) say("a file", 6);
  say(kEnd, sizeof kEnd - 1);
  _exit(kFailed);
}

void install_signal_handlers() {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // writing then fails, which is told
  struct sigaction lost {};
  lost.sa_sigaction = on_lost_memory;
  lost.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &lost, nullptr);
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // A terminal that is closed asks too, unless nohup has it ignored.
  struct sigaction hangup {};
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);
}

// A file opened where stdout or stderr was closed would be taken for it.
void open_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) == -1 && errno == EBADF) (void)open("/dev/null", O_RDWR);
  }
}

std::string whole_number(const std::string& text) {
  const bool ok = !text.empty() && text.size() < 20 && text.find_first_not_of("0123456789") == std::string::npos;
  return ok ? "" : fmt::format("'{}' is no whole number", printable(text));
}

void add_common_options(CLI::App& app, CommonOptions& common) {
  app.add_option("--threads", common.threads, "Threads to work on (default: the physical cores)")
      ->check(whole_number)
      ->check(CLI::Range(0, 1024));
  app.add_option("--device", common.device, "Where to compute: cpu, cuda, or cuda:N, the GPU numbered N");
  app.add_option("--seed", common.seed, "Seed of everything random: same seed, same result")->check(whole_number);
  app.add_flag("--quiet,-q", common.quiet, "Print nothing but results and errors");
  app.add_flag("--json", common.json, "Results as one JSON object a line on stdout");
  app.set_config("--config", "", "Read options from a TOML file; the command line wins")->type_name("FILE");
  app.config_formatter(config_file_reader(app));
  app.set_version_flag("--version", version_text, "Print version, commit, instruction sets and backends");
}

void check_device(const std::string& device) {
  if (device == "cpu" || device == "cuda") return;
  constexpr std::string_view kNumbered = "cuda:";
  const std::string number = device.starts_with(kNumbered) ? device.substr(kNumbered.size()) : "";
  const bool is_number = number.find_first_not_of("0123456789") == std::string::npos;
  if (!number.empty() && number.size() < 4 && is_number) return;
  throw UsageError("--device {}: must be cpu, cuda or cuda:N", printable(device));
}

// CLI11 takes "nan" for a number in any range: compared with a limit it turns it off.
std::string finite_number(const std::string& text) {
  double x = 0;
  const bool ok = !CLI::detail::lexical_cast(text, x) || std::isfinite(x);
  return ok ? "" : fmt::format("{} is no finite number", printable(text));
}

void want_finite_numbers(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_type_name().starts_with("FLOAT")) option->check(finite_number);
  }
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) want_finite_numbers(*command);
}

// FATHOM_SERVE_PORT for --port of `serve`, FATHOM_THREADS for --threads of every command. Only those that are set are
// named, so that --help stays short.
void read_environment(CLI::App& app, const std::string& prefix) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() || !option->get_configurable()) continue;
    std::string name = prefix + option->get_lnames()[0];
    for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    if (std::getenv(name.c_str()) != nullptr) option->envname(name);
  }
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    read_environment(*command, prefix + command->get_name() + "_");
  }
}

// FATHOM_CONFIG stands for --config where that is not given.
std::vector<const char*> with_config(int argc, char** argv) {
  std::vector<const char*> arguments(argv, argv + argc);
  const char* const file = std::getenv("FATHOM_CONFIG");
  const auto names_config = [](std::string_view a) { return a == "--config" || a.starts_with("--config="); };
  if (file != nullptr && *file != '\0' && std::none_of(arguments.begin(), arguments.end(), names_config)) {
    arguments.insert(arguments.begin() + std::min(argc, 1), {"--config", file});
  }
  return arguments;
}

// CLI11's words, but where a command of `at` is missing those that there are, and what stood in its place.
std::string words_of(const CLI::ParseError& error, const CLI::App& app, const CLI::App& at) {
  const bool is_missing = dynamic_cast<const CLI::RequiredError*>(&error) != nullptr && at.get_subcommands().empty() &&
                          at.get_require_subcommand_min() > 0;
  if (!is_missing) return printable(error.what(), 1000);
  std::string names;
  for (const CLI::App* each : at.get_subcommands([](const CLI::App*) { return true; }))
    names += fmt::format("{}{}", names.empty() ? "" : ", ", each->get_name());
  const std::vector<std::string> rest = app.remaining(true);
  if (rest.empty() || rest.front().starts_with('-')) return fmt::format("A subcommand is required: {}", names);
  return fmt::format("{} is no subcommand: must be one of {}", printable(rest.front()), names);
}

int parse_and_run(int argc, char** argv) {
  CommonOptions common;
  CLI::App app("fathom: one engine for the DeepSeek-V3 family: train, score, generate, serve", "fathom");
  app.fallthrough();
  app.require_subcommand(0, 1);
  app.get_formatter()->column_width(34);
  add_common_options(app, common);
  app.parse_complete_callback([&common] {
    check_device(common.device);
    set_quiet(common.quiet);
  });
  add_train(app, common);
  add_sft(app, common);
  add_distill(app, common);
  add_grpo(app, common);
  add_score(app, common);
  add_generate(app, common);
  add_chat(app, common);
  add_inspect(app, common);
  add_tokenize(app, common);
  add_convert(app, common);
  add_bench(app, common);
  add_serve(app, common);
  add_watch(app, common);
  add_plan(app, common);
  add_eval(app, common);
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    command->footer("Options of every command (--threads, --seed, --config, ...): fathom --help");
  }
  want_finite_numbers(app);
  read_environment(app, "FATHOM_");
  try {
    const std::vector<const char*> arguments = with_config(argc, argv);
    app.parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const CLI::Success& request) {  // --help, --version
    const bool version = dynamic_cast<const CLI::CallForVersion*>(&request) != nullptr;
    write_stdout(version ? request.what() + std::string("\n") : app.help());
    return kDone;
  } catch (const CLI::ParseError& e) {
    if (!is_first_of_mpi()) return kUsage;  // all processes of a job have the same options
    std::string command = "fathom";
    const CLI::App* at = &app;
    while (!at->get_subcommands().empty()) {
      at = at->get_subcommands().front();
      command += " " + at->get_name();
    }
    return report(fmt::format("{} (see {} --help)", words_of(e, app, *at), command), kUsage);
  }
  if (app.get_subcommands().empty()) {
    std::fputs(app.help().c_str(), stderr);
    return kUsage;
  }
  write_stdout("");
  return kDone;
}

int run(int argc, char** argv) {
  try {
    return parse_and_run(argc, argv);
  } catch (const Interrupted&) {
    return report("interrupted", kSignalled + interrupted_by);
  } catch (const OutputClosed&) {
    return kDone;
  } catch (const ToldElsewhere& told) {
    return told.exit_code;
  } catch (const UsageError& e) {
    return report(e.what(), kUsage);
  } catch (const std::system_error& e) {  // fmt::print to stdout
    return e.code().value() == EPIPE ? kDone : report(e.what(), kFailed);
  } catch (const std::bad_alloc&) {
    return report("out of memory; try a smaller batch, context or model", kFailed);
  } catch (const std::exception& e) {
    return report(e.what(), kFailed);
  }
}

}  // namespace
}  // namespace fathom::cli

int main(int argc, char** argv) {
  fathom::cli::open_standard_streams();
  fathom::cli::install_signal_handlers();
  return fathom::cli::run(argc, argv);
}
