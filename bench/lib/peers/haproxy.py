"""HAProxy's configs: one thread, connections to servers shared by all clients."""

from pathlib import Path

from ..process import PROXY_CORE, Process


def start(peers, folder: Path, name: str, bind: str, server: str, mode: str = "http",
          connections: int = 8000) -> Process:
    config = folder / f"{name}.cfg"
    http = "  option http-keep-alive\n  http-reuse always\n" if mode == "http" else "  option splice-auto\n"
    config.write_text(f"""
global
  nbthread 1
  maxconn {connections}
  no strict-limits
defaults
  mode {mode}
  timeout connect 2s
  timeout client 1h
  timeout server 1h
{http}
frontend in
  bind {bind} backlog 4096
  default_backend to
backend to
  server one {server}
""")
    return Process([peers.haproxy, "-db", "-f", config], PROXY_CORE, folder / f"{name}.log")


def plain(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "haproxy-plain", f"127.0.0.1:{port}", f"127.0.0.1:{app}")


def many(peers, folder: Path, port: int, app: int) -> Process:
    # It wants two descriptors per connection; `no strict-limits` lets it start where they would not suffice.
    return start(peers, folder, "haproxy-many", f"127.0.0.1:{port}", f"127.0.0.1:{app}", connections=12000)


def chain(peers, folder: Path, outer: int, inner: int, app: int) -> list[Process]:
    to = f"127.0.0.1:{inner} ssl verify required ca-file {folder}/ca.pem crt {folder}/client.both ssl-min-ver TLSv1.3"
    return [start(peers, folder, "haproxy-client", f"127.0.0.1:{outer}", to), mtls(peers, folder, inner, app)]


def mtls(peers, folder: Path, port: int, app: int) -> Process:
    bind = (f"127.0.0.1:{port} ssl crt {folder}/server.both ca-file {folder}/ca.pem verify required "
            "ssl-min-ver TLSv1.3")
    return start(peers, folder, "haproxy-server", bind, f"127.0.0.1:{app}")


def http2(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "haproxy-http2", f"127.0.0.1:{port} proto h2", f"127.0.0.1:{app}")


def grpc(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "haproxy-grpc", f"127.0.0.1:{port} proto h2", f"127.0.0.1:{app} proto h2")


def tcp(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "haproxy-tcp", f"127.0.0.1:{port}", f"127.0.0.1:{app}", mode="tcp")
