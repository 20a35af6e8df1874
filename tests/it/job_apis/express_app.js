// A job API as teams write it with Express, for a queue whose ids have colons: `rq:job:1`.
//
// It has no code for a cache. It prints its port once it accepts connections, and counts the reads that it has answered.

'use strict';

const express = require('express');

const jobs = new Map(['rq:job:0', 'rq:job:1', 'rq:job:2', 'celery-task-meta-7', 'stats'].map((id) => [id, 'running']));
const owners = new Map([['celery-task-meta-7', 'alice']]);
const reads = {};
const app = express();
app.use(express.json());

const caller = (request) => (request.get('authorization') || '').replace('Bearer ', '');

app.use('/jobs', (request, response, next) => {
  if (['alice', 'bob'].includes(caller(request))) return next();
  response.status(401).json({ error: 'not authenticated' });
});

app.param('id', (request, response, next, id) => {
  if (!jobs.has(id)) return response.status(404).json({ error: 'no such job' });
  if (owners.has(id) && owners.get(id) !== caller(request)) return response.status(403).json({ error: 'not your job' });
  next();
});

app.get('/jobs/:id', (request, response) => {
  const { id } = request.params;
  const name = `${caller(request)} ${id}`;
  reads[name] = (reads[name] || 0) + 1;
  response.json({ id, status: jobs.get(id) });
});

app.patch('/jobs/:id', (request, response) => {
  jobs.set(request.params.id, request.body.status);
  response.json({ id: request.params.id });
});

app.post('/jobs/:id/retry', (request, response) => {
  jobs.set(request.params.id, 'queued');
  response.json({ id: request.params.id });
});

app.delete('/jobs/:id', (request, response) => {
  jobs.delete(request.params.id);
  response.sendStatus(204);
});

// A worker that changes a job past the cache.
app.put('/worker/:worked', (request, response) => {
  jobs.set(request.params.worked, request.body.status);
  response.json({});
});

app.get('/reads', (request, response) => response.json(reads));

const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port));
