"""grpcio on both sides of a gateway: the four kinds of call, metadata, status, deadlines, cancellation, long streams.

Messages are bare bytes, so that no code has to be generated from a .proto file.
"""

import argparse
import threading
import time
from concurrent import futures

import grpc

SERVICE = "fieldgate.test.Kinds"
CHUNK = 64 * 1024
BOUND = 60
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Server:
    """Answers the four kinds, and knows when a call was cancelled."""

    def __init__(self, address):
        self.cancelled = threading.Event()
        self.deadlines = []
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "Download": grpc.unary_stream_rpc_method_handler(self.download),
            "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        self.server = grpc.server(futures.ThreadPoolExecutor(32), options=OPTIONS)
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        self.server.add_insecure_port(address)
        self.server.start()

    def unary(self, request, context):
        metadata = dict(context.invocation_metadata())
        context.send_initial_metadata([("x-initial", metadata.get("x-sent", "")), ("x-blob-bin", b"\x00\xff")])
        context.set_trailing_metadata([("x-trailing", "the end")])
        return request

    def fail(self, request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: \u00e4\n")

    def wait(self, request, context):
        self.deadlines.append(context.time_remaining())
        ended = threading.Event()
        context.add_callback(ended.set)
        if ended.wait(BOUND):
            self.cancelled.set()
        return b""

    def download(self, request, context):
        for _ in range(int(request)):
            yield bytes(CHUNK)

    def upload(self, requests, context):
        return str(sum(len(request) for request in requests)).encode()

    def chat(self, requests, context):
        yield from requests


class Client:
    """Calls through the gateway."""

    def __init__(self, channel, server):
        self.channel = channel
        self.server = server

    def call(self, kind, name):
        return getattr(self.channel, kind)(f"/{SERVICE}/{name}")

    def unary(self):
        answer, call = self.call("unary_unary", "Unary").with_call(
            b"hello", metadata=[("x-sent", "seven")], timeout=BOUND, wait_for_ready=True
        )
        assert answer == b"hello", answer
        initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
        assert initial["x-initial"] == "seven" and initial["x-blob-bin"] == b"\x00\xff", initial
        assert trailing["x-trailing"] == "the end", trailing

    def empty_message(self):
        assert self.call("unary_unary", "Unary")(b"", timeout=BOUND) == b""

    def status(self):
        error = self.error(lambda: self.call("unary_unary", "Fail")(b"", timeout=BOUND))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert error.details() == "not today: \u00e4\n", error.details()

    def unknown_service(self):
        error = self.error(lambda: self.channel.unary_unary("/fieldgate.test.Other/Unary")(b"", timeout=BOUND))
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

    def download(self, megabytes):
        count = megabytes * 1024 * 1024 // CHUNK
        answers = self.call("unary_stream", "Download")(str(count).encode(), timeout=BOUND)
        received = sum(len(answer) for answer in answers)
        assert received == count * CHUNK, received

    def upload(self, megabytes):
        count = megabytes * 1024 * 1024 // CHUNK
        answer = self.call("stream_unary", "Upload")((bytes(CHUNK) for _ in range(count)), timeout=BOUND)
        assert int(answer) == count * CHUNK, answer

    def chat_in_step(self):
        """Each message is sent only when the one before was answered: nothing may be held back."""
        answered = threading.Semaphore(1)

        def requests():
            for number in range(100):
                assert answered.acquire(timeout=BOUND)
                yield str(number).encode()

        received = []
        for answer in self.call("stream_stream", "Chat")(requests(), timeout=BOUND):
            received.append(int(answer))
            answered.release()
        assert received == list(range(100)), received

    def chat_both_ways(self, megabytes):
        count = megabytes * 1024 * 1024 // CHUNK
        answers = self.call("stream_stream", "Chat")((bytes(CHUNK) for _ in range(count)), timeout=BOUND)
        received = sum(len(answer) for answer in answers)
        assert received == count * CHUNK, received

    def deadline(self):
        self.server.cancelled.clear()
        self.server.deadlines.clear()
        started = time.monotonic()
        error = self.error(lambda: self.call("unary_unary", "Wait")(b"", timeout=1))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert time.monotonic() - started < BOUND / 2
        assert self.server.deadlines and self.server.deadlines[0] < BOUND / 2, self.server.deadlines
        assert self.server.cancelled.wait(BOUND / 2), "the server never saw the deadline's end"

    def cancel(self):
        self.server.cancelled.clear()
        self.server.deadlines.clear()
        call = self.call("unary_unary", "Wait").future(b"", timeout=BOUND)
        until(lambda: self.server.deadlines, "the call to reach the server")
        call.cancel()
        assert self.server.cancelled.wait(BOUND / 2), "the server never saw the cancellation"

    @staticmethod
    def error(call):
        try:
            call()
        except grpc.RpcError as error:
            return error
        raise AssertionError("the call succeeded")


def until(condition, what):
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def main():
    parser = argparse.ArgumentParser()
    for name in ("server", "plain", "tls", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--megabytes", type=int, required=True)
    arguments = parser.parse_args()
    server = Server(arguments.server)
    with open(arguments.ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    host, port = arguments.tls.rsplit(":", 1)
    override = [("grpc.ssl_target_name_override", host)]
    failures = []
    channels = {
        "h2c": grpc.insecure_channel(arguments.plain, OPTIONS),
        "TLS": grpc.secure_channel(f"127.0.0.1:{port}", credentials, OPTIONS + override),
    }
    for name, channel in channels.items():
        client = Client(channel, server)
        checks = {
            "unary with metadata and trailers": client.unary,
            "an empty message": client.empty_message,
            "a status with details": client.status,
            "a service without a route": client.unknown_service,
            f"server stream of {arguments.megabytes} MB": lambda: client.download(arguments.megabytes),
            f"client stream of {arguments.megabytes} MB": lambda: client.upload(arguments.megabytes),
            "both ways in step": client.chat_in_step,
            f"both ways at once, {arguments.megabytes} MB": lambda: client.chat_both_ways(arguments.megabytes),
            "deadline": client.deadline,
            "cancellation": client.cancel,
        }
        for check, run in checks.items():
            try:
                run()
            except (AssertionError, grpc.RpcError, KeyError) as error:
                failures.append(f"{name}: {check}: {error!r}")
        print(f"{name}: {', '.join(checks)}")
        channel.close()
    server.server.stop(0)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
