"""A real Slurm on one machine, thrown away after the tests: a login node and two compute nodes in Linux namespaces.

Every node has its own cores, network, host name, processes and /dev/shm, so that what is only right on one machine (a
wrong rendezvous address, "localhost", a folder that one node alone has) fails here as on a cluster; the file system is
shared, as clusters have it. Nothing outside the cluster's own temporary folder is written, the host's network gets no
interface, and the only processes ever signalled are the first ones of the machines, by descriptors of their own.

    with Cluster() as cluster:
        cluster.run("sbatch", "job.sh", cwd=folder)
        cluster.fail("node2")          # pulls the plug
        cluster.heal("node2")

It needs root, Slurm (Debian's slurm-wlm), munge and iproute2; `why_not` says what is missing.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Self

NETWORK = "10.77.0"
NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
PROGRAMS = {
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch", "srun"),
    "munge": ("munged",),
    "iproute2": ("ip",),
    "util-linux": ("unshare", "nsenter", "setpriv", "taskset"),
}
GPUS = 2  # a node; they stand in the configuration alone
CPUS = 32  # a node, likewise
SYSTEM_PATH = "/usr/sbin:/sbin"  # where the daemons live

# Waiting times are short, because tests wait for them: a requeued job may start again after `cred_expire` seconds (120
# if nothing is said), a node is given up after SlurmdTimeout (300), and what was told to end is killed after KillWait
# (30). Processes are tracked through /proc, because cgroups are not ours to make.
SLURM_CONF = """\
ClusterName=throwaway
SlurmctldHost=login({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
MinJobAge=86400
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
KillWait=15
SlurmdTimeout=10
SlurmctldTimeout=10
TCPTimeout=2
MessageTimeout=10
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What this machine lacks for a cluster, or None."""
    for package, programs in PROGRAMS.items():
        for program in programs:
            if shutil.which(program, path=f"{os.environ['PATH']}:{SYSTEM_PATH}") is None:
                return f"needs a Slurm: {program} is missing (apt-get install --no-install-recommends {package})"
    if os.geteuid() != 0:
        return "needs root: the nodes of the cluster are network namespaces"
    probe = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "ip", "link", "add", "name", "probe", "type", "bridge"]
    done = subprocess.run(probe, env=_environment(), capture_output=True, text=True)
    return f"needs network namespaces: {done.stderr.strip()}" if done.returncode else None


class Machine:
    """A set of namespaces that lives exactly as long as its first process, which runs a shell script."""

    def __init__(
        self, name: str, script: str, log: Path, environment: Mapping[str, str], cores: Collection[int]
    ) -> None:
        # Should this process die, `unshare` dies, and with it the first process and so the machine.
        with log.open("a") as output:
            self._holder = subprocess.Popen(
                ["taskset", "--cpu-list", ",".join(map(str, cores)), "setpriv", "--pdeathsig", "KILL",
                 "unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc",
                 "bash", "-euc", f"hostname {name}\n{script}"],
                env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        wait_until(lambda: children.read_text().strip(), 10, f"{name} to start")
        self.pid = int(children.read_text())
        self._descriptor = os.pidfd_open(self.pid)

    def enter(self, *namespaces: str) -> list[str]:
        """The words before a command that is to run on this machine, or in some of its namespaces alone."""
        return ["nsenter", "--target", str(self.pid), *(namespaces or NAMESPACES), "--"]

    def kill(self) -> None:
        """Pull the plug: everything on the machine ends at once. Again is nothing."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        select.select([self._descriptor], [], [], 10)  # readable once it has ended
        os.close(self._descriptor)
        self._descriptor = -1
        self._holder.wait(10)


class Cluster:
    """Two compute nodes, node1 and node2, and the login node that controls them."""

    nodes = ("node1", "node2")

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environment = _environment(SLURM_CONF=str(self.folder / "slurm.conf"))
        self._machines: dict[str, Machine] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration, start the machines, and wait until the nodes take jobs."""
        self._configure()
        munge = self.folder / "munge"
        self._machines["login"] = Machine(
            "login",
            f"""
            ip link set lo up
            ip link add name bridge type bridge
            ip address add {NETWORK}.1/24 dev bridge
            ip link set bridge up
            mount --bind {self.folder}/hosts /etc/hosts
            munged --foreground --key-file={munge}/key --socket={munge}/socket --pid-file={munge}/pid \\
                --log-file={munge}/log --seed-file={munge}/seed &
            until munge --no-input --socket={munge}/socket >/dev/null 2>&1; do sleep 0.1; done
            slurmctld -D -c &
            wait
            """,
            self.folder / "log/login.out",
            self.environment,
            os.sched_getaffinity(0),
        )
        self._wait(lambda: self.run("scontrol", "ping", check=False).returncode == 0, "slurmctld")
        for node in self.nodes:
            self.heal(node)
        self._wait(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "the nodes")

    def stop(self) -> None:
        """End every machine, and remove all there was of the cluster."""
        for machine in self._machines.values():
            machine.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self, *command: object, cwd: Path | None = None, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, as a user of the cluster does."""
        words = [*self._machines["login"].enter(), "env", "-C", str(cwd or self.folder), *map(str, command)]
        done = subprocess.run(
            words, env={**self.environment, **environment}, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done

    def on(self, node: str, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, past Slurm."""
        words = [*self._machines[node].enter(), *map(str, command)]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)

    def fail(self, node: str) -> None:
        """Power a node off."""
        self._machines[node].kill()

    def heal(self, node: str) -> None:
        """Power a node on, or off and on."""
        number, cores = self.nodes.index(node) + 1, sorted(os.sched_getaffinity(0))
        if node in self._machines:
            self._machines[node].kill()
        self._machines[node] = machine = Machine(
            node,
            f"""
            ip link set lo up
            mount --bind {self.folder}/hosts /etc/hosts
            mount -t tmpfs -o mode=1777 tmpfs /dev/shm
            until ip -4 -o address show dev eth0 2>/dev/null | grep -q inet; do sleep 0.05; done
            slurmd -D -N {node} &
            wait
            """,
            self.folder / f"log/{node}.out",
            self.environment,
            cores[number - 1 :: len(self.nodes)] or cores,
        )
        cable = f"to-{node}"
        in_login, in_node = self._machines["login"].enter("--net"), machine.enter("--net")
        own, its = Path("/proc/self/ns/net"), Path(f"/proc/{machine.pid}/ns/net")
        wait_until(lambda: its.readlink() != own.readlink(), 5, f"the network of {node}")
        # The kernel takes a moment to remove the cable of a node that has lost its power.
        subprocess.run([*in_login, "ip", "link", "delete", cable], env=self.environment, capture_output=True)
        for words in (
            [*in_login, "ip", "link", "add", cable, "type", "veth", "peer", "eth0", "netns", str(machine.pid)],
            [*in_login, "ip", "link", "set", cable, "master", "bridge", "up"],
            [*in_node, "ip", "link", "set", "eth0", "up"],
            [*in_node, "ip", "address", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0"],
        ):
            subprocess.run(words, env=self.environment, check=True, timeout=10)

    def states(self) -> dict[str, str]:
        """Node -> what Slurm says of it (idle, alloc, down …); an asterisk means that it does not answer."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False).stdout.splitlines()
        return dict(line.split() for line in lines)

    # --- jobs

    def submit(self, *command: object, cwd: Path, **environment: str) -> str:
        """Give `sbatch` these words; returns the number of the job."""
        return self.run("sbatch", "--parsable", *command, cwd=cwd, **environment).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says; empty for a job that is gone without having run."""
        words = self.run("scontrol", "--oneliner", "show", "job", job, check=False).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, job: str, within: float = 300) -> dict[str, str]:
        """What Slurm knows of a job, once it is over."""
        over = ("", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(
            lambda: self.job(job).get("JobState", "") in over, within, lambda: f"job {job} to end: {self.job(job)}"
        )
        return self.job(job)

    # --- inside

    def _configure(self) -> None:
        self.folder.chmod(0o755)  # munge's socket must be within everybody's reach
        for name in ("munge", "state", "spool", "log", "dev"):
            (self.folder / name).mkdir()
        for node in self.nodes:
            (self.folder / "spool" / node).mkdir()
        key = self.folder / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        addresses = {"login": 1, **{node: 11 + number for number, node in enumerate(self.nodes)}}
        hosts = ["127.0.0.1 localhost", *(f"{NETWORK}.{last} {name}" for name, last in addresses.items())]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        for number in range(GPUS):  # Slurm only looks whether there is a device: a second /dev/null will do
            os.mknod(self.folder / f"dev/gpu{number}", 0o020600, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={self.folder}/dev/gpu[0-{GPUS - 1}]\n")
        nodes = [
            f"NodeName={node} NodeAddr={NETWORK}.{addresses[node]} CPUS={CPUS} RealMemory=200000 Gres=gpu:{GPUS} "
            "State=UNKNOWN"
            for node in self.nodes
        ]
        conf = SLURM_CONF.format(network=NETWORK, folder=self.folder, nodes="\n".join(nodes))
        (self.folder / "slurm.conf").write_text(conf)

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        def said() -> str:
            logs = [file.read_text(errors="replace")[-1500:] for file in sorted((self.folder / "log").iterdir())]
            return "\n".join([what, *logs])

        wait_until(condition, 60, said)


def wait_until(condition: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Return as soon as the condition holds.

    Raises:
        AssertionError: when it still does not after so many seconds; says what was waited for.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.5)


def _environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL", "USER", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": f"{os.environ['PATH']}:{SYSTEM_PATH}", **more}
