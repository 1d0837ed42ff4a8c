#!/usr/bin/env python3
"""A driftless client made from nothing of driftless but its .proto.

    python3 watch.py [--prefix] KEY [--server HOST:PORT] [--dump]

Prints the state of a key, or of every key below a prefix, then each change of it. It is written to
be read by whoever writes a client in another language: this is when to connect, what to say and how
long to wait; replica.py beside it is what to do with what comes.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
import uuid
from pathlib import Path

try:
    import grpc
except ModuleNotFoundError:
    requirements = Path(__file__).with_name("requirements.txt")
    sys.exit(f"watch.py: gRPC for Python is missing: python3 -m pip install -r {requirements}")

from replica import Gap, Replica, Unusable, digest_of

# Stubs made from the .proto while this starts. A real client would make them once, with
# `python3 -m grpc_tools.protoc -I proto/proto --python_out=… --grpc_python_out=…`.
PROTO = Path(__file__).resolve().parents[2] / "proto" / "proto"
sys.path.insert(0, str(PROTO))
pb, services = grpc.protos_and_services("driftless/v1/config.proto")

FIRST_FRAME_S = 10  # A server answers from memory; what takes longer is stuck.
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.1, 5
STEADY_S = 10  # How long a stream has to live for the backoff to start from its base again.
MAX_MESSAGE = 8 << 20  # 1 MiB of values, plus keys; gRPC's own limit may be too low for these.

# Statuses that the same question will get again until somebody changes something.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
}


async def one_stream(server, wanted, replica, identity):
    """Follows one stream to its end. Returns how long the server said to wait, in seconds."""
    # A channel of its own for each: one that is kept has a backoff too, on top of ours.
    options = [("grpc.max_receive_message_length", MAX_MESSAGE)]
    async with grpc.aio.insecure_channel(server, options) as channel:
        request = pb.WatchRequest(
            range=wanted,
            have=replica.have(),
            client=identity,
            features=[pb.FEATURE_VALUE_DELTAS],  # `Replica` can apply patches.
        )
        call = services.ConfigStub(channel).Watch(request)
        patience = FIRST_FRAME_S
        while True:
            response = await asyncio.wait_for(call.read(), patience)
            if response is grpc.aio.EOF:
                return 0
            kind = response.WhichOneof("frame")
            if kind == "hello":
                replica.hello(response.hello)
                # Three silent intervals are an answer. The bounds are against a garbled one.
                interval = (response.hello.progress_interval_ms or 10_000) / 1000
                patience = min(max(3 * interval, 1), 600)
            elif kind in ("snapshot", "diff"):
                changes = getattr(replica, kind)(getattr(response, kind))
                if changes is not None:
                    say(f"{kind}: {len(replica.entries)} keys at revision {replica.revision}")
                    show(changes)
            elif kind == "current":
                replica.current(response.current)
                say(f"current: {len(replica.entries)} keys at revision {replica.revision}")
            elif kind == "progress":
                replica.progress(response.progress)
            elif kind == "goodbye":
                say(f"goodbye: {pb.Goodbye.Reason.Name(response.goodbye.reason)}")
                if response.goodbye.purge:
                    replica.forget()
                return response.goodbye.retry_after_ms / 1000
            # Anything else comes from a newer server, and is ignored.


async def watch(server, wanted, replica):
    """Follows stream after stream, for ever; a refusal ends it only before there is any state."""
    # The instance tells this process from others and stays the same across its reconnects.
    identity = pb.ClientInfo(instance=uuid.uuid4().hex, library="driftless-example-python/1")
    failures = 0
    while True:
        began, at_least = time.monotonic(), 0
        try:
            at_least = await one_stream(server, wanted, replica, identity)
            why = "the stream ended"
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
            if error.code() in REFUSALS:
                if replica.revision == 0:
                    sys.exit(f"watch.py: {why}")
                at_least = BACKOFF_CAP_S
            pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms", "0")
            at_least = max(at_least, int(pushback) / 1000)
        except asyncio.TimeoutError:
            why = "the server went silent"
        except Gap as error:
            why = str(error)
        except Unusable as error:
            replica.distrust()
            why = str(error)
        # Full jitter, after a clean end too: all of a server's clients lost it at once.
        failures = 0 if time.monotonic() - began >= STEADY_S else failures
        ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(failures, 16))
        wait = at_least + random.uniform(0, ceiling)
        failures += 1
        say(f"{why}; again in {wait:.1f} s")
        await asyncio.sleep(wait)


def say(text):
    """How it goes, apart from what is printed for other programs."""
    print(f"# {text}", file=sys.stderr, flush=True)


def show(changes):
    for key, _, new in changes:
        print("put" if new else "delete", text(key), text(new.value) if new else "", flush=True)


def text(data: bytes) -> str:
    """Text as it is, if it is short text."""
    if len(data) > 200:
        return f"<{len(data)} bytes>"
    decoded = data.decode(errors="replace")
    return decoded if decoded.isprintable() and decoded.encode() == data else repr(data)


def dump(replica):
    """Everything that is held, and its digest reckoned anew, in one line of JSON."""
    entries = [[key.hex(), e.value.hex(), *e[1:]] for key, e in sorted(replica.entries.items())]
    digest = digest_of(replica.entries).hex()
    print(json.dumps({"revision": replica.revision, "digest": digest, "entries": entries}))


async def main():
    parser = argparse.ArgumentParser(description="Watches keys of a driftless server.")
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("--prefix", action="store_true", help="every key that starts with KEY")
    parser.add_argument("--server", metavar="HOST:PORT", default="127.0.0.1:7400")
    parser.add_argument("--dump", action="store_true", help="print all that is held when stopped")
    args = parser.parse_args()
    wanted = pb.Range(**{"prefix" if args.prefix else "key": args.key.encode()})
    replica = Replica()
    task = asyncio.ensure_future(watch(args.server, wanted, replica))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if args.dump:
            dump(replica)


if __name__ == "__main__":
    asyncio.run(main())
