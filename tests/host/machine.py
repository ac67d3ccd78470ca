"""A machine in a folder: Debian with systemd as its first process, booted by systemd-nspawn.

Its network is a loopback and nothing else; the driver's own sockets move into
it (`enter_network`). It has no cgroup controllers, so servers say
`sandbox.optional = ["cgroup"]` here.

What a scenario waits for it hears of: systemd and thv say what they do in the journal,
which `Journal` follows, and the kernel tells of the end of a process (`gone`).
"""

import ctypes
import hashlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess

from journal import Journal

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parent.parent
CACHE = TOP / ".cache" / "host"

SUITE = "trixie"
# What thv needs, and what its servers, clients and the tests themselves run on.
PACKAGES = [
    "apparmor", "ca-certificates", "conmon", "crun", "curl", "dbus", "jq", "man-db", "nodejs", "podman", "procps", "python3", "rpm", "systemd",
    "systemd-sysv", "util-linux",
]


class Machine:
    """One boot of a copy of the cached root."""

    def __init__(self, root, process, leader):
        self.root = root
        self._process = process
        self._leader = leader
        self._journal = None

    @classmethod
    def boot(cls):
        root = CACHE / f"run-{os.getpid()}"
        subprocess.run(["cp", "-a", "--reflink=auto", cached_root(), root], check=True)
        # The kernel keeps one set of keys for all: nspawn takes them away unless told; and it
        # does not know that anybody may bind himself by Landlock.
        command = [
            "systemd-nspawn", "--quiet", "--directory", root, "--boot", "--register=no", "--keep-unit",
            "--private-network", "--console=passive", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
            "--system-call-filter=@keyring landlock_create_ruleset landlock_add_rule landlock_restrict_self", "--hostname=host",
            "--notify-ready=yes",
        ]
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(f"\0thv-host-{os.getpid()}")
        # Where the driver of the tests has no cgroup v2 of its own, the machine gets one.
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "NOTIFY_SOCKET": f"@thv-host-{os.getpid()}"}
        with open(CACHE / "console.log", "wb") as console:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        machine = cls(root, process, None)
        try:
            with told:
                machine._leader = leader(told)
            machine._journal = Journal(machine._within())
            state = machine.text("systemctl", "is-system-running", "--wait", check=False)
            assert state in ("running", "degraded"), state
        except BaseException:
            machine.stop()
            raise
        return machine

    def stop(self, keep=False):
        if self._journal is not None:
            self._journal.end()
        # nspawn passes it on as a request to power off.
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if keep:
            print(f"kept: {self.root}")
        else:
            shutil.rmtree(self.root, ignore_errors=True)

    # Inside.

    def run(self, *argv, check=True, timeout=120, user=None, **options):
        """Runs a command inside; its output is text."""
        inside = [str(part) for part in argv]
        if user:
            inside = ["runuser", "-u", user, "--", *inside]
        done = subprocess.run(
            self._within(*inside), check=False, timeout=timeout,
            stdin=options.pop("stdin", subprocess.DEVNULL) if "input" not in options else None,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        assert not check or done.returncode == 0, f"`{' '.join(inside)}` failed ({done.returncode}):\n{done.stdout}{done.stderr}"
        return done

    def _within(self, *argv):
        return ["nsenter", "--target", str(self._leader), "--all", "--wdns=/", *argv]

    def text(self, *argv, **options):
        return self.run(*argv, **options).stdout.strip()

    def path(self, path):
        """Where a path of the machine is for the driver."""
        return pathlib.Path(f"/proc/{self._leader}/root{path}")

    def write(self, path, text, mode=0o644):
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        # In one step: a configuration may be read at any time.
        new = place.with_name(f".new-{place.name}")
        new.write_text(text)
        new.chmod(mode)
        new.rename(place)

    def enter_network(self):
        """Makes the machine's loopback this process's own: for good, and before any thread."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self._leader}/ns/net") as namespace:
            if libc.setns(namespace.fileno(), 0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "entering the network of the machine")

    # Waiting.

    def until(self, what, seconds, look):
        """Waits until there is something to see; gives it."""
        return self._journal.until(what, seconds, look)

    def gone(self, pids, seconds=15):
        """Waits for the end of these processes."""
        left = self.text("/usr/bin/python3", "-c", GONE, str(seconds), *pids)
        assert not left, f"after {seconds} s there are still: {left}"

    # Units.

    def unit(self, unit, key):
        return self.text("systemctl", "show", "--value", f"--property={key}", unit)

    def is_active(self, unit):
        return self.unit(unit, "ActiveState") == "active"

    def state(self, unit):
        return self.unit(unit, "ActiveState")

    def wait_for(self, unit, state, seconds=30):
        self.until(f"{unit} to be {state}", seconds, lambda: self.state(unit) == state)

    def wait_for_another(self, unit, pid, seconds=30):
        """Waits until the unit runs, by another process than that."""
        self.until(f"another {unit}", seconds, lambda: self.is_active(unit) and self.pid(unit) not in (0, pid))

    def pid(self, unit):
        return int(self.unit(unit, "MainPID"))

    def uid_of(self, unit):
        """The user that a running service is."""
        return int(self.text("stat", "--format=%u", f"/proc/{self.pid(unit)}"))

    def processes_of(self, unit):
        """The processes in a unit's cgroup, children of a runner included."""
        group = self.unit(unit, "ControlGroup")
        if not group:
            return []
        found = self.text("find", f"/sys/fs/cgroup{group}", "-name", "cgroup.procs", "-exec", "cat", "{}", "+", check=False)
        return sorted(int(pid) for pid in found.split())

    def flush_journal(self):
        self.run("journalctl", "--sync")


def leader(told):
    """The process id of the machine's systemd, once that is up: systemd-nspawn tells (sd_notify(3))."""
    told.settimeout(60)
    pid = None
    try:
        while True:
            said = dict(line.split("=", 1) for line in told.recv(4096).decode().splitlines() if "=" in line)
            pid = said.get("X_NSPAWN_LEADER_PID", pid)
            if said.get("READY") == "1" and pid is not None:
                return int(pid)
    except TimeoutError as late:
        raise RuntimeError(f"it is not up: {(CACHE / 'console.log').read_text(errors='replace')}") from late


# Waits for the ends of processes, and names those that are left (pidfd_open(2)).
GONE = """
import os, select, sys, time
end = time.monotonic() + float(sys.argv[1])
for pid in sys.argv[2:]:
    try:
        process = os.pidfd_open(int(pid))
    except ProcessLookupError:
        continue
    if not select.select([process], [], [], max(0, end - time.monotonic()))[0]:
        print(pid)
"""


def cached_root():
    """A root file system with the packages; made when the list has changed."""
    key = hashlib.sha256(" ".join([SUITE, *PACKAGES]).encode()).hexdigest()[:12]
    root = CACHE / f"root-{key}"
    if not root.exists():
        print(f"making a root of {SUITE} (once)", flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        new = CACHE / f"root-{key}.new"
        shutil.rmtree(new, ignore_errors=True)
        log = CACHE / "mmdebstrap.log"
        with open(log, "wb") as out:
            made = subprocess.run(
                ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, new, debian_site()],
                stdout=out, stderr=out, check=False)
        if made.returncode != 0:
            raise RuntimeError(f"mmdebstrap failed:\n{log.read_text(errors='replace')[-2000:]}")
        new.rename(root)
    return root


def debian_site():
    """Where this machine itself gets Debian from."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian", "Label: Debian"],
        stdout=subprocess.PIPE, text=True, check=False).stdout.split()
    if not listed:
        raise RuntimeError("this machine has no lists of Debian's packages: `apt-get update`")
    return listed[0]
