//! The value of a setting as a source gives it, and how it is checked and put into its field.

use std::{borrow::Cow, fmt, time::Duration};

use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use super::{
    Config,
    parse::{self, Bounds, ItemCount},
};

/// Text that a source gives for a setting, not parsed yet. `Display` writes it as TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawValue {
    /// One value.
    One(String),
    /// A list.
    Many(Vec<String>),
    /// Keys and their values.
    Pairs(Vec<(String, String)>),
}

impl RawValue {
    /// The value of a key of a file; none for dates and nested lists or tables.
    pub(super) fn of(value: &DeValue<'_>) -> Option<Self> {
        match value {
            DeValue::Array(items) => items
                .iter()
                .map(|item| scalar(item.get_ref()))
                .collect::<Option<_>>()
                .map(Self::Many),
            value => scalar(value).map(Self::One),
        }
    }

    /// The pairs of a table of a file.
    pub(super) fn of_pairs(table: &DeTable<'_>) -> Option<Self> {
        let pair = |(key, value): (&Spanned<_>, &Spanned<_>)| {
            Some((String::from(key.get_ref() as &str), scalar(value.get_ref())?))
        };
        table.iter().map(pair).collect::<Option<_>>().map(Self::Pairs)
    }
}

impl fmt::Display for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => f.write_str(&bare_or_quoted(text)),
            Self::Many(items) => {
                let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Pairs(pairs) => {
                let pair =
                    |(key, text): &(String, String)| format!("{} = {}", quoted(key), quoted(text));
                write!(f, "{{ {} }}", pairs.iter().map(pair).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn bare_or_quoted(text: &str) -> Cow<'_, str> {
    // TOML allows no leading zeros.
    let is_number = text.parse::<i64>().is_ok_and(|number| number.to_string() == text);
    let bare = text == "true" || text == "false" || is_number;
    if bare { Cow::Borrowed(text) } else { Cow::Owned(quoted(text)) }
}

/// Quotes `text` and escapes control characters: a value must not forge lines of a log.
pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => Some(decimal(number)),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(switch) => Some(switch.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// TOML has hexadecimal, octal and binary numbers as well.
fn decimal(number: &DeInteger<'_>) -> String {
    let text = number.as_str();
    i64::from_str_radix(text, number.radix()).map_or_else(|_| text.to_owned(), |n| n.to_string())
}

/// Type, limits and field of a setting. The errors of `apply` say what would be right.
#[derive(Clone, Copy)]
pub(super) enum Setter {
    Switch(Set<bool>),
    Number(Bounds<usize>, Set<usize>),
    /// Bytes.
    Size(Bounds<usize>, Set<usize>),
    Time(Bounds<Duration>, Set<Duration>),
    /// One of a few words, each with its effect.
    Choice(&'static [Choice]),
    /// Any other text; the bounds are those of its length in bytes.
    Text(Option<Bounds<usize>>, SetText),
    List(ItemCount, SetItems),
    /// A list, or one text in which white space separates the items.
    Words(ItemCount, SetItems),
    /// A table with the user's own keys and a time for each.
    Times(ItemCount, Bounds<Duration>, SetTimes),
}

/// A word and its effect.
pub(super) type Choice = (&'static str, fn(&mut Config));
pub(super) type Set<T> = fn(&mut Config, T);
pub(super) type SetTimes = fn(&mut Config, Vec<(String, Duration)>) -> Result<(), String>;
pub(super) type SetText = fn(&mut Config, &str) -> Result<(), String>;
pub(super) type SetItems = fn(&mut Config, &[String]) -> Result<(), String>;

impl Setter {
    /// Allowed values for the documents; empty if the type has no limits of its own.
    pub(super) fn bounds(&self) -> String {
        match self {
            Self::Switch(_) => "true or false".to_owned(),
            Self::Number(bounds, _) => parse::show_bounds(*bounds, |number| number),
            Self::Size(bounds, _) => parse::show_bounds(*bounds, parse::show_bytes),
            Self::Time(bounds, _) => parse::show_bounds(*bounds, parse::show_time),
            Self::Choice(_) => alternatives(&self.choices()),
            Self::Text(length, _) => length.map_or_else(String::new, show_length),
            Self::List(count, _) | Self::Words(count, _) => parse::show_count(*count),
            Self::Times(count, bounds, _) => {
                format!(
                    "{}, {} each",
                    parse::show_count(*count),
                    parse::show_bounds(*bounds, parse::show_time)
                )
            }
        }
    }

    /// Words that the value may be; empty if it may be anything else.
    pub(super) fn choices(&self) -> Vec<&'static str> {
        match self {
            Self::Choice(words) => words.iter().map(|(word, _)| *word).collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn apply(&self, config: &mut Config, value: &RawValue) -> Result<(), String> {
        use RawValue::{Many, One, Pairs};
        match (self, value) {
            (Self::List(count, set) | Self::Words(count, set), Many(items)) => {
                parse::check_count(items.len(), *count)?;
                set(config, items)
            }
            (Self::Words(..), One(text)) => {
                let items = text.split_whitespace().map(str::to_owned).collect();
                self.apply(config, &Many(items))
            }
            (Self::Times(count, bounds, set), Pairs(pairs)) => {
                set(config, parse::times(pairs, *count, *bounds)?)
            }
            (Self::List(..), _) => Err("must be a list, such as [\"a\", \"b\"]".to_owned()),
            (Self::Words(..), _) => Err("must be one value or a list of values".to_owned()),
            (Self::Times(..), _) => Err("must be a table, such as { a = \"b\" }".to_owned()),
            (_, Many(_) | Pairs(_)) => Err("must be one value, not a list".into()),
            (Self::Switch(set), One(text)) => parse::switch(text).map(|on| set(config, on)),
            (Self::Number(bounds, set), One(text)) => {
                parse::number(text, *bounds).map(|number| set(config, number))
            }
            (Self::Size(bounds, set), One(text)) => {
                parse::size(text, *bounds).map(|size| set(config, size))
            }
            (Self::Time(bounds, set), One(text)) => {
                parse::time(text, *bounds).map(|time| set(config, time))
            }
            (Self::Choice(words), One(text)) => {
                let chosen = words.iter().find(|(word, _)| word == text);
                chosen
                    .map(|(_, set)| set(config))
                    .ok_or_else(|| format!("must be {}", self.bounds()))
            }
            (Self::Text(length, set), One(text)) => {
                check_length(*length, text)?;
                set(config, text)
            }
        }
    }

    /// Splits the text of a variable at commas where the setting is a list or a table.
    ///
    /// Items of [`Setter::Words`] may contain commas: `apply` splits them at white space.
    pub(super) fn split(&self, text: &str) -> RawValue {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        match self {
            Self::List(..) => RawValue::Many(items.map(str::to_owned).collect()),
            Self::Times(..) => RawValue::Pairs(items.map(split_pair).collect()),
            _ => RawValue::One(text.to_owned()),
        }
    }

    /// How many items `value` has where it is one of [`Setter::Words`].
    pub(super) fn word_count(&self, value: &RawValue) -> Option<usize> {
        match (self, value) {
            (Self::Words(..), RawValue::One(text)) => Some(text.split_whitespace().count()),
            (Self::Words(..), RawValue::Many(items)) => Some(items.len()),
            _ => None,
        }
    }
}

/// Stores a parsed value in its field.
pub(super) fn put<T>(field: &mut T, parsed: Result<T, String>) -> Result<(), String> {
    *field = parsed?;
    Ok(())
}

fn check_length(length: Option<Bounds<usize>>, text: &str) -> Result<(), String> {
    match length {
        Some((min, max)) if !(min..=max).contains(&text.len()) => {
            Err(format!("must be {} long", show_length((min, max))))
        }
        _ => Ok(()),
    }
}

fn show_length(length: Bounds<usize>) -> String {
    format!("{} bytes", parse::show_bounds(length, |n| n))
}

/// `a, b or c`.
fn alternatives(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// Splits `key=value` at the last `=`; without one the value is empty.
fn split_pair(item: &str) -> (String, String) {
    let (key, text) = item.rsplit_once('=').unwrap_or((item, ""));
    (key.trim().to_owned(), text.trim().to_owned())
}
