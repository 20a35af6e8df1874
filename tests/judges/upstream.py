#!/usr/bin/env python3
"""The upstream of the judges. Usage: upstream.py PORT, or upstream.py digest for the SHA-256 of /huge

GET /jobs/<id> returns JSON, GET /slow/<id> the same after 5 s, and GET /huge 200 MiB of a known pattern.
POST returns the SHA-256 of the request body.
"""
import asyncio
import hashlib
import sys

PART = bytes(range(256)) * 1024
PARTS = (200 << 20) // len(PART)


async def body_of(reader, headers):
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    left = int(headers.get("content-length", 0))
    while left:
        data = await reader.read(min(left, 1 << 16))
        if not data:
            raise EOFError
        left -= len(data)
        yield data


async def exchange(reader, writer):
    method, path, _ = (await reader.readline()).decode().split(" ", 2)
    headers = {}
    while (line := (await reader.readline()).decode().strip()):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    digest = hashlib.sha256()
    async for data in body_of(reader, headers):
        digest.update(data)
    if path == "/huge":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (PARTS * len(PART)))
        for _ in range(PARTS):
            writer.write(PART)
            await writer.drain()
        return
    if path.startswith("/slow"):
        await asyncio.sleep(5)
    text = digest.hexdigest() if method == "POST" else '{"path":"%s","status":"running"}' % path
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(text), text.encode()))
    await writer.drain()


async def serve(reader, writer):
    try:
        while True:
            await exchange(reader, writer)
    except (OSError, EOFError, ValueError):
        pass
    finally:
        writer.close()


async def main():
    if sys.argv[1] == "digest":
        whole = hashlib.sha256()
        for _ in range(PARTS):
            whole.update(PART)
        return print(whole.hexdigest())
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


asyncio.run(main())
