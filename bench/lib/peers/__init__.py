"""How each proxy is told to do the same thing: keep alive, count, write no access log.

A module per peer, a function per job, with the job's name and the same arguments in each. What a
module lacks, that peer cannot do.
"""

from . import envoy, haproxy, nginx, outrigger

MODULES = {"outrigger": outrigger, "envoy": envoy, "nginx": nginx, "haproxy": haproxy}


def able(peers, job: str) -> dict:
    """By name, the start functions of those peers that this machine has and that can do the job."""
    return {name: getattr(module, job) for name, module in MODULES.items()
            if getattr(peers, name) is not None and hasattr(module, job)
            and getattr(module, "able", lambda *_: True)(peers, job)}
