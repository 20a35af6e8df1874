"""The part of Airflow's stable REST API (2.x) that is about the runs of a DAG: its paths, ids, methods, statuses and
problem documents.

It has no code for a cache. It prints its port once it accepts connections, and counts the reads that it has answered.
"""

import socket
from collections import Counter
from typing import Dict, List, Optional, Tuple

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel

DAG = "/api/v1/dags/{dag_id}"
RUN = DAG + "/dagRuns/{dag_run_id}"
MANUAL = "manual__2024-01-01T00:00:00+00:00"
SCHEDULED = "scheduled__2024-01-02T06:30:00+00:00"
# Who may read which DAGs.
USERS: Dict[str, List[str]] = {"alice": ["etl", "report"], "bob": ["etl"]}


class State(BaseModel):
    state: str


class Clear(BaseModel):
    dry_run: bool = True


class ClearTasks(BaseModel):
    dag_run_id: Optional[str] = None
    dry_run: bool = True


class NewRun(BaseModel):
    dag_run_id: str


app = FastAPI()
basic = HTTPBasic()
reads: Counter = Counter()
runs: Dict[Tuple[str, str], str] = {
    (dag, run): "running" for dag in ("etl", "report") for run in (MANUAL, SCHEDULED, "manual__1")
}
tasks: Counter = Counter()


@app.exception_handler(HTTPException)
async def problem(_request: Request, error: HTTPException) -> JSONResponse:
    body = {"detail": error.detail, "status": error.status_code, "title": "Error", "type": "about:blank"}
    return JSONResponse(body, error.status_code, error.headers, "application/problem+json")


def caller(dag_id: str, login: HTTPBasicCredentials = Depends(basic)) -> str:
    if login.username not in USERS:
        raise HTTPException(401, "Unauthorized", {"WWW-Authenticate": "Basic"})
    if dag_id not in USERS[login.username]:
        raise HTTPException(403, "Forbidden")
    return login.username


def find(dag_id: str, dag_run_id: str) -> dict:
    if (dag_id, dag_run_id) not in runs:
        raise HTTPException(404, f"DAGRun with DAG ID: '{dag_id}' and DagRun ID: '{dag_run_id}' not found")
    return {
        "dag_id": dag_id,
        "dag_run_id": dag_run_id,
        "run_type": dag_run_id.split("__")[0],
        "state": runs[dag_id, dag_run_id],
    }


@app.get(DAG + "/dagRuns")
async def list_runs(dag_id: str, user: str = Depends(caller)) -> dict:
    found = [find(*key) for key in runs if key[0] == dag_id]
    return {"dag_runs": found, "total_entries": len(found)}


@app.post(DAG + "/dagRuns")
async def trigger(dag_id: str, new: NewRun, user: str = Depends(caller)) -> dict:
    runs[dag_id, new.dag_run_id] = "queued"
    return find(dag_id, new.dag_run_id)


@app.get(RUN)
async def read(dag_id: str, dag_run_id: str, user: str = Depends(caller)) -> dict:
    run = find(dag_id, dag_run_id)
    reads[f"{user} {dag_id}:{dag_run_id}"] += 1
    return run


@app.patch(RUN)
async def set_state(dag_id: str, dag_run_id: str, to: State, user: str = Depends(caller)) -> dict:
    find(dag_id, dag_run_id)
    runs[dag_id, dag_run_id] = to.state
    return find(dag_id, dag_run_id)


@app.delete(RUN, status_code=204)
async def delete(dag_id: str, dag_run_id: str, user: str = Depends(caller)) -> Response:
    find(dag_id, dag_run_id)
    del runs[dag_id, dag_run_id]
    return Response(status_code=204)


@app.post(RUN + "/clear")
async def clear(dag_id: str, dag_run_id: str, how: Clear, user: str = Depends(caller)) -> dict:
    find(dag_id, dag_run_id)
    if not how.dry_run:
        runs[dag_id, dag_run_id] = "queued"
    return find(dag_id, dag_run_id)


@app.get(RUN + "/taskInstances/{task_id}")
async def read_task(dag_id: str, dag_run_id: str, task_id: str, user: str = Depends(caller)) -> dict:
    find(dag_id, dag_run_id)
    reads[f"{user} {dag_id}:{dag_run_id}:{task_id}"] += 1
    return {"task_id": task_id, "dag_run_id": dag_run_id, "try_number": tasks[dag_id, dag_run_id, task_id]}


@app.patch(RUN + "/taskInstances/{task_id}")
async def set_task(dag_id: str, dag_run_id: str, task_id: str, user: str = Depends(caller)) -> dict:
    find(dag_id, dag_run_id)
    tasks[dag_id, dag_run_id, task_id] += 1
    runs[dag_id, dag_run_id] = "running"
    return {"task_id": task_id, "dag_run_id": dag_run_id}


@app.post(DAG + "/clearTaskInstances")
async def clear_tasks(dag_id: str, what: ClearTasks, user: str = Depends(caller)) -> dict:
    if what.dag_run_id is not None and not what.dry_run:
        find(dag_id, what.dag_run_id)
        runs[dag_id, what.dag_run_id] = "queued"
    return {"task_instances": []}


@app.put("/scheduler/{dag_id}/{dag_run_id}")
async def schedule(dag_id: str, dag_run_id: str, to: State) -> dict:
    """The scheduler, which changes a run past the cache."""
    runs[dag_id, dag_run_id] = to.state
    return {}


@app.get("/reads")
async def counted() -> dict:
    return reads


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
