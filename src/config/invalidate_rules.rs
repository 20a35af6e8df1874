//! `[[invalidate]]`: which further jobs a write changes.

use super::{
    RawValue,
    file_tables::{FileTable, TableKey, TableSpec, wrong_shape},
    parse::{self, Bounds},
    setter::quoted,
};
use crate::semantics::{
    route::invalidation_rules::InvalidationRule,
    settings::{InvalidateRule, OnMiss},
};

/// A parsed document takes many times the size of its body in memory.
const BODY_BOUNDS: Bounds<usize> = (1, 1 << 20);

pub(super) static RULES: TableSpec = TableSpec {
    key: "invalidate",
    title: "Writes that change further jobs",
    intro: "Further jobs that a write changes, where its path does not name them: one table for each \
            kind of write, at most 64. There are none by default.",
    see: "purging",
    keys: &KEYS,
};

static KEYS: [TableKey; 8] = [
    TableKey {
        name: "path",
        unset: "required",
        example: "\"/uploads/{upload}/finish\"",
        limits: "",
        help: "Path of the write, compared as a whole. `{id}` is the id of the job and may have literal \
               text around it (`/jobs/{id}:cancel`), `{any_name}` is any segment.",
    },
    TableKey {
        name: "methods",
        unset: "every method except GET, HEAD, OPTIONS and TRACE",
        example: "[\"POST\"]",
        limits: "",
        help: "Methods of the write, or those that a header or its query names instead, but not a \
               body.",
    },
    TableKey {
        name: "request",
        unset: "none",
        example: "[\"/job_id\", \"/jobs/*/id\"]",
        limits: "",
        help: "Places of ids in the JSON of the request: JSON pointers (RFC 6901), in which `*` is every \
               element of a list and every member of an object. Strings and whole numbers are ids.",
    },
    TableKey {
        name: "response",
        unset: "none",
        example: "[\"/job/id\"]",
        limits: "",
        help: "Places of ids in the JSON of the API's answer, likewise.",
    },
    TableKey {
        name: "query",
        unset: "none",
        example: "[\"id\", \"ids\"]",
        limits: "",
        help: "Query parameters that carry ids: one (`?id=7`), several (`?ids=7,8`), or a list \
               (`?ids[]=7&ids[]=8`).",
    },
    TableKey {
        name: "all",
        unset: "`false`",
        example: "false",
        limits: "",
        help: "Whether the write changes every job. It takes the place of pointers.",
    },
    TableKey {
        name: "max_body",
        unset: "`\"64KiB\"`",
        example: "\"64KiB\"",
        limits: "1 to 1MiB",
        help: "Largest body that is searched. `jobcache_rule_misses_total` counts larger ones.",
    },
    TableKey {
        name: "on_miss",
        unset: "`\"all\"`",
        example: "\"ignore\"",
        limits: "",
        help: "What becomes of a write with a body that cannot be read, or that has no id where the \
               pointers lead. `all`: if the API answers 2xx or 3xx, or its answer is unknown, every job is \
               dropped. `ignore`: only the jobs that were found.",
    },
];

impl FileTable for InvalidateRule {
    const SPEC: &'static TableSpec = &RULES;

    fn set(&mut self, key: &str, value: &RawValue) -> Result<(), String> {
        match (key, value) {
            ("methods", RawValue::Many(items)) => self.methods.clone_from(items),
            ("request", RawValue::Many(items)) => self.request.clone_from(items),
            ("response", RawValue::Many(items)) => self.response.clone_from(items),
            ("query", RawValue::Many(items)) => self.query.clone_from(items),
            ("path", RawValue::One(text)) => self.path.clone_from(text),
            ("all", RawValue::One(text)) => self.all = parse::switch(text)?,
            ("max_body", RawValue::One(text)) => self.max_body = parse::size(text, BODY_BOUNDS)?,
            ("on_miss", RawValue::One(text)) => self.on_miss = on_miss(text)?,
            (_, value) => return Err(wrong_shape(value)),
        }
        Ok(())
    }

    fn check(&self, number: usize) -> Result<(), String> {
        InvalidationRule::parse(number, self).map(drop)
    }

    fn assignments(&self) -> Vec<String> {
        let mut all = vec![format!("path = {}", quoted(&self.path))];
        let lists = [
            ("methods", &self.methods),
            ("request", &self.request),
            ("response", &self.response),
            ("query", &self.query),
        ];
        let lists = lists.into_iter().filter(|(_, items)| !items.is_empty());
        all.extend(lists.map(|(key, items)| format!("{key} = {}", RawValue::Many(items.clone()))));
        if self.all {
            all.push("all = true".to_owned());
        }
        if self.max_body != Self::default().max_body {
            all.push(format!("max_body = {}", self.max_body));
        }
        if self.on_miss == OnMiss::Ignore {
            all.push("on_miss = \"ignore\"".to_owned());
        }
        all
    }
}

fn on_miss(text: &str) -> Result<OnMiss, String> {
    match text {
        "all" => Ok(OnMiss::All),
        "ignore" => Ok(OnMiss::Ignore),
        _ => Err("must be \"all\" or \"ignore\"".to_owned()),
    }
}
