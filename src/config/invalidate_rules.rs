//! `[[invalidate]]`: tables of the file that say which further jobs a write changes. No flag or
//! variable can set them.

use toml::de::{DeArray, DeTable, DeValue};

use super::{
    RawValue,
    parse::{self, Bounds},
    setter::quoted,
    settings,
};
use crate::semantics::{
    route::invalidation_rules,
    settings::{InvalidateRule, OnMiss},
};

/// The key of the tables.
pub(super) const KEY: &str = "invalidate";

/// A parsed document takes many times the size of its body in memory.
const BODY_BOUNDS: Bounds<usize> = (1, 1 << 20);

/// A key of a rule, for reading and for the documents.
pub(super) struct RuleKey {
    pub(super) name: &'static str,
    /// Behaviour without the key; empty = the default of [`InvalidateRule`].
    pub(super) unset: &'static str,
    /// TOML value for the documents; empty = the default.
    pub(super) example: &'static str,
    pub(super) help: &'static str,
}

pub(super) static KEYS: [RuleKey; 8] = [
    RuleKey {
        name: "path",
        unset: "required",
        example: "\"/uploads/{upload}/finish\"",
        help: "Path of the write, compared as a whole. `{id}` is the id of the job and may have literal \
               text around it (`/jobs/{id}:cancel`), `{any_name}` is any segment.",
    },
    RuleKey {
        name: "methods",
        unset: "every method except GET, HEAD, OPTIONS and TRACE",
        example: "[\"POST\"]",
        help: "Methods of the write, or those that a header or its query names instead, but not a \
               body.",
    },
    RuleKey {
        name: "request",
        unset: "none",
        example: "[\"/job_id\", \"/jobs/*/id\"]",
        help: "Places of ids in the JSON of the request: JSON pointers (RFC 6901), in which `*` is every \
               element of a list and every member of an object. Strings and whole numbers are ids.",
    },
    RuleKey {
        name: "response",
        unset: "none",
        example: "[\"/job/id\"]",
        help: "Places of ids in the JSON of the API's answer, likewise.",
    },
    RuleKey {
        name: "query",
        unset: "none",
        example: "[\"id\", \"ids\"]",
        help: "Query parameters that carry ids: one (`?id=7`), several (`?ids=7,8`), or a list \
               (`?ids[]=7&ids[]=8`).",
    },
    RuleKey {
        name: "all",
        unset: "",
        example: "",
        help: "Whether the write changes every job. It takes the place of pointers.",
    },
    RuleKey {
        name: "max_body",
        unset: "",
        example: "",
        help: "Largest body that is searched. `jobcache_rule_misses_total` counts larger ones.",
    },
    RuleKey {
        name: "on_miss",
        unset: "`\"all\"`",
        example: "\"ignore\"",
        help: "What becomes of a write with a body that cannot be read, or that has no id where the \
               pointers lead. `all`: if the API answers 2xx or 3xx, or its answer is unknown, every job is \
               dropped. `ignore`: only the jobs that were found.",
    },
];

/// Introduction for the documents.
pub(super) const INTRO: &str = "\
    Further jobs that a write changes, where its path does not name them: one table for each kind of \
    write, at most 64. Only the file can hold these tables. There are none by default.";

/// Limits of `max_body` for the documents.
pub(super) fn body_limits() -> String {
    parse::show_bounds(BODY_BOUNDS, parse::show_bytes)
}

/// Keys of a rule with their values and explanations, for the manual page.
pub fn rule_keys() -> impl Iterator<Item = (String, &'static str)> {
    KEYS.iter().map(|key| (format!("{} = {}", key.name, example(key)), key.help))
}

/// The TOML value of `key` for the documents: its example, or else its default.
pub(super) fn example(key: &RuleKey) -> String {
    if !key.example.is_empty() {
        return key.example.to_owned();
    }
    let default = InvalidateRule::default();
    match key.name {
        "max_body" => quoted(&parse::show_bytes(default.max_body)),
        _ => default.all.to_string(),
    }
}

/// Reads the value of [`KEY`]. `at` names the line of an offset.
pub(super) fn read(
    tables: &DeValue<'_>,
    offset: usize,
    at: &impl Fn(usize) -> String,
    problems: &mut Vec<String>,
) -> Vec<InvalidateRule> {
    let Some(tables) = tables_of(tables) else {
        let at = at(offset);
        problems.push(format!(
            "{at}: {KEY} must be a list of tables: begin each of them with [[{KEY}]]"
        ));
        return Vec::new();
    };
    let mut rules = Vec::new();
    for (index, (offset, table)) in tables.into_iter().enumerate() {
        let number = index + 1;
        let mut faults = Vec::new();
        let rule = rule(table, number, &mut faults);
        // In a table that cannot be read, further findings would be misleading.
        if faults.is_empty() {
            let invalid = invalidation_rules::InvalidationRule::parse(number, &rule).err();
            faults.extend(invalid.map(|error| (offset, error)));
        }
        problems
            .extend(faults.into_iter().map(|(offset, fault)| format!("{}: {fault}", at(offset))));
        rules.push(rule);
    }
    rules
}

fn tables_of<'t>(value: &'t DeValue<'t>) -> Option<Vec<(usize, &'t DeTable<'t>)>> {
    let items: &DeArray<'_> = value.as_array()?;
    items.iter().map(|item| Some((item.span().start, item.get_ref().as_table()?))).collect()
}

/// Reads one table; each fault has the offset of its key.
fn rule(table: &DeTable<'_>, number: usize, faults: &mut Vec<(usize, String)>) -> InvalidateRule {
    let mut rule = InvalidateRule::default();
    for (name, given) in table {
        let key: &str = name.get_ref();
        let fault = match RawValue::of(given.get_ref()) {
            _ if !KEYS.iter().any(|known| known.name == key) => Err(unknown(key)),
            Some(value) => {
                set(&mut rule, key, &value).map_err(|why| format!("{key} = {value}: {why}"))
            }
            None => Err(format!("{key} cannot be a date, or a list of lists or tables")),
        };
        if let Err(fault) = fault {
            faults.push((name.span().start, format!("[[{KEY}]] rule {number}: {fault}")));
        }
    }
    rule
}

fn unknown(key: &str) -> String {
    let names = KEYS.iter().map(|key| (key.name.to_owned(), key.name));
    let hint = settings::nearest(key, names).map(|near| format!("; did you mean {near}?"));
    format!("{} is not a known key{}", key.escape_debug(), hint.unwrap_or_default())
}

fn set(rule: &mut InvalidateRule, key: &str, value: &RawValue) -> Result<(), String> {
    match (key, value) {
        ("methods", RawValue::Many(items)) => rule.methods.clone_from(items),
        ("request", RawValue::Many(items)) => rule.request.clone_from(items),
        ("response", RawValue::Many(items)) => rule.response.clone_from(items),
        ("query", RawValue::Many(items)) => rule.query.clone_from(items),
        ("path", RawValue::One(text)) => rule.path.clone_from(text),
        ("all", RawValue::One(text)) => rule.all = parse::switch(text)?,
        ("max_body", RawValue::One(text)) => rule.max_body = parse::size(text, BODY_BOUNDS)?,
        ("on_miss", RawValue::One(text)) => rule.on_miss = on_miss(text)?,
        (_, RawValue::One(_)) => return Err("must be a list, such as [\"a\", \"b\"]".to_owned()),
        (_, RawValue::Many(_)) => return Err("must be one value, not a list".to_owned()),
        (_, RawValue::Pairs(_)) => return Err("must be a value, not a table".to_owned()),
    }
    Ok(())
}

fn on_miss(text: &str) -> Result<OnMiss, String> {
    match text {
        "all" => Ok(OnMiss::All),
        "ignore" => Ok(OnMiss::Ignore),
        _ => Err("must be \"all\" or \"ignore\"".to_owned()),
    }
}

impl InvalidateRule {
    /// The rule as a table of a file, without the keys that have their default.
    pub(super) fn to_toml(&self) -> String {
        format!("\n[[{KEY}]]\n{}\n", self.assignments().join("\n"))
    }

    /// The same on one line.
    pub(super) fn to_inline(&self) -> String {
        format!("{{ {} }}", self.assignments().join(", "))
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
