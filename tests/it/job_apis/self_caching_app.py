"""A job API that caches its jobs itself, in the keys that jobcache uses, as many do before they install it.

It takes every value under the key for a job, so it answers 500 when it finds anything else. It does not store jobs whose
name begins with "unstored". It prints its port once it
accepts connections, and counts the reads that it has answered.
"""

import json
import os
import socket
from collections import Counter

import redis.asyncio
import uvicorn
from fastapi import FastAPI

app = FastAPI()
cache = redis.asyncio.from_url(os.environ["REDIS_URL"])
reads: Counter = Counter()
jobs: Counter = Counter()


@app.get("/jobs/{job}")
async def read(job: str) -> dict:
    reads[job] += 1
    cached = await cache.get(f"job_status:{job}")
    if cached is not None:
        return json.loads(cached)
    answer = {"id": job, "version": jobs[job]}
    if not job.startswith("unstored"):
        await cache.set(f"job_status:{job}", json.dumps(answer), ex=30)
    return answer


@app.put("/jobs/{job}")
async def change(job: str) -> dict:
    jobs[job] += 1
    await cache.delete(f"job_status:{job}")
    return {"id": job, "version": jobs[job]}


@app.get("/reads")
async def counts() -> Counter:
    return reads


listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([listener])
