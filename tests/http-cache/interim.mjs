// Tests of interim responses, which the published suite lacks: 102 and 103 must reach the client, and the
// final response must be stored. Prints results in the format of the suite.

import http from 'node:http'
import { once } from 'node:events'

const base = new URL(process.argv[2])
const upstreamPort = Number(process.argv[3])
const DEADLINE_MS = 5000

const HINTS = { link: '</styles.css>; rel=preload; as=style', 'x-hint': 'test' }
const SCENARIOS = [
  { id: 'interim-102', status: 102, headers: {} },
  { id: 'interim-103', status: 103, headers: HINTS }
]

// A raw server, because node's server cannot send a 103 with headers other than Link.
function interim ({ status, headers }) {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${status} Interim\r\n${lines.join('')}\r\n`
}

let reads = 0
const upstream = http.createServer((request, response) => {
  const scenario = SCENARIOS.find(({ id }) => request.url === `/test/${id}`)
  response.socket.write(interim(scenario))
  response.setHeader('Cache-Control', 'max-age=3600')
  response.end(`read ${++reads}`)
})
upstream.listen(upstreamPort, '127.0.0.1')
await once(upstream, 'listening')

// Resolves to the final body and to the interim responses that came before it.
function get (id) {
  return new Promise((resolve, reject) => {
    const seen = []
    const request = http.get(new URL(`/test/${id}`, base), { agent: false, timeout: DEADLINE_MS })
    request.on('information', ({ statusCode, headers }) => seen.push({ statusCode, headers }))
    request.on('timeout', () => request.destroy(new Error('no answer')))
    request.on('error', reject)
    request.on('response', response => {
      let body = ''
      response.on('data', part => { body += part })
      response.on('error', reject)
      response.on('end', () => resolve({ body, seen }))
    })
  })
}

async function run ({ id, status, headers }) {
  const first = await get(id)
  const passed = first.seen.find(({ statusCode }) => statusCode === status)
  if (!passed) return ['Assertion', `no ${status} reached the client`]
  for (const [name, value] of Object.entries(headers)) {
    if (passed.headers[name] !== value) return ['Assertion', `${name} is "${passed.headers[name]}"`]
  }
  const second = await get(id)
  return second.body === first.body ? true : ['Assertion', 'the final response was not stored']
}

const results = {}
for (const scenario of SCENARIOS) {
  results[scenario.id] = await run(scenario).catch(error => ['Error', error.message])
}
console.log(JSON.stringify(results))
upstream.close()
upstream.closeAllConnections()
