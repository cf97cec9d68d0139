#include "eval/sandbox_filter.h"

#include <fcntl.h>
#include <linux/prctl.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "base/error.h"

namespace fathom::eval {
namespace {

// Whatever their arguments. What this machine's architecture lacks is left out. Not here, among others: ptrace, keyctl,
// add_key, bpf, userfaultfd, io_uring_*, unshare, setns, mount and its new forms, umount2, pivot_root, chroot,
// perf_event_open, process_vm_*, pidfd_getfd, kexec_*, *_module, open_by_handle_at, personality, clone3, seccomp,
// set*id, memfd_create and System V's shared memory (memory that no limit counts), splice, inotify, mknod, and flock:
// /usr is the machine's, and who locks a file of it has others wait.
constexpr const char* kAllowed[] = {
    // Descriptors.
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "open",
    "openat", "creat", "close", "close_range", "dup", "dup2", "dup3", "pipe", "pipe2", "lseek", "sendfile",
    "copy_file_range", "fsync", "fdatasync", "sync_file_range", "ftruncate", "truncate", "fallocate", "fadvise64",
    "select", "pselect6", "poll", "ppoll", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait",
    "epoll_pwait2", "eventfd", "eventfd2", "timerfd_create", "timerfd_settime", "timerfd_gettime", "signalfd",
    "signalfd4",
    // Files.
    "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2", "getcwd",
    "chdir", "fchdir", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "link",
    "linkat", "symlink", "symlinkat", "readlink", "readlinkat", "chmod", "fchmod", "fchmodat", "umask", "getdents",
    "getdents64", "utime", "utimes", "utimensat", "futimesat",
    // Memory.
    "mprotect", "munmap", "brk", "mremap", "madvise", "msync", "mincore",
    // Processes and threads.
    "fork", "vfork", "execve", "exit", "exit_group", "wait4", "waitid", "kill", "tkill", "tgkill", "getpid", "getppid",
    "gettid", "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "getpgid", "getpgrp",
    "setpgid", "getsid", "setsid", "set_tid_address", "set_robust_list", "get_robust_list", "rseq", "futex",
    "futex_waitv", "arch_prctl", "prlimit64", "getrlimit", "setrlimit", "getrusage", "times", "sysinfo", "uname",
    "sched_yield", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "sched_get_priority_max",
    "sched_get_priority_min", "getpriority", "getcpu", "membarrier", "capget",
    // Signals.
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "rt_sigpending", "rt_sigtimedwait",
    "sigaltstack", "pause", "alarm", "getitimer", "setitimer", "restart_syscall",
    // Time and chance.
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "timer_create",
    "timer_settime", "timer_gettime", "timer_delete", "timer_getoverrun", "getrandom",
    // Sockets that socket() below lets be.
    "bind", "listen", "accept", "accept4", "connect", "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg",
    "recvmmsg", "shutdown", "getsockname", "getpeername", "setsockopt", "getsockopt"};

// The lower 32 bits: the kernel looks at no more, and a filter that compares 64 can be led past (CVE-2019-10063).
constexpr uint64_t kLower = 0xffffffff;
constexpr uint64_t kNamespaces =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
constexpr uint64_t kIoctls[] = {TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX};  // not TIOCSTI, TIOCLINUX
// Not F_NOTIFY and F_SETLEASE, which tell of what others do with a file, or hold them up.
constexpr uint64_t kFcntls[] = {F_DUPFD,      F_DUPFD_CLOEXEC, F_GETFD,    F_SETFD, F_GETFL,
                                F_SETFL,      F_GETOWN,        F_SETOWN,   F_GETLK, F_OFD_GETLK,
                                F_GETPIPE_SZ, F_SETPIPE_SZ,    F_GET_SEALS};
constexpr uint64_t kLocks[] = {F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW};
constexpr uint64_t kPrctls[] = {PR_SET_NAME, PR_GET_NAME, PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_GET_DUMPABLE};

void must(int result, const char* what) {
  if (result < 0) throw Error("the sandbox's filter of system calls, {}: {}", what, strerror(-result));
}

void add(scmp_filter_ctx filter, uint32_t action, const char* name) {
  const int number = seccomp_syscall_resolve_name(name);
  if (number >= 0) must(seccomp_rule_add_array(filter, action, number, 0, nullptr), name);
}

void add(scmp_filter_ctx filter, uint32_t action, const char* name, const scmp_arg_cmp& condition) {
  const int number = seccomp_syscall_resolve_name(name);
  if (number >= 0) must(seccomp_rule_add_array(filter, action, number, 1, &condition), name);
}

scmp_arg_cmp lower_bits(unsigned argument, uint64_t mask, uint64_t value) {
  return scmp_arg_cmp{argument, SCMP_CMP_MASKED_EQ, mask, value};
}

}  // namespace

std::string sandbox_filter() {
  const std::unique_ptr<void, void (*)(scmp_filter_ctx)> held(seccomp_init(SCMP_ACT_ERRNO(ENOSYS)), seccomp_release);
  const scmp_filter_ctx filter = held.get();
  if (filter == nullptr) throw Error("the sandbox's filter of system calls cannot be made");
  for (const char* name : kAllowed) add(filter, SCMP_ACT_ALLOW, name);
  for (const uint64_t request : kIoctls) add(filter, SCMP_ACT_ALLOW, "ioctl", lower_bits(1, kLower, request));
  for (const uint64_t option : kPrctls) add(filter, SCMP_ACT_ALLOW, "prctl", lower_bits(0, kLower, option));
  for (const uint64_t command : kFcntls) add(filter, SCMP_ACT_ALLOW, "fcntl", lower_bits(1, kLower, command));
  for (const uint64_t command : kLocks) add(filter, SCMP_ACT_ERRNO(ENOLCK), "fcntl", lower_bits(1, kLower, command));
  add(filter, SCMP_ACT_ERRNO(ENOLCK), "flock");
  // Shared memory without a file stays as long as any process has a page of it mapped, whether or not it is in that
  // process's resident set: it could be counted by nothing. Shared maps of files are those of the folder.
  constexpr uint64_t kSharedNoFile = MAP_SHARED | MAP_ANONYMOUS;
  for (const uint64_t kind : {uint64_t{0}, uint64_t{MAP_SHARED}, uint64_t{MAP_ANONYMOUS}}) {
    add(filter, SCMP_ACT_ALLOW, "mmap", lower_bits(3, kSharedNoFile, kind));
  }
  add(filter, SCMP_ACT_ERRNO(EPERM), "mmap", lower_bits(3, kSharedNoFile, kSharedNoFile));
  add(filter, SCMP_ACT_ALLOW, "clone", lower_bits(0, kNamespaces, 0));
  for (uint64_t bit = 1; bit <= kNamespaces; bit <<= 1) {
    if ((kNamespaces & bit) != 0) add(filter, SCMP_ACT_ERRNO(EPERM), "clone", lower_bits(0, bit, bit));
  }
  for (const char* name : {"socket", "socketpair"}) {
    add(filter, SCMP_ACT_ALLOW, name, lower_bits(0, kLower, AF_UNIX));
    add(filter, SCMP_ACT_ERRNO(EAFNOSUPPORT), name, scmp_arg_cmp{0, SCMP_CMP_NE, AF_UNIX, 0});
  }
  const int file = memfd_create("filter", MFD_CLOEXEC);
  if (file < 0) throw Error("the sandbox's filter of system calls: {}", strerror(errno));
  const int exported = seccomp_export_bpf(filter, file);
  std::string program(64 << 10, '\0');
  const ssize_t n = exported < 0 ? 0 : pread(file, program.data(), program.size(), 0);
  close(file);
  must(exported, "its export");
  if (n <= 0 || static_cast<size_t>(n) == program.size())
    throw Error("the sandbox's filter of system calls is not as long as it should be");
  program.resize(static_cast<size_t>(n));
  return program;
}

}  // namespace fathom::eval
