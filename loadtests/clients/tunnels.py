"""Upgrades by HTTP/1.1 and by HTTP/2 (RFC 8441) through a gateway to upstreams of either.

Clients are `h2` with `wsproto`, and `wsproto` alone. Upstreams are the backend, which echoes, and odd ones in here that do
what no good server does. Each tunnel has a path of its own, so that the access log can be asked for its one line.
"""

import argparse
import base64
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import signal
import socket
import ssl
import struct
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import wsproto
import wsproto.connection
import wsproto.events as ws

BOUND = 60
SIZES = (0, 1, 125, 126, 65535, 65536, 1_000_000)
FRAME = 64 * 1024
BULK = 16 * 1024 * 1024
AHEAD = 4
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TLS_HOST = "shop.test"

numbers = itertools.count()
expected = {}


def path_of(path, **line):
    """A path for one request, and what the access log is to say of it."""
    path = f"{path}?{next(numbers)}"
    expected[path] = line
    return path


# Clients


def dial(address, tls, protocol):
    plain = socket.create_connection(address, timeout=BOUND)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not tls:
        return plain
    tls.set_alpn_protocols([protocol])
    return tls.wrap_socket(plain, server_hostname=TLS_HOST, suppress_ragged_eofs=False)


def reset(sock):
    """RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Reset(Exception):
    """The tunnel was broken off."""


class H2Connection:
    """A client's connection with any number of tunnels, read by whoever waits."""

    def __init__(self, address, tls):
        self.sock = dial(address, tls, "h2")
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events = {}
        self.input = b""
        self.gone_away = False
        self.settled = False
        self.flush()
        while not self.settled:
            self.read()
        assert self.h2.remote_settings.enable_connect_protocol == 1, "SETTINGS_ENABLE_CONNECT_PROTOCOL is not announced"

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def read(self):
        data = self.sock.recv(256 * 1024)
        if not data:
            raise Reset("the connection ended")
        for event in self.h2.receive_data(self.without_goaway(data)):
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self.settled = True
            elif getattr(event, "stream_id", None):
                if isinstance(event, h2.events.DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.events.setdefault(event.stream_id, []).append(event)
        self.flush()

    def without_goaway(self, data):
        """Whole frames but GOAWAY, after which `h2` would do nothing more with the streams that are open."""
        self.input += data
        frames = b""
        while len(self.input) >= 9 and len(self.input) >= (size := 9 + int.from_bytes(self.input[:3], "big")):
            if self.input[3] == 7:
                self.gone_away = True
            else:
                frames += self.input[:size]
            self.input = self.input[size:]
        return frames

    def request(self, headers, end=False, first=b""):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers, end_stream=end)
        if first:
            self.h2.send_data(stream, first)
        self.flush()
        return H2Tunnel(self, stream)

    def connect(self, path, to, protocol="websocket", first=b"", more=()):
        scheme = "https" if isinstance(self.sock, ssl.SSLSocket) else "http"
        return self.request(
            [
                (":method", "CONNECT"),
                (":protocol", protocol),
                (":scheme", scheme),
                (":path", path),
                (":authority", TLS_HOST),
                ("sec-websocket-version", "13"),
                ("x-to", to),
                *more,
            ],
            first=first,
        )

    def get(self, path, to):
        tunnel = self.request(
            [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", TLS_HOST), ("x-to", to)], end=True
        )
        return tunnel.status(), tunnel.rest()

    def close(self):
        self.sock.close()


class H2Tunnel:
    kind = "h2"

    def __init__(self, connection, stream):
        self.connection = connection
        self.stream = stream
        self.headers = {}

    def event(self):
        while not self.connection.events.get(self.stream):
            self.connection.read()
        return self.connection.events[self.stream].pop(0)

    def status(self):
        event = self.event()
        if isinstance(event, h2.events.StreamReset):
            raise Reset(event.error_code)
        assert isinstance(event, h2.events.ResponseReceived), event
        self.headers = dict(event.headers)
        return int(self.headers[":status"])

    def send(self, data):
        view = memoryview(data)
        while view:
            room = self.connection.h2.local_flow_control_window(self.stream)
            count = min(len(view), room, self.connection.h2.max_outbound_frame_size)
            if count == 0:
                self.connection.read()
                continue
            self.connection.h2.send_data(self.stream, bytes(view[:count]))
            self.connection.flush()
            view = view[count:]

    def receive(self):
        """Bytes; none at the end."""
        while True:
            event = self.event()
            if isinstance(event, h2.events.DataReceived):
                if event.data:
                    return event.data
            elif isinstance(event, h2.events.StreamEnded):
                return b""
            elif isinstance(event, h2.events.StreamReset):
                raise Reset(event.error_code)

    def rest(self):
        return b"".join(iter(self.receive, b""))

    def end(self):
        # The other side may want no more of it and have said so.
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self.connection.h2.end_stream(self.stream)
        self.connection.flush()

    def reset(self):
        self.connection.h2.reset_stream(self.stream, 8)
        self.connection.flush()

    def frames(self):
        return wsproto.connection.Connection(wsproto.connection.ConnectionType.CLIENT)


class H1Tunnel:
    kind = "h1"

    def __init__(self, address, tls, path, to, protocol="websocket", first=b"", more=()):
        self.sock = dial(address, tls, "http/1.1")
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        fields = [
            ("host", TLS_HOST),
            ("connection", "Upgrade"),
            ("upgrade", protocol),
            ("sec-websocket-key", key),
            ("sec-websocket-version", "13"),
            ("x-to", to),
            *more,
        ]
        head = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
        self.accept = accept_of(key.encode())
        self.input = b""
        self.sock.sendall(head.encode() + first)

    def status(self):
        while b"\r\n\r\n" not in self.input:
            try:
                piece = self.sock.recv(65536)
            except (ConnectionResetError, ssl.SSLEOFError) as error:
                raise Reset(8) from error
            assert piece, "the connection ended in the head"
            self.input += piece
        head, _, self.input = self.input.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split()[1])
        if status == 101:
            assert self.headers["upgrade"].lower() != "websocket" or self.headers["sec-websocket-accept"] == self.accept
            return 200
        return status

    def send(self, data):
        self.sock.sendall(data)

    def receive(self):
        if self.input:
            data, self.input = self.input, b""
            return data
        try:
            return self.sock.recv(256 * 1024)
        except (ConnectionResetError, ssl.SSLEOFError) as error:
            raise Reset(8) from error

    def rest(self):
        length = self.headers.get("content-length")
        if length is None:
            return b"".join(iter(self.receive, b""))
        while len(self.input) < int(length):
            self.input += self.sock.recv(65536)
        return self.input

    def end(self):
        if isinstance(self.sock, ssl.SSLSocket):
            # Python knows no half-closed TLS; here the other half is closed already.
            self.sock.unwrap()
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        reset(self.sock)

    def frames(self):
        return wsproto.connection.Connection(wsproto.connection.ConnectionType.CLIENT)

    def close(self):
        self.sock.close()


def accept_of(key):
    return base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()


class WebSocket:
    """Frames in a tunnel."""

    def __init__(self, tunnel):
        self.tunnel = tunnel
        self.frames = tunnel.frames()
        self.pending = []
        self.sent = self.received = 0

    def send(self, event):
        data = self.frames.send(event)
        self.sent += len(data)
        self.tunnel.send(data)

    def event(self):
        while not self.pending:
            data = self.tunnel.receive()
            self.received += len(data)
            if not data:
                return None
            self.frames.receive_data(data)
            self.pending += list(self.frames.events())
        return self.pending.pop(0)

    def message(self):
        pieces = []
        while True:
            event = self.event()
            assert isinstance(event, ws.Message), event
            pieces.append(event.data)
            if event.message_finished:
                return type(event.data)().join(pieces)


def open_tunnel(way, path, to, **more):
    """By HTTP/1.1 or HTTP/2, in plaintext or over TLS."""
    client, address, tls = way
    if client == "h1":
        return H1Tunnel(address, tls, path, to, **more)
    connection = H2Connection(address, tls)
    return connection.connect(path, to, **more)


# Odd upstreams


class Odd:
    """Accepts connections and serves each in a thread."""

    def __init__(self, address):
        self.listener = socket.create_server(address)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            sock, _ = self.listener.accept()
            sock.settimeout(BOUND)
            threading.Thread(target=self.guard, args=(sock,), daemon=True).start()

    def guard(self, sock):
        with sock, contextlib.suppress(OSError):
            self.serve(sock)


class OddH1(Odd):
    """By path: half-close, resets, refusals and switches that nobody asked for."""

    def __init__(self, address):
        self.seen = {}
        super().__init__(address)

    def serve(self, sock):
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                piece = sock.recv(65536)
                if not piece:
                    return
                buffer += piece
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            target = head.split()[1].decode()
            fields = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
            }
            self.seen[target] = (head, fields, buffer)
            path = target.partition("?")[0]
            accept = accept_of(fields.get(b"sec-websocket-key", b""))
            if path == "/wrong-accept":
                accept = accept_of(b"another key")
            if path == "/refuse":
                sock.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
                continue
            if path == "/plain":
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain")
                continue
            upgrade = fields.get(b"upgrade", b"websocket").decode()
            sock.sendall(
                f"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\n"
                f"sec-websocket-accept: {accept}\r\n\r\n".encode()
            )
            if path == "/late":
                # Says its say after the client has ended its side.
                heard = buffer + b"".join(iter(lambda: sock.recv(65536), b""))
                sock.sendall(b"heard " + heard)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
                return
            if path == "/die":
                sock.sendall(b"last words")
                return sock.close()
            if path == "/reset":
                sock.recv(1)
                return reset(sock)
            if path == "/wait":
                try:
                    while sock.recv(65536):
                        pass
                    self.seen[target] = "end"
                except ConnectionResetError:
                    self.seen[target] = "reset"
                return
            return


class OddH2(Odd):
    """The same by HTTP/2, announcing RFC 8441 or not."""

    def __init__(self, address, announce):
        self.announce = announce
        self.seen = {}
        super().__init__(address)

    def serve(self, sock):
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        connection = h2.connection.H2Connection(config)
        if self.announce:
            connection.local_settings = h2.settings.Settings(
                client=False, initial_values={h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}
            )
        connection.initiate_connection()
        sock.sendall(connection.data_to_send())
        paths = {}
        while True:
            data = sock.recv(65536)
            if not data:
                return
            for event in connection.receive_data(data):
                stream = getattr(event, "stream_id", None)
                if isinstance(event, h2.events.RequestReceived):
                    headers = dict(event.headers)
                    path = headers[":path"].partition("?")[0]
                    paths[stream] = headers[":path"]
                    self.seen[headers[":path"]] = headers
                    connection.send_headers(stream, [(":status", "403" if path == "/refuse" else "200")])
                    if path == "/refuse":
                        connection.send_data(stream, b"no", end_stream=True)
                    if path == "/die":
                        connection.send_data(stream, b"last words")
                        sock.sendall(connection.data_to_send())
                        return sock.close()
                elif isinstance(event, h2.events.DataReceived):
                    connection.acknowledge_received_data(event.flow_controlled_length, stream)
                    path = paths[stream].partition("?")[0]
                    if path == "/reset":
                        connection.reset_stream(stream, 8)
                    elif path == "/late" and event.data:
                        connection.send_data(stream, b"heard " + event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    if paths[stream].partition("?")[0] != "/refuse":
                        connection.send_data(stream, b"", end_stream=True)
                    self.seen[paths[stream]] = "end"
                elif isinstance(event, h2.events.StreamReset):
                    self.seen[paths[stream]] = "reset"
            sock.sendall(connection.data_to_send())


def until(condition, what):
    end = time.monotonic() + BOUND
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"still waiting for {what}")


# Checks


def echo(way, to):
    """What the echoing backend is good for: every frame size, fragments, ping, bulk, close."""
    path = path_of("/ws", status=101, flags="-")
    tunnel = open_tunnel(way, path, to)
    assert tunnel.status() == 200, tunnel.headers
    assert tunnel.headers["x-backend"] == to, tunnel.headers
    if tunnel.kind == "h2":
        assert not {"sec-websocket-accept", "upgrade", "connection"} & set(tunnel.headers), tunnel.headers
    frames = WebSocket(tunnel)
    frames.send(ws.TextMessage("text: \u00e4"))
    assert frames.message() == "text: \u00e4"
    for size in SIZES:
        frames.send(ws.BytesMessage(bytes(size)))
        assert frames.message() == bytes(size), size
    for piece, last in (("frag", False), ("men", False), ("ted", True)):
        frames.send(ws.TextMessage(piece, message_finished=last))
    assert frames.message() == "fragmented"
    frames.send(ws.Ping(b"are you there"))
    assert frames.event() == ws.Pong(b"are you there")
    bulk(frames)
    frames.send(ws.CloseConnection(4000, "done"))
    assert frames.event() == ws.CloseConnection(4000, "done")
    assert frames.event() is None, "bytes after the close"
    tunnel.end()
    expected[path] |= {"received": frames.sent, "sent": frames.received}


def bulk(frames):
    block = bytes(range(256)) * (FRAME // 256)
    wanted, got = hashlib.sha256(), hashlib.sha256()
    count = BULK // FRAME
    for number in range(count + AHEAD):
        if number < count:
            data = number.to_bytes(8, "big") + block[8:]
            wanted.update(data)
            frames.send(ws.BytesMessage(data))
        if number >= AHEAD:
            got.update(frames.message())
    assert wanted.digest() == got.digest()


def refusals(way, to):
    client, address, tls = way
    for path, details in (
        ("/status/403", "via_upstream"),
        ("/denied", "rbac_access_denied_matched_policy"),
    ):
        tunnel = open_tunnel(way, path_of(path, status=403, flags="-", details=details), to)
        assert tunnel.status() == 403, tunnel.headers
        tunnel.rest()
        # The connection is as good as before.
        if client == "h2":
            assert tunnel.connection.get("/", to)[0] == 200


def half_close(way, to):
    tunnel = open_tunnel(way, path_of("/late", status=101, flags="-", received=4, sent=10), to, protocol="odd/1")
    assert tunnel.status() == 200, tunnel.headers
    tunnel.send(b"this")
    tunnel.end()
    heard = tunnel.rest()
    assert heard == b"heard this", heard


def upstream_dies(way, to):
    tunnel = open_tunnel(way, path_of("/die", status=101), to, protocol="odd/1")
    try:
        assert tunnel.status() == 200, tunnel.headers
        assert tunnel.rest() == b"last words"
        tunnel.end()
    except Reset as error:
        # What an HTTP/2 connection that breaks off means for its streams.
        assert to == "odd-h2" and error.args[0] == 8, error


def upstream_resets(way, to):
    tunnel = open_tunnel(way, path_of("/reset", status=101, flags="UC", sent=0), to, protocol="odd/1")
    assert tunnel.status() == 200, tunnel.headers
    tunnel.send(b"x")
    try:
        raise AssertionError(f"an end in good order after {tunnel.rest()}")
    except Reset as error:
        assert error.args[0] == 8, error


def client_resets(way, to, odd):
    path = path_of("/wait", status=101, flags="DC")
    tunnel = open_tunnel(way, path, to, protocol="odd/1")
    assert tunnel.status() == 200, tunnel.headers
    tunnel.reset()
    until(lambda: odd.seen.get(path) == "reset", "the upstream to see the reset")


def too_early(way, to, odd):
    """Bytes sent before the upstream agreed are no request of their own, whatever they look like."""
    smuggled = b"GET /smuggled HTTP/1.1\r\nhost: shop.test\r\n\r\n"
    path = path_of("/refuse", status=403, flags="-")
    tunnel = open_tunnel(way, path, to, first=smuggled)
    assert tunnel.status() == 403, tunnel.headers
    tunnel.rest()
    after = path_of("/plain", status=200)
    assert tunnel.connection.get(after, to) == (200, b"plain")
    assert "/smuggled" not in odd.seen
    path = path_of("/late", status=101, flags="-", received=len(smuggled))
    tunnel = open_tunnel(way, path, to, first=smuggled, protocol="odd/1")
    assert tunnel.status() == 200, tunnel.headers
    tunnel.end()
    assert tunnel.rest() == b"heard " + smuggled


def form_at_upstream(odd_h1, odd_h2, plain):
    """What an upstream is sent, whichever way the client asked."""
    for client in ("h1", "h2"):
        path = path_of("/refuse", status=403)
        tunnel = open_tunnel((client, plain, None), path, "odd-h1")
        assert tunnel.status() == 403
        head, fields, _ = odd_h1.seen[path]
        assert head.startswith(b"GET "), head
        wanted = {b"connection": b"upgrade", b"upgrade": b"websocket", b"sec-websocket-version": b"13"}
        assert wanted.items() <= fields.items() and fields[b"host"] == TLS_HOST.encode(), head
        assert len(fields[b"sec-websocket-key"]) == 24, head
        path = path_of("/refuse", status=403)
        tunnel = open_tunnel((client, plain, None), path, "odd-h2")
        assert tunnel.status() == 403, tunnel.headers
        if client == "h2":
            assert tunnel.rest() == b"no"
        until(lambda path=path: odd_h2.seen[path] == "end", "the refused CONNECT to be ended")


def impossible(plain, odd_h1):
    """What the gateway refuses by itself."""
    h2way = ("h2", plain, None)
    for client in ("h1", "h2"):
        details = "upstream_extended_connect_not_supported"
        path = path_of("/ws", status=502, flags="UPE", details=details)
        tunnel = open_tunnel((client, plain, None), path, "silent")
        assert tunnel.status() == 502, tunnel.headers
    tunnel = open_tunnel(h2way, path_of("/wrong-accept", status=502, flags="UPE"), "odd-h1")
    assert tunnel.status() == 502, tunnel.headers
    connection = H2Connection(plain, None)
    assert connection.get(path_of("/unasked", status=502, flags="UPE"), "odd-h1")[0] == 502
    tunnel = connection.request([(":method", "CONNECT"), (":authority", "shop.test:443")])
    assert tunnel.status() == 405, tunnel.headers
    tunnel = connection.connect("/ws", "h1", protocol="h2c")
    assert tunnel.status() == 501, tunnel.headers
    # A client of HTTP/1.1 may ask for HTTP/2, and gets an answer by HTTP/1.1.
    path = path_of("/plain", status=200)
    tunnel = H1Tunnel(plain, None, path, "odd-h1", protocol="h2c", more=[("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA")])
    assert tunnel.status() == 200 and tunnel.headers["content-length"] == "5", tunnel.headers
    _, fields, _ = odd_h1.seen[path]
    assert not {b"upgrade", b"http2-settings"} & set(fields), fields


def drain(plain, tls, pid):
    """Tunnels outlive SIGTERM and GOAWAY until the deadline, and are on record when it cuts them off."""
    ways = [(client, *where) for client in ("h1", "h2") for where in ((plain, None), tls)]
    kept = []
    for way in ways:
        for flags in ("-", "DT"):
            tunnel = open_tunnel(way, path_of("/ws", status=101, flags=flags), "h1")
            assert tunnel.status() == 200
            kept.append((tunnel, WebSocket(tunnel), flags))
    os.kill(pid, signal.SIGTERM)
    for tunnel, _, _ in kept:
        if tunnel.kind == "h2":
            until(lambda tunnel=tunnel: tunnel.connection.gone_away or tunnel.connection.read(), "GOAWAY")
    for _ in range(3):
        for _, frames, _ in kept:
            frames.send(ws.TextMessage("still here"))
            assert frames.message() == "still here"
    for tunnel, frames, flags in kept:
        if flags == "-":
            frames.send(ws.CloseConnection(1000))
            assert isinstance(frames.event(), ws.CloseConnection)
            assert frames.event() is None
            tunnel.end()
    for tunnel, frames, flags in kept:
        if flags == "DT":
            with contextlib.suppress(Reset, OSError):
                while frames.event() is not None:
                    pass


def check_log(path):
    """One line for each request, with what was to be in it."""

    def lines():
        found = {}
        for line in pathlib.Path(path).read_text().splitlines():
            found.setdefault(json.loads(line)["path"], []).append(json.loads(line))
        return found

    until(lambda: expected.keys() <= lines().keys(), "a line for every request")
    found = lines()
    names = {
        "status": "response_code",
        "flags": "response_flags",
        "received": "bytes_received",
        "sent": "bytes_sent",
    }
    for path, line in expected.items():
        assert len(found[path]) == 1, found[path]
        entry = found[path][0]
        assert entry["method"] == "GET", entry
        for key, value in line.items():
            if key == "details":
                assert str(entry["response_code_details"]).startswith(value), entry
            else:
                assert str(entry[names[key]]) == str(value), (key, value, entry)
    return len(expected)


def parse(address):
    host, _, port = address.rpartition(":")
    return host, int(port)


def main():
    parser = argparse.ArgumentParser()
    for name in ("plain", "tls", "ca", "odd-h1", "odd-h2", "silent", "access-log"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--pid", type=int, required=True)
    arguments = parser.parse_args()
    plain = parse(arguments.plain)
    odd_h1 = OddH1(parse(arguments.odd_h1))
    odd_h2 = OddH2(parse(arguments.odd_h2), announce=True)
    OddH2(parse(arguments.silent), announce=False)
    tls = (parse(arguments.tls), ssl.create_default_context(cafile=arguments.ca))
    for client in ("h1", "h2"):
        for where, (address, trust) in (("plaintext", (plain, None)), ("TLS", tls)):
            way = (client, address, trust)
            for upstream in ("h1", "h2"):
                echo(way, upstream)
                refusals(way, upstream)
                odd = {"h1": odd_h1, "h2": odd_h2}[upstream]
                if client == "h2" or trust is None:
                    half_close(way, f"odd-{upstream}")
                upstream_dies(way, f"odd-{upstream}")
                upstream_resets(way, f"odd-{upstream}")
                client_resets(way, f"odd-{upstream}", odd)
                print(f"{client} over {where} to {upstream}: frames, {BULK >> 20} MiB, close, refusals, half-close, resets")
            if client == "h2":
                too_early(way, "odd-h1", odd_h1)
    form_at_upstream(odd_h1, odd_h2, plain)
    impossible(plain, odd_h1)
    drain(plain, tls, arguments.pid)
    print(f"access log: {check_log(arguments.access_log)} requests, one line each, with bytes and flags")


if __name__ == "__main__":
    main()
