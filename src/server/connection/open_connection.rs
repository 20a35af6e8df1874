//! Registers a connection with the service for as long as it is open.

use crate::{service::Service, transport::ConnectionId};

/// An open connection. The service learns of its end on drop, however the connection ends.
pub(super) struct OpenConnection<S: Service> {
    service: S,
    id: Option<ConnectionId>,
}

impl<S: Service> OpenConnection<S> {
    pub(super) fn new(service: &S) -> Self {
        Self { service: service.clone(), id: service.open_connection() }
    }

    pub(super) fn id(&self) -> Option<ConnectionId> {
        self.id
    }
}

impl<S: Service> Drop for OpenConnection<S> {
    fn drop(&mut self) {
        self.id.inspect(|&id| self.service.close_connection(id));
    }
}
