"""The demo, where nothing is configured and nobody is root."""


def the_demo_shows_itself_to_an_unprivileged_user(host):
    done = host.run("/usr/bin/thv", "demo", "--once", user="caller", timeout=60)
    shown = done.stdout + done.stderr
    for part in ("401", "WWW-Authenticate", "THV_DECISION"):
        assert part.lower() in shown.lower(), f"`{part}` is not in the demo:\n{shown}"
    assert host.text("pgrep", "--count", "--uid", "caller", check=False) == "0", "it has left something behind"


def the_demo_works_for_root_too(host):
    host.run("/usr/bin/thv", "demo", "--once", timeout=60)


ALL = [
    the_demo_shows_itself_to_an_unprivileged_user,
    the_demo_works_for_root_too,
]
