#!/usr/bin/env python3
"""Instructions per request, counted by callgrind. The counts do not depend on the load of the machine.

    cargo build --release && benches/instructions.py [--binary PATH] [--json]

Needs `valgrind` and `redis-server` (Debian's packages). jobcache runs under callgrind with one worker, a real
Redis and an API of 600-byte jobs. Each kind of request is sent over one connection, 200 times and 1,200 times
in two runs; the difference divided by 1,000 is the count of one request. Start and shutdown cancel out.
"""
import argparse, json, os, re, signal, socket, subprocess, sys, tempfile, threading, time

BODY = b'{"status":"running","log":"' + b'x' * 571 + b'"}'
FEW, MANY = 200, 1200


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def serve_api(listener):
    """Answers every request with the same job, without parsing more than the end of the head."""
    answer = (b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n'
              b'Content-Length: %d\r\n\r\n' % len(BODY)) + BODY

    def answer_all(conn):
        data = b''
        while chunk := conn.recv(65536):
            data += chunk
            while (end := data.find(b'\r\n\r\n')) >= 0:
                data = data[end + 4:]
                conn.sendall(answer)

    while True:
        try:
            conn, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=answer_all, args=(conn,), daemon=True).start()


def connect(port, deadline):
    while True:
        try:
            return socket.create_connection(('127.0.0.1', port), timeout=60)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def exchange(conn, path, extra=b'', method=b'GET'):
    conn.sendall(method + b' ' + path + b' HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer t\r\n'
                 b'Accept: application/json\r\n' + extra + b'\r\n')
    data = b''
    while b'\r\n\r\n' not in data:
        data += conn.recv(65536)
    head, body = data.split(b'\r\n\r\n', 1)
    length = int(re.search(rb'(?i)content-length: (\d+)', head)[1])
    while len(body) < length:
        body += conn.recv(65536)
    return re.search(rb'(?i)cache-status: ([^\r]*)', head)[1].decode()


# Name, settings, how request n looks, what its Cache-Status has to contain.
KINDS = [
    ('hit, repeated head', {}, lambda n: (b'/jobs/7', b'', b'GET'), 'hit'),
    ('hit, another head', {}, lambda n: (b'/jobs/7', b'traceparent: 00-%032x-%016x-01\r\n' % (n + 1, n + 1), b'GET'), 'hit'),
    ('hit, bounded', {'JOBCACHE_NEAR': 'bounded'}, lambda n: (b'/jobs/7', b'', b'GET'), 'hit'),
    ('hit, from Redis', {'JOBCACHE_NEAR': 'off'}, lambda n: (b'/jobs/7', b'', b'GET'), 'hit'),
    ('pass', {}, lambda n: (b'/other', b'', b'GET'), 'path'),
    ('miss', {}, lambda n: (b'/jobs/%d' % (n + 1000), b'', b'GET'), 'stored'),
    ('write', {}, lambda n: (b'/jobs/%d/cancel' % (n + 1000), b'Content-Length: 0\r\n', b'POST'), 'method'),
]


def count(binary, settings, request, expected, requests, redis, api):
    subprocess.run(['redis-cli', '-p', str(redis), 'flushall'], stdout=subprocess.DEVNULL, check=True)
    port, admin = free_port(), free_port()
    env = {**os.environ, 'JOBCACHE_LISTEN': f'127.0.0.1:{port}', 'JOBCACHE_ADMIN': f'127.0.0.1:{admin}',
           'JOBCACHE_UPSTREAM': f'http://127.0.0.1:{api}', 'JOBCACHE_REDIS_URL': f'redis://127.0.0.1:{redis}',
           'JOBCACHE_STORE_BUDGET': '10s', 'JOBCACHE_SERVER_WORKERS': '1', 'JOBCACHE_LOG': 'error',
           'JOBCACHE_UPSTREAM_IDLE_TIMEOUT': '1h', **settings}
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, 'callgrind.out')
        command = ['valgrind', '--tool=callgrind', f'--callgrind-out-file={out}', binary]
        sidecar = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            conn = connect(port, time.monotonic() + 60)
            deadline = time.monotonic() + 60
            # A path without a job connects the upstream; a job is a hit once the store is up.
            exchange(conn, b'/other')
            while 'hit' not in exchange(conn, b'/jobs/7'):
                if time.monotonic() > deadline:
                    sys.exit('no hit within 60 s')
                time.sleep(0.1)
            for n in range(requests):
                status = exchange(conn, *request(n))
                if expected not in status:
                    sys.exit(f'request {n}: Cache-Status is "{status}", expected "{expected}"')
            conn.close()
        finally:
            sidecar.send_signal(signal.SIGTERM)
            sidecar.wait(60)
        with open(out, encoding='utf-8') as file:
            return int(re.search(r'^(?:summary|totals): (\d+)', file.read(), re.M)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--binary', default='target/release/jobcache')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args()
    api = socket.create_server(('127.0.0.1', 0))
    threading.Thread(target=serve_api, args=(api,), daemon=True).start()
    port, found = free_port(), {}
    redis = subprocess.Popen(['redis-server', '--port', str(port), '--save', '', '--bind', '127.0.0.1'],
                             stdout=subprocess.DEVNULL)
    try:
        connect(port, time.monotonic() + 20).close()
        for name, settings, request, expected in KINDS:
            few, many = (count(args.binary, settings, request, expected, n, port, api.getsockname()[1])
                         for n in (FEW, MANY))
            found[name] = round((many - few) / (MANY - FEW))
            if not args.json:
                print(f'{name:20} {found[name]:>9,}', flush=True)
    finally:
        redis.terminate()
        redis.wait()
    if args.json:
        print(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()
