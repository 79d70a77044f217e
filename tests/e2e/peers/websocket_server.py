"""A WebSocket server that does what its paths are named for. Arguments: PORT. Tells on its output how connections ended."""

import asyncio
import os
import sys

import websockets
from websockets.asyncio.server import serve


async def handle(socket):
    path = socket.request.path
    try:
        if path == "/close":
            await socket.recv()
            await socket.close(4001, "told to")
        elif path == "/abort":
            await socket.recv()
            socket.transport.abort()
        elif path == "/first":
            # Speaks before the client does.
            await socket.send("welcome")
            await asyncio.wait_for(await socket.ping(b"from the server"), 10)
            await socket.send("you answered")
            await socket.wait_closed()
        elif path == "/fragments":
            # Each fragment is told by its size.
            sizes = [len(fragment) async for fragment in socket.recv_streaming()]
            await socket.send(" ".join(map(str, sizes)))
        else:
            async for message in socket:
                await socket.send(message)
    except websockets.ConnectionClosed:
        pass
    finally:
        await socket.wait_closed()
        print(f"ended {path} {socket.close_code}", flush=True)


def choose(socket, offered):
    return "chat" if "chat" in offered else None


async def main():
    options = {"max_size": 32 << 20, "subprotocols": ["chat"], "select_subprotocol": choose, "ping_interval": None}
    async with serve(handle, os.environ["LISTEN_ON"], int(sys.argv[1]), **options) as server:
        await server.serve_forever()


asyncio.run(main())
