"""A job API without any code for a cache: each GET of a job is a database query.

Writes that go through this API need no purge, because they pass through jobcache. `pipeline.py` changes
the same database directly, so it has to purge.
"""

import os
import sqlite3
import uuid
from itertools import count

from fastapi import FastAPI, HTTPException, Response

DATABASE = os.environ.get("DATABASE", "jobs.sqlite")
SCHEMA = "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, status TEXT, progress INTEGER)"
SELECT = "SELECT id, status, progress FROM jobs WHERE id = ?"
FINISHED = ("DONE", "CANCELLED")

app = FastAPI(title="Jobs")
queries = count()
asked = 0


def database() -> sqlite3.Connection:
    """Opens a connection in autocommit mode: each statement is its own transaction."""
    connection = sqlite3.connect(DATABASE, timeout=10, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def find(connection: sqlite3.Connection, job_id: str) -> dict:
    row = connection.execute(SELECT, (job_id,)).fetchone()
    if row is None:
        raise HTTPException(404, "no such job")
    return dict(row)


# With WAL a reader never waits for the pipeline. The database file keeps the mode.
database().execute("PRAGMA journal_mode = WAL")
database().execute(SCHEMA)


@app.post("/jobs", status_code=201)
def create(response: Response) -> dict:
    job_id = str(uuid.uuid4())
    connection = database()
    connection.execute("INSERT INTO jobs VALUES (?, 'QUEUED', 0)", (job_id,))
    response.headers["location"] = f"/jobs/{job_id}"
    return find(connection, job_id)


@app.get("/jobs/{job_id}")
def read(job_id: str) -> dict:
    global asked
    asked = next(queries) + 1
    return find(database(), job_id)


@app.post("/jobs/{job_id}/cancel")
def cancel(job_id: str) -> dict:
    connection = database()
    connection.execute(
        "UPDATE jobs SET status = 'CANCELLED' WHERE id = ? AND status NOT IN (?, ?)",
        (job_id, *FINISHED),
    )
    return find(connection, job_id)


@app.get("/queries")
def spared() -> dict:
    """Returns how many reads of jobs have reached the database."""
    return {"queries": asked}


@app.get("/healthz")
def health() -> dict:
    database().execute("SELECT 1")
    return {"status": "ok"}
