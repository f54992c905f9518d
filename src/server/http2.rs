//! Serves a connection of HTTP/2, with the limits and timeouts of a connection of HTTP/1.1.
//!
//! hyper and h2 bound what a client can send without making a request: frames of every kind, compressed heads, and
//! streams that it resets at once. The rest is here: the number and size of headers, unused connections, responses
//! that the client does not read (`streams`), and requests that it resets but that are still being served.

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

/// Most streams of a connection at a time. RFC 9113, 6.5.2, recommends at least this many.
const STREAMS_MAX: u32 = 100;
/// Most streams that the client has reset before hyper has seen them.
const PENDING_RESETS_MAX: usize = 20;
/// Most streams of a connection that end because of an error of the client.
const ERROR_RESETS_MAX: usize = 1024;
/// The client must respond to a PING after this long without a request. Otherwise a client that has vanished would keep
/// a stream that sends little.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a response to a PING may take. It may wait behind much data on a slow line.
const PING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection that is being closed waits for requests that the client has sent before it knew, and after
/// that for the client to close its side.
const CLOSE_DELAY: Duration = Duration::from_secs(1);
/// What a header adds to its name and value: in HTTP/1.1, and in the size that HTTP/2 limits (RFC 9113, 6.5.2).
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
    // A connection counts until its requests have been served, also those that the client no longer waits for.
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
        // Tells the client to open no more streams here, and which ones are served.
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
    // A client that resets a stream gets no response, but its request is served to the end, as if it had disconnected
    // with HTTP/1.1. Until then the request counts: otherwise a client could have more than `STREAMS_MAX` by resets.
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

/// Whether a request's head exceeds the limits, counted as if it was a request of HTTP/1.1.
fn is_head_too_large(request: &hyper::Request<Incoming>, limits: &ConnectionLimits) -> bool {
    let uri = request.uri();
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let header =
        |(name, value): (&header::HeaderName, &HeaderValue)| name.as_str().len() + value.len() + HEADER_OVERHEAD_HTTP1;
    let headers: usize = request.headers().iter().map(header).sum();
    request.headers().len() > limits.headers || authority + path + headers > limits.head_bytes
}

/// The size of a head up to which hyper gives it to the service. hyper responds with a bare `431` to a larger one, so
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
