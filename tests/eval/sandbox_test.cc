#include "eval/sandbox.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "escapes.h"
#include "refusal.h"
#include "temporary_directory.h"

namespace fathom::eval {
namespace {

using fathom::test::TemporaryDirectory;
using testing::HasSubstr;

const std::string kPython = "/usr/bin/python3";

// Programs that are not contained must not be started: whatever is wrong is said, and nothing is run.
class Sandbox : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_sandbox(); !why.empty()) GTEST_SKIP() << "no sandbox here: " << why;
    if (access(kPython.c_str(), X_OK) != 0) GTEST_SKIP() << "no " << kPython;
  }
};

SandboxResult run(std::string program, const SandboxLimits& limits = {}, std::string_view input = {}) {
  const std::vector<std::string> command = {kPython, "-B", "program.py"};
  const std::vector<SandboxFile> files = {{"program.py", std::move(program)}};
  return run_sandboxed(command, files, input, limits);
}

// All of a file in /proc, as far as its process lives.
std::string text_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();  // a process that ends meanwhile is no exception here
  return text.str();
}

// Processes, living or not yet waited for, with `mark` among their arguments; and children of this one.
std::vector<std::string> processes_with(const std::string& mark) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string words = text_of(entry.path() / "cmdline");
    if (words.find(mark) != std::string::npos) found.push_back(entry.path().filename().string() + ": " + words);
  }
  return found;
}

std::string children() {
  std::string all;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    all += text_of(entry.path() / "children");
  }
  return all;
}

size_t open_descriptors() {
  size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++n;
  return n;
}

std::string unique_mark() {
  static std::atomic<int> n = 0;
  return fmt::format("fathom-sandbox-test-{}-{}", getpid(), n++);
}

int bound_socket(int family, int type, const sockaddr* address, socklen_t size) {
  const int number = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  EXPECT_EQ(bind(number, address, size), 0);
  if (type == SOCK_STREAM) {
    EXPECT_EQ(listen(number, 8), 0);
  }
  return number;
}

// What programs are told of this machine, and what must not change on it.
class Outside {
 public:
  Outside() {
    canary_ = directory_.write("canary", kSecret);
    std::filesystem::permissions(directory_.path(), std::filesystem::perms::all);  // this is not what must protect it
    std::filesystem::permissions(canary_, std::filesystem::perms::all);
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    tcp_ = bound_socket(AF_INET, SOCK_STREAM, reinterpret_cast<sockaddr*>(&any), sizeof any);
    udp_ = bound_socket(AF_INET, SOCK_DGRAM, reinterpret_cast<sockaddr*>(&any), sizeof any);
    const std::string path = directory_.path() / "socket", abstract = unique_mark();
    sockaddr_un named{};
    named.sun_family = AF_UNIX;
    path.copy(named.sun_path, sizeof named.sun_path - 1);
    unix_ = bound_socket(AF_UNIX, SOCK_STREAM, reinterpret_cast<sockaddr*>(&named), sizeof named);
    std::filesystem::permissions(path, std::filesystem::perms::all);
    sockaddr_un nameless{};
    nameless.sun_family = AF_UNIX;
    abstract.copy(nameless.sun_path + 1, sizeof nameless.sun_path - 2);
    abstract_ = bound_socket(AF_UNIX, SOCK_STREAM, reinterpret_cast<sockaddr*>(&nameless),
                             static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + abstract.size()));
    told_ = fmt::format("canary={}\nfolder={}\nport={}\nudp_port={}\nsocket={}\nabstract={}\npid={}\nparent={}\n",
                        canary_.string(), directory_.path().string(), port(tcp_), port(udp_), path, abstract, getpid(),
                        getppid());
  }
  ~Outside() {
    for (const int number : {tcp_, udp_, unix_, abstract_}) close(number);
  }
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;

  const std::string& told() const { return told_; }
  void expect_untouched() const {
    std::ifstream file(canary_);
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), kSecret);
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      EXPECT_THAT(entry.path().filename().string(), testing::AnyOf("canary", "socket"));
    }
    for (const int number : {tcp_, unix_, abstract_}) EXPECT_LT(accept(number, nullptr, nullptr), 0);
    char byte = 0;
    EXPECT_LT(recv(udp_, &byte, 1, 0), 0);
  }
  static constexpr const char* kSecret = "a secret that stays";

 private:
  static int port(int number) {
    sockaddr_in address{};
    socklen_t size = sizeof address;
    getsockname(number, reinterpret_cast<sockaddr*>(&address), &size);
    return ntohs(address.sin_port);
  }

  TemporaryDirectory directory_;
  std::filesystem::path canary_;
  int tcp_ = -1, udp_ = -1, unix_ = -1, abstract_ = -1;
  std::string told_;
};

void expect_end(const test::Escape& escape, const SandboxResult& result) {
  const std::string all =
      fmt::format("{}: end {} code {} after {:.2f} s\n{}\n{}", escape.name, static_cast<int>(result.end), result.code,
                  result.seconds, result.out.substr(0, 3000), result.err.substr(0, 2000));
  EXPECT_EQ(result.out.find("ESCAPED"), std::string::npos) << all;
  EXPECT_EQ(result.out.find(Outside::kSecret), std::string::npos) << all;
  switch (escape.ends) {
    case test::Ends::denied:
      EXPECT_TRUE(result.end == SandboxResult::exited && result.code == 0) << all;
      EXPECT_THAT(result.out, HasSubstr("denied")) << all;
      break;
    case test::Ends::by_itself:
      EXPECT_TRUE(result.end == SandboxResult::exited && result.code == 0) << all;
      break;
    case test::Ends::out_of_time:
      EXPECT_EQ(result.end, SandboxResult::out_of_time) << all;
      break;
    case test::Ends::out_of_cpu:
      EXPECT_TRUE(result.end == SandboxResult::signalled && result.code == SIGXCPU) << all;
      break;
    case test::Ends::killed:
      EXPECT_TRUE(result.end == SandboxResult::signalled && result.code == SIGKILL) << all;
      break;
    case test::Ends::too_much_output:
      EXPECT_EQ(result.end, SandboxResult::too_much_output) << all;
      break;
    case test::Ends::out_of_memory:
      EXPECT_EQ(result.end, SandboxResult::out_of_memory) << all;
      break;
    case test::Ends::signalled:
      EXPECT_EQ(result.end, SandboxResult::signalled) << all;
      break;
  }
  EXPECT_LE(result.out.size(), size_t{1} << 20) << escape.name;
  EXPECT_LE(result.err.size(), size_t{1} << 20) << escape.name;
}

TEST_F(Sandbox, NoProgramEscapes) {
  static_assert(std::size(test::kEscapes) >= 50);
  setenv("FATHOM_TEST_SECRET", Outside::kSecret, 1);
  const Outside outside;
  const std::string mark = unique_mark();
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  const auto work = [&] {
    for (size_t i; (i = next++) < std::size(test::kEscapes);) {
      const test::Escape& escape = test::kEscapes[i];
      SandboxLimits limits{.cpu_s = 1, .wall_s = 20, .memory_bytes = 512 << 20, .folder_bytes = 32 << 20};
      if (escape.ends == test::Ends::out_of_time) limits.wall_s = 0.7;
      if (escape.ends == test::Ends::out_of_memory) limits.memory_bytes = 160 << 20;
      const std::vector<SandboxFile> files = {{"escape.py", test::kEscapeTools},
                                              {"host.txt", outside.told()},
                                              {"program.py", std::string("from escape import *\n") + escape.program}};
      const std::vector<std::string> command = {kPython, "-B", "program.py", mark};
      const SandboxResult result = run_sandboxed(command, files, "input\n", limits);
      const std::lock_guard lock(mutex);
      expect_end(escape, result);
      EXPECT_LT(result.seconds, limits.wall_s + 5) << escape.name;
    }
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_THAT(processes_with(mark), testing::IsEmpty());
  EXPECT_EQ(children(), "");
  outside.expect_untouched();
}

// FATHOM_SANDBOX_RUNS=1000 for all of docs/sandbox.md.
TEST_F(Sandbox, RunAfterRunLeavesNothing) {
  const char* asked = getenv("FATHOM_SANDBOX_RUNS");
  const int n = asked == nullptr ? 20 : std::atoi(asked);
  run("pass");  // what is made once in a process
  const size_t before = open_descriptors();
  const std::string mark = unique_mark();
  const std::vector<std::string> programs = {
      "print(sum(range(1000)))",
      "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(1000)\n",
      "import os, time\nfor i in range(20):\n  if os.fork() == 0: time.sleep(1000)\n",
      "import time\ntime.sleep(1000)",
      "import os\nwhile True: os.write(1, bytes(65536))",
      "import os\nos.kill(-1, 9)\nos.abort()",
      "import os\nfor i in range(5): os.fork()\nwhile True: pass"};
  std::atomic<int> next = 0;
  std::mutex mutex;
  std::vector<double> starts, plain_starts;
  const auto work = [&] {
    for (int i; (i = next++) < n;) {
      const std::vector<std::string> command = {kPython, "-c", programs[static_cast<size_t>(i) % programs.size()],
                                                mark};
      const bool prints = i % static_cast<int>(programs.size()) == 0;
      const SandboxLimits limits{.wall_s = prints ? 20 : 0.3};
      const SandboxResult result = run_sandboxed(command, {}, {}, limits);
      if (!prints) continue;
      const SandboxResult plain = run_unsandboxed(command, {}, {}, limits);
      const std::lock_guard lock(mutex);
      EXPECT_EQ(result.out, "499500\n") << result.err << result.end;
      EXPECT_EQ(plain.out, result.out);
      starts.push_back(result.seconds);
      plain_starts.push_back(plain.seconds);
    }
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_THAT(processes_with(mark), testing::IsEmpty());
  EXPECT_EQ(children(), "");
  EXPECT_EQ(open_descriptors(), before);
  const auto median_ms = [](std::vector<double>& seconds) {
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2] * 1e3;
  };
  std::cout << fmt::format("{} runs; a Python that prints a number takes {:.1f} ms, {:.1f} ms without a sandbox\n", n,
                           median_ms(starts), median_ms(plain_starts));
}

TEST_F(Sandbox, ProgramsDieWithWhoRunsThem) {
  const std::string mark = unique_mark();
  const auto until = [](auto done) {  // no more than 10 s
    for (int i = 0; i < 1000 && !done(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return done();
  };
  const pid_t runner = fork();
  if (runner == 0) {
    const std::vector<std::string> command = {kPython, "-c", "import os, time\nos.fork()\ntime.sleep(1000)", mark};
    run_sandboxed(command, {}, {}, {.wall_s = 1000});
    _exit(1);
  }
  // bubblewrap, the shell, and both of Python.
  EXPECT_TRUE(until([&] { return processes_with(mark).size() >= 4; }));
  kill(runner, SIGKILL);
  EXPECT_EQ(waitpid(runner, nullptr, 0), runner);
  EXPECT_TRUE(until([&] { return processes_with(mark).empty(); })) << testing::PrintToString(processes_with(mark));
}

TEST_F(Sandbox, GivesInputFilesAndOutput) {
  const std::vector<std::string> command = {kPython, "-B", "a.py", "an argument"};
  const std::string binary("a\0b\xff", 4);
  const std::vector<SandboxFile> files = {
      {"a.py",
       "import os, sys\n"
       "sys.stdout.write(sys.stdin.read() + sys.argv[1] + str(sorted(os.listdir())))\n"
       "sys.stderr.write(repr(open('data', 'rb').read()))\n"
       "open('new', 'w').write('x')\n"
       "sys.exit(3)\n"},
      {"data", binary}};
  const SandboxResult result = run_sandboxed(command, files, "line\n", {});
  EXPECT_EQ(result.end, SandboxResult::exited);
  EXPECT_EQ(result.code, 3);
  EXPECT_EQ(result.out, "line\nan argument['a.py', 'data']");
  EXPECT_EQ(result.err, R"(b'a\x00b\xff')");
  EXPECT_GT(result.seconds, 0);
}

TEST_F(Sandbox, SaysHowAProgramEnded) {
  EXPECT_EQ(run("raise SystemExit(128)").code, 128);
  EXPECT_EQ(run("raise SystemExit(128)").end, SandboxResult::exited);
  const SandboxResult aborted = run("import os; os.abort()");
  EXPECT_EQ(aborted.end, SandboxResult::signalled);
  EXPECT_EQ(aborted.code, SIGABRT);
  EXPECT_EQ(aborted.err, "");
  const SandboxResult slow = run("import time\nprint('begun', flush=True)\ntime.sleep(100)", {.wall_s = 0.5});
  EXPECT_EQ(slow.end, SandboxResult::out_of_time);
  EXPECT_EQ(slow.code, 0);
  EXPECT_EQ(run("print('x' * 100)", {.output_bytes = 101}).end, SandboxResult::exited);
  const SandboxResult long_output = run("print('x' * 101)", {.output_bytes = 101});
  EXPECT_EQ(long_output.end, SandboxResult::too_much_output);
  EXPECT_EQ(long_output.out, std::string(101, 'x'));
}

TEST_F(Sandbox, AProgramThatIsStoppedIsEndedAtOnce) {
  std::atomic<bool> stopped = false;
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    stopped = true;
  });
  const SandboxResult result = run("import time\ntime.sleep(100)", {.wall_s = 100, .stopped = &stopped});
  stopper.join();
  EXPECT_EQ(result.end, SandboxResult::stopped);
  EXPECT_LT(result.seconds, 50);
}

TEST(LimitsOfTime, LeaveTimeToShareAndToStart) {
  EXPECT_EQ(limits_of_time(SandboxLimits{}.cpu_s).wall_s, SandboxLimits{}.wall_s);
  for (const double seconds : {0.1, 1.0, 60.0, 3600.0}) {
    EXPECT_EQ(limits_of_time(seconds).cpu_s, seconds);
    EXPECT_GE(limits_of_time(seconds).wall_s, std::ceil(seconds) + 4);
  }
}

TEST_F(Sandbox, CommonProgramsRun) {
  const SandboxResult result = run(R"(
import asyncio, collections, concurrent.futures, decimal, json, math, multiprocessing, random, re, subprocess, tempfile, threading, time
assert concurrent.futures.ThreadPoolExecutor(4).submit(lambda: 7).result() == 7
async def f(): await asyncio.sleep(0.01); return 8
assert asyncio.run(f()) == 8
assert subprocess.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout == "hi\n"
with multiprocessing.Pool(2) as pool: assert pool.map(math.factorial, [3, 4]) == [6, 24]
shared = multiprocessing.Array("i", 3)
child = multiprocessing.Process(target=lambda: shared.__setitem__(0, 7))
child.start(); child.join()
assert shared[0] == 7
with multiprocessing.Manager() as manager: assert manager.list([1])[0] == 1
import mmap, os
assert mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:] == b"input"
with open("/dev/null", "w") as file: file.write("x")
with tempfile.TemporaryFile() as file: file.write(b"x")
assert multiprocessing.cpu_count() > 0 and random.random() < 1
print("all run")
)",
                                   {}, "input");
  EXPECT_EQ(result.out, "all run\n") << result.err;
}

TEST_F(Sandbox, BadFilesAndCommandsAreRefused) {
  for (const char* name : {"", ".", "..", "a/b", "/etc/passwd", "../x"}) {
    const std::vector<std::string> command = {kPython};
    const std::vector<SandboxFile> files = {{name, "x"}};
    EXPECT_THAT(refusal([&] { run_sandboxed(command, files, {}, {}); }), HasSubstr("not the name of a file")) << name;
    EXPECT_THAT(refusal([&] { run_unsandboxed(command, files, {}, {}); }), HasSubstr("not the name of a file")) << name;
  }
  EXPECT_THAT(refusal([] { run("pass", {.file_bytes = 3}); }), HasSubstr("4 bytes are too many for a file"));
  const std::vector<std::string> missing = {"/usr/bin/not-there"}, relative = {"python3"};
  EXPECT_THAT(refusal([&] { run_sandboxed(missing, {}, {}, {}); }), HasSubstr("/usr/bin/not-there: no such program"));
  EXPECT_THAT(refusal([&] { run_sandboxed(relative, {}, {}, {}); }), HasSubstr("whole path"));
}

TEST(WhyNoSandbox, ABubblewrapThatIsMissingOrDoesNotWorkIsSaid) {
  EXPECT_THAT(why_no_sandbox("/usr/bin/not-bwrap"), HasSubstr("no such program"));
  const TemporaryDirectory directory;
  std::filesystem::permissions(directory.path(), std::filesystem::perms::all);
  const auto broken =
      directory.write("bwrap", "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n");
  std::filesystem::permissions(broken, std::filesystem::perms::all);
  EXPECT_THAT(why_no_sandbox(broken), HasSubstr("does not work here: bwrap: No permissions to create new namespace"));
  // One that runs the program itself is none either.
  const auto lying = directory.write("lying", "#!/bin/sh\nexit 7\n");
  std::filesystem::permissions(lying, std::filesystem::perms::all);
  EXPECT_THAT(why_no_sandbox(lying), HasSubstr("does not work here"));
}

TEST(Unsandboxed, HasAFolderOfItsOwnAndTheSameLimits) {
  if (access(kPython.c_str(), X_OK) != 0) GTEST_SKIP() << "no " << kPython;
  const auto run_plain = [](const char* program, const SandboxLimits& limits) {
    const std::vector<std::string> command = {kPython, "-B", "a.py"};
    const std::vector<SandboxFile> files = {{"a.py", program}};
    return run_unsandboxed(command, files, "7", limits);
  };
  const SandboxResult result =
      run_plain("import os; print(int(input()) + 1, os.listdir(), os.getcwd(), len(os.environ) < 15)", {});
  EXPECT_THAT(result.out, testing::StartsWith("8 ['a.py'] /")) << result.err;
  EXPECT_THAT(result.out, testing::EndsWith(" True\n"));
  const std::string folder = result.out.substr(result.out.find('/'), result.out.find(" True") - result.out.find('/'));
  EXPECT_FALSE(std::filesystem::exists(folder)) << folder;
  EXPECT_EQ(run_plain("import time; time.sleep(100)", {.wall_s = 0.3}).end, SandboxResult::out_of_time);
  EXPECT_EQ(run_plain("while True: print('x' * 1000)", {}).end, SandboxResult::too_much_output);
  EXPECT_THAT(run_plain("x = bytearray(1 << 30)", {.memory_bytes = 512 << 20}).err, HasSubstr("MemoryError"));
  const SandboxResult aborted = run_plain("import os; os.abort()", {});
  EXPECT_EQ(aborted.end, SandboxResult::signalled);
  EXPECT_EQ(aborted.code, SIGABRT);
  EXPECT_EQ(children(), "");
}

}  // namespace
}  // namespace fathom::eval
