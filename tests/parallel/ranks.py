"""The processes that mpirun has started, found by /proc alone."""
import os
import pathlib
import re
import time

ENVIRONMENT = {**os.environ, "OMPI_MCA_hwloc_base_binding_policy": "none", "OMPI_MCA_orte_base_help_aggregate": "0"}
MPIRUN = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n"]


def ranks_of(job):
    """{rank: pid} of the children of a subprocess.Popen that have begun."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            parent = folder.name.isdigit() and (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if parent and int(parent) == job.pid:
                number = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", (folder / "environ").read_bytes())
                if number:
                    found[int(number[1])] = int(folder.name)
        except OSError:
            continue  # it is gone
    return found


def are_there(pids):
    """Those that run still, or are stopped; what has ended and waits for its parent has no program any more."""
    return [pid for pid in pids if pathlib.Path(f"/proc/{pid}/exe").exists()]


def end_of(job, pids, timeout):
    """(what the job says, seconds until it and its processes are gone), of a job that has just got a signal."""
    begin = time.monotonic()
    _, told = job.communicate(timeout=timeout)
    while are_there(pids) and time.monotonic() - begin < 60:
        time.sleep(0.02)
    return told, time.monotonic() - begin
