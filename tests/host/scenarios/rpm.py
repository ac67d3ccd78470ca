"""Installing, upgrading and erasing the rpm, after the deb is gone.

The host is Debian with Debian's rpm, so dependencies are not asked for; systemd, and with it
all that the scriptlets do, is a real one.
"""

import servers
import wire
from scenarios import package

TARGETS = package.TARGETS
NAME = servers.FAULTS
PORT = servers.PORTS[NAME]


def rpm(host, *arguments, says=""):
    done = host.run("rpm", "--dbpath", "/var/lib/rpm", "--nodeps", *arguments)
    # A scriptlet that fails is a warning.
    assert (done.stdout + done.stderr).strip() == says, done.stdout + done.stderr


def enabled(host):
    return [line.split()[0] for line in host.text("systemctl", "list-unit-files", "--no-legend", "--state=enabled", "thv*", check=False).splitlines()]


def active(host):
    return [line.split()[0] for line in host.text(
        "systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", "thv*").splitlines()]


def installing_the_rpm_starts_nothing_and_enables_what_the_presets_say(host):
    before = package.listening(host)
    # Where presets say nothing, systemd takes it for yes; Fedora's and RHEL's last word is this.
    presets = "/etc/systemd/system-preset/99-default-disable.preset"
    host.write(presets, "disable *\n")
    rpm(host, "--install", "/opt/thv.rpm")
    assert not enabled(host) and not active(host)
    assert package.listening(host) == before
    assert host.text("stat", "--format=%a %U", "/run/thv", "/run/thv/runner", "/run/thv/key").split("\n") == ["755 root", "711 root", "700 root"]
    assert "policy" in host.text("journalctl", "--dump-catalog", "10a520fad1d245a3b4612a4aafe999fa").lower()
    assert host.unit("thv.target", "LoadState") == "loaded"
    host.run("thv", "check")
    rpm(host, "--erase", "thv")
    # The control: scriptlets ask the presets, and an administrator's own come first.
    host.write("/etc/systemd/system-preset/10-thv.preset", "enable thv*.target\n")
    rpm(host, "--install", "/opt/thv.rpm")
    assert enabled(host) == TARGETS and not active(host), (enabled(host), active(host))
    host.run("rm", presets, "/etc/systemd/system-preset/10-thv.preset")


def an_upgrade_of_the_rpm_restarts_what_runs_and_keeps_sockets_and_configuration(host):
    host.run("systemctl", "enable", "--now", *TARGETS)
    servers.enable(host, NAME)
    host.write("/etc/thv/thv.toml", host.path("/etc/thv/thv.toml").read_text() + "# an administrator's own\n")
    for with_target in (True, False):
        if not with_target:
            # As on a host where nobody has enabled it.
            host.run("systemctl", "stop", "thv.target")
        with wire.opened(PORT, wire.token("alice", servers.resource(NAME))):
            units = [f"thv@{NAME}.service", f"thv-runner@{NAME}.service"]
            before, inode, kept = [host.pid(unit) for unit in units], package.socket_inode(host, NAME), package.kept(host)
            assert all(before), before
            rpm(host, "--upgrade", "--replacepkgs", "/opt/thv.rpm")
            # The target's own restart is done before that of what is part of it.
            host.wait_for_another(units[0], before[0])
            # A runner that nobody needs any more may have left by itself before its restart came.
            with wire.opened(PORT, wire.token("alice", servers.resource(NAME))):
                host.wait_for_another(units[1], before[1])
            assert package.socket_inode(host, NAME) == inode, "the socket was closed"
            assert package.kept(host) == kept, "the upgrade has changed what is the administrator's"
            assert host.is_active("thv.target") == with_target
    with wire.opened(PORT, wire.token("alice", servers.resource(NAME))) as client:
        client.leave()


def erasing_the_rpm_stops_and_disables_every_server_and_leaves_configuration_and_state(host):
    with wire.opened(PORT, wire.token("alice", servers.resource(NAME))):
        assert host.is_active(f"thv@{NAME}.service") and host.is_active(f"thv-runner@{NAME}.service")
        rpm(host, "--erase", "thv", says="warning: /etc/thv/thv.toml saved as /etc/thv/thv.toml.rpmsave")
    assert not active(host), active(host)
    assert host.text("pgrep", "--count", "thv", check=False) == "0"
    left = host.text(
        "find", "/etc", "/usr", "/run", "/var", "-xdev", "-name", "*thv*", "-not", "-path", "/var/log/*", "-not", "-path", "/run/systemd/*",
        "-not", "-path", "/var/cache/man/*", "-not", "-path", "/run/user/*").splitlines()
    assert sorted(left) == sorted([
        f"/etc/systemd/system/thv@{NAME}.socket.d", "/etc/thv", "/etc/thv/thv.toml.rpmsave",
        "/var/lib/private/thv", "/var/lib/private/thv-runner", "/var/lib/thv", "/var/lib/thv-runner",
    ]), left
    assert host.text("ls", "/etc/thv/servers", "/etc/thv/policies").split() == [
        "/etc/thv/policies:", f"{NAME}.cedar", "/etc/thv/servers:", f"{NAME}.toml"]
    assert "10a520fad1d245a3b4612a4aafe999fa" not in host.text("journalctl", "--list-catalog")


ALL = [
    installing_the_rpm_starts_nothing_and_enables_what_the_presets_say,
    an_upgrade_of_the_rpm_restarts_what_runs_and_keeps_sockets_and_configuration,
    erasing_the_rpm_stops_and_disables_every_server_and_leaves_configuration_and_state,
]
