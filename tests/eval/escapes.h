// Programs that try to get out of the sandbox, each a law that it must keep. They must run nowhere else.
#pragma once

namespace fathom::eval::test {

// How a program's run must end. Denied: by itself, with exit code 0, having said "denied" and not "ESCAPED".
enum class Ends { denied, out_of_time, out_of_cpu, killed, too_much_output, out_of_memory, signalled, by_itself };

struct Escape {
  const char* name;
  Ends ends;
  const char* program;  // behind kEscapeTools
};

// The module `escape`: `host` has what the test made outside (paths, ports, numbers of processes).
inline constexpr const char* kEscapeTools = R"(
import ctypes, errno, os, platform, resource, signal, socket, subprocess, sys, threading, time
host = dict(line.split("=", 1) for line in open("host.txt").read().splitlines())
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
NUMBERS = dict(ptrace=(101, 117), mount=(165, 40), umount2=(166, 39), chroot=(161, 51), pivot_root=(155, 41), keyctl=(250, 219),
  add_key=(248, 217), request_key=(249, 218), bpf=(321, 280), userfaultfd=(323, 282), io_uring_setup=(425, 425), unshare=(272, 97),
  setns=(308, 268), perf_event_open=(298, 241), process_vm_readv=(310, 270), process_vm_writev=(311, 271), kexec_load=(246, 104),
  init_module=(175, 105), finit_module=(313, 273), delete_module=(176, 106), open_by_handle_at=(304, 265), name_to_handle_at=(303, 264),
  personality=(135, 92), clone=(56, 220), clone3=(435, 435), inotify_init1=(294, 26), fanotify_init=(300, 262), reboot=(169, 142),
  swapon=(167, 224), sethostname=(170, 161), settimeofday=(164, 170), clock_settime=(227, 112), capset=(126, 91), pidfd_getfd=(438, 438),
  pidfd_open=(434, 434), seccomp=(317, 277), memfd_create=(319, 279), shmget=(29, 194), mq_open=(240, 180), mlock=(149, 228),
  vmsplice=(278, 75), splice=(275, 76), tee=(276, 77), acct=(163, 89), quotactl=(179, 60), syslog=(103, 116), fsopen=(430, 430),
  open_tree=(428, 428), move_mount=(429, 429), mount_setattr=(442, 442), fsmount=(432, 432), sched_setscheduler=(144, 119),
  iopl=(172, -1), ioperm=(173, -1), modify_ldt=(154, -1), nfsservctl=(180, 42), vhangup=(153, 58), migrate_pages=(256, 238),
  move_pages=(279, 239), kcmp=(312, 272), landlock_create_ruleset=(444, 444), setuid=(105, 146), setreuid=(113, 145), setfsuid=(122, 151), socket=(41, 198))
def escaped(what): print("ESCAPED", what, flush=True)
def denied(what, work):
    "work() must raise."
    try: got = work()
    except (OSError, ValueError, MemoryError) as error: print("denied", what, error, flush=True)
    else: escaped((what, got))
def call(name, *arguments):
    number = NUMBERS[name][0 if X86 else 1]
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if got < 0: raise OSError(ctypes.get_errno(), name + ": " + os.strerror(ctypes.get_errno()))
    return got
def refused(*names):
    "The kernel must not be reached: with these arguments it would say something else than ENOSYS or EPERM."
    for name in names:
        if NUMBERS[name][0 if X86 else 1] < 0: continue
        try: got = call(name, -1, 0, 0, 0, 0, 0)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EPERM): print("denied", error, flush=True)
            else: escaped((name, error))
        else: escaped((name, got))
)";

inline constexpr Escape kEscapes[] = {
    // Processes.
    {"AForkBombStopsAtTheLimit", Ends::denied, R"(
children = []
while len(children) < 500:
    try: pid = os.fork()
    except OSError as error: print("denied", error); break
    if pid == 0: time.sleep(100)
    children.append(pid)
if len(children) > 64: escaped(len(children))
)"},
    {"AForkBombThatGoesOnIsEnded", Ends::out_of_time, R"(
while True:
    try: os.fork()
    except OSError: pass
)"},
    {"AThreadBombStopsAtTheLimit", Ends::denied, R"(
threading.stack_size(65536)
n = 0
while n < 500:
    try: threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    except RuntimeError as error: print("denied", error); break
    n += 1
if n > 64: escaped(n)
sys.stdout.flush(); os._exit(0)
)"},
    {"ADaemonWithoutDescriptorsEndsWithItsProgram", Ends::by_itself, R"(
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        for s in range(1, 32):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        time.sleep(1000)
    os._exit(0)
)"},
    {"AChildThatKeepsStdoutOpenEndsWithItsProgram", Ends::by_itself, R"(
if os.fork() == 0:
    os.setsid()
    while True: time.sleep(0.1); os.write(1, b"x")
)"},
    {"ManyGenerationsOfOrphansEndWithTheirProgram", Ends::by_itself, R"(
for i in range(20):
    try:
        if os.fork() == 0:
            os.setpgid(0, 0)
            for j in range(10000):
                if os.fork(): os._exit(0)
                time.sleep(0.01)
    except OSError: os._exit(0)  # all of them are living or waited for by nobody
)"},
    {"ProcessesOutsideCannotBeSignalled", Ends::denied, R"(
for pid in [p for p in (host["pid"], host["parent"]) if int(p) > 100] + ["4000000"]:  # small ones are somebody's in here
    denied(pid, lambda: os.kill(int(pid), signal.SIGKILL))
    denied(pid, lambda: os.kill(int(pid), 0))
)"},
    {"KillingEverythingKillsNothingOutside", Ends::by_itself, R"(
pid = os.fork()
if pid == 0: time.sleep(1000)
os.kill(-1, signal.SIGKILL)
os.waitpid(pid, 0)
)"},
    {"KillingTheParentDoesNotEndTheSandbox", Ends::by_itself, R"(
for s in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP): os.kill(1, s); os.kill(os.getppid(), s)
time.sleep(0.05)
)"},
    {"KillingTheGroupEndsTheProgramAlone", Ends::signalled, "os.killpg(0, signal.SIGKILL)\n"},
    {"AProgramThatStopsItselfIsEnded", Ends::out_of_time, "os.kill(os.getpid(), signal.SIGSTOP)\n"},
    {"IgnoringSignalsHelpsNothing", Ends::out_of_time, R"(
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(1000)
)"},
    {"ABusyLoopIsEndedByItsCpuTime", Ends::out_of_cpu, "while True: pass\n"},
    {"CatchingSignalsGivesASecondMore", Ends::killed,
     "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass\n"},
    {"ASleeperIsEnded", Ends::out_of_time, "time.sleep(1000)\n"},
    {"BusyChildrenAreEnded", Ends::out_of_time, R"(
for i in range(3): os.fork()
while True: time.sleep(0.001)
)"},
    {"PtraceIsRefused", Ends::denied, R"(
refused("ptrace")
for request in (0, 16, 0x4206): denied(request, lambda: call("ptrace", request, os.getppid(), 0, 0))
)"},
    {"MemoryOfOthersIsOutOfReach", Ends::denied,
     "refused('process_vm_readv', 'process_vm_writev', 'kcmp', 'move_pages', 'migrate_pages')\n"},
    {"DescriptorsOfOthersAreOutOfReach", Ends::denied, "refused('pidfd_open', 'pidfd_getfd')\n"},
    {"PrioritiesCannotBeRaised", Ends::denied, R"(
refused("sched_setscheduler")
denied("nice", lambda: os.nice(-5))
)"},
    // Memory.
    {"MemoryIsLimited", Ends::denied, "denied('2 GiB', lambda: len(bytearray(2 << 30)))\n"},
    {"MappedMemoryIsLimited", Ends::denied,
     "import mmap\ndenied('2 GiB', lambda: mmap.mmap(-1, 2 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))\n"},
    {"MemoryOfManyProcessesIsLimited", Ends::out_of_memory, R"(
for i in range(6):
    if os.fork() == 0:
        block = bytearray(48 << 20)
        time.sleep(100)
time.sleep(100)
)"},
    {"LimitsCannotBeRaised", Ends::denied, R"(
for name in ("AS", "CPU", "NPROC", "FSIZE", "NOFILE", "CORE", "MEMLOCK"):
    limit = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(limit)
    if hard == resource.RLIM_INFINITY: escaped(name)
    denied(name, lambda: resource.setrlimit(limit, (hard + 1, hard + 1)))
)"},
    {"MemoryCannotBeLockedOrSharedUnderNoLimit", Ends::denied,
     "refused('mlock', 'shmget', 'mq_open', 'memfd_create')\n"},
    {"SharedMemoryHasAFileOfTheFolder", Ends::denied, R"(
import mmap
denied("shared", lambda: mmap.mmap(-1, 4096))
libc.mmap.restype = ctypes.c_void_p
def mapped(flags):
    got = libc.mmap(None, ctypes.c_size_t(4096), 3, ctypes.c_int(flags), -1, ctypes.c_long(0))
    if got == ctypes.c_void_p(-1).value: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got
for flags in (0x21, 0x23, 0x4021): denied(hex(flags), lambda: mapped(flags))
mapped(0x22)
denied("/dev/zero", lambda: os.open("/dev/zero", os.O_RDWR))
)"},
    {"SharedMemoryOfManyProcessesIsNone", Ends::denied, R"(
import mmap
def fill():
    block = mmap.mmap(-1, 350 << 20)
    for at in range(0, len(block), 4096): block[at] = 1
for i in range(8):
    if os.fork() == 0: denied("350 MiB", fill); os._exit(0)
for i in range(8): os.wait()
)"},
    {"SharedMemoryIsInTheFolder", Ends::denied, R"(
from multiprocessing import shared_memory
denied("128 MiB", lambda: [shared_memory.SharedMemory(create=True, size=15 << 20).buf.__setitem__(slice(None), bytes(15 << 20)) for i in range(8)])
)"},
    {"ACrashLeavesNoCore", Ends::signalled, "os.chdir('/work'); ctypes.string_at(8)\n"},
    {"EndlessRecursionEndsTheProgramAlone", Ends::signalled, R"(
sys.setrecursionlimit(10**9)
class A:
    def __getattribute__(self, name): return getattr(self, name)
A().x
)"},
    // Files.
    {"FilesOutsideCannotBeWritten", Ends::denied, R"(
for path in (host["canary"], host["folder"] + "/new", "/tmp/../x", "/x", "/etc/x", "/usr/x", "/usr/bin/x", "/dev/x", "/work/../y", "/bin/x", "/lib/x"):
    denied(path, lambda: open(path, "w"))
denied("mkdir", lambda: os.mkdir("/new"))
denied("remove", lambda: os.remove("/usr/bin/python3"))
denied("rename", lambda: os.rename("/tmp", "/tmp2"))
denied("rename", lambda: os.rename("/work", "/work2"))
)"},
    {"FilesOutsideCannotBeRead", Ends::denied, R"(
for path in (host["canary"], host["folder"], "/etc/passwd", "/etc/shadow", "/etc/hostname", "/root", "/home", "/var", "/run", "/sys", "/boot", "/mnt", "/opt"):
    denied(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path).read())
)"},
    {"ProcIsNotThere", Ends::denied, R"(
for path in ("/proc/1/root", "/proc/1/environ", "/proc/self/mem", "/proc/" + host["pid"] + "/root", "/proc/sys/kernel/core_pattern", "/proc/self/fd/0"):
    denied(path, lambda: open(path))
)"},
    {"LinksLeadNowhere", Ends::denied, R"(
os.symlink(host["canary"], "a")
denied("symbolic", lambda: open("a").read())
denied("symbolic", lambda: open("a", "w"))
os.symlink("../../../../../../.." + host["canary"], "b")
denied("relative", lambda: open("b").read())
denied("hard", lambda: os.link(host["canary"], "c"))
denied("hard", lambda: os.link("/usr/bin/python3", "d"))
os.symlink("/", "root")
denied("root", lambda: open("root" + host["canary"]))
)"},
    {"TheRootHasNothingAbove", Ends::denied, R"(
os.chdir("/")
for i in range(50): os.chdir("..")
if set(os.listdir(".")) - {"bin", "dev", "etc", "lib", "lib32", "lib64", "sbin", "tmp", "usr", "work"}: escaped(os.listdir("."))
denied("canary", lambda: open(host["canary"][1:]))
)"},
    {"MountsAreRefused", Ends::denied, R"(
refused("mount", "umount2", "fsopen", "fsmount", "open_tree", "move_mount", "mount_setattr")
denied("tmpfs", lambda: call("mount", b"none", b"/work", b"tmpfs", 0, 0))
denied("proc", lambda: call("mount", b"proc", b"/work", b"proc", 0, 0))
denied("remount", lambda: call("mount", b"none", b"/usr", 0, 32 | 4096, 0))
)"},
    {"OtherRootsAreRefused", Ends::denied, R"(
refused("pivot_root")
denied("chroot", lambda: os.chroot("/work"))
)"},
    {"HandlesOfFilesAreRefused", Ends::denied, "refused('open_by_handle_at', 'name_to_handle_at')\n"},
    {"TheInterpreterCannotBeChanged", Ends::denied, R"(
for path in (os.__file__, sys.executable, ctypes.__file__, "/usr/lib/os-release", "/bin/sh"):
    denied(path, lambda: open(path, "r+"))
    denied(path, lambda: os.chmod(path, 0o777))
    denied(path, lambda: os.utime(path))
)"},
    {"FilesCannotBeLockedOrWatched", Ends::denied, R"(
import fcntl
for path in (sys.executable, os.__file__, "/etc/ld.so.cache", "/dev/null"):
    if not os.path.exists(path): continue
    file = os.open(path, os.O_RDONLY)
    for how in (fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_EX | fcntl.LOCK_NB): denied(path, lambda: fcntl.flock(file, how))
    lock = b"\0" * 64
    for command in (fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW): denied(path, lambda: fcntl.fcntl(file, command, lock))
    for command in (fcntl.F_NOTIFY, fcntl.F_SETLEASE): denied(path, lambda: fcntl.fcntl(file, command, 1))
    denied(path, lambda: libc.fcntl(file, ctypes.c_long(1 << 32 | fcntl.F_SETLK), lock) == 0 or (_ for _ in ()).throw(OSError("refused")))
denied("folder", lambda: fcntl.fcntl(os.open("/usr/bin", os.O_RDONLY), fcntl.F_NOTIFY, 0x8000003f))
denied("lockf", lambda: fcntl.lockf(os.open("/dev/null", os.O_WRONLY), fcntl.LOCK_EX))
)"},
    {"HugeFilesAreCut", Ends::denied, R"(
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = open("big", "wb", buffering=0)
def grow():
    for i in range(64): file.write(bytes(1 << 20)) == 1 << 20 or file.write(b"x")
denied("64 MiB", grow)
denied("1 TiB", lambda: os.truncate("big", 1 << 40))
denied("1 TiB", lambda: os.posix_fallocate(file.fileno(), 0, 1 << 40))
)"},
    {"TheFolderCannotGrow", Ends::denied, R"(
def fill():
    for i in range(100): open(str(i), "wb").write(bytes(1 << 20))
denied("100 MiB", fill)
)"},
    {"DescriptorsAreLimited", Ends::denied,
     "held = []\ndenied('1000', lambda: [held.append(open('/dev/null')) for i in range(1000)])\n"},
    {"NoDescriptorIsInherited", Ends::by_itself, R"(
for number in range(3, 4096):
    try: escaped((number, os.fstat(number)))
    except OSError: pass
)"},
    {"StdinCannotBeChanged", Ends::denied, R"(
denied("write", lambda: os.write(0, b"x"))
denied("truncate", lambda: os.ftruncate(0, 1 << 30))
)"},
    {"AFolderThatNobodyMayEnterIsLeftNowhere", Ends::by_itself, R"(
for i in range(200): os.mkdir("d"); os.chdir("d")
os.chmod("/work", 0)
)"},
    {"DevicesAreFew", Ends::denied, R"(
for name in ("mem", "kmem", "kmsg", "sda", "vda", "nvme0n1", "loop0", "tty", "console", "ptmx", "pts/0", "fuse", "kvm", "net/tun", "input", "dri", "nvidia0", "port"):
    denied(name, lambda: os.open("/dev/" + name, os.O_RDWR))
denied("mknod", lambda: os.mknod("disk", 0o60600, os.makedev(8, 0)))
denied("mknod", lambda: os.mknod("memory", 0o20600, os.makedev(1, 1)))
if set(os.listdir("/dev")) - {"null", "full", "random", "urandom", "shm"}: escaped(os.listdir("/dev"))
)"},
    {"TerminalsCannotBeTypedInto", Ends::denied, R"(
import fcntl, termios
for number in (0, 1, 2):
    denied(number, lambda: fcntl.ioctl(number, termios.TIOCSTI, b"x"))
    denied(number, lambda: fcntl.ioctl(number, 0x541C, b"\2"))
    denied(number, lambda: libc.ioctl(number, ctypes.c_ulong(1 << 32 | termios.TIOCSTI), b"x") == 0 or (_ for _ in ()).throw(OSError("refused")))
denied("controlling", lambda: os.open("/dev/tty", os.O_RDWR))
)"},
    // Rights.
    {"NobodyElseCanBeBecome", Ends::denied, R"(
refused("setuid", "setreuid", "setfsuid", "capset")
for work in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0), lambda: os.setegid(0)): denied("root", work)
if 0 in (os.getuid(), os.geteuid(), os.getgid()): escaped("root")
)"},
    {"SetuidProgramsGiveNoRights", Ends::denied, R"(
import shutil
shutil.copy("/bin/sh", "shell"); os.chmod("shell", 0o4755)
print(subprocess.run(["./shell", "-c", "id -u; cat /etc/shadow"], capture_output=True, text=True).stdout)
for command in (["/usr/bin/su", "-c", "id"], ["/usr/bin/mount", "-t", "tmpfs", "x", "/work"], ["/usr/bin/passwd", "-d", "root"], ["/usr/bin/unshare", "-r", "true"], ["/usr/bin/bwrap", "--dev-bind", "/", "/", "true"]):
    if not os.path.exists(command[0]): continue
    if subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0: escaped(command)
    else: print("denied", command)
)"},
    {"CapabilitiesCannotBeHad", Ends::denied, R"(
for option, *rest in ((24, 0), (28, 63), (47, 2, 0), (4, 1), (8, 1), (22, 2), (38, 0)):
    denied(option, lambda: libc.prctl(option, *[ctypes.c_ulong(x) for x in rest], 0, 0, 0) == 0 or (_ for _ in ()).throw(OSError("refused")))
)"},
    {"NamespacesAreRefused", Ends::denied, R"(
refused("unshare", "setns", "clone3")
for flags in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000, 0x10000000 | 0x40000000):
    denied(hex(flags), lambda: call("unshare", flags))
    def new(): # a child, if there is one, ends
        if (pid := call("clone", flags | signal.SIGCHLD, 0, 0, 0, 0)) == 0: os._exit(0)
        return pid
    denied(hex(flags), new)
)"},
    {"KeyringsAreRefused", Ends::denied, "refused('keyctl', 'add_key', 'request_key')\n"},
    {"IoUringIsRefused", Ends::denied, "refused('io_uring_setup')\n"},
    {"UserfaultfdIsRefused", Ends::denied, "refused('userfaultfd')\n"},
    {"PerfEventsAreRefused", Ends::denied, "refused('perf_event_open')\n"},
    {"BpfIsRefused", Ends::denied, "refused('bpf', 'seccomp', 'landlock_create_ruleset')\n"},
    {"PersonalitiesAreRefused", Ends::denied,
     "refused('personality')\ndenied('no ASLR', lambda: call('personality', 0x40000))\n"},
    {"WatchingFilesIsRefused", Ends::denied, "refused('inotify_init1', 'fanotify_init')\n"},
    {"PipesThatTakePagesAreRefused", Ends::denied, "refused('splice', 'vmsplice', 'tee')\n"},
    {"TheKernelCannotBeChanged", Ends::denied, R"(
refused("kexec_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "acct", "quotactl", "syslog", "nfsservctl", "vhangup")
refused("iopl", "ioperm", "modify_ldt")
)"},
    {"ClocksAndNamesCannotBeSet", Ends::denied, R"(
refused("settimeofday", "clock_settime", "sethostname")
if os.uname().nodename != "sandbox": escaped(os.uname().nodename)
)"},
    {"CallsOf32BitsEndTheProgram", Ends::signalled, R"(
import mmap
if not X86: os.kill(os.getpid(), signal.SIGSYS)
code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, getpid; int 0x80; ret
escaped(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
)"},
    {"CallsOfX32EndTheProgram", Ends::signalled, R"(
if not X86: os.kill(os.getpid(), signal.SIGSYS)
escaped(libc.syscall(ctypes.c_long(0x40000000 + 39)))
)"},
    // The network.
    {"NoTcpConnectionIsMade", Ends::denied, R"(
for family, address in ((socket.AF_INET, ("127.0.0.1", int(host["port"]))), (socket.AF_INET6, ("::1", int(host["port"]))), (socket.AF_INET, ("1.1.1.1", 80))):
    denied(address, lambda: socket.socket(family, socket.SOCK_STREAM).connect(address))
)"},
    {"NoDatagramIsSent", Ends::denied, R"(
denied("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int(host["udp_port"]))))
denied("high bits", lambda: call("socket", 1 << 32 | socket.AF_INET, socket.SOCK_DGRAM, 0))
denied("high bits", lambda: call("socket", 1 << 32 | socket.AF_UNIX, socket.SOCK_RAW, 7))
)"},
    {"NoNameIsLookedUp", Ends::denied, "denied('dns', lambda: socket.getaddrinfo('example.com', 80))\n"},
    {"NoRawOrOddSocketIsMade", Ends::denied, R"(
for family in range(2, 46):
    denied(family, lambda: socket.socket(family, socket.SOCK_RAW, 1))
    denied(family, lambda: socket.socket(family, socket.SOCK_DGRAM))
)"},
    {"UnixSocketsOutsideAreOutOfReach", Ends::denied, R"(
for address in (host["socket"], "\0" + host["abstract"], "/run/docker.sock", "/var/run/docker.sock", "/run/systemd/private", "/run/dbus/system_bus_socket"):
    denied(address, lambda: socket.socket(socket.AF_UNIX).connect(address))
)"},
    // What comes out.
    {"EndlessOutputIsCut", Ends::too_much_output, "while True: os.write(1, b'x' * 65536)\n"},
    {"EndlessErrorsAreCut", Ends::too_much_output, "while True: os.write(2, b'x' * 65536)\n"},
    {"OutputOfAChildIsCut", Ends::too_much_output, R"(
if os.fork() == 0:
    while True: os.write(1, b'x' * 65536)
time.sleep(100)
)"},
    {"TheEnvironmentOutsideIsNotSeen", Ends::by_itself, R"(
if set(os.environ) - {"PATH", "HOME", "TMPDIR", "LANG", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONNOUSERSITE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PWD", "LC_CTYPE", "OLDPWD", "SHLVL", "_"}: escaped(os.environ)
)"},
};

}  // namespace fathom::eval::test
