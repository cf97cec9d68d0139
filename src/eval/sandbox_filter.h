// Which system calls a program in the sandbox may make.
#pragma once

#include <string>

namespace fathom::eval {

// A list of what is allowed, as a program of seccomp-bpf (what bubblewrap's --seccomp reads) for this machine's
// architecture: files, memory, processes without namespaces of their own, signals, time, pipes and Unix sockets. All
// else is answered with ENOSYS, as a kernel that lacks the call would, so that libraries take their other ways;
// namespaces of a new process and sockets of other families with EPERM and EAFNOSUPPORT. Calls of another architecture
// (32-bit, x32) end the process. Error where libseccomp fails.
std::string sandbox_filter();

}  // namespace fathom::eval
