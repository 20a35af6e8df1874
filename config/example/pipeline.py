"""A worker, such as a Celery task: it moves jobs through their stages, directly in the database.

After each commit it purges the job by the signed webhook, and tries again until jobcache confirms the
purge. From then on, clients that poll the job get what the database holds.
"""

import json
import os
import sqlite3
import time
import urllib.request
import uuid
from datetime import datetime, timezone

from standardwebhooks import Webhook

DATABASE = os.environ.get("DATABASE", "jobs.sqlite")
PURGE_URL = os.environ.get("PURGE_URL", "http://127.0.0.1:9090/purge")
SECRET = os.environ["JOBCACHE_WEBHOOK_SECRET"].split()[0]  # the newest first
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "3"))

STAGES = [("PROBING", 10), ("RENDERING", 40), ("ENCODING", 80), ("DONE", 100)]
NEXT = dict(zip(["QUEUED"] + [stage for stage, _ in STAGES], STAGES))
SCHEMA = "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, status TEXT, progress INTEGER)"
SELECT = "SELECT id, status FROM jobs WHERE status NOT IN ('DONE', 'CANCELLED')"
# The old status in the condition keeps a job that was cancelled in the meantime.
UPDATE = "UPDATE jobs SET status = ?, progress = ? WHERE id = ? AND status = ?"


def purge(job_id: str) -> dict:
    """Returns what jobcache has purged. Raises an `OSError` for any answer except a confirmation."""
    body = json.dumps({"job_id": job_id})
    message, now = f"msg_{uuid.uuid4()}", datetime.now(timezone.utc)
    headers = {
        "content-type": "application/json",
        "webhook-id": message,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign(message, now, body),
    }
    request = urllib.request.Request(PURGE_URL, body.encode(), headers)
    with urllib.request.urlopen(request, timeout=5) as response:
        return json.load(response)


def advance(connection: sqlite3.Connection) -> set:
    """Moves each job to its next stage, and returns the jobs that have moved."""
    moved = set()
    for job_id, status in connection.execute(SELECT).fetchall():
        stage, progress = NEXT[status]
        if connection.execute(UPDATE, (stage, progress, job_id, status)).rowcount:
            moved.add(job_id)
            print(f"{job_id} is {stage}")
    return moved


def confirm(unconfirmed: set) -> set:
    """Purges these jobs after their commit, and returns those that have to be tried again."""
    failed = set()
    for job_id in unconfirmed:
        try:
            print(f"purge of {job_id}: {purge(job_id)}")
        except OSError as error:
            # 503: Redis has not confirmed the purge yet. Connection refused: jobcache is restarting.
            print(f"purge of {job_id} is not confirmed: {error}")
            failed.add(job_id)
    return failed


def main() -> None:
    connection = sqlite3.connect(DATABASE, timeout=10, isolation_level=None)
    connection.execute(SCHEMA)
    # The last run may have ended between a commit and its purge.
    unconfirmed = {job_id for (job_id,) in connection.execute("SELECT id FROM jobs")}
    while True:
        unconfirmed = confirm(unconfirmed | advance(connection))
        time.sleep(STEP_SECONDS)


if __name__ == "__main__":
    main()
