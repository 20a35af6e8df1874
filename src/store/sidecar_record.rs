//! The configuration that a sidecar records for the others of the same prefix, and the warnings
//! about records that differ. The exchange with Redis is in `redis/shared_keys.rs`.
//!
//! Sidecars that share a prefix share entries, and have to agree on what an entry is for. Each
//! keeps a record in Redis while it runs; one that finds another configuration there warns.
//! Sidecars with the same configuration share a record, so the number of records is that of
//! configurations.

use std::{
    fmt, mem,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    config::{Config, Ids, RouteConfig},
    observe::throttle::HourlyPerName,
};

/// Longest part of another sidecar's value that is shown, in characters.
const MAX_SHOWN: usize = 200;

/// The settings on which the sidecars of one prefix have to agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SidecarRecord {
    api: String,
    routes: Vec<String>,
    /// Hash of `query.*`.
    query: Option<String>,
    /// Hash of the settings that tell callers apart.
    credentials: Option<String>,
    /// Hash of the upstream's address. Replicas of one API may differ in it, so it counts only
    /// where no name tells the APIs apart.
    upstream: String,
}

/// How another sidecar is configured differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMismatch {
    /// The settings that differ.
    settings: String,
    /// Their values in the other sidecar, as far as they can be shown.
    theirs: String,
    remedy: &'static str,
}

impl fmt::Display for RecordMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings, theirs, remedy } = self;
        write!(f, "another sidecar with the same store.prefix differs in {settings}")?;
        if !theirs.is_empty() {
            write!(f, " ({theirs})")?;
        }
        write!(f, "; {remedy}")
    }
}

const REMEDY: &str = "sidecars of one API need the same api, routes, query and credentials, and \
                      another API needs another store.prefix (or at least another api)";
/// The remedy where only `upstream.url` differs.
const UPSTREAM_REMEDY: &str = "if both serve one API, set the same api in all its sidecars; \
                               otherwise give one of them another store.prefix";

impl SidecarRecord {
    /// Returns the record of this configuration.
    pub fn of(config: &Config) -> Self {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names
        };
        let credentials = &config.cache.credentials;
        let callers = (
            credentials.mode.as_str(),
            [&credentials.headers, &credentials.ignore, &credentials.cookies]
                .map(|all| sorted(all)),
        );
        Self {
            api: config.api.name.clone().unwrap_or_default(),
            routes: sorted(&config.api.routes().iter().map(shown).collect::<Vec<_>>()),
            query: Some(hash(
                &[&config.api.query.ignore, &config.api.query.allow].map(|all| sorted(all)),
            )),
            credentials: Some(hash(&callers)),
            upstream: hash(&config.upstream.url),
        }
    }

    /// Returns the text in the store.
    pub(super) fn text(&self) -> String {
        // Serialization never fails: the record holds only strings.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Compares the record with the text of another sidecar. A text that cannot be read is one of
    /// another version, and says nothing; nor does a field that another version does not have.
    pub(super) fn mismatch(&self, text: &str) -> Option<RecordMismatch> {
        let theirs: Self = serde_json::from_str(text).ok()?;
        let is_unnamed = self.api.is_empty() && theirs.api.is_empty();
        let api = match theirs.api.as_str() {
            "" => "api is not set".to_owned(),
            api => format!("api = {api:?}"),
        };
        let differs =
            |ours: &Option<String>, theirs: &Option<String>| theirs.is_some() && theirs != ours;
        let compared = [
            ("api", self.api != theirs.api, api),
            ("routes", self.routes != theirs.routes, format!("routes = {:?}", theirs.routes)),
            ("query", differs(&self.query, &theirs.query), String::new()),
            ("credentials", differs(&self.credentials, &theirs.credentials), String::new()),
            ("upstream.url", is_unnamed && self.upstream != theirs.upstream, String::new()),
        ];
        let different: Vec<_> = compared.iter().filter(|(_, differs, _)| *differs).collect();
        let settings = different.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
        let values = different.iter().map(|(.., value)| value.as_str());
        let theirs = values.filter(|value| !value.is_empty()).collect::<Vec<_>>().join(", ");
        let theirs = theirs.chars().take(MAX_SHOWN).collect();
        let remedy = if settings == "upstream.url" { UPSTREAM_REMEDY } else { REMEDY };
        (!settings.is_empty()).then_some(RecordMismatch { settings, theirs, remedy })
    }
}

/// Returns a route as the path, followed by what it has of its own: the key, the prefix, how ids are
/// read, and the statuses that are stored.
fn shown(route: &RouteConfig) -> String {
    let RouteConfig { path, key, prefix, ids, statuses, .. } = route;
    let mut shown = path.clone();
    for (name, value) in [("key", key), ("prefix", prefix)] {
        if let Some(value) = value {
            shown.extend([" ", name, "=", value]);
        }
    }
    if *ids == Some(Ids::Opaque) {
        shown.push_str(" ids=opaque");
    }
    let statuses =
        statuses.iter().flatten().map(|(status, ttl)| format!("{}={ttl:?}", status.as_u16()));
    let statuses = statuses.collect::<Vec<_>>().join(",");
    if !statuses.is_empty() {
        shown.extend([" statuses=", &statuses]);
    }
    shown
}

fn hash(value: &impl fmt::Debug) -> String {
    format!("{:016x}", xxh3_64(format!("{value:?}").as_bytes()))
}

/// Our record, and the warnings about others.
pub(super) struct SidecarRecords {
    ours: Mutex<SidecarRecord>,
    /// Our records from before a reload, which no longer hold.
    outdated: Mutex<Vec<String>>,
    warnings: HourlyPerName,
}

impl SidecarRecords {
    pub(super) fn new(config: &Config) -> Self {
        let ours = Mutex::new(SidecarRecord::of(config));
        Self { ours, outdated: Mutex::default(), warnings: HourlyPerName::default() }
    }

    /// Replaces our record after a reload.
    pub(super) fn replace(&self, record: SidecarRecord) {
        let mut ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        if *ours != record {
            let outdated = mem::replace(&mut *ours, record).text();
            self.outdated.lock().unwrap_or_else(PoisonError::into_inner).push(outdated);
        }
    }

    /// Takes the records that have to be removed. Sidecars that still have such a configuration
    /// record it again.
    pub(super) fn take_outdated(&self) -> Vec<String> {
        mem::take(&mut *self.outdated.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn ours(&self) -> SidecarRecord {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Warns about each configuration that differs from ours, once an hour.
    pub(super) fn compare(&self, others: &[String]) {
        let ours = self.ours();
        for mismatch in others.iter().filter_map(|other| ours.mismatch(other)) {
            let RecordMismatch { settings, theirs, remedy } = &mismatch;
            if self.warnings.admits(&format!("{settings} {theirs}")) {
                warn!(
                    settings,
                    theirs,
                    remedy,
                    "another sidecar with the same store.prefix has another configuration"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl Fn(&mut Config), others: impl Fn(&mut Config), want: Option<&str>) {
        let [mut ours, mut theirs] = [Config::default(), Config::default()];
        change(&mut ours);
        others(&mut theirs);
        let theirs = SidecarRecord::of(&theirs).text();
        let mismatch = SidecarRecord::of(&ours).mismatch(&theirs);
        assert_eq!(mismatch.as_ref().map(|mismatch| mismatch.settings.as_str()), want);
    }

    #[test]
    fn what_the_sidecars_of_one_prefix_must_agree_on_is_compared() {
        let named =
            |name: &'static str| move |config: &mut Config| config.api.name = Some(name.into());
        let at = |url: &'static str| move |config: &mut Config| config.upstream.url = url.into();
        let routes =
            |route: &'static str| move |config: &mut Config| config.api.paths = vec![route.into()];
        let same = |_: &mut Config| {};
        check(same, same, None);
        check(named("a"), named("b"), Some("api"));
        check(named("a"), same, Some("api"));
        check(routes("/a/{id}"), same, Some("routes"));
        check(at("http://a:1"), at("http://b:1"), Some("upstream.url"));
        check(|config| config.api.query.allow = vec!["fields".into()], same, Some("query"));
        check(
            |config| config.cache.credentials.ignore = vec!["x-a".into()],
            same,
            Some("credentials"),
        );
        let (a, b) = (at("http://a:1"), at("http://b:1"));
        let api = named("a");
        check(
            |config| {
                a(config);
                api(config);
            },
            |config| {
                b(config);
                api(config);
            },
            None,
        );
        check(
            |config| config.api.paths = vec!["/a/{id}".into(), "/b/{id}".into()],
            |config| config.api.paths = vec!["/b/{id}".into(), "/a/{id}".into()],
            None,
        );
    }

    #[test]
    fn what_is_no_record_says_nothing_and_another_version_is_compared_by_what_it_has() {
        let ours = SidecarRecord::of(&Config::default());
        assert_eq!(ours.mismatch("no record"), None);
        let more = ours.text().replace('}', ",\"statuses\":\"404=2s\"}");
        assert_eq!(ours.mismatch(&more), None);
    }
}
