//! A fingerprint: the keyed hash of a list of parts.

use super::credential_key::CredentialKey;

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

    pub(super) fn from_hex(hex: &[u8; 32]) -> Option<Self> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        Some(Self(bytes))
    }

    /// Writes the fingerprint as 32 hexadecimal digits.
    pub(super) fn write_hex(self, hex: &mut [u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for (digits, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
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
