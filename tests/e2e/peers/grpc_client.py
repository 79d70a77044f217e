"""A gRPC client that calls what grpc_server.py offers. Arguments: PORT TEST.

Fails with a traceback where an answer is not what the server gave.
"""

import sys
import threading
import time

import grpc

MOST = 8 << 20
OPTIONS = [("grpc.max_receive_message_length", MOST), ("grpc.max_send_message_length", MOST)]
WAIT = {"timeout": 20}


def channel(*options):
    return grpc.insecure_channel(f"{sys.argv[1]}", options=[*OPTIONS, *options])


def name(method):
    return f"/test.Way/{method}"


def status_of(call):
    """The error that a call ends with."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"no error but {answer!r}")


def eventually(what, probe):
    begun = time.monotonic()
    while not probe():
        assert time.monotonic() - begun < 20, f"waited in vain for {what}"
        time.sleep(0.01)


def calls():
    """Messages go both ways as they are, in each of the four kinds of calls."""
    way = channel()
    for message in b"hello", b"", bytes(range(256)) * 16:
        assert way.unary_unary(name("Unary"))(message, **WAIT) == message
    messages = (b"x" * size for size in (0, 1, 1000, 100_000))
    assert way.stream_unary(name("ClientStream"))(messages, **WAIT) == b"4 messages, 101001 bytes"
    assert way.stream_unary(name("ClientStream"))(iter(()), **WAIT) == b"0 messages, 0 bytes"
    answers = list(way.unary_stream(name("ServerStream"))(b"300 5000", **WAIT))
    assert answers == [bytes([number % 256]) * 5000 for number in range(300)]
    assert list(way.unary_stream(name("ServerStream"))(b"0 0", **WAIT)) == []
    sent = [b"%d" % number * 100 for number in range(200)]
    assert list(way.stream_stream(name("Both"))(iter(sent), **WAIT)) == sent


def turns():
    """Each message is answered before the next one is sent: nothing on the way waits for more."""
    ready, messages = threading.Semaphore(0), []

    def one_by_one():
        for number in range(50):
            ready.acquire()
            yield b"%d" % number

    answers = channel().stream_stream(name("Both"))(one_by_one(), **WAIT)
    ready.release()
    for answer in answers:
        messages.append(answer)
        ready.release()
    assert messages == [b"%d" % number for number in range(50)]


def large():
    """4 MiB in one message, both ways, several at once."""
    way = channel()
    message = bytes(range(256)) * (4 << 12)
    pending = [way.unary_unary(name("Unary")).future(message, **WAIT) for _ in range(4)]
    assert all(call.result() == message for call in pending)


def metadata():
    """Metadata goes both ways, before and after the messages."""
    answer, call = channel().unary_unary(name("Unary")).with_call(b"", metadata=(("x-ask", "this"),), **WAIT)
    assert answer == b""
    assert ("x-initial", "this") in [tuple(pair) for pair in call.initial_metadata()]
    trailing = [tuple(pair) for pair in call.trailing_metadata()]
    assert ("x-trailing", "this") in trailing and ("x-raw-bin", b"\x00\x01\xff") in trailing, trailing


def errors():
    """Errors come with code, text and metadata, with messages before them and without."""
    way = channel()
    error = status_of(lambda: way.unary_unary(name("Fail"))(b"", **WAIT))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "nicht möglich: 100 %", error
    assert ("x-why", "told to") in [tuple(pair) for pair in error.trailing_metadata()]
    stream, before = way.unary_stream(name("FailLate"))(b"", **WAIT), []
    error = status_of(lambda: before.extend(stream))
    assert before == [b"one", b"two"] and error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, (before, error)
    assert error.details() == "no more"
    error = status_of(lambda: way.unary_unary(name("Missing"))(b"", **WAIT))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def deadline():
    """A deadline ends the call here and there."""
    way = channel()
    before = int(way.unary_unary(name("Cancelled"))(b"", **WAIT))
    stream = way.unary_stream(name("Hang"))(b"", timeout=0.5)
    error = status_of(lambda: list(stream))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    eventually("the call's end at the server", lambda: int(way.unary_unary(name("Cancelled"))(b"", **WAIT)) > before)


def cancel():
    """A cancelled call ends at the server too."""
    way = channel()
    before = int(way.unary_unary(name("Cancelled"))(b"", **WAIT))
    stream = way.unary_stream(name("Hang"))(b"", **WAIT)
    assert next(stream) == b"begun"
    stream.cancel()
    eventually("the call's end at the server", lambda: int(way.unary_unary(name("Cancelled"))(b"", **WAIT)) > before)


def keepalive():
    """Pings are answered while a stream rests; without an answer the call would fail after 500 ms."""
    pings = (
        ("grpc.keepalive_time_ms", 50),
        ("grpc.keepalive_timeout_ms", 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    rests = threading.Event()

    def slowly():
        yield b"one"
        rests.wait(1.2)
        yield b"two"

    assert list(channel(*pings).stream_stream(name("Both"))(slowly(), **WAIT)) == [b"one", b"two"]


def unavailable():
    """What does not reach the server is told in gRPC's own terms, so that clients may try again."""
    error = status_of(lambda: channel().unary_unary(name("Unary"))(b"", timeout=5))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    # Told by the proxy in a status, not guessed by the client from an HTTP code.
    assert error.details() == "cannot connect to the endpoint", error


# So that grpcio does not do itself what the way is to do.
NO_RETRIES = (("grpc.enable_retries", 0),)


def retried():
    """A call that fails at once is made again on the way; what pushes back is not, and no more often than allowed."""
    flaky = channel(*NO_RETRIES).unary_unary(name("Flaky"))
    assert flaky(b"twice 2 none", **WAIT) == b"3"
    assert flaky(b"pushed 1 50", **WAIT) == b"2"
    error = status_of(lambda: flaky(b"often 9 none", **WAIT))
    assert error.code() == grpc.StatusCode.UNAVAILABLE and error.details() == "not yet", error
    error = status_of(lambda: flaky(b"never 1 -1", **WAIT))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    assert flaky(b"never 1 -1", **WAIT) == b"2", "it was tried once before"


def deadlines():
    """What is left shrinks on the way, and what has passed goes no further."""
    way = channel(*NO_RETRIES)
    before = int(way.unary_unary(name("Left"))(b"", timeout=20))
    assert 0 < before < 20_000, before
    error = status_of(lambda: way.unary_unary(name("Left"))(b"", timeout=1e-9))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error


def limited():
    """A rate limit is told in gRPC's own terms."""
    unary = channel(*NO_RETRIES).unary_unary(name("Unary"))
    assert unary(b"a", **WAIT) == b"a" and unary(b"b", **WAIT) == b"b"
    error = status_of(lambda: unary(b"c", **WAIT))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
    assert "rate limit" in error.details(), error


def routed():
    """Calls go where their method says, and after a while none meets the server that fails."""
    way = channel(*NO_RETRIES)
    unary, in_a_row, failed = way.unary_unary(name("Unary")), 0, 0
    for _ in range(500):
        try:
            assert unary(b"again", **WAIT) == b"again"
            in_a_row += 1
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            in_a_row, failed = 0, failed + 1
        if in_a_row == 20:
            break
    assert in_a_row == 20 and 3 <= failed < 20, (in_a_row, failed)
    error = status_of(lambda: way.unary_unary(name("Fail"))(b"", **WAIT))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    error = status_of(lambda: list(way.unary_stream(name("FailLate"))(b"", **WAIT)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
    error = status_of(lambda: way.unary_unary(name("Left"))(b"", **WAIT))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED and "no route" in error.details(), error


def stays():
    """One channel outlives its server: says `up`, and then calls until one fails, and until one succeeds again."""
    way = channel(("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))

    def works():
        try:
            return way.unary_unary(name("Unary"))(b"again", timeout=2) == b"again"
        except grpc.RpcError as error:
            # A call that the end cut between its head and its trailers can only be broken off.
            cut = error.code() == grpc.StatusCode.INTERNAL and "RST_STREAM" in error.details()
            assert cut or error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), error
            return False

    assert works()
    print("up", flush=True)
    eventually("the server's end", lambda: not works())
    print("down", flush=True)
    eventually("the server's return", works)


globals()[sys.argv[2]]()
