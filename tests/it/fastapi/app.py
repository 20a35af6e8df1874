"""A job API as teams write it with FastAPI: tokens or a session cookie, owners and shares.

It has no code for a cache. It prints its port once it accepts connections, and counts reads.
"""

import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Dict, Optional, Set

import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

SECRET = secrets.token_hex(32)
AUDIENCE = "jobs"
RATE_LIMIT = 10_000


@dataclass
class Job:
    """A job. Without an `owner`, all users may read it. `view` is plain, personal (body) or tagged (ETag)."""

    owner: Optional[str]
    view: str = "plain"
    status: str = "running"
    version: int = 1
    shared: Set[str] = field(default_factory=set)
    reads: Dict[str, int] = field(default_factory=dict)


class Login(BaseModel):
    user: str
    lifetime: int = 3600
    audience: str = AUDIENCE


class Change(BaseModel):
    status: str


class Share(BaseModel):
    user: str


class Clock(BaseModel):
    ahead: int


app = FastAPI()
bearer = HTTPBearer(auto_error=False)
sessions: Dict[str, str] = {}
calls: Dict[str, int] = {}
clock = Clock(ahead=0)
jobs = {
    "warm-up1": Job(owner=None),
    "alices1": Job(owner="alice"),
    "bobs1": Job(owner="bob"),
    "shared1": Job(owner="alice", shared={"bob"}),
    "personal1": Job(owner="alice", shared={"bob"}, view="personal"),
    "tagged1": Job(owner="alice", shared={"bob"}, view="tagged"),
}


def viewer(
    request: Request, token: Optional[HTTPAuthorizationCredentials] = Depends(bearer)
) -> Optional[str]:
    if token is not None:
        try:
            # A negative leeway moves the clock with which `exp` is compared.
            claims = jwt.decode(
                token.credentials,
                SECRET,
                algorithms=["HS256"],
                audience=AUDIENCE,
                leeway=-clock.ahead,
                options={"require": ["exp", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise HTTPException(401, "invalid token") from error
        return claims["sub"]
    return sessions.get(request.cookies.get("session", ""))


def find(job_id: str) -> Job:
    if job_id not in jobs:
        raise HTTPException(404, "no such job")
    return jobs[job_id]


def allow(user: Optional[str], readers: Set[Optional[str]]) -> None:
    if user is None:
        raise HTTPException(401, "not authenticated")
    if user not in readers:
        raise HTTPException(403, "not your job")


@app.get("/jobs/{job_id}")
async def read(job_id: str, response: Response, user: Optional[str] = Depends(viewer)) -> dict:
    job = find(job_id)
    if job.owner is not None:
        allow(user, {job.owner, *job.shared})
    name = user or "nobody"
    job.reads[name] = job.reads.get(name, 0) + 1
    calls[name] = calls.get(name, 0) + 1
    response.headers["x-ratelimit-remaining"] = str(RATE_LIMIT - calls[name])
    view = {"id": job_id, "status": job.status, "version": job.version}
    if job.view == "personal":
        view["viewer"] = name
    if job.view == "tagged":
        response.headers["etag"] = f'"{name}-{job.version}"'
    return view


@app.put("/jobs/{job_id}")
async def change(job_id: str, change: Change, user: Optional[str] = Depends(viewer)) -> dict:
    job = find(job_id)
    allow(user, {job.owner})
    job.status, job.version = change.status, job.version + 1
    return {"id": job_id, "version": job.version}


@app.post("/jobs/{job_id}/share")
async def share(job_id: str, to: Share, user: Optional[str] = Depends(viewer)) -> dict:
    job = find(job_id)
    allow(user, {job.owner})
    job.shared.add(to.user)
    return {"shared": sorted(job.shared)}


@app.delete("/jobs/{job_id}/share/{other}")
async def revoke(job_id: str, other: str, user: Optional[str] = Depends(viewer)) -> dict:
    job = find(job_id)
    allow(user, {job.owner})
    job.shared.discard(other)
    return {"shared": sorted(job.shared)}


@app.post("/login")
async def login(who: Login, response: Response) -> dict:
    """Logs a user in, without a password, because passwords are not under test."""
    # With `jti`, two tokens of one user differ.
    claims = {
        "sub": who.user,
        "aud": who.audience,
        "exp": int(time.time()) + who.lifetime,
        "jti": secrets.token_hex(8),
    }
    session = secrets.token_hex(16)
    sessions[session] = who.user
    response.set_cookie("session", session, httponly=True)
    return {"token": jwt.encode(claims, SECRET, algorithm="HS256"), "session": session}


@app.get("/reads/{job_id}")
async def reads(job_id: str) -> dict:
    return find(job_id).reads


@app.put("/clock")
async def set_clock(new: Clock) -> dict:
    clock.ahead = new.ahead
    return {"ahead": clock.ahead}


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
