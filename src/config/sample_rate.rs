//! A share of a whole.

/// Share of a whole in millionths, so that rates compare exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleRate(u32);

impl SampleRate {
    /// The whole, in millionths.
    pub const WHOLE: u32 = 1_000_000;

    /// A share of `millionths`, capped at the whole.
    pub fn of_millionths(millionths: u32) -> Self {
        Self(millionths.min(Self::WHOLE))
    }

    /// The share in millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }
}
