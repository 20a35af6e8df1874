//! The configuration file: TOML, flattened to dotted keys with their lines.

use std::{
    fs,
    io::{self, Read},
};

use toml::de::{DeTable, DeValue};

use super::{
    InvalidateRule, RawValue, SettingSpec, invalidate_rules,
    layers::{EffectiveSetting, Origin},
    setting, settings, suggest,
};

/// No configuration and no secret is larger. It keeps a wrong path (`/dev/zero`) from filling memory.
const MAX_FILE: u64 = 1 << 20;

/// Everything that a file sets.
#[derive(Default)]
pub(super) struct ConfigFile {
    pub(super) settings: Vec<EffectiveSetting>,
    pub(super) rules: Vec<InvalidateRule>,
}

/// Reads the file at `path`, which `from` (a flag or a variable) names.
pub(super) fn read(path: &str, from: &str, problems: &mut Vec<String>) -> ConfigFile {
    match read_text(path) {
        Ok(text) => parse(&text, path, problems),
        Err(error) => {
            problems.push(format!("config = {path:?} (from {from}): cannot be read: {error}"));
            ConfigFile::default()
        }
    }
}

/// Reads the text of the file called `path`.
pub(super) fn parse(text: &str, path: &str, problems: &mut Vec<String>) -> ConfigFile {
    let (table, errors) = DeTable::parse_recoverable(text);
    let at = |offset: usize| {
        let before = text.as_bytes().iter().take(offset);
        format!("{path}:{}", 1 + before.filter(|byte| **byte == b'\n').count())
    };
    if !errors.is_empty() {
        // Only the message: the error as a whole quotes the line, which may hold a secret.
        problems.extend(errors.iter().map(|error| {
            let at = error.span().map_or_else(|| path.to_owned(), |span| at(span.start));
            format!("{at}: is not valid TOML: {}", error.message())
        }));
        return ConfigFile::default();
    }
    let mut leaves = Vec::new();
    flatten("", table.get_ref(), &mut leaves);
    leaves.sort_by_key(|leaf| leaf.offset);
    let mut settings = Vec::new();
    let mut rules = Vec::new();
    for leaf in leaves {
        if leaf.key == invalidate_rules::KEY {
            rules = invalidate_rules::read(leaf.value, leaf.offset, &at, problems);
            continue;
        }
        match leaf.setting(at) {
            Ok(setting) => settings.push(setting),
            Err(why) => problems.push(why),
        }
    }
    ConfigFile { settings, rules }
}

/// A key with a value, or an unknown empty table.
struct Leaf<'t> {
    key: String,
    value: &'t DeValue<'t>,
    offset: usize,
}

fn flatten<'t>(table_key: &str, table: &'t DeTable<'t>, leaves: &mut Vec<Leaf<'t>>) {
    for (name, value) in table {
        let dot = if table_key.is_empty() { "" } else { "." };
        let key = format!("{table_key}{dot}{}", name.get_ref());
        match value.get_ref() {
            value if setting(&key).is_some_and(SettingSpec::is_table) => {
                leaves.push(Leaf { key, value, offset: name.span().start });
            }
            DeValue::Table(inner)
                if key != invalidate_rules::KEY && (!inner.is_empty() || is_table(&key)) =>
            {
                flatten(&key, inner, leaves);
            }
            value => leaves.push(Leaf { key, value, offset: name.span().start }),
        }
    }
}

fn is_table(key: &str) -> bool {
    settings().any(|spec| spec.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

impl Leaf<'_> {
    fn setting(self, at: impl Fn(usize) -> String) -> Result<EffectiveSetting, String> {
        let at = at(self.offset);
        let Some(spec) = setting(&self.key) else {
            let hint = suggest::top_level_key(&self.key).map(|top| {
                format!("; {top} belongs at the top of the file, before the first [table]")
            });
            let near = || suggest::key(&self.key).map(|near| format!("; did you mean {near}?"));
            let hint = hint.or_else(near).unwrap_or_default();
            // A quoted key may hold anything, and must not forge lines of a log.
            return Err(format!("{at}: {} is not a known key{hint}", self.key.escape_debug()));
        };
        let value = match self.value {
            DeValue::Table(table) if spec.is_table() => RawValue::of_pairs(table),
            other => RawValue::of(other),
        };
        let value = value.ok_or_else(|| {
            format!("{at}: {} cannot be a date, or a list of lists or tables", self.key)
        })?;
        Ok(EffectiveSetting { spec, value, origin: Origin::File(at) })
    }
}

/// The text of a small file.
pub(super) fn read_text(path: &str) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        let error = format!("it is larger than {MAX_FILE} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
    }
    Ok(text)
}
