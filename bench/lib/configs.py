"""How each proxy is told to do the same thing: forward, keep alive, count, write no access log."""

from pathlib import Path

from .certificates import TRUST_DOMAIN, spiffe_id
from .load import PROXY_CORE
from .process import Process, free_ports


# --- Outrigger ---------------------------------------------------------------------------

def outrigger(peers, folder: Path, name: str, body: str) -> Process:
    """Starts one with a config that has the given sections beside its own admin ports."""
    admin, health = free_ports(2)
    config = folder / f"{name}.yaml"
    config.write_text(f"runtime: {{ workers: 1 }}\n"
                      f"admin: {{ listen: '127.0.0.1:{admin}', health: '127.0.0.1:{health}' }}\n{body}")
    process = Process([peers.outrigger, "run", "-c", config], PROXY_CORE, folder / f"{name}.log")
    process.admin, process.health = admin, health
    return process


def listener(port: int, cluster: str, direction: str, tls: str = "") -> str:
    return (f"    - name: {direction}\n      direction: {direction}\n      address: 127.0.0.1:{port}\n{tls}"
            f"      routes: [{{ name: all, backendRefs: [{{ name: {cluster} }}] }}]\n")


def cluster(name: str, port: int, tls: str = "") -> str:
    return f"    - name: {name}\n      endpoints: ['127.0.0.1:{port}']\n{tls}"


def identity(folder: Path, name: str) -> str:
    return (f"identity:\n  trustDomain: {TRUST_DOMAIN}\n  files: {{ certificate: {folder}/{name}.pem, "
            f"key: {folder}/{name}.key, trustBundle: {folder}/ca.pem }}\n")


def outrigger_plain(peers, folder: Path, port: int, app: int) -> Process:
    body = "proxy:\n  listeners:\n" + listener(port, "app", "inbound") + "  clusters:\n" + cluster("app", app)
    return outrigger(peers, folder, "outrigger-plain", body)


def outrigger_chain(peers, folder: Path, outer: int, inner: int, app: int) -> list[Process]:
    tls = f"      tls: {{ spiffeIds: ['{spiffe_id('server')}'] }}\n"
    client = (identity(folder, "client") + "proxy:\n  listeners:\n" + listener(outer, "server", "outbound")
              + "  clusters:\n" + cluster("server", inner, tls))
    tls = f"      tls: {{ mode: strict, allowedPeers: ['{spiffe_id('client')}'] }}\n"
    server = (identity(folder, "server") + "proxy:\n  listeners:\n" + listener(inner, "app", "inbound", tls)
              + "  clusters:\n" + cluster("app", app))
    return [outrigger(peers, folder, "outrigger-client", client), outrigger(peers, folder, "outrigger-server", server)]


# --- Envoy -------------------------------------------------------------------------------

def envoy(peers, folder: Path, name: str, port: int, to: int, down: str = "", up: str = "") -> Process:
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
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          generate_request_id: false
          route_config:
            virtual_hosts:
            - {{ name: all, domains: ["*"], routes: [ {{ match: {{ prefix: "/" }}, route: {{ cluster: to }} }} ] }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
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
    process = Process([peers.envoy, "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
                      PROXY_CORE, folder / f"{name}.log")
    process.admin = admin
    return process


def envoy_tls(folder: Path, name: str, peer: str, kind: str, indent: str) -> str:
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


def envoy_plain(peers, folder: Path, port: int, app: int) -> Process:
    return envoy(peers, folder, "envoy-plain", port, app)


def envoy_chain(peers, folder: Path, outer: int, inner: int, app: int) -> list[Process]:
    up = envoy_tls(folder, "client", "server", "Upstream", "    ")
    down = envoy_tls(folder, "server", "client", "Downstream", "      ")
    return [envoy(peers, folder, "envoy-client", outer, inner, up=up),
            envoy(peers, folder, "envoy-server", inner, app, down=down)]


# --- nginx -------------------------------------------------------------------------------

def nginx(peers, folder: Path, name: str, listen: str, to: str, extra: str = "") -> Process:
    work = folder / name
    work.mkdir()
    config = work / "nginx.conf"
    config.write_text(f"""
worker_processes 1; daemon off; pid {work}/pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600;
  client_body_temp_path {work}/1; proxy_temp_path {work}/2; fastcgi_temp_path {work}/3;
  uwsgi_temp_path {work}/4; scgi_temp_path {work}/5;
  upstream to {{ server {to}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen {listen}; {extra}
    location / {{ proxy_pass {"https" if "proxy_ssl" in extra else "http"}://to;
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; }}
  }}
}}
""")
    return Process([peers.nginx, "-e", "stderr", "-c", config, "-p", work], PROXY_CORE, folder / f"{name}.log")


def nginx_plain(peers, folder: Path, port: int, app: int) -> Process:
    return nginx(peers, folder, "nginx-plain", f"127.0.0.1:{port} backlog=4096", f"127.0.0.1:{app}")


def nginx_chain(peers, folder: Path, outer: int, inner: int, app: int) -> list[Process]:
    # nginx verifies DNS names only, so it checks the chain and not the SPIFFE ID: less work than the others do.
    client = (f"proxy_ssl_certificate {folder}/client.pem; proxy_ssl_certificate_key {folder}/client.key; "
              f"proxy_ssl_trusted_certificate {folder}/ca.pem; proxy_ssl_protocols TLSv1.3;")
    server = (f"ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key; ssl_protocols TLSv1.3; "
              f"ssl_client_certificate {folder}/ca.pem; ssl_verify_client on;")
    return [nginx(peers, folder, "nginx-client", f"127.0.0.1:{outer} backlog=4096", f"127.0.0.1:{inner}", client),
            nginx(peers, folder, "nginx-server", f"127.0.0.1:{inner} ssl backlog=4096", f"127.0.0.1:{app}", server)]


# --- HAProxy -----------------------------------------------------------------------------

def haproxy(peers, folder: Path, name: str, bind: str, server: str) -> Process:
    config = folder / f"{name}.cfg"
    config.write_text(f"""
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  option http-keep-alive
  http-reuse always
frontend in
  bind {bind}
  default_backend to
backend to
  server one {server}
""")
    return Process([peers.haproxy, "-db", "-f", config], PROXY_CORE, folder / f"{name}.log")


def haproxy_plain(peers, folder: Path, port: int, app: int) -> Process:
    return haproxy(peers, folder, "haproxy-plain", f"127.0.0.1:{port} backlog 4096", f"127.0.0.1:{app}")


def haproxy_chain(peers, folder: Path, outer: int, inner: int, app: int) -> list[Process]:
    to = f"127.0.0.1:{inner} ssl verify required ca-file {folder}/ca.pem crt {folder}/client.both ssl-min-ver TLSv1.3"
    bind = (f"127.0.0.1:{inner} backlog 4096 ssl crt {folder}/server.both ca-file {folder}/ca.pem verify required "
            "ssl-min-ver TLSv1.3")
    return [haproxy(peers, folder, "haproxy-client", f"127.0.0.1:{outer} backlog 4096", to),
            haproxy(peers, folder, "haproxy-server", bind, f"127.0.0.1:{app}")]


PLAIN = {"outrigger": outrigger_plain, "envoy": envoy_plain, "nginx": nginx_plain, "haproxy": haproxy_plain}
CHAIN = {"outrigger": outrigger_chain, "envoy": envoy_chain, "nginx": nginx_chain, "haproxy": haproxy_chain}
