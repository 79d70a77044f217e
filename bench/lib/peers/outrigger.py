"""Outrigger's configs: one YAML file with the sections that a job needs."""

from pathlib import Path

from ..certificates import TRUST_DOMAIN, spiffe_id
from ..process import PROXY_CORE, Process, free_ports


def start(peers, folder: Path, name: str, body: str, workers: int = 1, cores=PROXY_CORE) -> Process:
    """Starts one with a config that has the given sections beside its own admin ports."""
    admin, health = free_ports(2)
    config = folder / f"{name}.yaml"
    config.write_text(f"runtime: {{ workers: {workers} }}\n"
                      f"admin: {{ listen: '127.0.0.1:{admin}', health: '127.0.0.1:{health}' }}\n{body}")
    process = Process([peers.outrigger, "run", "-c", config], cores, folder / f"{name}.log")
    process.admin, process.health = admin, health
    return process


def listener(port: int, cluster: str, direction: str, more: str = "") -> str:
    return (f"    - name: {direction}\n      direction: {direction}\n      address: 127.0.0.1:{port}\n{more}"
            f"      routes: [{{ name: all, backendRefs: [{{ name: {cluster} }}] }}]\n")


def cluster(name: str, port: int, more: str = "") -> str:
    return f"    - name: {name}\n      endpoints: ['127.0.0.1:{port}']\n{more}"


def identity(folder: Path, name: str) -> str:
    return (f"identity:\n  trustDomain: {TRUST_DOMAIN}\n  files: {{ certificate: {folder}/{name}.pem, "
            f"key: {folder}/{name}.key, trustBundle: {folder}/ca.pem }}\n")


def section(listeners: str, clusters: str) -> str:
    return f"proxy:\n  listeners:\n{listeners}  clusters:\n{clusters}"


def plain(peers, folder: Path, port: int, app: int, workers: int = 1, cores=PROXY_CORE) -> Process:
    body = section(listener(port, "app", "inbound"), cluster("app", app))
    return start(peers, folder, f"outrigger-plain-{port}", body, workers, cores)


def many(peers, folder: Path, port: int, app: int) -> Process:
    more = "      limits: { maxConnections: 100000 }\n"
    return start(peers, folder, "outrigger-many", section(listener(port, "app", "inbound", more), cluster("app", app)))


def chain(peers, folder: Path, outer: int, inner: int, app: int) -> list[Process]:
    tls = f"      tls: {{ spiffeIds: ['{spiffe_id('server')}'] }}\n"
    client = identity(folder, "client") + section(listener(outer, "server", "outbound"), cluster("server", inner, tls))
    return [start(peers, folder, "outrigger-client", client), mtls(peers, folder, inner, app)]


def mtls(peers, folder: Path, port: int, app: int) -> Process:
    tls = f"      tls: {{ mode: strict, allowedPeers: ['{spiffe_id('client')}'] }}\n"
    server = identity(folder, "server") + section(listener(port, "app", "inbound", tls), cluster("app", app))
    return start(peers, folder, "outrigger-server", server)


def http2(peers, folder: Path, port: int, app: int) -> Process:
    # One kind of listener takes HTTP/1 and HTTP/2; the cluster speaks HTTP/1.1 unless it is gRPC.
    body = section(listener(port, "app", "inbound"), cluster("app", app))
    return start(peers, folder, "outrigger-http2", body)


def grpc(peers, folder: Path, port: int, app: int) -> Process:
    body = section(listener(port, "app", "inbound"), cluster("app", app, "      protocol: http2\n"))
    return start(peers, folder, "outrigger-grpc", body)


def tcp(peers, folder: Path, port: int, app: int) -> Process:
    listen = (f"    - name: in\n      direction: inbound\n      address: 127.0.0.1:{port}\n      protocol: tcp\n"
              "      tcpRoute: { name: all, backendRefs: [{ name: app }] }\n")
    return start(peers, folder, "outrigger-tcp", section(listen, cluster("app", app)))
