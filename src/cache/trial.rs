//! Whether an entry is what the upstream answers: the evidence that shadow mode and `verify` collect.
//!
//! That an answer differs from an entry is no fault of the cache by itself. The job may have changed
//! between the look at the entry and the answer, and who changed it may be about to say so: a purge
//! follows the commit that it tells of. So a difference counts only if the very same entry still stands
//! in the store after the answer, and still does when whoever changed the job has had the time to
//! say so. No fence needs to be asked for: where one stands the entry is gone.
//!
//! It compares as it is told, piece by piece, and keeps nothing of an answer but its length and digest.
//! Who reads the upstream, and where the outcome is counted, is `proxy`'s to know.

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use hyper::http::{HeaderName, StatusCode, response};
use tokio::time::sleep;
use tracing::warn;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Ask, Cache,
    entry::{self, Entry},
    invalidate::Source,
    policy::{self, NoStore, Policy},
};
use crate::{
    metrics::Evidence,
    store::{Key, Token},
};

/// How long it may take from a commit that shows in the upstream to its purge.
const GRACE: Duration = Duration::from_secs(2);

/// How long it is remembered which entries were wrong, for those who are about to find the same.
pub(super) const REMEMBERED: Duration = Duration::from_secs(10);

/// Header names in a warning at most.
const NAMED: usize = 8;

/// An entry that was served, or would have been, and what the upstream answers to the same reader.
pub struct Trial {
    key: Key,
    entry: Arc<Entry>,
    status: StatusCode,
    headers: Vec<HeaderName>,
    /// Why the answer is nobody else's, though the entry's was.
    forbidden: Option<NoStore>,
    /// Of the body, as far as it has come.
    length: usize,
    agrees: bool,
    digest: Box<Xxh3>,
}

impl Trial {
    /// Nothing is known of the answer yet.
    pub fn new(ask: &Ask, entry: Arc<Entry>) -> Self {
        Self::of(ask.key.clone(), entry)
    }

    fn of(key: Key, entry: Arc<Entry>) -> Self {
        let (status, headers) = (StatusCode::BAD_GATEWAY, Vec::new());
        let (forbidden, digest) = (None, Box::default());
        Self { key, entry, status, headers, forbidden, length: 0, agrees: true, digest }
    }

    /// The head of the answer to a GET without conditions. Says whether the body matters.
    pub fn head(&mut self, head: &response::Parts, cache: &Cache) -> bool {
        self.weigh(head, &cache.policy)
    }

    /// Not by its headers alone: what is no part of an entry, as `Set-Cookie`, is not among those that
    /// are compared, and makes an answer one client's all the same. How fresh it is does not matter.
    fn weigh(&mut self, head: &response::Parts, policy: &Policy) -> bool {
        self.status = head.status;
        let comparable = head.status == self.entry.status();
        if comparable {
            self.headers = self.entry.differing(&head.headers);
            self.forbidden = policy::storable(head, policy).err();
        }
        comparable
    }

    /// The next part of its body. Says whether more of it matters.
    pub fn part(&mut self, data: &[u8]) -> bool {
        let rest = self.entry.body().get(self.length..).unwrap_or_default();
        self.agrees &= rest.starts_with(data);
        self.length += data.len();
        self.digest.update(data);
        self.length <= self.entry.body().len()
    }

    /// What it comes to once the answer has ended, where nothing else needs to be asked.
    pub fn plain(&self) -> Option<Evidence> {
        let found = self.found();
        matches!(found, Evidence::Same | Evidence::Failed).then_some(found)
    }

    /// What it comes to if the entry stands.
    fn found(&self) -> Evidence {
        match self.status {
            status if status == self.entry.status() => {
                let whole = self.agrees && self.length == self.entry.body().len();
                let same = whole && self.headers.is_empty() && self.forbidden.is_none();
                if same { Evidence::Same } else { Evidence::Different }
            }
            status if status.is_server_error() => Evidence::Failed,
            // What a gateway in front of the upstream says when it is too much, and what does not
            // answer a request without conditions.
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::NOT_MODIFIED => Evidence::Failed,
            status if status.is_success() => Evidence::Different,
            _ => Evidence::Refused,
        }
    }

    fn generation(&self) -> Token {
        Token::named(self.entry.generation())
    }
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Cache {
    /// What an answer that has ended says of the entry. One that is wrong is dropped, here and
    /// everywhere, and warned of.
    pub async fn conclude(self: &Arc<Self>, trial: &Trial) -> Evidence {
        let found = trial.found();
        if let Some(plain) = trial.plain() {
            return plain;
        }
        for pause in [Duration::ZERO, GRACE] {
            sleep(pause).await;
            match self.stands(trial).await {
                Some(true) => {}
                // For that very reason.
                Some(false) if self.refuted.count(&trial.generation()) > 0 => return found,
                Some(false) => return Evidence::Changed,
                None => return Evidence::Unchecked,
            }
        }
        if self.refuted.add(trial.generation()) == 1 {
            self.warn_of(trial, found);
            let keys = vec![trial.key.clone()];
            // One that died has said so.
            let _ = self.purge_keys(keys, Source::Evidence, Some("evidence".into())).await;
        }
        found
    }

    /// Whether the store still has the entry; none if it does not say.
    async fn stands(&self, trial: &Trial) -> Option<bool> {
        self.store.trust(&trial.key).ok()?;
        let seen = self.store.read(&trial.key, &mut self.budget()).await.ok()?;
        let Some(Ok(entry)) = Entry::decode(&seen) else { return Some(false) };
        Some(entry.generation() == trial.entry.generation())
    }

    fn warn_of(&self, trial: &Trial, found: Evidence) {
        let Some(suppressed) = self.refuted_warnings.admit(trial.key.main()) else { return };
        let prefix = self.settings.prefix.as_str();
        let Trial { key, entry, status, forbidden, length, digest, .. } = trial;
        let named: Vec<_> =
            trial.headers.iter().take(NAMED).map(|name| name.as_str().to_owned()).collect();
        warn!(
            job = key.main().strip_prefix(prefix).unwrap_or(key.main()),
            outcome = found.as_str(),
            status = status.as_u16(),
            headers = named.join(", "),
            not_storable = forbidden.map_or("", NoStore::as_str),
            bytes = length,
            digest = format!("{:032x}", digest.digest128()),
            stored_bytes = entry.body().len(),
            stored_digest = entry::digest(entry.body()),
            suppressed,
            "an entry was not what the upstream answers; it was dropped. Something changes jobs and \
             does not say so, or the upstream does not always answer the same"
        );
    }
}
