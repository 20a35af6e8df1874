"""Tasks of an application whose queue, results and cached jobs are all in the Redis of one URL."""

import os

import redis
from celery import Celery

URL = os.environ["REDIS_URL"]

app = Celery("jobs", broker=URL, backend=URL)
app.conf.broker_connection_retry_on_startup = True


@app.task
def finish(job):
    """Ends a job, and drops it from the cache as any application may."""
    return redis.Redis.from_url(URL).delete(f"job_status:{job}")
