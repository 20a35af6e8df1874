//! Whether a later answer of the upstream, to another caller, is the same as an entry.
//!
//! A caller is admitted to an entry if the upstream gave it the same status, body and headers. Numbers
//! that only count the time down are no difference: lifetimes are compared as the time at which they
//! end. The entry keeps its own end, so the later answer must live at least as long.

use std::time::{Duration, SystemTime};

use hyper::header::{CACHE_CONTROL, HeaderName};

use super::{Entry, millis};
use crate::semantics::policy::{StatedLifetimes, StoredHead, stated_lifetimes};

/// Tolerance for lifetimes, in ms: HTTP counts seconds, and both `Date` and `Age` are rounded.
const TOLERANCE_MS: i64 = 2_000;

/// How a later answer compares with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// The answer is the same and lives as long or longer.
    Same,
    /// The answer is the same and lives shorter.
    ShorterLived,
    /// The body is the same, but these headers differ.
    OtherHeaders(Vec<HeaderName>),
    /// Status or body differ.
    OtherBody,
}

impl Entry {
    /// Compares the entry with a later answer. `volatile` has the configured names of headers that are
    /// not compared.
    pub fn likeness(&self, later: &Self, volatile: &[HeaderName]) -> Likeness {
        if self.status() != later.status() || self.body != later.body {
            return Likeness::OtherBody;
        }
        let (own_head, later_head) = (self.stored_head(), later.stored_head());
        let mut names = own_head.differing_headers(&later_head, volatile);
        // `s-maxage` is a lifetime, but it also waives the credential.
        let is_public_alike = self.audience.public == later.audience.public;
        if !is_public_alike && names.is_empty() {
            names.push(CACHE_CONTROL);
        }
        if !names.is_empty() {
            return Likeness::OtherHeaders(names);
        }
        let ends = self.ends_ms(&own_head).into_iter().zip(later.ends_ms(&later_head));
        let is_shorter = |(own, later): (i64, i64)| later.saturating_add(TOLERANCE_MS) < own;
        if ends.into_iter().any(is_shorter) { Likeness::ShorterLived } else { Likeness::Same }
    }

    /// Returns the names of the stored headers in which a response of the upstream differs from the
    /// entry, apart from lifetimes.
    pub fn differing_headers(
        &self,
        later: &StoredHead,
        volatile: &[HeaderName],
    ) -> Vec<HeaderName> {
        self.stored_head().differing_headers(later, volatile)
    }

    fn stored_head(&self) -> StoredHead {
        StoredHead {
            status: self.head.status(),
            headers: self.head.fields(|_| true).collect(),
            last_modified: self.head.last_modified,
        }
    }

    /// Returns when the entry ends here, in other shared caches, and in the caches of clients, in ms since
    /// 1970. A client is sent the lifetime that the response states, which may be longer than the TTL. If
    /// none is stated, the TTL stands for it.
    fn ends_ms(&self, head: &StoredHead) -> [i64; 3] {
        let stored_at = Duration::from_millis(u64::try_from(self.stored_at_ms).unwrap_or(0));
        let stated = stated_lifetimes(&head.headers, SystemTime::UNIX_EPOCH + stored_at);
        let StatedLifetimes { shared, private } = stated.unwrap_or_default();
        let end = |lifetime: Option<Duration>| {
            let born_ms = self.stored_at_ms.saturating_sub(self.age_ms);
            lifetime.map_or(self.expires_at_ms, |time| born_ms.saturating_add(millis(time)))
        };
        [self.expires_at_ms, end(shared), end(private)]
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::{Request, Response};

    use super::*;
    use crate::{
        config,
        semantics::{audience::Fingerprinter, identity::Identity, policy::Freshness},
        store::{CredentialKey, Epoch, Token},
    };

    const DATE_MS: i64 = 784_111_777_000;
    const IN_A_MINUTE: &str = "Sun, 06 Nov 1994 08:50:37 GMT";

    /// An answer with a TTL of `ttl_s` that was requested `at_s` after [`DATE_MS`].
    fn answer(at_s: i64, ttl_s: u64, age_s: u64, lines: &[(&str, &str)]) -> Entry {
        let response = lines
            .iter()
            .fold(Response::builder(), |response, &(name, value)| response.header(name, value));
        let (head, ()) = response.body(()).unwrap().into_parts();
        let request = Request::new(()).into_parts().0;
        let fingerprinter = Fingerprinter::new(&config::CredentialsConfig::default());
        let key = CredentialKey::new([7; 32]);
        let caller = fingerprinter.caller(&key, &request.uri, &request.headers);
        let (ttl, age) = (Duration::from_secs(ttl_s), Duration::from_secs(age_s));
        let now_ms = DATE_MS + 1_000 * at_s;
        let head = StoredHead::of(&head, &[], now_ms);
        let freshness = Freshness { ttl, age, public: false };
        Entry::new(head, Bytes::from("{}"), freshness, caller, now_ms)
    }

    #[track_caller]
    fn check(one: &Entry, later: &Entry, want: &Likeness) {
        assert_eq!(&one.likeness(later, &[]), want, "{one:?} {later:?}");
    }

    #[test]
    fn lifetimes_are_compared_by_their_end() {
        let stated = |at_s, seconds: u64, age_s| {
            let control = format!("max-age={seconds}");
            answer(at_s, seconds - age_s, age_s, &[("cache-control", &control)])
        };
        check(&stated(0, 60, 0), &stated(9, 60, 0), &Likeness::Same);
        // The same answer from a cache in between, and one that counts its lifetime down.
        check(&stated(0, 60, 5), &stated(9, 60, 14), &Likeness::Same);
        check(&stated(0, 60, 0), &stated(9, 51, 0), &Likeness::Same);
        check(&stated(0, 60, 0), &stated(9, 49, 0), &Likeness::Same);
        check(&stated(0, 60, 0), &stated(9, 48, 0), &Likeness::ShorterLived);
        let end = |at_s, ttl_s| answer(at_s, ttl_s, 0, &[("expires", IN_A_MINUTE)]);
        check(&end(0, 60), &end(9, 51), &Likeness::Same);
    }

    #[test]
    fn the_lifetime_for_clients_counts_past_the_ttl() {
        let stated = |control: &str| answer(0, 300, 0, &[("cache-control", control)]);
        let hour = stated("max-age=3600");
        check(&hour, &stated("max-age=3600"), &Likeness::Same);
        check(&hour, &stated("max-age=600"), &Likeness::ShorterLived);
        check(&stated("max-age=600"), &hour, &Likeness::Same);
        check(&hour, &stated(""), &Likeness::ShorterLived);
        check(&hour, &answer(0, 300, 0, &[]), &Likeness::ShorterLived);
        check(&answer(0, 300, 0, &[]), &answer(9, 300, 0, &[]), &Likeness::Same);
        let split = stated("s-maxage=3600, max-age=900");
        check(&split, &stated("s-maxage=3600, max-age=400"), &Likeness::ShorterLived);
        check(&split, &stated("max-age=900, s-maxage=3600"), &Likeness::Same);
    }

    #[test]
    fn another_body_is_no_matter_of_headers() {
        let one = answer(0, 60, 0, &[("x", "1")]);
        let mut other = answer(0, 60, 0, &[("x", "2")]);
        check(&one, &other, &Likeness::OtherHeaders(vec!["x".parse().unwrap()]));
        other.body = Bytes::from("[]");
        check(&one, &other, &Likeness::OtherBody);
        let mut public = answer(0, 60, 0, &[("x", "1")]);
        public.audience.public = true;
        check(&one, &public, &Likeness::OtherHeaders(vec![CACHE_CONTROL]));
    }

    #[test]
    fn a_dropped_modification_survives_the_store() {
        let now = [("date", "Sun, 06 Nov 1994 08:49:37 GMT"); 1];
        let lines = [now[0], ("last-modified", now[0].1)];
        let entry = answer(0, 60, 0, &lines);
        let (token, epoch) = (Token::named("t"), Epoch::named("e"));
        let meta = entry.meta(&Identity::default(), &token, &epoch, None);
        assert!(meta.contains("\"drops_last_modified\":true"), "{meta}");
        let meta = format!("{meta},\"expires_at_ms\":{}}}", entry.expires_at_ms);
        let decoded = Entry::from_meta(serde_json::from_str(&meta).unwrap(), Bytes::from("{}"));
        let older = answer(0, 60, 0, &[("last-modified", "Sun, 06 Nov 1994 07:49:37 GMT")]);
        check(&decoded.unwrap(), &older, &Likeness::Same);
    }
}
