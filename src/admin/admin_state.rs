//! The part of the admin interface that a reload keeps.

use std::sync::Arc;

use super::{caller_limits::CallerLimits, metrics::AdminMetrics, status_sources::StatusSources};
use crate::{
    drain::Drain,
    limits::Quota,
    observe::{events::Events, metrics::Registry},
    telemetry::LogFilter,
    warm::Warmer,
};

/// State that is shared by all configurations and survives a reload.
#[derive(Clone)]
pub struct AdminState {
    /// Memory budget for the bodies of purges.
    pub body_quota: Arc<Quota>,
    /// Filter of the log, which `PUT /log` changes.
    pub filter: LogFilter,
    /// Reads jobs again after a purge with `"refresh": true`.
    pub warmer: Warmer,
    pub(crate) metrics: Arc<AdminMetrics>,
    /// The metrics of all parts, for `/metrics`.
    pub registry: Arc<Registry>,
    pub(crate) status: StatusSources,
    /// The events that `/events` sends.
    pub events: Arc<Events>,
    /// Turns true when a shutdown begins.
    pub drain: Drain,
    /// Rate limits and budgets of callers.
    pub caller_limits: Arc<CallerLimits>,
}
