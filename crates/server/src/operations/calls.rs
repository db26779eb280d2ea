//! Counts every call by name and outcome, and times those whose duration says nothing about data: an upload takes as
//! long as it has rows, a watched run as long as it has steps, so no streaming call is timed.

use super::metrics::{CallMetrics, Metrics};
use bastionai_wire::CALLS;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

/// The layer around all calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountCalls;

impl<S> Layer<S> for CountCalls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner }
    }
}

/// A service whose calls are counted.
#[derive(Clone, Debug)]
pub(crate) struct Counted<S> {
    inner: S,
}

impl<S, Request, Reply> Service<http::Request<Request>> for Counted<S>
where
    S: Service<http::Request<Request>, Response = http::Response<Reply>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    Reply: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Request>) -> Self::Future {
        let (metrics, timed) = of(request.uri().path());
        let started = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let outcome = answer.as_ref().map_or(FAILED, |reply| outcome(reply.headers()));
            metrics.count(outcome, timed.then(|| started.elapsed()));
            answer
        })
    }
}

/// The counters of a path, and whether its calls are timed. Paths are a peer's words: unknown ones share a counter.
fn of(path: &str) -> (&'static CallMetrics, bool) {
    let calls = &Metrics::of_process().calls;
    match CALLS.iter().position(|call| call.path == path) {
        Some(index) => (&calls[index], !CALLS[index].streams),
        None => (&calls[CALLS.len()], false),
    }
}

const OK: usize = 0;
const REFUSED: usize = 1;
const FAILED: usize = 2;

/// A call that ends before its first message carries its status in the headers.
fn outcome(headers: &http::HeaderMap) -> usize {
    match headers.get("grpc-status").map(http::HeaderValue::as_bytes) {
        None | Some(b"0") => OK,
        // Unknown, internal, data loss: ours. All others tell the caller what to do.
        Some(b"2" | b"13" | b"15") => FAILED,
        Some(_) => REFUSED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_do_not_stream_are_timed_and_strangers_share_one_counter() {
        for (path, timed) in [
            ("/bastionai.v1.Bastion/PriceRun", true),
            ("/bastionai.v1.Bastion/ListDatasets", true),
            ("/bastionai.v1.Bastion/UploadDataset", false),
            ("/bastionai.v1.Bastion/WatchRun", false),
            ("/bastionai.v1.Bastion/FetchRun", false),
            ("/no/such", false),
        ] {
            assert_eq!(of(path).1, timed, "{path}");
        }
        assert!(std::ptr::eq(of("/no/such").0, of("/another").0));
    }

    #[test]
    fn a_refusal_is_no_failure() {
        let headers = |status: &'static str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-status", http::HeaderValue::from_static(status));
            headers
        };
        assert_eq!(outcome(&http::HeaderMap::new()), OK);
        assert_eq!(outcome(&headers("9")), REFUSED);
        assert_eq!(outcome(&headers("13")), FAILED);
    }
}
