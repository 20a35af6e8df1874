"""A job API of several tenants, as teams write it with FastAPI: each caller has a JWT that names its tenants.

It has no code for a cache. It prints its port once it accepts connections, and counts the reads that it has answered.
"""

import secrets
import socket
from collections import Counter
from typing import Dict, List, Tuple

import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

# Fixed, so that a token is good for every process of a test.
SECRET = "only-for-tests"


class Login(BaseModel):
    user: str
    tenants: List[str]


class Change(BaseModel):
    status: str


class Move(BaseModel):
    job: str


app = FastAPI()
reads: Counter = Counter()
jobs: Dict[Tuple[str, str], str] = {
    (tenant, job): "running" for tenant in ("acme", "globex") for job in ("1", "17", "18")
}


def caller(tenant: str, token: HTTPAuthorizationCredentials = Depends(HTTPBearer())) -> str:
    """Returns the name of a caller who may use this tenant."""
    try:
        claims = jwt.decode(token.credentials, SECRET, algorithms=["HS256"])
    except jwt.PyJWTError as error:
        raise HTTPException(401, "invalid token") from error
    if tenant not in claims["tenants"]:
        raise HTTPException(403, "not your tenant")
    return claims["sub"]


def check(tenant: str, job: str) -> None:
    if (tenant, job) not in jobs:
        raise HTTPException(404, "no such job")


@app.get("/t/{tenant}/jobs/latest")
async def latest(tenant: str, user: str = Depends(caller)) -> dict:
    return {"id": max(job for (owner, job) in jobs if owner == tenant)}


@app.get("/t/{tenant}/jobs/{job}")
async def read(tenant: str, job: str, user: str = Depends(caller)) -> dict:
    check(tenant, job)
    reads[f"{user} {tenant}:{job}"] += 1
    return {"tenant": tenant, "id": job, "status": jobs[tenant, job]}


@app.put("/t/{tenant}/jobs/{job}")
async def change(tenant: str, job: str, change: Change, user: str = Depends(caller)) -> dict:
    check(tenant, job)
    jobs[tenant, job] = change.status
    return {"tenant": tenant, "id": job}


@app.post("/t/{tenant}/moves")
async def move(tenant: str, move: Move, user: str = Depends(caller)) -> dict:
    check(tenant, move.job)
    jobs[tenant, move.job] = "moved"
    return {"moved": move.job}


@app.put("/worker/{tenant}/{job}")
async def work(tenant: str, job: str, change: Change) -> dict:
    """A worker that changes a job past the cache."""
    jobs[tenant, job] = change.status
    return {}


@app.post("/login")
async def login(who: Login) -> dict:
    """Logs a user in, without a password, because passwords are not under test."""
    claims = {"sub": who.user, "tenants": who.tenants, "jti": secrets.token_hex(8)}
    return {"token": jwt.encode(claims, SECRET, algorithm="HS256")}


@app.get("/reads")
async def counted() -> dict:
    return reads


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
