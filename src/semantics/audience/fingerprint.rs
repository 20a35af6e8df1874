//! Fingerprints: keyed hashes of lists of parts. Also the key, and the text of a variant, from which
//! the fingerprint of the same variant for another path is made.

use std::{fmt, ops::Range};

use crate::semantics::settings::Secret;

/// Keyed BLAKE3 hash, cut to 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub(super) [u8; 16]);

impl Fingerprint {
    /// Credential fingerprint for uses in which the credential does not matter.
    pub(super) const WAIVED: Self = Self([0; 16]);
    /// Fingerprint of a request without any credential. Needs no hash.
    const NOBODY: Self = Self([0xff; 16]);

    /// Takes the fingerprint of a list of parts. Each part is preceded by its length, so that different
    /// lists never give the same text. The text is left in `text`.
    pub(super) fn of<'p>(
        key: &CredentialKey,
        parts: impl Iterator<Item = &'p [u8]>,
        text: &mut Vec<u8>,
    ) -> Self {
        text.clear();
        for part in parts {
            push_part(text, part);
        }
        Self::of_text(key, text)
    }

    pub(super) fn of_text(key: &CredentialKey, text: &[u8]) -> Self {
        if text.is_empty() {
            return Self::NOBODY;
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::keyed_hash(key.bytes(), text).as_bytes()[..16]);
        Self(bytes)
    }
}

/// Appends a part, preceded by its length.
pub(super) fn push_part(text: &mut Vec<u8>, part: &[u8]) {
    match u8::try_from(part.len()) {
        Ok(len) if len < u8::MAX => text.push(len),
        _ => {
            text.push(u8::MAX);
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
        }
    }
    text.extend_from_slice(part);
}

/// The key of the credential fingerprints. All sidecars of one store share it.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialKey([u8; 32]);

impl CredentialKey {
    /// Makes a key of these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Makes a random key.
    pub(crate) fn random() -> Self {
        Self(std::array::from_fn(|_| fastrand::u8(..)))
    }

    /// Derives the key from a configured secret.
    fn derived(secret: &str) -> Self {
        Self(blake3::derive_key("jobcache credential fingerprints v1", secret.as_bytes()))
    }

    /// Returns the key of a process before its store provides one that all sidecars share.
    pub(crate) fn initial(secret: Option<&Secret>) -> Self {
        secret.map_or_else(Self::random, |secret| Self::derived(secret.expose()))
    }

    /// Returns the bytes of the key, for the hash.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for CredentialKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

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
