"""Installing, upgrading, removing and purging the deb."""

import threading

import servers
import wire
from scenarios import foundation

TARGETS = ["thv-sockets.target", "thv.target"]


@foundation
def installing_the_deb_enables_and_starts_two_targets_and_nothing_else(host):
    before = listening(host)
    host.run("dpkg", "--install", "/opt/thv.deb")
    active = host.text("systemctl", "list-units", "--plain", "--no-legend", "thv*").splitlines()
    assert [line.split()[0] for line in active] == TARGETS, active
    enabled = host.text("systemctl", "list-unit-files", "--no-legend", "--state=enabled", "thv*").splitlines()
    assert [line.split()[0] for line in enabled] == TARGETS, enabled
    assert listening(host) == before
    assert host.text("pgrep", "--count", "--exact", "thv", check=False) == "0"


def the_apparmor_profile_is_installed_where_its_interface_is_known(host):
    profile = "/etc/apparmor.d/thv-runner"
    assert host.path("/etc/apparmor.d/abi/4.0").exists(), "this suite's AppArmor is too old to show anything"
    # No kernel is asked, so this holds on every host: the parser takes every line of it.
    host.run("apparmor_parser", "--skip-kernel-load", "--skip-cache", profile)
    assert host.text("apparmor_parser", "--names", profile).split() == ["thv-runner"]
    assert "userns" in host.text("apparmor_parser", "--skip-kernel-load", "--skip-cache", "--debug", profile)
    wrong = host.path("/tmp/wrong")
    wrong.write_text(host.path(profile).read_text().replace("userns,", "usernss,"))
    assert host.run("apparmor_parser", "--skip-kernel-load", "--skip-cache", "/tmp/wrong", check=False).returncode != 0
    wrong.unlink()
    # Debian 12's parser would stumble over it.
    host.run("mv", "/etc/apparmor.d/abi/4.0", "/tmp/abi")
    host.run("rm", profile)
    host.run("/var/lib/dpkg/info/thv.postinst", "configure", "")
    assert not host.path(profile).exists()
    host.run("mv", "/tmp/abi", "/etc/apparmor.d/abi/4.0")
    host.run("/var/lib/dpkg/info/thv.postinst", "configure", "")
    assert host.path(profile).exists()


def manual_catalog_and_examples_are_where_people_look(host):
    for page in ("1 thv", "5 thv.toml", "7 thv-cedar", "7 thv-journal", "8 thv@.service"):
        host.run("man", "--where", *page.split())
    # The decision's message (thv-journal(7)).
    assert "policy" in host.text("journalctl", "--dump-catalog", "10a520fad1d245a3b4612a4aafe999fa").lower()
    assert host.text("ls", "/usr/share/doc/thv/examples")
    assert host.text("ls", "-A", "/etc/thv/servers", "/etc/thv/policies").split() == ["/etc/thv/policies:", "/etc/thv/servers:"]
    host.run("thv", "check")


def an_upgrade_restarts_what_runs_and_loses_no_connection(host):
    name = servers.PROBES
    token = wire.token("alice", servers.resource(name))
    with wire.opened(servers.PORTS[name], token):
        gateway, inode = host.pid(f"thv@{name}.service"), socket_inode(host, name)
        assert gateway
        stop, answers, errors = threading.Event(), [], []

        def ask():
            while not stop.is_set():
                with wire.Client(servers.PORTS[name], token) as client:
                    try:
                        answers.append(client.initialize().status)
                    except OSError as error:
                        errors.append(repr(error))
                        continue
                    try:
                        client.leave()
                    except OSError:
                        pass  # the old gateway is gone, and the session with it

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            newer = rebuilt(host, "9.0.0")
            host.write("/etc/thv/thv.toml", host.path("/etc/thv/thv.toml").read_text() + "# an administrator's own\n")
            before = kept(host)
            host.run("dpkg", "--install", newer)
            assert kept(host) == before, "the upgrade has changed what is the administrator's"
            assert host.text("dpkg-query", "--show", "--showformat=${Version}", "thv") == "9.0.0"
            count = len(answers)
            host.until("answers after it", 30, lambda: len(answers) >= count + 5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert host.pid(f"thv@{name}.service") != gateway, "the upgrade has restarted nothing"
    assert socket_inode(host, name) == inode, "the socket was closed"
    assert not errors, errors
    assert len(answers) >= count + 5, f"{len(answers)} answers"
    assert set(answers) == {200}, answers


def removing_stops_every_server_and_purging_leaves_nothing(host):
    name = servers.PROBES
    with wire.opened(servers.PORTS[name], wire.token("alice", servers.resource(name))) as client:
        client.said("echo")
        assert host.is_active(f"thv@{name}.service") and host.is_active(f"thv-runner@{name}.service")
        # A pull that has failed, as of a server without an image.
        assert host.run("systemctl", "start", f"thv-pull@{name}.service", check=False).returncode != 0
        host.run("dpkg", "--remove", "thv")
    failed = host.text("systemctl", "list-units", "--all", "--plain", "--no-legend", "--state=failed", "thv*")
    assert not failed, failed
    active = host.text("systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", "thv*")
    assert not active, active
    assert host.text("pgrep", "--count", "thv", check=False) == "0"
    assert host.path(f"/etc/thv/servers/{name}.toml").exists(), "removing is not purging"
    host.run("dpkg", "--purge", "thv")
    left = host.text(
        "find", "/etc", "/usr", "/run", "/var", "-xdev", "-name", "*thv*", "-not", "-path", "/var/log/*",
        "-not", "-path", "/run/systemd/*",
        # What man(1) has formatted for a reader is its own to forget; what a user has run is gone when he logs out.
        "-not", "-path", "/var/cache/man/*", "-not", "-path", "/run/user/*")
    assert not left, left
    assert "thv" not in host.text("systemctl", "list-unit-files", "thv*", check=False).replace("0 unit files", "")


def rebuilt(host, version):
    """The same package under another version."""
    host.run("dpkg-deb", "--raw-extract", "/opt/thv.deb", "/opt/newer")
    control = host.path("/opt/newer/DEBIAN/control")
    lines = [f"Version: {version}" if line.startswith("Version:") else line for line in control.read_text().splitlines()]
    control.write_text("\n".join(lines) + "\n")
    host.run("dpkg-deb", "--build", "-Znone", "/opt/newer", "/opt/newer.deb")
    return "/opt/newer.deb"


def kept(host):
    """What an upgrade must leave as it is: configuration, drop-ins, enabled units, state, secrets."""
    files = host.text(
        "find", "/etc/thv", "/etc/systemd/system", "/etc/credstore.encrypted", "(", "-type", "f", "-o", "-type", "l", ")",
        "-printf", "%p %m %u %l %s %T@\n", check=False)
    state = host.text("find", "/var/lib/private", "-maxdepth", "4", "-path", "*thv*", "-not", "-name", "*.new*", "-printf", "%p %m\n")
    enabled = host.text("systemctl", "list-unit-files", "--no-legend", "--state=enabled", "thv*")
    assert "thv.toml" in files and state and "thv.target" in enabled, (files, state, enabled)
    return sorted(files.splitlines()), sorted(state.splitlines()), sorted(enabled.splitlines())


def listening(host):
    return sorted(line.split()[4] for line in host.text("cat", "/proc/net/unix").splitlines()[1:] if "/run/thv" in line)


def socket_inode(host, name):
    """The kernel's number of the TCP socket that systemd holds."""
    port = f":{servers.PORTS[name]:04X}"
    lines = [line.split() for line in host.text("cat", "/proc/net/tcp").splitlines()[1:]]
    return next(line[9] for line in lines if line[1].endswith(port) and line[3] == "0A")


FIRST = [
    installing_the_deb_enables_and_starts_two_targets_and_nothing_else,
    the_apparmor_profile_is_installed_where_its_interface_is_known,
    manual_catalog_and_examples_are_where_people_look,
]
LAST = [
    an_upgrade_restarts_what_runs_and_loses_no_connection,
    removing_stops_every_server_and_purging_leaves_nothing,
]
