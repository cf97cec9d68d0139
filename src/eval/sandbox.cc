#include "eval/sandbox.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <vector>

#include "base/error.h"
#include "eval/limited_process.h"
#include "eval/sandbox_filter.h"

namespace fathom::eval {
namespace {

namespace fs = std::filesystem;

constexpr uid_t kFirstUser = 0x70000000, kUsers = 1 << 20;   // far above what systems give to anyone
constexpr uid_t kFirstSmallUser = 60578, kSmallUsers = 600;  // unused by systemd's plan of ids below 2^16
constexpr size_t kMaxFiles = 64;

// What the sandbox looks like to those in it.
constexpr const char* kUserInside = "1000";
constexpr const char* kFolder = "/work";

// Limits the processes of this user namespace, whose count is its own, and runs the rest of its arguments. As the first
// process of its namespace the shell ends all others when it ends; a program in its place could not get signals from
// itself. What it says of signals is nobody's output.
constexpr const char* kShell =
    "ulimit -p \"$1\" || exit 125; shift; exec 9>&2 2>/dev/null; (exec \"$@\" 2>&9 9>&-); exit $?";

std::string find_bubblewrap() {
  std::vector<std::string> folders = {"/usr/bin", "/usr/local/bin", "/bin"};
  const char* path = getenv("PATH");
  for (std::string_view rest = path == nullptr ? "" : path; !rest.empty();) {
    const size_t end = std::min(rest.find(':'), rest.size());
    folders.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  for (const std::string& folder : folders) {
    if (folder.empty() || folder[0] != '/') continue;
    std::string file = folder + "/bwrap";
    if (access(file.c_str(), X_OK) == 0) return file;
  }
  return {};
}

// Whether all `count` ids from `first` are there, which in a container they may not be.
bool mapped(const char* map, uid_t first, uid_t count) {
  std::ifstream file(map);
  for (uint64_t inside = 0, outside = 0, length = 0; file >> inside >> outside >> length;) {
    if (inside <= first && uint64_t{first} + count <= inside + length) return true;
  }
  return false;
}

// A user that no other sandbox has at the time: the kernel counts some things for each user, and root's not at all.
// Where this process is not root it stays its own user, and bubblewrap's namespace is what keeps counts apart.
class User {
 public:
  User() {
    if (geteuid() != 0) return;
    const auto usable = [](uid_t first, uid_t count) {
      return mapped("/proc/self/uid_map", first, count) && mapped("/proc/self/gid_map", first, count);
    };
    static const bool many = usable(kFirstUser, kUsers), few = usable(kFirstSmallUser, kSmallUsers);
    if (!many && !few) return;
    const uid_t n = many ? kUsers : kSmallUsers;
    const std::lock_guard lock(mutex_);
    // Other processes of fathom begin elsewhere.
    const uid_t begin = static_cast<uid_t>(getpid()) * 1024 % n;
    uid_t i = 0;
    while (i < n && std::find(taken_.begin(), taken_.end(), (begin + i) % n) != taken_.end()) ++i;
    taken_.push_back((begin + i) % n);
    slot_ = taken_.back();
    id_ = (many ? kFirstUser : kFirstSmallUser) + *slot_;
  }
  ~User() {
    if (!slot_) return;
    const std::lock_guard lock(mutex_);
    taken_.erase(std::find(taken_.begin(), taken_.end(), *slot_));
  }
  User(const User&) = delete;
  User& operator=(const User&) = delete;
  std::optional<uid_t> id() const { return id_; }

 private:
  static inline std::mutex mutex_;
  static inline std::vector<uid_t> taken_;
  std::optional<uid_t> slot_, id_;
};

void check_files(std::span<const SandboxFile> files, const SandboxLimits& limits) {
  if (files.size() > kMaxFiles) throw Error("{} files are too many for a sandbox: at most {}", files.size(), kMaxFiles);
  for (const SandboxFile& file : files) {
    const std::string& name = file.name;
    if (name.empty() || name == "." || name == ".." || name.size() > 255 || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos) {
      throw Error("{}: not the name of a file in a sandbox: no folders", printable(name));
    }
    if (file.content.size() > static_cast<size_t>(limits.file_bytes)) {
      throw Error("{}: {} bytes are too many for a file in a sandbox: at most {}", printable(name), file.content.size(),
                  limits.file_bytes);
    }
  }
}

void check_command(std::span<const std::string> command) {
  if (command.empty() || !command[0].starts_with('/')) throw Error("a command of a sandbox begins with a whole path");
  if (access(command[0].c_str(), X_OK) != 0) throw Error("{}: no such program", printable(command[0]));
  for (const std::string& word : command) {
    if (word.find('\0') != std::string::npos) throw Error("a word of a sandbox's command has a zero byte");
  }
}

std::vector<std::string> environment(const std::string& folder) {
  return {"PATH=/usr/bin:/bin",        "HOME=" + folder,        "TMPDIR=" + folder,       "LANG=C.UTF-8",
          "PYTHONDONTWRITEBYTECODE=1", "PYTHONHASHSEED=0",      "PYTHONIOENCODING=utf-8", "PYTHONNOUSERSITE=1",
          "OMP_NUM_THREADS=1",         "OPENBLAS_NUM_THREADS=1"};
}

SandboxResult run_with(const std::string& bubblewrap, std::span<const std::string> command,
                       std::span<const SandboxFile> files, std::string_view input, const SandboxLimits& limits) {
  check_files(files, limits);
  check_command(command);
  static const std::string filter_program = sandbox_filter();
  const User user;
  ProcessPlan plan{.environment = environment(kFolder),
                   .folder = "/",
                   .input = input,
                   .user = user.id(),
                   .file_bytes = limits.file_bytes,
                   .limits = limits};
  std::vector<std::string>& words = plan.command;
  words = {bubblewrap,      "--unshare-user",       "--unshare-pid", "--unshare-net", "--unshare-ipc",
           "--unshare-uts", "--unshare-cgroup-try", "--uid",         kUserInside,     "--gid",
           kUserInside,     "--hostname",           "sandbox",       "--as-pid-1",    "--die-with-parent",
           "--new-session", "--cap-drop",           "ALL",           "--ro-bind",     "/usr",
           "/usr"};
  const auto append = [&words](std::initializer_list<std::string> more) { words.insert(words.end(), more); };
  for (const char* folder : {"/bin", "/lib", "/lib64", "/lib32", "/sbin"}) {
    std::error_code none;
    if (const fs::path target = fs::read_symlink(folder, none); !none) {
      append({"--symlink", target.string(), folder});
    } else if (fs::is_directory(folder, none)) {
      append({"--ro-bind", folder, folder});
    }
  }
  append({"--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--ro-bind-try", "/etc/alternatives",
          "/etc/alternatives"});
  // Not /dev/zero, whose shared maps are memory that nothing could count.
  for (const char* device : {"/dev/null", "/dev/full", "/dev/random", "/dev/urandom"}) {
    append({"--dev-bind", device, device});
  }
  append({"--size", std::to_string(limits.folder_bytes), "--tmpfs", kFolder, "--symlink", "work", "/tmp", "--symlink",
          kFolder, "/dev/shm", "--chdir", kFolder});
  std::vector<Descriptor> held;
  const auto keep = [&](Descriptor descriptor) {
    plan.kept.push_back(descriptor.get());
    held.push_back(std::move(descriptor));
    return std::to_string(plan.kept.back());
  };
  for (const SandboxFile& file : files) {
    append({"--file", keep(file_in_memory(file.content)), fmt::format("{}/{}", kFolder, file.name)});
  }
  Pipe status = make_pipe();
  plan.status = status.read.get();
  append({"--seccomp", keep(file_in_memory(filter_program)), "--json-status-fd", keep(std::move(status.write)),
          "--remount-ro", "/"});
  rlimit processes{};
  getrlimit(RLIMIT_NPROC, &processes);
  append({"--", "/bin/sh", "-c", kShell, "sh",
          std::to_string(std::min<rlim_t>(static_cast<rlim_t>(std::max(limits.processes, 2)), processes.rlim_max))});
  words.insert(words.end(), command.begin(), command.end());

  ProcessEnd end = run_process(plan);
  SandboxResult& result = end.result;
  if (result.end == SandboxResult::exited || result.end == SandboxResult::signalled) {
    if (!end.inner_code) {
      std::string_view said = result.err;
      said = said.substr(0, said.find('\n'));
      throw Error("bubblewrap does not work here: {}",
                  said.empty() ? fmt::format("it ended with {}", result.code) : printable(said));
    }
    result.end = *end.inner_code > 128 ? SandboxResult::signalled : SandboxResult::exited;
    result.code = *end.inner_code > 128 ? *end.inner_code - 128 : *end.inner_code;
  }
  return std::move(result);
}

struct Available {
  std::string bubblewrap, why_not;
};

const Available& available() {
  static const Available found = [] {
    Available out{find_bubblewrap(), {}};
    out.why_not = out.bubblewrap.empty() ? "bubblewrap is not installed: apt-get install bubblewrap"
                                         : why_no_sandbox(out.bubblewrap);
    return out;
  }();
  return found;
}

}  // namespace

SandboxLimits limits_of_time(double cpu_s) { return {.cpu_s = cpu_s, .wall_s = std::max(2 * cpu_s, cpu_s + 5)}; }

std::string why_no_sandbox(const std::string& bubblewrap) {
  if (access(bubblewrap.c_str(), X_OK) != 0) return fmt::format("{}: no such program", printable(bubblewrap));
  try {
    const std::vector<std::string> command = {"/bin/sh", "-c", "exit 7"};
    const SandboxResult result = run_with(bubblewrap, command, {}, {}, {});
    if (result.end == SandboxResult::exited && result.code == 7) return {};
    return "bubblewrap does not work here: a program in it does not end as it should";
  } catch (const Error& error) {
    return error.what();
  }
}

std::string why_no_sandbox() { return available().why_not; }

SandboxResult run_sandboxed(std::span<const std::string> command, std::span<const SandboxFile> files,
                            std::string_view input, const SandboxLimits& limits) {
  if (!available().why_not.empty()) throw Error("no sandbox to run a program in: {}", available().why_not);
  return run_with(available().bubblewrap, command, files, input, limits);
}

SandboxResult run_unsandboxed(std::span<const std::string> command, std::span<const SandboxFile> files,
                              std::string_view input, const SandboxLimits& limits) {
  check_files(files, limits);
  check_command(command);
  std::string folder = (fs::temp_directory_path() / "fathom-run-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr)
    throw Error("{}: cannot make a folder for a program", fs::temp_directory_path().string());
  struct Remove {
    const std::string& folder;
    ~Remove() {
      std::error_code ignored;
      fs::remove_all(folder, ignored);
    }
  } const remove{folder};
  for (const SandboxFile& file : files) {
    std::ofstream(fs::path(folder) / file.name, std::ios::binary) << file.content;
  }
  ProcessPlan plan{.command = {command.begin(), command.end()},
                   .environment = environment(folder),
                   .folder = folder,
                   .input = input,
                   .file_bytes = limits.file_bytes,
                   .limits = limits};
  return run_process(plan).result;
}

}  // namespace fathom::eval
