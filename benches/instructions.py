#!/usr/bin/env python3
"""Instructions per request, counted by callgrind. The counts do not depend on the load of the machine.

    cargo build --release && benches/instructions.py [--binary PATH] [--json]
    CARGO_PROFILE_RELEASE_DEBUG=line-tables-only cargo build --release && benches/instructions.py --files

Needs `valgrind` and `redis-server` (Debian's packages). jobcache runs under callgrind with one worker, a real
Redis and an API of 600-byte jobs. Each kind of request is sent over one connection, 200 times and 1,200 times
in two runs; the difference divided by 1,000 is the count of one request. Start and shutdown cancel out.
With --files it also prints the files of src that each kind of request enters: those with more instructions in
the longer run, by the line table of the binary. Inlined functions count for the file that they are written in.
"""
import argparse, collections, json, os, re, signal, socket, subprocess, sys, tempfile, threading, time

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


def send_read(method, path, extra=b''):
    return lambda client, _admin, n: exchange(client, *((part(n) if callable(part) else part)
                                                       for part in (path, extra, method)))


def send_purge(_client, admin, n):
    body = b'{"job_id":"%d"}' % (n + 1000)
    admin.sendall(b'POST /purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
    answer = b''
    while b'}' not in answer:
        answer += admin.recv(65536)
    return answer.decode()


# Name, settings, how request n is sent, what its Cache-Status (the answer to a purge) has to contain.
KINDS = [
    ('hit, repeated head', {}, send_read(b'GET', b'/jobs/7'), 'hit'),
    ('hit, another head', {}, send_read(b'GET', b'/jobs/7', lambda n: b'traceparent: 00-%032x-%016x-01\r\n' % (n + 1, n + 1)), 'hit'),
    ('hit, bounded', {'JOBCACHE_NEAR': 'bounded'}, send_read(b'GET', b'/jobs/7'), 'hit'),
    ('hit, from Redis', {'JOBCACHE_NEAR': 'off'}, send_read(b'GET', b'/jobs/7'), 'hit'),
    ('hit, 64 routes', {'JOBCACHE_ROUTES': ','.join([*('/r%d/{id}' % n for n in range(63)), '/jobs/{id}'])},
     send_read(b'GET', b'/jobs/7'), 'hit'),
    ('hit, two variables', {'JOBCACHE_ROUTES': '/t/{tenant}/jobs/{id},/jobs/{id}'},
     send_read(b'GET', b'/t/acme/jobs/7'), 'jobcache'),
    ('pass', {}, send_read(b'GET', b'/other'), 'path'),
    ('miss', {}, send_read(b'GET', lambda n: b'/jobs/%d' % (n + 1000)), 'stored'),
    ('write', {}, send_read(b'POST', lambda n: b'/jobs/%d/cancel' % (n + 1000), b'Content-Length: 0\r\n'), 'method'),
    ('purge', {}, send_purge, '200 OK'),
]


def costs(profile, source):
    """Instructions by file of source/src, and all of them."""
    names, by_file, file, skip = {}, collections.Counter(), '', False
    for line in profile:
        if found := re.match(r'(?:fl|fi|fe)=\((\d+)\)(?: (.*))?', line):
            file = names.setdefault(found[1], found[2] or '')
        elif line.startswith('calls='):
            skip = True  # The next line repeats the cost of the callee.
        elif found := re.match(r'[+\-*\d]\S* (\d+)$', line.strip()):
            if not skip:
                by_file[file] += int(found[1])
            skip = False
    own = collections.Counter()
    for name, cost in by_file.items():
        found = re.search(r'(?:^|/)src/(.*\.rs)$', name)
        if found and not re.search('/(registry|library)/', name) and os.path.exists(f'{source}/src/{found[1]}'):
            own[found[1]] += cost
    return own, sum(by_file.values())


def count(binary, source, settings, send, expected, requests, redis, api):
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
            operator = connect(admin, time.monotonic() + 60)
            for n in range(requests):
                status = send(conn, operator, n)
                if expected not in status:
                    sys.exit(f'request {n}: the answer says "{status}", expected "{expected}"')
            conn.close()
            operator.close()
        finally:
            sidecar.send_signal(signal.SIGTERM)
            sidecar.wait(60)
        with open(out, encoding='utf-8') as file:
            return costs(file, source)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--binary', default='target/release/jobcache')
    parser.add_argument('--source', default='.', help='the checkout that the binary was built from')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--files', action='store_true', help='print the files that each kind of request enters')
    args = parser.parse_args()
    api = socket.create_server(('127.0.0.1', 0))
    threading.Thread(target=serve_api, args=(api,), daemon=True).start()
    port, found = free_port(), {}
    redis = subprocess.Popen(['redis-server', '--port', str(port), '--save', '', '--bind', '127.0.0.1'],
                             stdout=subprocess.DEVNULL)
    try:
        connect(port, time.monotonic() + 20).close()
        for name, settings, send, expected in KINDS:
            (few_files, few), (many_files, many) = (
                count(args.binary, args.source, settings, send, expected, n, port, api.getsockname()[1]) for n in (FEW, MANY))
            found[name] = round((many - few) / (MANY - FEW))
            # A file that a request enters costs an instruction a request or more.
            entered = {file: round((cost - few_files[file]) / (MANY - FEW)) for file, cost in many_files.items()
                       if cost - few_files[file] >= MANY - FEW}
            if args.json:
                continue
            print(f'{name:20} {found[name]:>9,}' + f'  {len(entered)} files' * args.files, flush=True)
            for file, cost in sorted(entered.items(), key=lambda entry: -entry[1]) if args.files else ():
                print(f'    {cost:>7,} {file}')
    finally:
        redis.terminate()
        redis.wait()
    if args.json:
        print(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()
