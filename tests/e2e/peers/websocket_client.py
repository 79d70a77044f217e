"""A WebSocket client of websocket_server.py. Arguments: PORT TEST."""

import asyncio
import sys

import websockets
from websockets.asyncio.client import connect


def way(path="/echo", **options):
    options = {"max_size": 32 << 20, "ping_interval": None, "open_timeout": 10, "proxy": None, **options}
    return connect(f"ws://{sys.argv[1]}{path}", **options)


async def closes_with(socket):
    try:
        while True:
            await asyncio.wait_for(socket.recv(), 10)
    except websockets.ConnectionClosed:
        return socket.close_code, socket.close_reason


async def messages():
    """Text and bytes come back as they went, compressed and not."""
    for options in {}, {"compression": None}:
        async with way(**options) as socket:
            for message in "hello", "", "žluťoučký kůň", b"", bytes(range(256)) * 1000, "x" * 70_000:
                await socket.send(message)
                answer = await asyncio.wait_for(socket.recv(), 10)
                assert type(answer) is type(message) and answer == message, (message, answer)
    async with way(subprotocols=["chat"]) as socket:
        assert socket.subprotocol == "chat", socket.subprotocol


async def fragments():
    """Fragments are not put together on the way."""
    async with way("/fragments", compression=None) as socket:
        await socket.send(["a" * 1000, "b" * 20, "c" * 3])
        # The library may end a message by an empty fragment.
        sizes = (await asyncio.wait_for(socket.recv(), 10)).split()
        assert [size for size in sizes if size != "0"] == ["1000", "20", "3"], sizes


async def pings():
    """Each side's pings are answered by the other."""
    async with way() as socket:
        for _ in range(20):
            await asyncio.wait_for(await socket.ping(), 10)
    async with way("/first") as socket:
        assert await asyncio.wait_for(socket.recv(), 10) == "welcome"
        assert await asyncio.wait_for(socket.recv(), 10) == "you answered"


async def closing():
    """Both sides' close codes and reasons arrive; an abrupt end is none."""
    async with way("/close") as socket:
        await socket.send("please")
        assert await closes_with(socket) == (4001, "told to")
    async with way("/echo?mine") as socket:
        await socket.close(4002, "mine")
    async with way("/abort") as socket:
        await socket.send("please")
        assert (await closes_with(socket))[0] == 1006
    async with way("/echo?abrupt") as socket:
        socket.transport.abort()


async def large():
    """16 MiB in one frame, both ways at once with others."""
    async def one(message):
        async with way(compression=None) as socket:
            await socket.send(message)
            assert await asyncio.wait_for(socket.recv(), 20) == message

    await asyncio.gather(*(one(bytes([number]) * (16 << 20)) for number in range(2)))


asyncio.run(globals()[sys.argv[2]]())
