//! What operators see of a running process: counters, the last events of each job, spans, and how
//! often a line may be logged.

pub mod events;
pub mod metrics;
pub mod spans;
pub mod throttle;
