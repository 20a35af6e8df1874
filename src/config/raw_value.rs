//! The value of a setting as a source gives it, before it is parsed.

use std::{borrow::Cow, fmt};

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
