"""Peak memory of a piece of work, in a process of its own: `python -m benchmarks.memory NETWORK WORK BATCH WHO`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def peak_gigabytes(network: str, work: str, batch: int, who: str) -> float:
    """The largest resident set of a fresh process that does the work twice."""
    command = [sys.executable, "-m", "benchmarks.memory", network, work, str(batch), who]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident_gigabytes() -> float:
    """This process's largest resident set so far."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 1e9
    if sys.platform.startswith("linux"):  # getrusage would count what the parent held when it forked
        status = Path("/proc/self/status").read_text().split()
        return int(status[status.index("VmHWM:") + 1]) * 1024 / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    from benchmarks import candidates

    network, work, batch, who = sys.argv[1:]
    chosen = getattr(candidates, network)
    if who == "diffusers":
        call = candidates.diffusers(chosen, work, int(batch), best=False)  # type: ignore[arg-type]
    else:
        call = candidates.ours(chosen, work, int(batch), kernels=who)  # type: ignore[arg-type]
    call()
    call()
    print(resident_gigabytes())


if __name__ == "__main__":
    main()
