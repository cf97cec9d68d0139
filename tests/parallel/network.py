"""Hosts made of network namespaces: each has an address and one link to a switch, of a rate of its own; mpirun starts processes in them as on machines."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

from ranks import ENVIRONMENT, MPIRUN

PREFIX = "fathom-test-"
SUBNET = "10.77.0."  # nobody outside of the namespaces sees it
HEADERS = 66  # bytes of Ethernet, IP and TCP with its time stamps
# What mpirun starts in place of ssh: HOST COMMAND... Open MPI wants names of their own.
AGENT = """#!/bin/sh
number=${1##*.}
shift
exec ip netns exec "%s$number" unshare --uts sh -c 'hostname "node$0"; exec sh -c "$1"' "$number" "$*"
"""


class NotPermitted(Exception):
    pass


def command(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def namespaces():
    return [line.split()[0] for line in command("ip", "netns", "list").splitlines()]


def remove(names):
    for name in names:
        with contextlib.suppress(OSError):  # nothing but its name is left
            for pid in command("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        command("ip", "netns", "delete", name)


class Network:
    """`hosts` hosts; links of `rate` bytes a second each way, and `inner_rate` between the processes of a host. To be used in a `with`."""

    def __init__(self, hosts, rate, inner_rate=None):
        self.n_hosts, self.rate, self.inner_rate = hosts, rate, inner_rate
        self.prefix = f"{PREFIX}{os.getpid()}-"

    def __enter__(self):
        missing = [program for program in ("ip", "tc", "unshare", "mpirun") if shutil.which(program) is None]
        if missing or os.geteuid() != 0:
            raise NotPermitted(f"{' and '.join(missing)} missing" if missing else "only root may make network namespaces")
        self.folder = tempfile.TemporaryDirectory()
        try:
            # Of tests that were killed.
            remove([name for name in namespaces() if (of := re.match(PREFIX + r"(\d+)-", name)) and not pathlib.Path(f"/proc/{of[1]}").exists()])
            try:
                self.switch = self.add("switch")
                command("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge")
            except OSError as error:
                raise NotPermitted(str(error)) from error
            command("ip", "-n", self.switch, "addr", "add", f"{SUBNET}254/24", "dev", "switch")
            command("ip", "-n", self.switch, "link", "set", "switch", "up")
            for number in range(1, self.n_hosts + 1):
                self.add_host(number)
            agent = pathlib.Path(self.folder.name) / "agent"
            agent.write_text(AGENT % self.prefix)
            agent.chmod(0o700)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        remove([name for name in namespaces() if name.startswith(self.prefix)])
        self.folder.cleanup()

    def add(self, name):
        command("ip", "netns", "add", self.prefix + name)
        command("ip", "-n", self.prefix + name, "link", "set", "lo", "up")
        return self.prefix + name

    def add_host(self, number):
        host, port = self.add(str(number)), f"port{number}"
        # Losses slow it down; bbr, which some systems have by default, now and then by itself.
        subprocess.run(["ip", "netns", "exec", host, "sh", "-c", "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"], check=True)
        command("ip", "link", "add", "eth0", "netns", host, "type", "veth", "peer", "name", port, "netns", self.switch)
        command("ip", "-n", host, "addr", "add", f"{SUBNET}{number}/24", "dev", "eth0")
        command("ip", "-n", self.switch, "link", "set", port, "master", "switch", "up")
        command("ip", "-n", host, "link", "set", "eth0", "up")
        shaped = [(host, "eth0", self.rate), (self.switch, port, self.rate)] + ([(host, "lo", self.inner_rate)] if self.inner_rate else [])
        for where, link, rate in shaped:
            command("tc", "-n", where, "qdisc", "add", "dev", link, "root", "tbf", "rate", f"{8 * rate:.0f}bit", "burst", "128kb", "limit", "64mb")

    def sent(self):
        """[host]: (bytes, packets) that have left it."""
        told = [json.loads(command("ip", "-n", f"{self.prefix}{number}", "-s", "-j", "link", "show", "eth0"))[0]["stats64"]["tx"] for number in range(1, self.n_hosts + 1)]
        return [(link["bytes"], link["packets"]) for link in told]

    def run(self, ranks_per_host, *words, timeout=240):
        """The JSON object that a program tells, on ranks_per_host ranks of each host, one host behind the other; and [host]: bytes of messages that left it."""
        folder = pathlib.Path(self.folder.name)
        (folder / "hosts").write_text("".join(f"{SUBNET}{number} slots={ranks_per_host}\n" for number in range(1, self.n_hosts + 1)))
        subnet = f"{SUBNET}0/24"
        options = {"plm_rsh_agent": folder / "agent", "plm_rsh_no_tree_spawn": 1, "btl": "tcp,self", "btl_tcp_if_include": subnet, "oob_tcp_if_include": subnet,
                   "orte_tmpdir_base": folder}
        start = [*MPIRUN, str(ranks_per_host * self.n_hosts), "--hostfile", str(folder / "hosts"), *[word for key, value in options.items() for word in ("--mca", key, str(value))]]
        before = self.sent()
        done = subprocess.run(["ip", "netns", "exec", self.switch, *start, *map(str, words)], capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)
        if done.returncode != 0:
            raise OSError(f"{' '.join(map(str, words))} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
        payload = [(bytes_after - bytes_before) - HEADERS * (packets_after - packets_before)
                   for (bytes_before, packets_before), (bytes_after, packets_after) in zip(before, self.sent(), strict=True)]
        return json.loads(done.stdout), payload
