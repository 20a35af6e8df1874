//! The template of a key: `{tenant}:{id}`.

use super::path_pattern::PathPattern;
use crate::semantics::{job_id::MAX_KEY_LEN, policy::Bypass};

/// The parts of a key without its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyTemplate(Vec<KeyPart>);

/// One part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyPart {
    Literal(String),
    /// The position of a variable among those of the path.
    Variable(usize),
}

impl KeyTemplate {
    /// Parses the key of a route. Without one, it is the variables in their order, joined by `:`.
    pub(super) fn parse(key: Option<&str>, pattern: &PathPattern) -> Result<Self, String> {
        let names: Vec<&str> = pattern.variables().collect();
        let in_order = names.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(":");
        let text = key.unwrap_or(&in_order);
        let refused = |why: String| {
            format!("key = '{}' {why}; write for example '{in_order}'", text.escape_debug())
        };
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            let at = names.iter().position(|known| *known == name).ok_or_else(|| {
                let name = name.escape_debug();
                refused(format!("has '{{{name}', which is no variable of the path"))
            })?;
            parts.extend([KeyPart::Literal(before.to_owned()), KeyPart::Variable(at)]);
            rest = after;
        }
        parts.push(KeyPart::Literal(rest.to_owned()));
        parts.retain(|part| *part != KeyPart::Literal(String::new()));
        let is_bad = |c: char| c.is_control() || c == '}';
        if parts.iter().any(|part| matches!(part, KeyPart::Literal(text) if text.contains(is_bad)))
        {
            return Err(refused("has a character that no key may have".to_owned()));
        }
        let is_left_out = |at: &usize| !parts.contains(&KeyPart::Variable(*at));
        match (0..names.len()).find(is_left_out) {
            Some(at) => {
                let why = "so that jobs would replace each other";
                Err(refused(format!("leaves out {{{}}}, {why}", names[at])))
            }
            None => Ok(Self(parts)),
        }
    }

    /// Whether it is one variable.
    pub(super) fn is_variable(&self) -> bool {
        matches!(self.0[..], [KeyPart::Variable(_)])
    }

    /// Returns the key for these texts of the variables.
    pub(super) fn of(&self, texts: &[&str]) -> Result<String, Bypass> {
        let part = |part: &KeyPart| match part {
            KeyPart::Literal(text) => text.clone(),
            KeyPart::Variable(at) => texts.get(*at).map_or_else(String::new, |&text| text.into()),
        };
        let key: String = self.0.iter().map(part).collect();
        if key.len() <= MAX_KEY_LEN { Ok(key) } else { Err(Bypass::Spelling) }
    }

    /// Returns the texts of the variables in a key, if it can be taken apart: each variable ends at the
    /// first literal text that follows it.
    pub(super) fn texts<'k>(&self, key: &'k str, count: usize) -> Option<Vec<&'k str>> {
        let mut texts = vec![""; count];
        let mut rest = key;
        let mut parts = self.0.iter().peekable();
        while let Some(part) = parts.next() {
            match part {
                KeyPart::Literal(text) => rest = rest.strip_prefix(text.as_str())?,
                KeyPart::Variable(at) => {
                    let end = match parts.peek() {
                        Some(KeyPart::Literal(text)) => rest.find(text.as_str())?,
                        _ => rest.len(),
                    };
                    (texts[*at], rest) = rest.split_at(end);
                }
            }
        }
        let is_whole = rest.is_empty() && texts.iter().all(|text| !text.is_empty());
        is_whole.then_some(texts)
    }
}
