"""Scenario: what a certificate costs the authority, apart from the API server's word on who asks.

Measured by the authority's example `signing_cost`, built as the release is: the request's PEM is read, its signature verified, what it asks for
compared with the caller's identity, and a certificate with a new serial number signed and written as PEM.
"""

import re

from . import load, machine, report
from .process import PROXY_CORE

GOAL = 2_000


def measure(peers, arguments) -> str:
    """Rounds of each kind of key, one thread."""
    program = machine.example("outrigger-authority", "signing_cost")
    rounds: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        report.progress(f"round {number + 1}/{arguments.rounds}")
        out = load.run(["taskset", "-c", PROXY_CORE, program])
        for kind, rate in re.findall(r"^(.+): (\d+) certificates a second", out, re.M):
            rounds.setdefault(kind, []).append(float(rate))
    rows = [[kind, f"{report.median(rates):,.0f}", report.spread(rates), f"{1e6 / report.median(rates):.0f}"] for kind, rates in rounds.items()]
    return report.table("Certificates that the authority signs, one thread", ["the workload's key", "a second", "spread", "µs each"], rows, [
        f"Goal: {GOAL:,} a second. From the signing request's PEM to the certificate's, the request's signature verified; without TLS, gRPC, the token's review and "
        "the audit log's line. The authority's own key is P-256."])
