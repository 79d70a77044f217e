"""WebSocket over HTTP/2 (RFC 8441), by the libraries h2 and websockets. Arguments: PORT.

Two sockets share one connection with an ordinary request.
"""

import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
from websockets.frames import Close
from websockets.protocol import CLIENT, OPEN, Protocol

host, port = sys.argv[1].rsplit(":", 1)
way = socket.create_connection((host, int(port)), timeout=10)
http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
http.initiate_connection()
way.sendall(http.data_to_send())
seen = {}


def wait_for(done):
    """Reads until `done` finds what it wants in what came on the streams."""
    while not done():
        data = way.recv(65536)
        assert data, f"the connection was closed; seen: {seen}"
        for event in http.receive_data(data):
            assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event
            if isinstance(event, h2.events.ResponseReceived):
                seen[event.stream_id, "head"] = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                seen[event.stream_id, "data"] = seen.get((event.stream_id, "data"), b"") + event.data
                http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                seen["settings"] = True
        way.sendall(http.data_to_send())


class Socket:
    def __init__(self, path):
        self.stream, self.frames = http.get_next_available_stream_id(), Protocol(CLIENT, state=OPEN, max_size=None)
        http.send_headers(
            self.stream,
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "shop.example"),
                ("sec-websocket-version", "13"),
            ],
        )
        way.sendall(http.data_to_send())
        wait_for(lambda: (self.stream, "head") in seen)
        assert seen[self.stream, "head"][":status"] == "200", seen

    def flush(self):
        data = b"".join(self.frames.data_to_send())
        while data:
            room = min(http.local_flow_control_window(self.stream), http.max_outbound_frame_size, len(data))
            if room == 0:
                before = http.local_flow_control_window(self.stream)
                wait_for(lambda: http.local_flow_control_window(self.stream) > before)
                continue
            http.send_data(self.stream, data[:room])
            way.sendall(http.data_to_send())
            data = data[room:]

    def receive(self):
        events = []

        def more():
            self.frames.receive_data(seen.pop((self.stream, "data"), b""))
            events.extend(self.frames.events_received())
            return events and events[-1].fin

        wait_for(more)
        return b"".join(event.data for event in events)


wait_for(lambda: "settings" in seen)
assert http.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL) == 1, "extended CONNECT is not offered"
one, two = Socket("/echo"), Socket("/echo")
for round in range(3):
    for number, each in enumerate((one, two)):
        each.frames.send_text(b"%d %d" % (round, number))
        each.flush()
    for number, each in enumerate((one, two)):
        assert each.receive() == b"%d %d" % (round, number)
one.frames.send_binary(b"x" * 500_000)
one.flush()
assert one.receive() == b"x" * 500_000
closing = Socket("/close")
closing.frames.send_text(b"please")
closing.flush()
received = closing.receive()
assert Close.parse(received) == Close(4001, "told to"), received
two.frames.send_text(b"still here")
two.flush()
assert two.receive() == b"still here"
