"""The scenarios, in the order in which they are played: first what installs, last what purges, and the other package in the place of the first."""


class Skipped(Exception):
    """Why a scenario cannot be played here."""


def foundation(scenario):
    """What the others need: played even when only some were asked for."""
    scenario.is_foundation = True
    return scenario


from . import backends, calls, demo, faults, identity, idle, images, isolation, manual, mistakes, package, probes, rpm, run, tls, units  # noqa: E402

ORDER = [
    *package.FIRST,
    *units.ALL,
    *manual.ALL,
    *calls.ALL,
    *identity.ALL,
    *isolation.ALL,
    *backends.ALL,
    *tls.ALL,
    *probes.ALL,
    *mistakes.FIRST,
    *idle.ALL,
    *mistakes.ALL,
    *faults.ALL,
    *demo.ALL,
    *run.ALL,
    *images.ALL,
    *package.LAST,
    *rpm.ALL,
]
