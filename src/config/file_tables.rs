//! Lists of tables that only the file can hold: `[[route]]` and `[[invalidate]]`. No flag or variable
//! can set them.

use toml::de::{DeTable, DeValue};

use super::{RawValue, settings};

/// What is known about one list of tables, for reading and for the documents.
pub struct TableSpec {
    /// Key of the list.
    pub key: &'static str,
    /// Heading in the documents.
    pub title: &'static str,
    /// Introduction for the documents.
    pub(super) intro: &'static str,
    /// Page of `docs/` that explains more, without `.md`.
    pub(super) see: &'static str,
    pub(super) keys: &'static [TableKey],
}

/// A key of a table.
pub(super) struct TableKey {
    pub(super) name: &'static str,
    /// Behaviour without the key.
    pub(super) unset: &'static str,
    /// TOML value for the documents.
    pub(super) example: &'static str,
    /// Bounds of the value; may be empty.
    pub(super) limits: &'static str,
    pub(super) help: &'static str,
}

impl TableSpec {
    /// Keys of a table with their values and explanations, for the manual page.
    pub fn lines(&self) -> impl Iterator<Item = (String, &'static str)> {
        self.keys.iter().map(|key| (format!("{} = {}", key.name, key.example), key.help))
    }
}

/// One table of such a list.
pub(super) trait FileTable: Default {
    const SPEC: &'static TableSpec;

    /// Sets a known key.
    fn set(&mut self, key: &str, value: &RawValue) -> Result<(), String>;

    /// Checks the table as a whole, which is the `number`th.
    fn check(&self, number: usize) -> Result<(), String>;

    /// The keys that do not have their default, as TOML.
    fn assignments(&self) -> Vec<String>;

    /// The table as a part of a file.
    fn to_toml(&self) -> String {
        format!("\n[[{}]]\n{}\n", Self::SPEC.key, self.assignments().join("\n"))
    }

    /// The same on one line.
    fn to_inline(&self) -> String {
        format!("{{ {} }}", self.assignments().join(", "))
    }
}

/// Reads a list of tables. `at` names the line of an offset.
pub(super) fn read<T: FileTable>(
    tables: &DeValue<'_>,
    offset: usize,
    at: &impl Fn(usize) -> String,
    problems: &mut Vec<String>,
) -> Vec<T> {
    let key = T::SPEC.key;
    let Some(tables) = tables_of(tables) else {
        let at = at(offset);
        problems.push(format!(
            "{at}: {key} must be a list of tables: begin each of them with [[{key}]]"
        ));
        return Vec::new();
    };
    let mut all = Vec::new();
    for (index, (offset, table)) in tables.into_iter().enumerate() {
        let number = index + 1;
        let mut faults = Vec::new();
        let table: T = read_table(table, number, &mut faults);
        // In a table that cannot be read, further findings would be misleading.
        if faults.is_empty() {
            faults.extend(table.check(number).err().map(|error| (offset, error)));
        }
        problems
            .extend(faults.into_iter().map(|(offset, fault)| format!("{}: {fault}", at(offset))));
        all.push(table);
    }
    all
}

fn tables_of<'t>(value: &'t DeValue<'t>) -> Option<Vec<(usize, &'t DeTable<'t>)>> {
    let items = value.as_array()?;
    items.iter().map(|item| Some((item.span().start, item.get_ref().as_table()?))).collect()
}

/// Reads one table; each fault has the offset of its key.
fn read_table<T: FileTable>(
    table: &DeTable<'_>,
    number: usize,
    faults: &mut Vec<(usize, String)>,
) -> T {
    let mut read = T::default();
    for (name, given) in table {
        let key: &str = name.get_ref();
        let value = match given.get_ref() {
            DeValue::Table(pairs) => RawValue::of_pairs(pairs),
            value => RawValue::of(value),
        };
        let fault = match value {
            _ if !T::SPEC.keys.iter().any(|known| known.name == key) => Err(unknown::<T>(key)),
            Some(value) => read.set(key, &value).map_err(|why| format!("{key} = {value}: {why}")),
            None => Err(format!("{key} cannot be a date, or a list of lists or tables")),
        };
        if let Err(fault) = fault {
            let list = T::SPEC.key;
            faults.push((name.span().start, format!("[[{list}]] number {number}: {fault}")));
        }
    }
    read
}

fn unknown<T: FileTable>(key: &str) -> String {
    let names = T::SPEC.keys.iter().map(|key| (key.name.to_owned(), key.name));
    let hint = settings::nearest(key, names).map(|near| format!("; did you mean {near}?"));
    format!("{} is not a known key{}", key.escape_debug(), hint.unwrap_or_default())
}

/// The fault of a value of the wrong shape.
pub(super) fn wrong_shape(value: &RawValue) -> String {
    match value {
        RawValue::One(_) => "must be a list, such as [\"a\", \"b\"]",
        RawValue::Many(_) => "must be one value, not a list",
        RawValue::Pairs(_) => "must be a value, not a table",
    }
    .to_owned()
}
