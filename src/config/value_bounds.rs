//! Limits of values. One constant of the table serves the check, its message and the documents.

use std::{fmt::Display, time::Duration};

/// Smallest and largest allowed value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds<T> {
    pub(super) min: T,
    pub(super) max: T,
}

impl<T: PartialOrd + Copy> Bounds<T> {
    /// Returns `value` if it is within the bounds; otherwise the error names both of them.
    pub(super) fn check<D: Display>(&self, value: T, show: impl Fn(T) -> D) -> Result<T, String> {
        if self.contain(value) {
            return Ok(value);
        }
        Err(format!("must be between {} and {}", show(self.min), show(self.max)))
    }

    pub(super) fn contain(&self, value: T) -> bool {
        self.min <= value && value <= self.max
    }

    /// Both bounds for a document, such as `1ms to 10s`.
    pub(super) fn printed<D: Display>(&self, show: impl Fn(T) -> D) -> String {
        format!("{} to {}", show(self.min), show(self.max))
    }
}

/// How many items a list may have, and the word for one of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ItemCount {
    pub(super) min: usize,
    pub(super) max: usize,
    pub(super) item: &'static str,
}

impl ItemCount {
    /// Fails unless a list of `count` items is allowed.
    pub(super) fn check(&self, count: usize) -> Result<(), String> {
        if (self.min..=self.max).contains(&count) {
            return Ok(());
        }
        Err(format!("must name {}", self.printed()))
    }

    /// The limit for a document, such as `1 to 64 routes`.
    pub(super) fn printed(&self) -> String {
        let Self { min, max, item } = self;
        if *min == 0 { format!("at most {max} {item}s") } else { format!("{min} to {max} {item}s") }
    }
}

/// A time as it is written in a configuration, such as `50ms` or `1day`.
pub(super) fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// A number of bytes in the largest unit that divides it, such as `64KiB`.
pub(super) fn bytes(size: usize) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.into_iter().find(|(unit, _)| size >= *unit && size.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{size}B"), |(unit, name)| format!("{}{name}", size / unit))
}
