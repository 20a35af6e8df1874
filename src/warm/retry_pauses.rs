//! The pauses between the attempts at one read.

use std::time::Duration;

/// How long a job or the list is retried. Longer than a write is fenced by default.
const PATIENCE: Duration = Duration::from_mins(2);
/// First pause between two attempts; doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pauses between attempts at one read, until `PATIENCE` is used up.
#[derive(Debug)]
pub(super) struct RetryPauses {
    pause: Duration,
    left: Duration,
}

impl RetryPauses {
    pub(super) fn begin() -> Self {
        Self { pause: FIRST_PAUSE, left: PATIENCE }
    }
}

impl Iterator for RetryPauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pause.min(self.left);
        self.left -= pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        (!pause.is_zero()).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_come_to_an_end() {
        let pauses: Vec<_> = RetryPauses::begin().collect();
        assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert_eq!(pauses.iter().sum::<Duration>(), PATIENCE);
    }
}
