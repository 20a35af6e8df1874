//! An upstream body that is compared with an entry, in shadow mode.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};

use super::verify::Comparisons;
use crate::{
    cache::{Comparison, ComparisonResult},
    upstream::{BodyError, ResponseBody},
};

/// An upstream body that is compared with an entry while it streams.
pub struct ComparedBody {
    body: ResponseBody,
    /// The comparison, until the body has ended.
    comparison: Option<Comparison>,
    comparisons: Arc<Comparisons>,
}

impl ComparedBody {
    pub(super) fn new(
        body: ResponseBody,
        comparison: Comparison,
        comparisons: &Arc<Comparisons>,
    ) -> Self {
        Self { body, comparison: Some(comparison), comparisons: Arc::clone(comparisons) }
    }

    /// Returns the upstream body, of which the rest is still to come.
    pub(super) fn inner(&self) -> &ResponseBody {
        &self.body
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(comparison), Some(data)) = (&mut self.comparison, frame.data_ref()) {
                    comparison.compare_body_part(data);
                }
                // hyper may not poll again after the last frame.
                if self.body.is_end_stream() {
                    self.conclude();
                }
            }
            None => self.conclude(),
            Some(Err(_)) => self.give_up(ComparisonResult::Failed),
        }
        Poll::Ready(frame)
    }

    fn conclude(&mut self) {
        if let Some(comparison) = self.comparison.take() {
            self.comparisons.conclude_shadow(comparison);
        }
    }

    fn give_up(&mut self, outcome: ComparisonResult) {
        if self.comparison.take().is_some() {
            self.comparisons.context.metrics.comparisons.count_shadow(outcome);
        }
    }
}

impl Drop for ComparedBody {
    /// Dropped before its end, because the client has hung up: the comparison is incomplete.
    fn drop(&mut self) {
        self.give_up(ComparisonResult::Unchecked);
    }
}

impl fmt::Debug for ComparedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComparedBody").field("comparison", &self.comparison).finish_non_exhaustive()
    }
}
