//! `[[route]]`: paths of jobs that need more than a path.

use std::time::Duration;

use super::{
    Ids, RawValue, RouteConfig,
    file_tables::{FileTable, TableKey, TableSpec, wrong_shape},
    parse,
    setter::quoted,
    setting_spec::{DAY, SECOND},
};
use crate::semantics::route::check_route;

/// Length of the longest prefix, in bytes, as of `store.prefix`.
const MAX_PREFIX: usize = 64;

/// Most states of a route, and most statuses.
const MAX_TIMES: usize = 64;

pub(super) static ROUTES: TableSpec = TableSpec {
    key: "route",
    title: "Routes with more than a path",
    intro: "Paths of jobs with a key, a lifetime or statuses of their own: one table for each path, at \
            most 64 together with `routes`. If there are such tables and `routes` is not set, only the \
            tables count.",
    see: "what-is-cached",
    keys: &[
        TableKey {
            name: "path",
            unset: "required",
            example: "\"/t/{tenant}/jobs/{id}/\"",
            limits: "",
            help: "Path of the jobs, as in `routes`.",
        },
        TableKey {
            name: "key",
            unset: "the variables in their order, joined by `:`",
            example: "\"{tenant}:{id}\"",
            limits: "names every variable",
            help: "Key of a job in Redis, after the prefix. Purges name jobs by it.",
        },
        TableKey {
            name: "prefix",
            unset: "`store.prefix`",
            example: "\"exports:\"",
            limits: "1 to 64 bytes",
            help: "Beginning of the key. Routes with jobs that may have the same key should have different \
                   ones. No prefix may begin with another. A change needs a restart.",
        },
        TableKey {
            name: "ids",
            unset: "`ids`",
            example: "\"opaque\"",
            limits: "`auto` or `opaque`",
            help: "How the API reads ids.",
        },
        TableKey {
            name: "except",
            unset: "none",
            example: "[\"/t/{tenant}/jobs/latest\"]",
            limits: "",
            help: "Further paths that are never cached.",
        },
        TableKey {
            name: "ttl",
            unset: "`ttl.default`",
            example: "\"60s\"",
            limits: "1s to 24h",
            help: "Longest time for which an entry with status 200 is kept.",
        },
        TableKey {
            name: "states",
            unset: "`ttl.states.map`",
            example: "{ running = \"5s\" }",
            limits: "1s to 24h",
            help: "Longest time by the state of the job.",
        },
        TableKey {
            name: "statuses",
            unset: "`statuses`",
            example: "{ 202 = \"5s\", 404 = \"2s\" }",
            limits: "1s to 24h",
            help: "Statuses that are stored besides 200, and for how long.",
        },
    ],
};

impl FileTable for RouteConfig {
    const SPEC: &'static TableSpec = &ROUTES;

    fn set(&mut self, key: &str, value: &RawValue) -> Result<(), String> {
        let times = |pairs: &[(String, String)]| {
            parse::times(pairs, (0, MAX_TIMES, key_noun(key)), (SECOND, DAY))
        };
        match (key, value) {
            ("path", RawValue::One(text)) => self.path.clone_from(text),
            ("key", RawValue::One(text)) => self.key = Some(text.clone()),
            ("prefix", RawValue::One(text)) => self.prefix = Some(prefix(text)?),
            ("ids", RawValue::One(text)) => self.ids = Some(ids(text)?),
            ("ttl", RawValue::One(text)) => self.ttl = Some(parse::time(text, (SECOND, DAY))?),
            ("except", RawValue::Many(items)) => self.except.clone_from(items),
            ("states", RawValue::Pairs(pairs)) => self.states = Some(times(pairs)?),
            ("statuses", RawValue::Pairs(pairs)) => {
                self.statuses = Some(parse::statuses(times(pairs)?)?);
            }
            ("states" | "statuses", _) => {
                return Err("must be a table, such as { a = \"5s\" }".to_owned());
            }
            (_, value) => return Err(wrong_shape(value)),
        }
        Ok(())
    }

    fn check(&self, number: usize) -> Result<(), String> {
        if self.path.is_empty() {
            return Err(format!(
                "[[route]] number {number}: it has no path; give it one such as path = \"/jobs/{{id}}\""
            ));
        }
        check_route(self).map_err(|why| format!("[[route]] number {number}: {why}"))
    }

    fn assignments(&self) -> Vec<String> {
        let Self { path, key, prefix, ids, except, ttl, states, statuses } = self;
        let texts = [("path", Some(path)), ("key", key.as_ref()), ("prefix", prefix.as_ref())];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, quoted(text?))));
        let ids = ids.map(|ids| ("ids", quoted(ids.as_str())));
        let except =
            (!except.is_empty()).then(|| ("except", RawValue::Many(except.clone()).to_string()));
        let ttl = ttl.map(|ttl| ("ttl", quoted(&parse::show_time(ttl))));
        let states = states.as_ref().map(|states| ("states", pairs(states)));
        let statuses = statuses.as_ref().map(|statuses| {
            let named = statuses.iter().map(|(status, ttl)| (status.as_str().to_owned(), *ttl));
            ("statuses", pairs(&named.collect::<Vec<_>>()))
        });
        let others = [ids, except, ttl, states, statuses].into_iter().flatten();
        texts.chain(others).map(|(name, value)| format!("{name} = {value}")).collect()
    }
}

fn prefix(text: &str) -> Result<String, String> {
    if !(1..=MAX_PREFIX).contains(&text.len()) {
        return Err(format!("must be 1 to {MAX_PREFIX} bytes long"));
    }
    parse::prefix(text)
}

fn key_noun(key: &str) -> &'static str {
    if key == "states" { "state" } else { "code" }
}

fn pairs(times: &[(String, Duration)]) -> String {
    let text = times.iter().map(|(name, ttl)| (name.clone(), parse::show_time(*ttl)));
    RawValue::Pairs(text.collect()).to_string()
}

fn ids(text: &str) -> Result<Ids, String> {
    let known = [Ids::Auto, Ids::Opaque].into_iter().find(|ids| ids.as_str() == text);
    known.ok_or_else(|| "must be \"auto\" or \"opaque\"".to_owned())
}
