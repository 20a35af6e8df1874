//! Reads the job ids in a file or a list.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use serde_json::Value;

use crate::semantics::{
    job_id::{self, JobId},
    json_pointer::JsonPointer,
    route::invalidation_rules,
};

/// Characters of an invalid id that are shown in a message.
const MAX_SHOWN: usize = 80;

/// The ids that were found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FoundIds {
    pub(super) jobs: Vec<JobId>,
    /// Number of values that are not ids.
    pub(super) unreadable: usize,
    /// The first of these values, with its line in a file.
    pub(super) first_unreadable: Option<String>,
}

impl FoundIds {
    /// Adds the most literal reading of an id, because that one is read from the upstream.
    fn take(&mut self, spellings: Vec<JobId>, place: impl FnOnce() -> String) {
        if let Some(job) = spellings.into_iter().next() {
            self.jobs.push(job);
        } else {
            self.unreadable += 1;
            self.first_unreadable.get_or_insert_with(place);
        }
    }
}

/// Reads a file of at most `max` bytes: one id per line, and comments that start with `#`.
pub(super) fn in_file(path: &Path, max: usize) -> io::Result<FoundIds> {
    let mut text = String::new();
    File::open(path)?.take(max as u64 + 1).read_to_string(&mut text)?;
    if text.len() > max {
        let error = format!("the file is larger than {max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
    }
    Ok(in_lines(&text))
}

fn in_lines(text: &str) -> FoundIds {
    let mut found = FoundIds::default();
    // An id does not contain `#`.
    let ids = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    for (line, id) in (1..).zip(ids).filter(|(_, id)| !id.is_empty()) {
        found.take(job_id::possible_ids(id), || format!("line {line}: {:?}", shortened(id)));
    }
    found
}

/// Reads a document in which `pointer` leads to the ids: strings, whole numbers, or arrays of them.
pub(super) fn in_json(document: &[u8], pointer: &JsonPointer) -> serde_json::Result<FoundIds> {
    let document: Value = serde_json::from_slice(document)?;
    let mut found = FoundIds::default();
    pointer.find(&document, &mut |value| match value {
        Value::Array(ids) => ids.iter().for_each(|id| take(&mut found, id)),
        id => take(&mut found, id),
    });
    Ok(found)
}

fn take(found: &mut FoundIds, id: &Value) {
    found.take(invalidation_rules::ids(id), || shortened(&id.to_string()));
}

/// Shortens a value for a message.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(found: &FoundIds, jobs: &[&str], unreadable: usize) {
        assert_eq!(found.jobs.iter().map(JobId::as_str).collect::<Vec<_>>(), jobs);
        assert_eq!(found.unreadable, unreadable);
    }

    #[test]
    fn what_is_no_id_is_told_with_its_place() {
        let found = in_lines("# active\na\nb c\n..\n");
        assert_eq!(found.first_unreadable.as_deref(), Some("line 3: \"b c\""));
        let found = in_json(br#"["a", null, "b c"]"#, &JsonPointer::parse("/*").unwrap()).unwrap();
        assert_eq!(found.first_unreadable.as_deref(), Some("null"));
    }

    #[test]
    fn a_file_has_an_id_a_line_and_comments() {
        check(&in_lines("# active\n\n a \r\nb # the second\n007\n"), &["a", "b", "7"], 0);
        check(&in_lines("a b\n..\nc"), &["c"], 2);
    }

    #[test]
    fn a_list_has_ids_where_the_pointer_leads() {
        let json = br#"{"items":[{"id":"a"},{"id":7},{"id":null},{"name":"x"}],"ids":["b",8]}"#;
        let found = |pointer| in_json(json, &JsonPointer::parse(pointer).unwrap()).unwrap();
        check(&found("/items/*/id"), &["a", "7"], 1);
        check(&found("/ids"), &["b", "8"], 0);
        check(&found("/ids/*"), &["b", "8"], 0);
        check(&found("/nowhere"), &[], 0);
        assert!(in_json(b"<html>", &JsonPointer::parse("").unwrap()).is_err());
    }
}
