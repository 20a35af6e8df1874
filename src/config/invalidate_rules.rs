//! `[[invalidate]]`: tables of the file, which no flag or variable can say.

use toml::de::{DeArray, DeTable, DeValue};

use super::{
    file::value,
    parse,
    setting_spec::{RawValue, quoted},
    suggest,
};
use crate::proxy::route::rules;

/// The key of the tables.
pub(super) const KEY: &str = "invalidate";

/// What a rule may have.
const KEYS: [&str; 6] = ["methods", "path", "request", "response", "all", "max_body"];

/// Largest `max_body`: a document takes many times its size in memory.
const MAX_BODY: usize = 1 << 20;

/// Which further jobs a write changes, where its path does not name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidateRule {
    /// Methods that it is for; every unsafe one, if there are none.
    pub methods: Vec<String>,
    /// Template of the path: `{id}` is the job's, `{any_name}` stands for anything.
    pub path: String,
    /// JSON pointers to ids in the request.
    pub request: Vec<String>,
    /// JSON pointers to ids in the response.
    pub response: Vec<String>,
    /// The write changes every job.
    pub all: bool,
    /// Bytes of a body that are looked at, at most.
    pub max_body: usize,
}

impl Default for InvalidateRule {
    fn default() -> Self {
        Self {
            methods: Vec::new(),
            path: String::new(),
            request: Vec::new(),
            response: Vec::new(),
            all: false,
            max_body: 64 << 10,
        }
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
        problems.push(format!("{at}: {KEY} must be tables, each begun by [[{KEY}]]"));
        return Vec::new();
    };
    let mut read = Vec::new();
    for (index, (offset, table)) in tables.into_iter().enumerate() {
        let number = index + 1;
        let mut faults = Vec::new();
        let rule = rule(table, number, &mut faults);
        // Of a table that cannot be read it is not known what else is wrong.
        if faults.is_empty() {
            faults.extend(
                rules::Rule::parse(number, &rule).err().map(|bad| (offset, bad.to_string())),
            );
        }
        problems
            .extend(faults.into_iter().map(|(offset, fault)| format!("{}: {fault}", at(offset))));
        read.push(rule);
    }
    read
}

fn tables_of<'t>(value: &'t DeValue<'t>) -> Option<Vec<(usize, &'t DeTable<'t>)>> {
    let items: &DeArray<'_> = value.as_array()?;
    items.iter().map(|item| Some((item.span().start, item.get_ref().as_table()?))).collect()
}

/// One table; faults come with the offset of their key.
fn rule(table: &DeTable<'_>, number: usize, faults: &mut Vec<(usize, String)>) -> InvalidateRule {
    let mut rule = InvalidateRule::default();
    for (name, given) in table {
        let key: &str = name.get_ref();
        let fault = match value(given.get_ref()) {
            _ if !KEYS.contains(&key) => Err(unknown(key)),
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
    let names = KEYS.into_iter().map(|name| (name.to_owned(), name));
    let hint = suggest::nearest(key, names).map(|near| format!("; did you mean {near}?"));
    format!("{} is not a known key{}", key.escape_debug(), hint.unwrap_or_default())
}

fn set(rule: &mut InvalidateRule, key: &str, value: &RawValue) -> Result<(), String> {
    match (key, value) {
        ("methods", RawValue::Many(items)) => rule.methods.clone_from(items),
        ("request", RawValue::Many(items)) => rule.request.clone_from(items),
        ("response", RawValue::Many(items)) => rule.response.clone_from(items),
        ("path", RawValue::One(text)) => rule.path.clone_from(text),
        ("all", RawValue::One(text)) => rule.all = parse::switch(text)?,
        ("max_body", RawValue::One(text)) => rule.max_body = parse::size(text, 1..=MAX_BODY)?,
        (_, RawValue::One(_)) => return Err("must be a list, such as [\"a\", \"b\"]".to_owned()),
        (_, RawValue::Many(_)) => return Err("must be one value, not a list".to_owned()),
        (_, RawValue::Pairs(_)) => return Err("must be a value, not a table".to_owned()),
    }
    Ok(())
}

impl InvalidateRule {
    /// The rule as a table of a file, without what is left at its default.
    pub(super) fn to_toml(&self) -> String {
        format!("\n[[{KEY}]]\n{}\n", self.assignments().join("\n"))
    }

    /// The same on one line.
    pub(super) fn to_inline(&self) -> String {
        format!("{{ {} }}", self.assignments().join(", "))
    }

    fn assignments(&self) -> Vec<String> {
        let mut all = vec![format!("path = {}", quoted(&self.path))];
        let lists =
            [("methods", &self.methods), ("request", &self.request), ("response", &self.response)];
        let lists = lists.into_iter().filter(|(_, items)| !items.is_empty());
        all.extend(lists.map(|(key, items)| format!("{key} = {}", RawValue::Many(items.clone()))));
        if self.all {
            all.push("all = true".to_owned());
        }
        if self.max_body != Self::default().max_body {
            all.push(format!("max_body = {}", self.max_body));
        }
        all
    }
}
