"""The unit files as systemd itself judges them."""

import tomllib

import machine

UNITS = [f"{unit}{suffix}" for unit in ("thv@x", "thv-runner@x") for suffix in (".socket", ".service")]
UNITS += ["thv-fetch@x.service", "thv-pull@x.service"]
# What design and units promise (`systemd-analyze security`; lower is better).
EXPOSURE = {"thv@x.service": 12, "thv-runner@x.service": 22, "thv-fetch@x.service": 12, "thv-pull@x.service": 4}


def systemd_finds_nothing_to_say_about_the_units(host):
    done = host.run("systemd-analyze", "verify", *UNITS, "thv.target", "thv-sockets.target")
    assert not done.stdout + done.stderr, done.stdout + done.stderr


def the_units_are_no_more_exposed_than_promised(host):
    for unit, most in EXPOSURE.items():
        host.run("systemd-analyze", "security", "--no-pager", "--offline=yes", f"--threshold={most}", unit)
        # The control: the promise is as tight as it can be.
        lower = host.run("systemd-analyze", "security", "--no-pager", "--offline=yes", f"--threshold={most - 1}", unit, check=False)
        assert lower.returncode != 0, f"{unit} is better than {most}: promise that"


def the_runners_unit_lets_through_what_the_childs_profile_does(host):
    profile = tomllib.loads((machine.TOP / "src/sandbox/filters/default.toml").read_text())
    wanted = {call for group in profile["allow"] if "x86_64" in group.get("arch", ["x86_64"]) for call in group["calls"]}
    filters = host.unit("thv-runner@x.service", "SystemCallFilter").split()
    # Names of the groups are expanded by systemd; what is left out here is refused by it.
    missing = sorted(wanted - set(filters))
    assert not missing, f"the profile allows what the unit refuses: {missing}"


ALL = [
    systemd_finds_nothing_to_say_about_the_units,
    the_units_are_no_more_exposed_than_promised,
    the_runners_unit_lets_through_what_the_childs_profile_does,
]
