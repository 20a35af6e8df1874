"""Prints what the cache holds of a job, has a worker end the job, and prints the result of that task."""

import sys

import redis
from worker import URL, finish

job = sys.argv[1]
print(redis.Redis.from_url(URL).get(f"job_status:{job}").decode())
print(finish.delay(job).get(timeout=60))
