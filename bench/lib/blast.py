"""Bytes over TCP, as a process of its own: `blast.py send PORT CONNECTIONS SECONDS` or `blast.py sink PORT`.

The sender writes as fast as it can, closes its half, and waits for the sink to say how many bytes came;
so everything counted has passed, and half-close has been carried both ways. The sink has the kernel drop
the bytes without copying them (MSG_TRUNC), which leaves the core to the sender.
"""

import socket
import sys
import threading
import time

CHUNK = bytes(256 * 1024)


def sink(port: int) -> None:
    """Takes connections for ever."""
    server = socket.create_server(("127.0.0.1", port), backlog=128)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=swallow, args=(connection,), daemon=True).start()


def swallow(connection: socket.socket) -> None:
    """Counts one connection's bytes and answers with the count at its end."""
    buffer, total = bytearray(4 * 1024 * 1024), 0
    with connection:
        while count := connection.recv_into(buffer, len(buffer), socket.MSG_TRUNC):
            total += count
        connection.sendall(total.to_bytes(8, "big"))


def send(port: int, connections: int, seconds: float) -> None:
    """Prints the bytes that arrived, the seconds it took, and how many connections lost bytes."""
    results: list[tuple[int, bool]] = []

    def one():
        sent = 0
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                sent += connection.send(CHUNK)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(64):
                answer += part
        results.append((sent, int.from_bytes(answer, "big") == sent))

    began = time.monotonic()
    threads = [threading.Thread(target=one) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = sum(1 for _, good in results if good)
    print(sum(sent for sent, _ in results), time.monotonic() - began, connections - whole)


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        sink(int(sys.argv[2]))
    else:
        send(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
