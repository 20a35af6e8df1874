"""A job API in the style of the asynchronous request-reply pattern: 404 before a job is there, 202 with `Retry-After`
while it runs, 303 to the result when it is done, 410 when it is gone.

It has no code for a cache. It prints its port once it accepts connections, and counts the reads that it has answered.
"""

import asyncio
import socket
from collections import Counter
from typing import Dict

import uvicorn
from fastapi import FastAPI, Header, HTTPException, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel


class New(BaseModel):
    id: str


class Gate(BaseModel):
    closed: bool


app = FastAPI()
reads: Counter = Counter()
jobs: Dict[str, str] = {"e1": "running", "alices1": "running"}
owners = {"alices1": "alice"}
gate = Gate(closed=False)
waiting = 0


def caller(authorization: str = Header("")) -> str:
    return authorization.replace("Bearer ", "") or "nobody"


async def wait_for_gate() -> None:
    global waiting
    waiting += 1
    while gate.closed:
        await asyncio.sleep(0.005)
    waiting -= 1


@app.get("/jobs/{job}")
async def read(job: str, authorization: str = Header("")) -> Response:
    await wait_for_gate()
    reads[f"{caller(authorization)} {job}"] += 1
    status = jobs.get(job) if owners.get(job, caller(authorization)) == caller(authorization) else None
    if status is None:
        raise HTTPException(404, "no such job yet")
    if status == "running":
        return JSONResponse({"id": job, "status": status}, 202, {"Retry-After": "5"})
    if status == "done":
        return Response(status_code=303, headers={"Location": f"/results/{job}"})
    return JSONResponse({"id": job, "status": status}, 410)


@app.post("/jobs", status_code=202)
async def create(new: New) -> Response:
    jobs[new.id] = "running"
    return JSONResponse({"id": new.id}, 202, {"Location": f"/jobs/{new.id}", "Retry-After": "5"})


@app.put("/jobs/{job}/{status}")
async def change(job: str, status: str) -> dict:
    jobs[job] = status
    return {}


@app.delete("/jobs/{job}", status_code=204)
async def delete(job: str) -> Response:
    jobs[job] = "gone"
    return Response(status_code=204)


@app.get("/results/{job}")
async def result(job: str) -> dict:
    return {"id": job, "rows": 42}


@app.put("/worker/{job}/{status}")
async def work(job: str, status: str) -> dict:
    """A worker that changes a job past the cache."""
    jobs[job] = status
    return {}


@app.put("/gate")
async def set_gate(new: Gate) -> dict:
    gate.closed = new.closed
    return {}


@app.get("/waiting")
async def show_waiting() -> int:
    return waiting


@app.get("/reads")
async def counted() -> dict:
    return reads


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
