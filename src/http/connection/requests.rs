//! Runs the requests of a connection of HTTP/2, each of which can be ended alone.
//!
//! A client that does not read one response may read others, such as those of other users behind
//! the same proxy. This file does not know what a request is.

use std::sync::Arc;

use hyper::rt::Executor;
use parking_lot::Mutex;

use super::super::paced::Cut;

/// The executor of a connection.
#[derive(Clone, Default)]
pub(super) struct Requests {
    /// Of the request that is run next.
    next: Arc<Mutex<Option<Cut>>>,
}

impl Requests {
    /// What ends the request that is run next. hyper runs a request as soon as the service has made
    /// the future of its response.
    pub(super) fn begin(&self) -> Cut {
        self.next.lock().insert(Cut::default()).clone()
    }
}

impl<F> Executor<F> for Requests
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, request: F) {
        let cut = self.next.lock().take();
        tokio::spawn(async move {
            let cut = cut.unwrap_or_default();
            tokio::select! {
                biased;
                _ = request => {}
                // HTTP/2 resets the stream of a request that is dropped.
                () = cut.is_due() => {}
            }
        });
    }
}
