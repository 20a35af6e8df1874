//! Advice about the routes: reads that show that the configuration does not match the API.
//!
//! A sidecar with routes that match nothing works, and saves nothing. Nobody would notice, so the log
//! says it, with the setting to change.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;

use super::metrics::RequestTotals;
use crate::semantics::{policy::Bypass, route::Routes};

/// Reads in a row that match no route, after which the log proposes one.
const UNMATCHED: u64 = 100;
/// Different words in place of an id within [`WORDS_WITHIN`], after which the log proposes opaque ids.
const WORDS: usize = 8;
const WORDS_WITHIN: Duration = Duration::from_hours(1);
/// Reads of ids in other spellings, after which they are compared with all reads.
const SPELLINGS: u64 = 100;
/// Paths that are kept for the proposal.
const MAX_PATHS: usize = 64;
/// Paths that the log names.
const SHOWN: usize = 5;
/// Longest path that is looked at, in bytes.
const MAX_PATH: usize = 512;

/// The reads of a process that its routes or ids did not take.
#[derive(Debug, Default)]
pub(super) struct RouteAdvice(Mutex<Refused>);

#[derive(Debug, Default)]
struct Refused {
    /// Reads that match no route, in a row.
    unmatched: u64,
    /// The reads of jobs when the row began.
    matched_before: u64,
    paths: BTreeSet<String>,
    has_proposed_route: bool,
    /// Different words in place of an id, since then.
    words: BTreeSet<String>,
    words_since: Option<Instant>,
    spellings: u64,
    has_proposed_ids: bool,
}

impl RouteAdvice {
    /// Notes a GET that bypassed the cache for this reason. `setting` is what would cache it.
    pub(super) fn note(
        &self,
        routes: &Routes,
        (path, why, setting): (&str, Bypass, Option<&'static str>),
        totals: impl Fn() -> RequestTotals,
    ) {
        // Most requests that pass say nothing about the routes. They do not take the lock.
        if !matches!(why, Bypass::Path | Bypass::Spelling | Bypass::Word) || path.len() > MAX_PATH {
            return;
        }
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Bypass::Path | Bypass::Spelling
                if (why == Bypass::Path || setting == Some("routes"))
                    && !refused.has_proposed_route =>
            {
                refused.note_unmatched(path, totals().hits + totals().misses);
            }
            Bypass::Word if setting.is_some() => {
                refused.note_word(routes.id_at(path).unwrap_or_default());
            }
            Bypass::Spelling if setting == Some("ids=opaque") => refused.note_spelling(totals),
            _ => {}
        }
    }
}

impl Refused {
    fn note_unmatched(&mut self, path: &str, matched: u64) {
        if matched != self.matched_before {
            (self.unmatched, self.matched_before) = (0, matched);
            self.paths.clear();
        }
        self.unmatched += 1;
        if self.paths.len() < MAX_PATHS {
            self.paths.insert(path.to_owned());
        }
        if self.unmatched < UNMATCHED {
            return;
        }
        self.unmatched = 0;
        let Some(route) = proposal(&self.paths).filter(|route| is_usable(route)) else {
            self.paths.clear();
            return;
        };
        self.has_proposed_route = true;
        let shapes: BTreeSet<String> = self.paths.iter().map(|path| shape(path)).collect();
        let paths = shapes.into_iter().take(SHOWN).collect::<Vec<_>>().join(" ");
        self.paths.clear();
        warn!(
            paths,
            route,
            "100 reads in a row match no route, so nothing is cached; if jobs are read at these paths, \
             start with --route and this route"
        );
    }

    fn note_word(&mut self, word: &str) {
        let now = Instant::now();
        if self.words_since.is_none_or(|since| now.duration_since(since) > WORDS_WITHIN) {
            self.words_since = Some(now);
            self.words.clear();
        }
        self.words.insert(word.to_owned());
        if self.words.len() >= WORDS {
            self.propose_ids("ids without a digit are taken for words, and not cached");
        }
    }

    fn note_spelling(&mut self, totals: impl FnOnce() -> RequestTotals) {
        self.spellings += 1;
        if self.spellings >= SPELLINGS && self.spellings.saturating_mul(2) > totals().reads() {
            self.propose_ids("most ids are in a spelling that a parser may read as another id");
        }
    }

    fn propose_ids(&mut self, why: &'static str) {
        self.words.clear();
        if !std::mem::replace(&mut self.has_proposed_ids, true) {
            warn!(
                why,
                "ids are refused, and their reads not cached; if the API compares ids as text, start \
                 with --ids opaque, and name in --except what is no job"
            );
        }
    }
}

/// Whether a proposed route may be pasted into a shell, and is taken.
fn is_usable(route: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/{}._~-".contains(&byte);
    route.bytes().all(is_plain) && Routes::parse(&[route]).is_ok()
}

/// Whether a segment may be an id. `v1` is the version of an API.
fn has_digit(segment: &str) -> bool {
    let version = segment.strip_prefix('v').unwrap_or_default();
    let is_version =
        !version.is_empty() && version.len() < 3 && version.bytes().all(|b| b.is_ascii_digit());
    !is_version && segment.bytes().any(|byte| byte.is_ascii_digit())
}

fn segments(path: &str) -> Vec<&str> {
    path.split('/').skip(1).collect()
}

/// Returns a path with `{id}` for its last segment with a digit, and `{any}` for the others.
fn shape(path: &str) -> String {
    let segments = segments(path);
    let last = segments.iter().rposition(|segment| has_digit(segment));
    let shown = segments.iter().enumerate().map(|(at, segment)| match last {
        Some(last) if last == at => "{id}",
        _ if has_digit(segment) => "{any}",
        _ => segment,
    });
    shown.fold(String::new(), |shape, segment| shape + "/" + segment)
}

/// Proposes the route for the most frequent form of these paths: segments that have a digit or differ
/// from path to path are variables, the last of them the id. `None` if there is no such segment.
fn proposal(paths: &BTreeSet<String>) -> Option<String> {
    let paths: Vec<Vec<&str>> = paths.iter().map(|path| segments(path)).collect();
    let form = |path: &[&str]| (path.len(), path.first().map(|first| (*first).to_owned()));
    let of_form = |wanted: &[&str]| -> Vec<&Vec<&str>> {
        paths.iter().filter(|path| form(path) == form(wanted)).collect()
    };
    let alike = paths.iter().map(|path| of_form(path)).max_by_key(Vec::len)?;
    let first = alike.first()?;
    let varies = |at: usize| has_digit(first[at]) || alike.iter().any(|path| path[at] != first[at]);
    let variables: Vec<usize> =
        (0..first.len()).filter(|at| !first[*at].is_empty() && varies(*at)).collect();
    let id = *variables.last()?;
    let mut route = String::new();
    for (at, segment) in first.iter().enumerate() {
        route.push('/');
        if at == id {
            route.push_str("{id}");
        } else if variables.contains(&at) {
            route.push_str(&name(at.checked_sub(1).map(|before| first[before]), at));
        } else {
            route.push_str(segment);
        }
    }
    Some(route)
}

/// Returns a variable named after the segment before it: `{dag}` after `dags`.
fn name(before: Option<&str>, at: usize) -> String {
    let before =
        before.filter(|text| text.len() > 1 && text.bytes().all(|byte| byte.is_ascii_alphabetic()));
    let name = before.map(|text| text.strip_suffix('s').unwrap_or(text).to_ascii_lowercase());
    format!("{{{}}}", name.filter(|name| name != "id").unwrap_or_else(|| format!("v{}", at + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(paths: &[&str], want: Option<&str>) {
        let paths = paths.iter().map(ToString::to_string).collect();
        assert_eq!(proposal(&paths).as_deref(), want, "{paths:?}");
    }

    #[test]
    fn the_route_is_derived_from_what_differs() {
        check(&["/runs/7", "/runs/8"], Some("/runs/{id}"));
        check(&["/runs/7/", "/runs/8/", "/health"], Some("/runs/{id}/"));
        check(&["/t/acme/jobs/17", "/t/globex/jobs/18"], Some("/t/{v2}/jobs/{id}"));
        check(&["/dags/etl1/dagRuns/r1"], Some("/dags/{dag}/dagRuns/{id}"));
        check(&["/api/v1/runs/7", "/api/v1/runs/8"], Some("/api/v1/runs/{id}"));
        check(&["/runs/red", "/runs/blue"], Some("/runs/{id}"));
        check(&["/health"], None);
        check(&["/"], None);
    }

    #[test]
    fn what_a_shell_would_run_or_jobcache_refuse_is_not_proposed() {
        assert!(is_usable("/t/{v2}/jobs/{id}/"));
        for route in ["/a';curl${IFS}x|sh;'/{id}", "/dags/{dag}/dags/{dag}/{id}", "/a%20b/{id}"] {
            assert!(!is_usable(route), "{route}");
        }
    }

    #[test]
    fn a_shape_has_no_ids() {
        assert_eq!(shape("/t/a1/jobs/17"), "/t/{any}/jobs/{id}");
        assert_eq!(shape("/jobs/stats"), "/jobs/stats");
    }
}
