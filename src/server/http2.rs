//! Serves an HTTP/2 connection, with the limits and timeouts of an HTTP/1.1 connection.
//!
//! hyper and h2 limit what a client can send without making a request: frames of every kind, compressed heads, and
//! streams that it resets immediately. This module limits the rest: the number and size of headers, unused connections,
//! responses that the client does not read (`streams`), and requests that are still being served after the client has
//! reset them.

mod io;
mod streams;
#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use self::io::Http2Io;
use self::streams::{ResponseBody, StreamExecutor, Streams};
use super::{ConnectionSettings, HttpService, Shutdown};
use crate::config::ConnectionLimits;
use crate::{http, metrics};

/// Maximum number of concurrent streams of a connection. RFC 9113, 6.5.2, recommends at least this many.
const STREAMS_MAX: u32 = 100;
/// Maximum number of streams that the client has reset before hyper has accepted them.
const PENDING_RESETS_MAX: usize = 20;
/// Maximum number of streams of a connection that may end because of an error of the client.
const ERROR_RESETS_MAX: usize = 1024;
/// A client that sends no request for this long must respond to a PING. Otherwise a client that has vanished would keep
/// open a stream that sends little.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Timeout of the response to a PING, which may be queued after much data on a slow network.
const PING_TIMEOUT: Duration = Duration::from_secs(30);
/// When a connection is being closed: how long it waits for requests that the client sent before it received the
/// GOAWAY, and after that for the client to close its side.
const CLOSE_DELAY: Duration = Duration::from_secs(1);
/// Bytes that a header adds to its name and value: in HTTP/1.1, and in the size that HTTP/2 limits (RFC 9113, 6.5.2).
const HEADER_OVERHEAD_HTTP1: usize = 4;
const HEADER_OVERHEAD_HTTP2: usize = 32;

/// Serves the requests of a connection.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: impl HttpService,
    connections: &ConnectionSettings,
    mut shutdown: Shutdown,
) {
    let requests = Arc::new(Semaphore::new(STREAMS_MAX as usize));
    serve_streams(stream, service, requests.clone(), connections, shutdown.begun()).await;
    // A connection counts until its requests have been served, including those that the client no longer waits for.
    let _ = requests.acquire_many(STREAMS_MAX).await;
}

/// Serves the requests of a connection until it is closed.
async fn serve_streams(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: impl HttpService,
    requests: Arc<Semaphore>,
    ConnectionSettings { timeouts, limits, .. }: &ConnectionSettings,
    shutdown: impl Future<Output = ()>,
) {
    let streams = Arc::new(Streams::new(timeouts.send));
    let limits = limits.clone();
    let max_header_list_size = header_list_size(&limits);
    let service = hyper::service::service_fn(move |request| {
        let (service, requests) = (service.clone(), requests.clone());
        let is_too_large = is_head_too_large(&request, &limits);
        async move {
            if is_too_large {
                return Ok(ResponseBody::in_response(headers_too_large()));
            }
            respond(request, service, requests).await
        }
    });
    let mut builder = Builder::new(StreamExecutor::new(streams.clone()));
    builder.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
    builder.max_concurrent_streams(STREAMS_MAX).max_header_list_size(max_header_list_size);
    builder.max_pending_accept_reset_streams(PENDING_RESETS_MAX).max_local_error_reset_streams(ERROR_RESETS_MAX);
    let mut connection = pin!(builder.serve_connection(Http2Io::new(TokioIo::new(stream), timeouts.send), service));
    let closed = async {
        tokio::select! {
            biased;
            result = connection.as_mut() => return result,
            () = shutdown => {}
            () = streams.unused(timeouts) => {}
        }
        // Sends a GOAWAY, which tells the client to open no more streams, and which streams are served.
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            result = connection.as_mut() => result,
            () = streams.idle_for(CLOSE_DELAY) => Ok(()),
        }
    };
    tokio::select! {
        biased;
        // Errors of a connection are caused by its client, so they are logged at level debug.
        result = closed => if let Err(error) = result {
            tracing::debug!(%error, "connection error");
        },
        () = streams.stalled() => tracing::debug!("the client did not read a response"),
    }
}

/// Responds to a request.
async fn respond(
    request: hyper::Request<Incoming>,
    mut service: impl HttpService,
    requests: Arc<Semaphore>,
) -> Result<Response<ResponseBody>, JoinError> {
    let permit = requests.acquire_owned().await;
    let is_head = request.method() == Method::HEAD;
    let request = request.map(|body| if body.is_end_stream() { Body::empty() } else { Body::new(body) });
    // A client that resets a stream gets no response, but its request is served to the end, as if the client had
    // disconnected with HTTP/1.1. The request counts until then. Otherwise a client could exceed `STREAMS_MAX` by
    // resetting streams.
    let served = tokio::spawn(async move {
        let response = service.call(request).await;
        drop(permit);
        response
    });
    let Ok(mut response) = served.await?;
    if is_head {
        remove_body(&mut response);
    }
    Ok(ResponseBody::in_response(response))
}

/// Removes the body of the response to a `HEAD`. With HTTP/1.1, hyper does that.
fn remove_body(response: &mut Response) {
    let body = std::mem::take(response.body_mut());
    if let Some(length) = body.size_hint().exact().filter(|&length| length > 0) {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Whether a request's head exceeds the limits, measured as if it were an HTTP/1.1 request.
fn is_head_too_large(request: &hyper::Request<Incoming>, limits: &ConnectionLimits) -> bool {
    let uri = request.uri();
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let header =
        |(name, value): (&header::HeaderName, &HeaderValue)| name.as_str().len() + value.len() + HEADER_OVERHEAD_HTTP1;
    let headers: usize = request.headers().iter().map(header).sum();
    request.headers().len() > limits.headers || authority + path + headers > limits.head_bytes
}

/// The maximum size of a head that hyper passes to the service. hyper responds to a larger one with a bare `431`, so
/// this is twice the limit.
fn header_list_size(limits: &ConnectionLimits) -> u32 {
    u32::try_from(2 * limits.head_bytes + limits.headers * HEADER_OVERHEAD_HTTP2).unwrap_or(u32::MAX)
}

fn headers_too_large() -> Response {
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    metrics::request_rejected(status.as_u16());
    let (headers, body) = http::error_response(status);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
