//! The text that the fingerprint of a variant is made from.

use std::ops::Range;

use super::{
    credential_key::CredentialKey,
    fingerprint::{Fingerprint, push_part},
};

/// The text that a variant's fingerprint was made from. It gives the fingerprint of another path with
/// the same headers, because nothing else differs then.
#[derive(Clone, Debug)]
pub struct Variant {
    pub(super) key: CredentialKey,
    /// The parts, each preceded by its length. The first is the path.
    pub(super) text: Vec<u8>,
    pub(super) path: Range<usize>,
}

impl Variant {
    /// Returns the path that the text was made for.
    pub fn path(&self) -> &[u8] {
        &self.text[self.path.clone()]
    }

    /// Returns the parts after the path, in pairs of a name and a value.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.text[self.path.end..];
        std::iter::from_fn(move || Some((take_part(&mut rest)?, take_part(&mut rest)?)))
    }

    /// Changes the path and returns the new fingerprint.
    pub(super) fn retarget(&mut self, path: &[u8]) -> Fingerprint {
        if path.len() == self.path.len() {
            self.text[self.path.clone()].copy_from_slice(path);
        } else {
            let mut text = Vec::with_capacity(self.text.len() + path.len());
            push_part(&mut text, path);
            let end = text.len();
            text.extend_from_slice(&self.text[self.path.end..]);
            (self.text, self.path) = (text, end - path.len()..end);
        }
        Fingerprint::of_text(&self.key, &self.text)
    }
}

/// Takes a part that [`push_part`] has appended from the front of a text; `None` if there is none.
fn take_part<'t>(text: &mut &'t [u8]) -> Option<&'t [u8]> {
    let (len, rest) = text.split_first()?;
    let (len, rest) = if *len < u8::MAX {
        (usize::from(*len), rest)
    } else {
        let (len, rest) = rest.split_first_chunk()?;
        (usize::try_from(u64::from_le_bytes(*len)).ok()?, rest)
    };
    let (part, rest) = rest.split_at_checked(len)?;
    *text = rest;
    Some(part)
}
