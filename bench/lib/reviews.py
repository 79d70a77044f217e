"""Reviews at a fixed rate, as a process of its own: `reviews.py PORT FOLDER RATE CONNECTIONS SECONDS SHARE`.

In: FOLDER/small.json and FOLDER/large.json; every SHARE-th is a large one, 0 is none. Out: `sent failed p50 p99 slowest large-p99` in milliseconds.
Promise: an open loop: each review is due at its moment whatever the answers do, and timed from that moment. A review is answered when the last byte
of an answer is there that holds a patch.
"""

import gc
import http.client
import ssl
import sys
import threading
import time
from pathlib import Path


def main(port: int, folder: Path, rate: float, connections: int, seconds: float, share: int) -> None:
    small, large = (folder / "small.json").read_bytes(), (folder / "large.json").read_bytes()
    tls = ssl.create_default_context()
    # The API server checks the certificate; here it is the same work for the server, and the bundle is the API server's.
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    taken: list[tuple[float, bool]] = []
    failed: list[str] = []
    barrier = threading.Barrier(connections)
    begin: list[float] = []

    def ask(connection, body: bytes) -> None:
        connection.request("POST", "/inject?timeout=10s", body, {"Content-Type": "application/json", "Accept": "application/json, */*",
                                                                  "User-Agent": "kube-apiserver-admission"})
        answer = connection.getresponse()
        if b'"patch":' not in answer.read() or answer.status != 200:
            raise OSError("no patch")

    def client(index: int) -> None:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=tls, timeout=30)
        ask(connection, small)
        if barrier.wait() == 0:
            begin.append(time.monotonic() + 0.1)
        while not begin:
            time.sleep(0.001)
        for number in range(index, round(rate * seconds), connections):
            due = begin[0] + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            is_large = share > 0 and number % share == share - 1
            try:
                ask(connection, large if is_large else small)
                taken.append((1e3 * (time.monotonic() - due), is_large))
            except (OSError, http.client.HTTPException) as error:
                failed.append(str(error))
                connection.close()

    gc.freeze()
    gc.disable()
    threads = [threading.Thread(target=client, args=(index,)) for index in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every, big = sorted(ms for ms, _ in taken), sorted(ms for ms, is_large in taken if is_large)
    at = lambda all_of, part: all_of[min(len(all_of) - 1, int(part * len(all_of)))] if all_of else 0.0  # noqa: E731
    print(len(taken) + len(failed), len(failed), at(every, 0.5), at(every, 0.99), at(every, 1), at(big, 0.99))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6]))
