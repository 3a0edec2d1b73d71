"""A SLURM cluster of its own on this machine: real daemons, three virtual nodes, free ports, nothing left behind."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

NODES = ("n1", "n2", "n3")
CPUS = 8  # of each node, whatever the machine has
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,sched_min_interval=100000
MinJobAge=600
KillWait=30
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


class Cluster:
    """Up from construction until `close`. `folder` gets its files and logs; `environment` is for its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        host = socket.gethostname().split(".")[0]
        port, *node_ports = _free_ports(1 + len(NODES))
        config = CONFIG.format(host=host, port=port, user=getpass.getuser(), folder=folder)
        for name, node_port in zip(NODES, node_ports, strict=True):
            config += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={CPUS}\n"
        (folder / "slurm.conf").write_text(config)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        try:
            self._start_daemons(key)
        except BaseException:
            self.close()
            raise

    def _start_daemons(self, key: Path) -> None:
        files = {"key-file": key, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        files["seed-file"] = "munge.seed"
        # A test's folder is in a temporary one that all may write to, which munged only accepts when forced.
        self.run("munged", "--force", *(f"--{option}={self.folder / name}" for option, name in files.items()))
        self.run("slurmctld", "-c")
        for name in NODES:
            self.run("slurmd", "-N", name)
        self.run("srun", f"--nodes={len(NODES)}", "true")  # all of them answer

    def run(self, *command: object) -> str:
        """Run a command as a client of the cluster; returns what it printed."""
        finished = self.attempt(*command)
        assert finished.returncode == 0, f"{command}\n{finished.stdout}{finished.stderr}"
        return finished.stdout

    def attempt(self, *command: object) -> subprocess.CompletedProcess[str]:
        arguments = list(map(str, command))
        return subprocess.run(arguments, env=self.environment, capture_output=True, text=True, timeout=120)

    def wait(self, what: str, reached: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self._logs()}"
            time.sleep(0.2)

    def job(self, job: str) -> Mapping[str, str]:
        """What SLURM knows of a job, or of a task of an array: `JobState`, `ExitCode`, `NodeList`, `Restarts`, ..."""
        shown = self.run("scontrol", "show", "job", job, "--oneliner")
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def finish(self, job: str, seconds: float) -> Mapping[str, str]:
        """Wait until a job has ended and is not to start again."""
        self.wait(f"job {job} ended", lambda: self.job(job)["JobState"] in FINAL, seconds)
        return self.job(job)

    def _logs(self) -> str:
        logs = (f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("slurm*.log")))
        return "\n".join([*logs, self.attempt("squeue").stdout])

    def close(self) -> None:
        """Kill daemons, jobs and clients; returns when none is left."""
        while processes := self.processes():
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes)

    def processes(self) -> list[psutil.Process]:
        """Those that were started for or by this cluster: all inherit where its configuration is."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    found.append(process)
        return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
