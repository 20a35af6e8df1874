//! The description of one setting. [`settings`](super::settings) has the table of all of them.
//!
//! A [`SettingSpec`] is the only source of everything that is known about a setting: its names, its
//! default, its limits, when a change applies, what messages may show, its text for users, and the
//! field that it sets. `Config::default()`, the flags and their help, `config/jobcache.toml`,
//! `docs/settings.md` and the manual page are made from it.

use std::time::Duration;

use super::{
    address,
    parse::{Bounds, ItemCount},
    setter::{Choice, RawValue, Set, SetItems, SetText, SetTimes, Setter, quoted},
};

/// Text of the table.
type Str = &'static str;

/// One setting.
pub struct SettingSpec {
    /// Name in messages and, as a dotted key, in the file: `store.budget`.
    pub key: &'static str,
    /// Default as a user would write it in a variable; empty if there is none.
    pub default: &'static str,
    /// Command-line flag, if there is one.
    pub flag: Option<FlagSpec>,
    /// Environment variables where they do not follow from the key.
    env: &'static [&'static str],
    /// Whether `<variable>_FILE` may name a file that holds the value, as secrets are mounted.
    pub has_env_file: bool,
    /// Whether variables in the value (`$NAME`, `${NAME}`) are replaced.
    pub(super) has_variables: bool,
    /// When a new value comes into force.
    pub reload: ReloadClass,
    /// One sentence in plain English about the effect of the setting.
    pub help: &'static str,
    /// Further explanation; may be empty.
    pub note: &'static str,
    /// Page of `docs/` that explains more, without `.md`; may be empty.
    pub see: &'static str,
    /// Behaviour while the setting has no value, for settings without a default.
    pub unset: &'static str,
    /// TOML value for the documents, for settings without a default.
    pub example: &'static str,
    pub(super) visibility: Visibility,
    pub(super) setter: Setter,
    /// Form of a text value.
    form: &'static str,
}

/// Settings that belong together: a table of the file, or a part of its top level.
pub struct SettingSection {
    /// Heading in the documents.
    pub title: &'static str,
    /// Introduction; may be empty.
    pub intro: &'static str,
    /// The settings in the order of the documents.
    pub settings: &'static [SettingSpec],
}

impl SettingSection {
    /// Name of the table in the file; empty for the top level.
    pub fn table(&self) -> &'static str {
        let key = self.settings.first().and_then(|spec| spec.key.rsplit_once('.'));
        key.map_or("", |(table, _)| table)
    }
}

/// Command-line flag of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlagSpec {
    /// Name without the dashes.
    pub name: &'static str,
    /// Placeholder of the value in `--help`.
    pub value_name: &'static str,
    /// Heading in `--help` under which the flag is listed.
    pub heading: &'static str,
}

/// Heading of the flags that say where things are.
pub(super) const PLACES: &str = "Where things are";
/// Heading of the flags for what is cached.
pub(super) const CACHING: &str = "What is cached";
/// Heading of the flags for the log.
pub(super) const LOGS: &str = "Log";

/// When a new value of a setting comes into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadClass {
    /// Only when the process starts: sockets, connections and the store are made with the value.
    AtStart,
    /// Also when a running process reloads its configuration.
    OnReload,
}

/// How much of a value messages may show.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Visibility {
    /// The whole value.
    Full,
    /// A URL without user, password and query.
    Url,
    /// Nothing.
    Hidden,
}

/// Shown instead of a secret.
const HIDDEN: &str = "***";

/// A setting that is `true` or `false`.
pub(super) const fn switch(key: Str, default: Str, set: Set<bool>) -> SettingSpec {
    SettingSpec::new(key, default, Setter::Switch(set))
}

/// A whole number from `min` to `max`.
pub(super) const fn number(
    key: Str,
    default: Str,
    bounds: Bounds<usize>,
    set: Set<usize>,
) -> SettingSpec {
    SettingSpec::new(key, default, Setter::Number(bounds, set))
}

/// A number of bytes from `min` to `max`.
pub(super) const fn size(
    key: Str,
    default: Str,
    bounds: Bounds<usize>,
    set: Set<usize>,
) -> SettingSpec {
    SettingSpec::new(key, default, Setter::Size(bounds, set))
}

/// A time from `min` to `max`.
pub(super) const fn time(
    key: Str,
    default: Str,
    bounds: Bounds<Duration>,
    set: Set<Duration>,
) -> SettingSpec {
    SettingSpec::new(key, default, Setter::Time(bounds, set))
}

/// One of `words`, each with its effect.
pub(super) const fn choice(key: Str, default: Str, words: &'static [Choice]) -> SettingSpec {
    SettingSpec::new(key, default, Setter::Choice(words))
}

/// A text that looks like `form`.
pub(super) const fn text(key: Str, default: Str, form: Str, set: SetText) -> SettingSpec {
    SettingSpec { form, ..SettingSpec::new(key, default, Setter::Text(None, set)) }
}

/// The same with a length of `min` to `max` bytes.
pub(super) const fn short_text(
    key: Str,
    default: Str,
    length: Bounds<usize>,
    set: SetText,
) -> SettingSpec {
    SettingSpec::new(key, default, Setter::Text(Some(length), set))
}

/// A list of `min` to `max` items.
pub(super) const fn list(key: Str, default: Str, count: ItemCount, set: SetItems) -> SettingSpec {
    SettingSpec::new(key, default, Setter::List(count, set))
}

/// The same for items that may contain commas but no white space.
pub(super) const fn words(key: Str, count: ItemCount, set: SetItems) -> SettingSpec {
    SettingSpec::new(key, "", Setter::Words(count, set))
}

/// A table of some keys, each with a time from `min` to `max`.
pub(super) const fn times(
    key: Str,
    count: ItemCount,
    bounds: Bounds<Duration>,
    set: SetTimes,
) -> SettingSpec {
    SettingSpec::new(key, "", Setter::Times(count, bounds, set))
}

impl SettingSpec {
    const fn new(key: Str, default: Str, setter: Setter) -> Self {
        Self {
            key,
            default,
            flag: None,
            env: &[],
            has_env_file: false,
            has_variables: false,
            reload: ReloadClass::AtStart,
            help: "",
            note: "",
            see: "",
            unset: "none",
            example: "",
            visibility: Visibility::Full,
            setter,
            form: "",
        }
    }

    pub(super) const fn flag(self, name: Str, value_name: Str, heading: Str) -> Self {
        Self { flag: Some(FlagSpec { name, value_name, heading }), ..self }
    }

    pub(super) const fn env(self, names: &'static [&'static str]) -> Self {
        Self { env: names, ..self }
    }

    pub(super) const fn env_file(self) -> Self {
        Self { has_env_file: true, ..self }
    }

    pub(super) const fn with_variables(self) -> Self {
        Self { has_variables: true, ..self }
    }

    pub(super) const fn on_reload(self) -> Self {
        Self { reload: ReloadClass::OnReload, ..self }
    }

    pub(super) const fn visibility(self, visibility: Visibility) -> Self {
        Self { visibility, ..self }
    }

    pub(super) const fn form(self, form: Str) -> Self {
        Self { form, ..self }
    }

    pub(super) const fn help(self, help: Str) -> Self {
        Self { help, ..self }
    }

    pub(super) const fn note(self, note: Str) -> Self {
        Self { note, ..self }
    }

    pub(super) const fn see(self, see: Str) -> Self {
        Self { see, ..self }
    }

    pub(super) const fn unset(self, unset: Str, example: Str) -> Self {
        Self { unset, example, ..self }
    }

    /// Environment variables, the strongest first. The first one is the one to document.
    pub fn variables(&self) -> Vec<String> {
        match self.env {
            [] => vec![format!("JOBCACHE_{}", self.key.replace('.', "_").to_uppercase())],
            names => names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// Name within the table of the file: `budget`.
    pub fn name(&self) -> &'static str {
        self.key.rsplit('.').next().unwrap_or(self.key)
    }

    /// `key = value` with the default, or with an example where there is no default.
    pub fn assignment(&self) -> String {
        if self.default.is_empty() {
            return format!("{} = {}", self.key, self.example);
        }
        format!("{} = {}", self.key, self.setter.split(self.default))
    }

    /// Sentence, note and page of `docs/`, for documents without links.
    pub fn explanation(&self) -> String {
        let see =
            if self.see.is_empty() { String::new() } else { format!("See docs/{}.md.", self.see) };
        let parts = [self.help, self.note, &see];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Flag and variables, for documents without tables.
    pub fn sources(&self) -> String {
        let flag = self.flag.map(|flag| format!("--{}", flag.name));
        let names = self.variables();
        let file = names.first().filter(|_| self.has_env_file);
        let file = file.map(|name| format!("{name}_FILE (the path of a file with the value)"));
        flag.into_iter().chain(names.clone()).chain(file).collect::<Vec<_>>().join(", ")
    }

    /// Allowed values for the documents, such as `1ms to 10s`.
    pub fn limits(&self) -> String {
        let bounds = self.setter.bounds();
        match (bounds.as_str(), self.form) {
            ("", form) => form.to_owned(),
            (_, "") => bounds,
            (_, form) => format!("{bounds}; {form}"),
        }
    }

    /// Words that the value may be; empty if it may be anything else.
    pub fn choices(&self) -> Vec<&'static str> {
        self.setter.choices()
    }

    /// Whether the value is `true` or `false`.
    pub fn is_switch(&self) -> bool {
        matches!(self.setter, Setter::Switch(_))
    }

    /// Reads one text of a flag or variable: pairs are separated by commas.
    pub fn split(&self, text: &str) -> RawValue {
        self.setter.split(text)
    }

    /// Whether the value is a list; a variable separates its items by commas.
    pub fn is_list(&self) -> bool {
        matches!(self.setter, Setter::List(..))
    }

    /// Whether the value is a table with the user's own keys.
    pub fn is_table(&self) -> bool {
        matches!(self.setter, Setter::Times(..))
    }

    /// Whether the value is an address or a URL: then quotes around it cannot be a part of it.
    pub(super) fn is_place(&self) -> bool {
        self.has_variables || self.visibility == Visibility::Url
    }

    /// The value as TOML, without what must stay hidden.
    pub(super) fn show(&self, value: &RawValue) -> String {
        match (self.visibility, value) {
            (Visibility::Full, value) => value.to_string(),
            (Visibility::Url, RawValue::One(text)) => quoted(&address::redacted(text)),
            (_, value) => self.hidden(value),
        }
    }

    /// The number of secrets stays visible: an operator sees whether an old one is still accepted.
    fn hidden(&self, value: &RawValue) -> String {
        match self.setter.word_count(value) {
            Some(count) if count > 1 => RawValue::Many(vec![HIDDEN.to_owned(); count]).to_string(),
            _ => quoted(HIDDEN),
        }
    }
}

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_mins(1);
pub(super) const FIVE_MINUTES: Duration = Duration::from_mins(5);
pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const DAY: Duration = Duration::from_hours(24);
pub(super) const KIB: usize = 1 << 10;
pub(super) const MIB: usize = 1 << 20;
pub(super) const GIB: usize = 1 << 30;
