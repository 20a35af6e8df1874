//! The store in the memory of this process, with the semantics of the scripts in `lua/`.
//!
//! For the demo, for trials, and for a single sidecar without Redis. No other process sees it, so
//! there is no third party's `DEL` and nothing is ever pending. Its size is bounded in bytes: past
//! the limit entries are evicted in turn, regardless of their age.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use super::{
    CredentialKey, Ended, EntryChange, Epoch, Fill, Grant, Key, KeyReceipt, KeyState, Lease,
    LeaseState, RemovedEntry, Seen, StoredValue, Token, Write,
    errors::Result,
    words::{LeaseGuard, MAX_PAIRS_OF_CREDENTIAL, millis, now_ms},
    write::{Begun, combined},
};
use crate::config;

/// Approximate bytes that an entry costs in addition to its body and meta.
const ENTRY_OVERHEAD: usize = 512;
/// Slots examined by every operation that adds one, so that expired ones are removed in time.
const SWEEP: usize = 4;

/// The embedded store.
pub struct Memory {
    lease: Duration,
    max_bytes: usize,
    epoch: Epoch,
    pub(super) credential_key: CredentialKey,
    slots: Arc<Mutex<MemorySlots>>,
}

#[derive(Default)]
struct MemorySlots {
    by_key: HashMap<Key, MemorySlot>,
    /// Keys in the order in which sweep and eviction examine their slots. Each slot is listed once,
    /// and a new one last.
    order: VecDeque<Key>,
    bytes: usize,
}

/// The counterpart of the four Redis keys of a job.
#[derive(Default)]
struct MemorySlot {
    entry: Option<StoredValue>,
    lease: Option<MemoryLease>,
    /// Writes in flight, each with its deadline.
    fence: HashMap<Token, i64>,
}

struct MemoryLease {
    token: Token,
    granted_ms: i64,
    expires_ms: i64,
}

impl Memory {
    /// Makes an empty store.
    pub(super) fn new(config: &config::Config) -> Self {
        Self {
            lease: config.store.lease,
            max_bytes: config.store.memory_max,
            epoch: Epoch("memory".into()),
            credential_key: CredentialKey::initial(config.cache.credentials.secret.as_ref()),
            slots: Arc::default(),
        }
    }

    pub(super) fn read(&self, key: &Key) -> Seen {
        let now = now_ms();
        let mut slots = self.slots();
        let slot = slots.live(key, now);
        let is_leased = slot.as_ref().is_some_and(|slot| slot.lease.is_some());
        let entry = slot.and_then(|slot| slot.entry.clone());
        Seen { is_leased, ..self.seen(entry, now) }
    }

    pub(super) fn inspect(&self, key: &Key) -> KeyState {
        let now = now_ms();
        let mut slots = self.slots();
        let slot = slots.live(key, now);
        let slot = slot.as_deref();
        let held = slot.and_then(|slot| slot.lease.as_ref());
        let fence = slot.and_then(|slot| slot.fence.values().copied().max());
        KeyState {
            seen: Seen {
                is_leased: held.is_some(),
                ..self.seen(slot.and_then(|slot| slot.entry.clone()), now)
            },
            is_alien: false,
            lease: held.map(|held| LeaseState {
                token: held.token.clone(),
                left_ms: held.expires_ms - now,
            }),
            fence_left_ms: fence.map(|deadline| deadline - now),
        }
    }

    pub(super) fn lease(&self, key: &Key, token: &Token, refused: Option<&StoredValue>) -> Grant {
        let now = now_ms();
        let mut slots = self.slots();
        slots.sweep(now);
        if let Some(entry) = slots.live(key, now).and_then(|slot| slot.entry.clone()) {
            if refused != Some(&entry) {
                return Grant::Stored(self.seen(Some(entry), now));
            }
            slots.drop_entry(key);
        }
        let slot = slots.slot(key);
        if !slot.fence.is_empty() {
            return Grant::Fenced;
        }
        if let Some(held) = &slot.lease {
            return Grant::Leased(held.token.clone(), self.epoch.clone());
        }
        let expires_ms = now + millis(self.lease);
        slot.lease = Some(MemoryLease { token: token.clone(), granted_ms: now, expires_ms });
        let epoch = self.epoch.clone();
        let (key, token) = (key.clone(), token.clone());
        let slots = Arc::clone(&self.slots);
        let released = (key.clone(), token.clone());
        let hold = LeaseGuard::new(move || lock(&slots).release(&released.0, &released.1));
        Grant::Lease(Lease { key, token, epoch, granted_at_ms: now, hold })
    }

    pub(super) fn fill(&self, lease: &Lease, body: &Bytes, meta: &str, ttl: Duration) -> Fill {
        let now = now_ms();
        let mut slots = self.slots();
        let Some(slot) = slots.live(&lease.key, now) else { return Fill::Revoked };
        let Some(held) = slot.lease.take_if(|held| held.token == lease.token) else {
            return Fill::Revoked;
        };
        let expires_at_ms = held.granted_ms + millis(ttl);
        if expires_at_ms <= now {
            return Fill::Revoked;
        }
        let entry = stored(body, meta, expires_at_ms);
        let bytes = size(&entry);
        slot.entry = Some(entry);
        slots.bytes += bytes;
        slots.evict(self.max_bytes);
        Fill::Stored
    }

    pub(super) fn change(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        change: EntryChange<'_>,
    ) -> Fill {
        let now = now_ms();
        let mut slots = self.slots();
        let unchanged = slots.unchanged(key, seen, now);
        let Some(entry) = unchanged.filter(|entry| is_of(&entry.meta, generation)) else {
            return Fill::Revoked;
        };
        let before = size(entry);
        match change {
            EntryChange::Admit(caller) => {
                let meta = String::from_utf8_lossy(&entry.meta);
                entry.meta = admitted(&meta, caller, seen.now_ms).into();
            }
            EntryChange::Replace { body, meta, expires_at_ms } if expires_at_ms > now => {
                *entry = stored(body, meta, expires_at_ms);
            }
            EntryChange::Replace { .. } => return Fill::Revoked,
        }
        let after = size(entry);
        slots.bytes = slots.bytes + after - before;
        slots.evict(self.max_bytes);
        Fill::Stored
    }

    pub(super) fn begin(&self, write: &mut Write) {
        self.fence(&write.keys, write);
        write.begun = Begun::Confirmed;
    }

    /// Fences some keys of a write, as its begin does.
    pub(super) fn fence(&self, keys: &[Key], write: &Write) {
        let now = now_ms();
        let mut slots = self.slots();
        for key in keys {
            slots.sweep(now);
            slots.drop_entry(key);
            slots.slot(key).fence.insert(write.id.clone(), now + millis(write.fence));
        }
    }

    /// Returns the outcome for all keys, and the receipt of each.
    pub(super) fn end(
        &self,
        Write { keys, id, .. }: &Write,
        linger: Duration,
    ) -> (Result<Ended>, Vec<Option<KeyReceipt>>) {
        let now = now_ms();
        let mut slots = self.slots();
        let mut results = Vec::with_capacity(keys.len());
        for key in keys {
            slots.sweep(now);
            results
                .push(Ok(slots.live(key, now).map(|slot| slot.receipt(now)).unwrap_or_default()));
            slots.drop_entry(key);
            if linger > Duration::ZERO {
                slots.slot(key).fence.insert(id.clone(), now + millis(linger));
            } else if let Some(slot) = slots.by_key.get_mut(key) {
                slot.fence.remove(id);
            }
        }
        combined(results)
    }

    pub(super) fn purge_all(&self) -> Ended {
        let now = now_ms();
        let mut slots = self.slots();
        let keys: Vec<Key> = slots.by_key.keys().cloned().collect();
        let mut entries = 0;
        for key in keys {
            slots.live(&key, now);
            entries += usize::from(slots.drop_entry(&key));
        }
        Ended::Confirmed { entries }
    }

    fn seen(&self, stored: Option<StoredValue>, now_ms: i64) -> Seen {
        Seen { stored, is_leased: false, epoch: self.epoch.clone(), now_ms, in_grace: false }
    }

    fn slots(&self) -> MutexGuard<'_, MemorySlots> {
        lock(&self.slots)
    }
}

fn lock(slots: &Mutex<MemorySlots>) -> MutexGuard<'_, MemorySlots> {
    // No code that holds the lock panics half-way through a change.
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemorySlots {
    /// Returns the slot of a key after removing everything that has expired from it.
    fn live(&mut self, key: &Key, now: i64) -> Option<&mut MemorySlot> {
        let slot = self.by_key.get_mut(key)?;
        if let Some(entry) = slot.entry.take_if(|entry| entry.expires_at_ms <= now) {
            self.bytes -= size(&entry);
        }
        slot.lease.take_if(|held| held.expires_ms <= now);
        slot.fence.retain(|_, deadline| *deadline > now);
        Some(slot)
    }

    /// Returns the entry of a key if it is the one that was seen, apart from callers admitted
    /// since, and no write is in flight.
    fn unchanged(&mut self, key: &Key, seen: &Seen, now: i64) -> Option<&mut StoredValue> {
        let seen = seen.stored.as_ref()?;
        let slot = self.live(key, now)?;
        let entry = slot.entry.as_mut().filter(|_| slot.fence.is_empty())?;
        (entry.body == seen.body && entry.expires_at_ms == seen.expires_at_ms).then_some(entry)
    }

    fn release(&mut self, key: &Key, token: &Token) {
        if let Some(slot) = self.by_key.get_mut(key) {
            slot.lease.take_if(|held| held.token == *token);
        }
    }

    /// Returns the slot of a key, creating it if there is none.
    fn slot(&mut self, key: &Key) -> &mut MemorySlot {
        self.by_key.entry(key.clone()).or_insert_with(|| {
            self.order.push_back(key.clone());
            MemorySlot::default()
        })
    }

    /// Drops entry and lease, as `DEL` does; returns whether there was an entry.
    fn drop_entry(&mut self, key: &Key) -> bool {
        let Some(slot) = self.by_key.get_mut(key) else { return false };
        slot.lease = None;
        let Some(entry) = slot.entry.take() else { return false };
        self.bytes -= size(&entry);
        true
    }

    /// Examines the next few slots: removes the empty ones and moves the others to the back.
    fn sweep(&mut self, now: i64) {
        for _ in 0..SWEEP.min(self.order.len()) {
            let Some(key) = self.order.pop_front() else { return };
            if self.live(&key, now).is_some_and(|slot| slot.is_empty()) {
                self.by_key.remove(&key);
            } else {
                self.order.push_back(key);
            }
        }
    }

    /// Drops the entries of the next slots in turn until the rest fits.
    fn evict(&mut self, max_bytes: usize) {
        for _ in 0..self.order.len() {
            if self.bytes <= max_bytes {
                return;
            }
            let Some(key) = self.order.pop_front() else { return };
            self.drop_entry(&key);
            self.order.push_back(key);
        }
    }
}

impl MemorySlot {
    /// Describes the contents, for the receipt of an end.
    fn receipt(&self, now_ms: i64) -> KeyReceipt {
        let entry = self.entry.as_ref().map(|entry| {
            let meta = serde_json::from_slice::<serde_json::Value>(&entry.meta).unwrap_or_default();
            let times = ["stored_at_ms", "age_ms"].map(|name| meta[name].as_i64());
            let generation = meta["generation"].as_str().unwrap_or_default();
            RemovedEntry::new(entry.body.len(), generation, times, now_ms)
        });
        KeyReceipt { entry, filling: self.lease.is_some() }
    }

    fn is_empty(&self) -> bool {
        self.entry.is_none() && self.lease.is_none() && self.fence.is_empty()
    }
}

/// Whether a meta has this generation, as the scripts find it. Bodies alone do not tell entries apart:
/// that of every response without a job is empty.
fn is_of(meta: &[u8], generation: &str) -> bool {
    String::from_utf8_lossy(meta).contains(&format!("\"generation\":\"{generation}\""))
}

/// Copies the body: the bytes may be part of a much larger buffer, which is counted elsewhere for
/// as long as they live.
fn stored(body: &Bytes, meta: &str, expires_at_ms: i64) -> StoredValue {
    let meta = format!("{meta},\"expires_at_ms\":{expires_at_ms}}}").into();
    StoredValue { body: Bytes::copy_from_slice(body), meta, expires_at_ms }
}

fn size(entry: &StoredValue) -> usize {
    entry.body.len() + entry.meta.len() + ENTRY_OVERHEAD
}

/// Returns meta with this caller in its audience: renewed in its place, else added in front. Then
/// it may replace the oldest of its credential, as in `admit.lua`.
pub(super) fn admitted(meta: &str, caller: &str, served_at_ms: i64) -> String {
    /// Hexadecimal digits of a credential, which is the first half of a caller.
    const CREDENTIAL_DIGITS: usize = 32;
    // Every meta has an audience, and its members contain no bracket.
    let Some((before, rest)) = meta.split_once("\"audience\":[") else { return meta.to_owned() };
    let Some((list, after)) = rest.split_once(']') else { return meta.to_owned() };
    let members = list.split(',').map(|member| member.trim_matches('"'));
    let mut members: Vec<&str> = members.filter(|member| !member.is_empty()).collect();
    let member = format!("{caller}@{served_at_ms}");
    if let Some(own) = members.iter_mut().find(|member| member.split('@').next() == Some(caller)) {
        *own = &member;
    } else {
        let credential = caller.get(..CREDENTIAL_DIGITS).unwrap_or(caller);
        let served = |at: &usize| {
            let time = members[*at].split_once('@').and_then(|(_, ms)| ms.parse::<i64>().ok());
            // Newer members come first.
            (time.unwrap_or(0), std::cmp::Reverse(*at))
        };
        let of_credential = |at: &usize| members[*at].starts_with(credential);
        let mut own: Vec<usize> = (0..members.len()).filter(of_credential).collect();
        own.sort_by_key(served);
        own.truncate((own.len() + 1).saturating_sub(MAX_PAIRS_OF_CREDENTIAL));
        own.sort_unstable();
        for at in own.into_iter().rev() {
            members.remove(at);
        }
        members.insert(0, &member);
    }
    format!("{before}\"audience\":[\"{}\"]{after}", members.join("\",\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_alone_do_not_make_it_grow() {
        let memory = Memory::new(&config::Config::default());
        let (fence, begun) = (Duration::from_secs(1), Begun::NotSent);
        for id in 0..1_000 {
            let keys = vec![Key::new("job_status:", &id.to_string())];
            let mut write = Write { keys, elsewhere: 0, id: Token::named("w"), fence, begun };
            memory.begin(&mut write);
            let _ = memory.end(&write, Duration::ZERO);
        }
        assert!(memory.slots().by_key.len() <= SWEEP, "{}", memory.slots().by_key.len());
    }

    #[test]
    fn a_credential_holds_at_most_eight_pairs_and_the_next_one_replaces_its_oldest() {
        let limit = format!("local most = {MAX_PAIRS_OF_CREDENTIAL}\n");
        assert!(include_str!("lua/admit.lua").contains(&limit), "the script has another limit");
        let caller = |who: char, n: usize| format!("{}{n:032x}", who.to_string().repeat(32));
        let mut meta = format!("{{\"audience\":[\"{}@5\"],\"x\":[1]}}", caller('b', 0));
        // The second pair is renewed, so that the third is the oldest after the first.
        for (n, time) in [0, 1, 2, 3, 4, 5, 6, 7, 1, 8, 9].into_iter().zip(0..) {
            meta = admitted(&meta, &caller('a', n), time);
        }
        let parsed: serde_json::Value = serde_json::from_str(&meta).unwrap();
        let members: Vec<_> = parsed["audience"].as_array().unwrap().iter().collect();
        assert_eq!(members.len(), 9, "{meta}");
        for (n, held) in [(0, false), (1, true), (2, false), (3, true), (8, true), (9, true)] {
            assert_eq!(meta.contains(&caller('a', n)), held, "{n}: {meta}");
        }
        assert!(meta.contains(&format!("{}@5", caller('b', 0))) && meta.ends_with(",\"x\":[1]}"));
    }
}
