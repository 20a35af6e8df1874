//! The value of a setting as a source gives it, before it is parsed.

use std::{borrow::Cow, fmt};

use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
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
