//! The configuration that a sidecar records for the others of the same prefix. Pure.
//!
//! Sidecars that share a prefix share entries, and have to agree on what they are of. Each keeps a
//! record in Redis while it runs; one that finds another configuration there warns. Sidecars with
//! the same configuration share a record, so the number of records is that of configurations.

use std::{
    fmt,
    sync::{PoisonError, RwLock},
};

use serde::{Deserialize, Serialize};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use crate::{config::Config, observe::throttle::HourlyPerName};

/// Longest part of another sidecar's value that is shown, in characters.
const MAX_SHOWN: usize = 200;

/// The settings on which the sidecars of one prefix have to agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SidecarRecord {
    api: String,
    routes: Vec<String>,
    prefix: String,
    /// Hash of the upstream's address. Replicas of one API may differ in it, so it counts only where
    /// no name tells the APIs apart.
    upstream: String,
}

/// How another sidecar is configured differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMismatch {
    /// The settings that differ.
    settings: String,
    /// Their values in the other sidecar.
    theirs: String,
}

impl fmt::Display for RecordMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "another sidecar with the same store.prefix differs in {}{}; {REMEDY}",
            self.settings,
            if self.theirs.is_empty() { String::new() } else { format!(" ({})", self.theirs) },
        )
    }
}

/// What to do about a mismatch.
const REMEDY: &str = "sidecars of one API need the same api and routes, and another API needs \
                      another store.prefix (or at least another api)";

impl SidecarRecord {
    /// Returns the record of this configuration.
    pub fn of(config: &Config) -> Self {
        let mut routes = config.routes.clone();
        routes.sort_unstable();
        Self {
            api: config.api.clone().unwrap_or_default(),
            routes,
            prefix: config.store.prefix.clone(),
            upstream: format!("{:016x}", xxh3_64(config.upstream.url.as_bytes())),
        }
    }

    /// Returns the text in the store.
    pub(super) fn text(&self) -> String {
        // Serialization never fails: the record holds only strings.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Compares the record with the text of another sidecar. A text that cannot be read is one of
    /// another version, and says nothing.
    pub(super) fn mismatch(&self, text: &str) -> Option<RecordMismatch> {
        let theirs: Self = serde_json::from_str(text).ok()?;
        let is_unnamed = self.api.is_empty() && theirs.api.is_empty();
        let compared = [
            ("api", self.api != theirs.api, format!("api = {:?}", theirs.api)),
            ("routes", self.routes != theirs.routes, format!("routes = {:?}", theirs.routes)),
            ("store.prefix", self.prefix != theirs.prefix, format!("{:?}", theirs.prefix)),
            ("upstream.url", is_unnamed && self.upstream != theirs.upstream, String::new()),
        ];
        let different = || compared.iter().filter(|(_, differs, _)| *differs);
        let names: Vec<&str> = different().map(|(name, ..)| *name).collect();
        let values: Vec<&str> = different()
            .map(|(.., value)| value.as_str())
            .filter(|value| !value.is_empty())
            .collect();
        let theirs = values.join(", ").chars().take(MAX_SHOWN).collect();
        (!names.is_empty()).then(|| RecordMismatch { settings: names.join(", "), theirs })
    }
}

/// Our record, and the warnings about others.
#[derive(Debug)]
pub(super) struct SidecarRecords {
    ours: RwLock<SidecarRecord>,
    warnings: HourlyPerName,
}

impl SidecarRecords {
    pub(super) fn new(config: &Config) -> Self {
        Self { ours: RwLock::new(SidecarRecord::of(config)), warnings: HourlyPerName::default() }
    }

    /// Replaces our record after a reload.
    pub(super) fn replace(&self, record: SidecarRecord) {
        *self.ours.write().unwrap_or_else(PoisonError::into_inner) = record;
    }

    pub(super) fn ours(&self) -> SidecarRecord {
        self.ours.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Warns about each configuration that differs from ours, once an hour.
    pub(super) fn compare(&self, others: &[String]) {
        let ours = self.ours();
        for mismatch in others.iter().filter_map(|other| ours.mismatch(other)) {
            let RecordMismatch { settings, theirs } = &mismatch;
            if self.warnings.admits(&format!("{settings} {theirs}")) {
                warn!(
                    settings,
                    theirs,
                    remedy = REMEDY,
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
        let named = |name: &'static str| move |config: &mut Config| config.api = Some(name.into());
        let at = |url: &'static str| move |config: &mut Config| config.upstream.url = url.into();
        let routes =
            |route: &'static str| move |config: &mut Config| config.routes = vec![route.into()];
        let same = |_: &mut Config| {};
        check(same, same, None);
        check(named("a"), named("b"), Some("api"));
        check(named("a"), same, Some("api"));
        check(routes("/a/{id}"), same, Some("routes"));
        check(at("http://a:1"), at("http://b:1"), Some("upstream.url"));
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
            |config| config.routes = vec!["/a/{id}".into(), "/b/{id}".into()],
            |config| config.routes = vec!["/b/{id}".into(), "/a/{id}".into()],
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
