"""nginx's configs: one worker process without master's extras."""

from pathlib import Path

from ..process import PROXY_CORE, Process

STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def able(_peers, job: str) -> bool:
    """Debian packs the TCP proxy by itself (libnginx-mod-stream)."""
    return job != "tcp" or STREAM.exists()


def start(peers, folder: Path, name: str, listen: str, to: str, extra: str = "", grpc: bool = False,
          connections: int = 4096) -> Process:
    scheme = "https" if "proxy_ssl" in extra else "http"
    forward = "grpc_pass grpc://to;" if grpc else (
        f'proxy_pass {scheme}://to; proxy_http_version 1.1; proxy_set_header Connection ""; '
        "proxy_set_header Host $host;")
    return run(peers, folder, name, f"""
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600;
  client_body_temp_path {folder}/{name}/1; proxy_temp_path {folder}/{name}/2; fastcgi_temp_path {folder}/{name}/3;
  uwsgi_temp_path {folder}/{name}/4; scgi_temp_path {folder}/{name}/5;
  upstream to {{ server {to}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen {listen} backlog=4096; {extra}
    location / {{ {forward} }}
  }}
}}
""", connections)


def run(peers, folder: Path, name: str, body: str, connections: int = 4096) -> Process:
    work = folder / name
    work.mkdir()
    config = work / "nginx.conf"
    config.write_text(f"{body}\nworker_processes 1; daemon off; pid {work}/pid; error_log stderr crit;\n"
                      f"events {{ worker_connections {connections}; }}\n")
    return Process([peers.nginx, "-e", "stderr", "-c", config, "-p", work], PROXY_CORE, folder / f"{name}.log")


def plain(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "nginx-plain", f"127.0.0.1:{port}", f"127.0.0.1:{app}")


def many(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "nginx-many", f"127.0.0.1:{port}", f"127.0.0.1:{app}", connections=12000)


def chain(peers, folder: Path, outer: int, inner: int, app: int) -> list[Process]:
    client = (f"proxy_ssl_certificate {folder}/client.pem; proxy_ssl_certificate_key {folder}/client.key; "
              f"proxy_ssl_trusted_certificate {folder}/ca.pem; proxy_ssl_protocols TLSv1.3;")
    return [start(peers, folder, "nginx-client", f"127.0.0.1:{outer}", f"127.0.0.1:{inner}", client),
            mtls(peers, folder, inner, app)]


def mtls(peers, folder: Path, port: int, app: int) -> Process:
    # nginx verifies DNS names only, so it checks the chain and not the SPIFFE ID: less work than the others do.
    server = (f"ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key; ssl_protocols TLSv1.3; "
              f"ssl_client_certificate {folder}/ca.pem; ssl_verify_client on;")
    return start(peers, folder, "nginx-server", f"127.0.0.1:{port} ssl", f"127.0.0.1:{app}", server)


def http2(peers, folder: Path, port: int, app: int) -> Process:
    return start(peers, folder, "nginx-http2", f"127.0.0.1:{port} http2", f"127.0.0.1:{app}")


def grpc(peers, folder: Path, port: int, app: int) -> Process:
    # It gives each request under way a connection of its own upstream: HTTP/2 without sharing.
    return start(peers, folder, "nginx-grpc", f"127.0.0.1:{port} http2", f"127.0.0.1:{app}", grpc=True)


def tcp(peers, folder: Path, port: int, app: int) -> Process:
    return run(peers, folder, "nginx-tcp", f"""load_module {STREAM};
stream {{ server {{ listen 127.0.0.1:{port} backlog=4096; proxy_pass 127.0.0.1:{app}; proxy_half_close on; }} }}
""")
