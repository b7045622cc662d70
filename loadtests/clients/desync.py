"""Each request of http-desync-guardian, raw, through a gateway to an upstream that records what reaches it.

Severe requests must get 400, the connection must close, and nothing may reach the upstream. Others may be refused, or
forwarded in one unambiguous form. What is compliant and has its body must be forwarded.
"""

import argparse
import pathlib
import re
import socket
import threading

import yaml

BOUND = 5
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t\x20-\x7e\x80-\xff]*")


class Recorder:
    """An upstream that keeps the bytes of each connection and answers every head that it sees end."""

    def __init__(self, address):
        self.connections = []
        self.lock = threading.Lock()
        self.listener = socket.create_server(address)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.record, args=(connection,), daemon=True).start()

    def record(self, connection):
        received = bytearray()
        with self.lock:
            self.connections.append(received)
        while piece := connection.recv(65536):
            with self.lock:
                ended = received.count(b"\r\n\r\n")
                received += piece
                answered = received.count(b"\r\n\r\n") - ended
            # A chunked body's end looks like a head's; one answer too many closes the connection, which is harmless.
            if answered:
                connection.sendall(ANSWER)

    def take(self):
        """The bytes since the last call."""
        with self.lock:
            received = [bytes(connection) for connection in self.connections]
            for connection in self.connections:
                connection.clear()
        return b"".join(received)


def raw(text):
    """YAML escapes stand for single bytes."""
    return str("" if text is None else text).encode("latin-1", "replace")


def names(case):
    return [raw(header["name"]).strip().lower() for header in case.get("headers") or []]


def request(case):
    """The case as bytes, ended by a body of the framing that it declares."""
    lines = [b" ".join(filter(None, (raw(case["method"]), raw(case["uri"]), raw(case["version"]))))]
    if b"host" not in names(case):
        lines.append(b"Host: shop.test")
    lines += [raw(header["name"]) + b": " + raw(header["value"]) for header in case.get("headers") or []]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if b"transfer-encoding" in names(case):
        return head + b"0\r\n\r\n"
    return head + b"x" * declared_length(case)


def declared_length(case):
    lengths = [raw(h["value"]).strip() for h in case.get("headers") or [] if raw(h["name"]).strip().lower() == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() and len(lengths[0]) < 6 else 0


def exchange(gateway, data):
    """The status that the gateway answers with, and whether it then closed."""
    with socket.create_connection(gateway, BOUND) as connection:
        connection.settimeout(BOUND)
        answer = bytearray()
        try:
            connection.sendall(data)
            while b"\r\n\r\n" not in answer:
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
            status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/") else 0
            return status, closes(connection) if status == 400 else False
        except ConnectionResetError:
            status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/") else 0
            return status, True
        except TimeoutError:
            return 0, False


def closes(connection):
    try:
        while connection.recv(65536):
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def ambiguity(forwarded):
    """Why the forwarded bytes could be read in two ways; None when they cannot."""
    head = forwarded.split(b"\r\n\r\n")[0]
    line, *headers = head.split(b"\r\n")
    if not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e\x80-\xff]+ HTTP/1\.1", line):
        return f"request line {line!r}"
    for header in headers:
        if not HEADER.fullmatch(header):
            return f"header {header!r}"
    found = [header.split(b":")[0].lower() for header in headers]
    if found.count(b"content-length") + found.count(b"transfer-encoding") > 1:
        return f"framing headers {found}"
    if found.count(b"host") != 1:
        return f"{found.count(b'host')} Host headers"
    for header in headers:
        name, value = header.split(b":", 1)
        value = value.strip(b" \t")
        if name.lower() == b"content-length" and not value.isdigit():
            return f"header {header!r}"
        if name.lower() == b"transfer-encoding" and value != b"chunked":
            return f"header {header!r}"
    return None


def judge(case, status, closed, forwarded):
    """What is wrong; None when nothing is."""
    tier = case["expected"]["tier"]
    if status == 400:
        if tier == "Compliant":
            return "a compliant request was refused"
        if forwarded:
            return f"refused, but this reached the upstream: {forwarded!r}"
        return None if closed else "refused, but the connection stayed open"
    if tier == "Severe":
        return f"severe, but answered {status}; forwarded {forwarded!r}"
    if status == 200 and forwarded:
        return ambiguity(forwarded)
    if 400 <= status < 600 and not forwarded:
        return None if tier != "Compliant" else f"a compliant request got {status}"
    return f"answered {status}; forwarded {forwarded!r}"


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main():
    parser = argparse.ArgumentParser()
    for name in ("cases", "gateway", "upstream"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    recorder = Recorder(address(arguments.upstream))
    gateway = address(arguments.gateway)
    counts, failures = {}, []
    for file in sorted(pathlib.Path(arguments.cases).glob("*.yaml")):
        for case in yaml.safe_load(file.read_text()) or []:
            data = request(case)
            status, closed = exchange(gateway, data)
            forwarded = recorder.take()
            wrong = judge(case, status, closed, forwarded)
            if wrong:
                failures.append(f"{file.name}: {case['name']}: {wrong}\n    sent {data[:300]!r}")
            key = (case["expected"]["tier"], status)
            counts[key] = counts.get(key, 0) + 1
    for (tier, status), count in sorted(counts.items()):
        print(f"{tier}: {count} answered {status}")
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
