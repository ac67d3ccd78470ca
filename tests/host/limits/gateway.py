"""What the kernel does to the gateway itself, in a whole machine: `scenarios` is for scenario.py, with what it has."""

import pathlib
import subprocess
import time


def scenarios(Session, unit, journal):
    """`Session` opens one, `unit` is the gateway's; what becomes of it is heard of by the journal."""

    def show(key):
        return subprocess.run(["systemctl", "show", "--value", f"--property={key}", unit], capture_output=True, text=True, check=True).stdout.strip()

    def limit(**properties):
        subprocess.run(["systemctl", "set-property", "--runtime", unit, *(f"{key}={value}" for key, value in properties.items())], check=True)

    def a_gateway_that_the_kernel_kills_for_its_memory_is_started_again():
        """fault-23"""
        Session()
        before = show("MainPID")
        # Less than it has, so that the next page is one too many.
        limit(MemoryHigh="infinity", MemoryMax="1M", MemorySwapMax="0")
        try:
            try:
                Session()
            except OSError:
                pass
            journal.until("it to be killed", 60, lambda: show("MainPID") != before)
        finally:
            limit(MemoryMax="1G")
        killed = subprocess.run(["journalctl", "--boot", "--output=cat", f"UNIT={unit}"], capture_output=True, text=True, check=True).stdout
        assert "oom-kill" in killed or "OOM killer" in killed, killed[-2000:]
        # Whoever asks while there is none waits in the socket's queue.
        assert Session().said("echo") == "here"

    def a_gateway_with_a_twentieth_of_a_processor_keeps_its_deadlines():
        """fault-47"""
        session = Session()
        limit(CPUQuota="5%")
        try:
            start = time.monotonic()
            for _ in range(5):
                assert session.said("echo") == "here"
                assert Session().said("echo") == "here"
            took = time.monotonic() - start
            group = pathlib.Path("/sys/fs/cgroup") / show("ControlGroup").lstrip("/")
            throttled = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
            assert int(throttled["nr_throttled"]) > 0, throttled
            assert show("ActiveState") == "active"
            print(f"        ten calls with 5 % of a processor took {took:.1f} s", flush=True)
        finally:
            limit(CPUQuota="")

    return [
        a_gateway_with_a_twentieth_of_a_processor_keeps_its_deadlines,
        a_gateway_that_the_kernel_kills_for_its_memory_is_started_again,
    ]
