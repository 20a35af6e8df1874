// Counts passed tests by group and kind, and considers the dependencies of tests. Then lists the required
// tests that jobcache fails, and the required and optimal tests that a peer passes and jobcache does not.
// A test has not passed if its set-up or a test that it depends on failed; README.md explains why.

import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const [out, ...caches] = process.argv.slice(2)
const index = path.join(out, 'node_modules/http-cache-tests/tests/index.mjs')
const interim = ['interim-102', 'interim-103'].map(id => ({ id, kind: 'optimal' }))
const groups = [...(await import(pathToFileURL(index))).default, { id: 'interim', tests: interim }]
const tests = new Map(groups.flatMap(group => group.tests).map(test => [test.id, test]))
const read = name => fs.readFileSync(path.join(out, name), 'utf8')
const results = new Map(caches.map(cache => {
  return [cache, { ...JSON.parse(read(`${cache}.json`)), ...JSON.parse(read(`${cache}.interim.json`)) }]
}))

const kind = test => test.kind ?? 'required'

function passes (cache, id) {
  const dependencies = tests.get(id).depends_on ?? []
  return results.get(cache)[id] === true && dependencies.every(other => passes(cache, other))
}

function why (cache, id) {
  const result = results.get(cache)[id]
  const failed = (tests.get(id).depends_on ?? []).filter(other => !passes(cache, other))
  if (failed.length > 0) return `depends on ${failed.join(', ')}`
  return result === undefined ? 'not run' : result.join(': ')
}

function counts (cache, group, kinds) {
  const counted = group.tests.filter(test => !test.browser_only && kinds.includes(kind(test)))
  const passed = counted.filter(test => passes(cache, test.id))
  return counted.length === 0 ? '' : `${passed.length}/${counted.length}`
}

console.log(`Passed on ${new Date().toISOString().slice(0, 10)}, required + optimal (check):\n`)
for (const cache of caches) console.log(`- ${cache}: ${read(`${cache}.version`).trim()}`)
console.log(`\n| group | ${caches.join(' | ')} |\n|${'---|'.repeat(caches.length + 1)}`)
for (const group of groups) {
  const cells = caches.map(cache => {
    const [required, optimal, check] = ['required', 'optimal', 'check'].map(kind => counts(cache, group, [kind]))
    return [required, optimal && `+ ${optimal}`, check && `(${check})`].filter(Boolean).join(' ')
  })
  console.log(`| ${group.id} | ${cells.join(' | ')} |`)
}

const shown = groups.flatMap(group => group.tests.filter(test => !test.browser_only).map(test => ({ group, test })))
console.log('\nRequired, and not passed by jobcache:\n')
for (const { group, test } of shown) {
  if (kind(test) === 'required' && !passes('jobcache', test.id)) {
    console.log(`- ${group.id}: ${test.id}: ${why('jobcache', test.id)}`)
  }
}
const peers = caches.filter(cache => cache !== 'jobcache')
if (peers.length > 0) console.log('\nRequired or optimal, passed by a peer and not by jobcache:\n')
for (const { group, test } of shown) {
  if (kind(test) === 'check' || passes('jobcache', test.id)) continue
  const ahead = peers.filter(peer => passes(peer, test.id))
  if (ahead.length > 0) console.log(`- ${group.id}: ${test.id} (${kind(test)}): ${ahead.join(', ')}`)
}
