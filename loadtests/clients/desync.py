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
PATIENCE = 0.05
REFUSALS = (400, 501)
# Compliant when the cases were written, but a strict gateway must or may refuse them.
STRICTER = {
    "Different Transfer-Encoding headers": "RFC 9112 section 6.1: a coding that is not understood is 501",
    "Different Transfer-Encoding headers combined": "RFC 9112 section 6.1",
    "Transfer-Encoding with a param: chunked;custom_param": "RFC 9112 section 7: chunked takes no parameters",
    "Correct TE OK": "RFC 9112 section 6.1",
    "Transfer-Encoding: identity and chunked OK": "RFC 9112 section 7.2 removed identity",
    "Multiple transfer encoding headers in a single request OK": "RFC 9112 section 6.1",
    "TE with custom parameters OK": "RFC 9112 section 7",
    "Compliant URL": "RFC 9112 section 3.2: a request-target has no fragment and no such characters",
    "International in URI": "RFC 9112 section 3.2: a request-target is ASCII",
    "Empty URI": "RFC 9112 section 3: a request line without its target",
}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t\x20-\x7e\x80-\xff]*")


class Recorder:
    """An upstream that keeps the bytes of each connection; one answer per connection, so that each is one request."""

    def __init__(self, address):
        self.connections = []
        self.lock = threading.Lock()
        self.listener = socket.create_server(address)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            received = bytearray()
            thread = threading.Thread(target=self.record, args=(connection, received), daemon=True)
            with self.lock:
                self.connections.append((thread, received))
                thread.start()

    def record(self, connection, received):
        answered = False
        with connection:
            try:
                while not finished(received):
                    try:
                        piece = connection.recv(65536)
                    except TimeoutError:
                        # A body that never comes must not keep the gateway from answering.
                        connection.settimeout(BOUND)
                        connection.sendall(ANSWER)
                        answered = True
                        continue
                    if not piece:
                        return
                    received += piece
                    if not answered:
                        connection.settimeout(4 * PATIENCE)
                if not answered:
                    connection.sendall(ANSWER)
            except OSError:
                pass  # How the gateway ends a connection is not what is judged here.

    def take(self):
        """The requests since the last call."""
        with self.lock:
            taken, self.connections = self.connections, []
        for thread, _ in taken:
            thread.join(BOUND)
        return [bytes(received) for _, received in taken if received]


def finished(received):
    """Whether a forwarded request has arrived with its body."""
    head, end, body = bytes(received).partition(b"\r\n\r\n")
    if not end:
        return False
    if re.search(rb"\r\ntransfer-encoding:", head, re.I):
        return body.endswith(b"0\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
    return len(body) >= (int(length[1]) if length else 0)


def raw(text):
    """YAML escapes stand for single bytes; what no byte can hold is UTF-8."""
    return b"".join(
        bytes([ord(char)]) if ord(char) < 256 else char.encode() for char in str("" if text is None else text)
    )


def headers(case):
    return [(raw(header["name"]), raw(header["value"])) for header in case.get("headers") or []]


def request(case):
    """The case as bytes, ended by a body of the framing that it declares."""
    lines = [b" ".join([raw(case["method"]), raw(case["uri"]), raw(case["version"])]).rstrip(b" ")]
    names = [name.strip().lower() for name, _ in headers(case)]
    if b"host" not in names:
        lines.append(b"Host: shop.test")
    lines += [name + b": " + value for name, value in headers(case)]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if b"transfer-encoding" in names:
        return head + b"0\r\n\r\n"
    lengths = [value.strip() for name, value in headers(case) if name.strip().lower() == b"content-length"]
    declared = lengths and re.fullmatch(rb"[0-9]{1,7}", lengths[0])
    return head + b"x" * (int(lengths[0]) if declared else 0)


def exchange(gateway, data):
    """The statuses that the gateway answers with, and whether it then closed."""
    answer = bytearray()
    closed = False
    with socket.create_connection(gateway, BOUND) as connection:
        connection.settimeout(BOUND)
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
                # A refusal must be followed by the end; an answer only if it was to a smuggled request too.
                if b"\r\n\r\n" in answer and statuses(answer)[0] not in REFUSALS:
                    connection.settimeout(PATIENCE)
            closed = True
        except (ConnectionResetError, BrokenPipeError):
            closed = True
        except TimeoutError:
            pass
    return statuses(answer) or [0], closed


def statuses(answer):
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def ambiguity(forwarded):
    """Why a forwarded request could be read in two ways; None when it cannot."""
    head, _, body = forwarded.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    if not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e\x80-\xff]+ HTTP/1\.1", line):
        return f"request line {line!r}"
    for header in lines:
        if not HEADER.fullmatch(header):
            return f"header {header!r}"
    pairs = [(name.lower(), value.strip(b" \t")) for name, _, value in (header.partition(b":") for header in lines)]
    framing = [(name, value) for name, value in pairs if name in (b"content-length", b"transfer-encoding")]
    if len(framing) > 1:
        return f"framing headers {framing}"
    if [name for name, _ in pairs].count(b"host") != 1:
        return f"not one Host header in {pairs}"
    match framing:
        case []:
            return f"a body without a length: {body[:80]!r}" if body else None
        case [(b"content-length", value)] if value.isdigit():
            # Fewer are a request that was cut short, which nobody takes for another.
            return None if len(body) <= int(value) else f"length {value} with {len(body)} bytes of body"
        case [(b"transfer-encoding", value)] if value.lower() == b"chunked":
            return None if b"0\r\n\r\n".startswith(body) else f"chunked body {body[:80]!r}"
    return f"framing header {framing}"


def judge(case, status, closed, forwarded):
    """What is wrong; None when nothing is."""
    tier = case["expected"]["tier"]
    must_forward = tier == "Compliant" and case["name"] not in STRICTER
    if len(status) > 1 or len(forwarded) > 1:
        return f"read as {max(len(status), len(forwarded))} requests; forwarded {forwarded!r:.300}"
    if status[0] in REFUSALS:
        if must_forward:
            return f"a compliant request got {status[0]}"
        if forwarded:
            return f"refused, but this reached the upstream: {forwarded!r:.300}"
        return None if closed else "refused, but the connection stayed open"
    if tier == "Severe":
        return f"severe, but answered {status[0]}; forwarded {forwarded!r:.300}"
    if status[0] == 200 and forwarded:
        return ambiguity(forwarded[0])
    if status[0] == 505 and not forwarded and not must_forward:
        return None
    return f"answered {status[0]}; forwarded {forwarded!r:.300}"


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
                failures.append(f"{file.name}: {case['name']}: {wrong}\n    sent {data!r:.300}")
            key = (case["expected"]["tier"], status[0])
            counts[key] = counts.get(key, 0) + 1
    for (tier, status), count in sorted(counts.items()):
        print(f"{tier}: {count} answered {status}")
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
