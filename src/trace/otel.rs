//! Sends spans to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! A request with a `traceparent` header (W3C Trace Context) belongs to the trace of its caller, which also decides
//! whether the request is sampled. A thread of the SDK sends spans in batches and drops those that it cannot send.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer, TracerProvider, WithContext};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter};

use crate::log;

const SERVICE: &str = "sessiond";
/// The path at which a collector accepts spans (OTLP/HTTP).
const PATH: &str = "/v1/traces";
/// Maximum time to send the last spans when the service stops.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// The name of all other methods (OpenTelemetry semantic conventions for HTTP).
const OTHER_METHOD: &str = "_OTHER";

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Keeps the exporter running. Dropping it sends the last spans and stops the exporter.
#[derive(Debug)]
pub struct ExporterGuard(SdkTracerProvider);

/// Starts to send the spans of the whole process to the collector at this URL.
///
/// # Errors
/// If the URL is not valid.
pub fn start(endpoint: &str) -> Result<ExporterGuard, String> {
    let url = format!("{}{PATH}", endpoint.trim_end_matches('/'));
    let exporter = OtlpExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_endpoint(url);
    let exporter =
        LoggingExporter(exporter.build().map_err(|error| format!("cannot send spans to {endpoint}: {error}"))?);
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
    let _ = TRACER.set(provider.tracer(SERVICE));
    Ok(ExporterGuard(provider))
}

impl Drop for ExporterGuard {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans may not have been sent");
        }
    }
}

/// The resource attributes. The standard variables of OpenTelemetry set the service name; the default is `sessiond`.
fn resource() -> Resource {
    let resource = Resource::builder().build();
    let name = resource.get(&Key::from_static_str("service.name")).map(|name| name.to_string());
    let is_named = name.is_some_and(|name| !name.starts_with("unknown_service"));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    if is_named { builder.build() } else { builder.with_service_name(SERVICE).build() }
}

/// An exporter that logs its failures.
#[derive(Debug)]
struct LoggingExporter(OtlpExporter);

impl SpanExporter for LoggingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.0.export(batch).await;
        if let Err(error) = &sent
            && log::should_log("spans")
        {
            tracing::warn!(%error, spans, "spans were not sent");
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// The headers of W3C Trace Context.
struct TraceHeaders<'a> {
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
}

impl Extractor for TraceHeaders<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// A started span. It ends explicitly, or when the last reference to it is dropped.
pub struct Span(Context);

impl fmt::Debug for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Span").field(self.0.span().span_context()).finish()
    }
}

impl Span {
    /// Starts the span of a request. `method` is a method of the API or `other`, `route` is a route template or
    /// `unmatched`, and `header` returns the value of a header.
    #[must_use]
    pub fn of_request<'a>(
        method: &'static str,
        route: &str,
        request_id: &str,
        header: impl Fn(&str) -> Option<&'a str>,
    ) -> Self {
        let headers = TraceHeaders { traceparent: header("traceparent"), tracestate: header("tracestate") };
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
        let (method, name) = if method == "other" { (OTHER_METHOD, "HTTP") } else { (method, method) };
        let attributes = vec![
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("sessiond.request_id", request_id.to_owned()),
        ];
        Self::begin(format!("{name} {route}"), SpanKind::Server, attributes, parent)
    }

    /// Starts the span of an operation of the store, as a child of the current span.
    #[must_use]
    pub fn of_operation(operation: &'static str) -> Self {
        let attributes = vec![KeyValue::new("db.system.name", "redis"), KeyValue::new("db.operation.name", operation)];
        Self::begin(operation.to_owned(), SpanKind::Client, attributes, Context::current())
    }

    fn begin(name: String, kind: SpanKind, attributes: Vec<KeyValue>, parent: Context) -> Self {
        let Some(tracer) = TRACER.get() else {
            return Self(parent);
        };
        let span = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
        let span = span.start_with_context(tracer, &parent);
        Self(parent.with_span(span))
    }

    /// Runs `future` within this span.
    pub fn around<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.0.clone())
    }

    /// Ends the span of a request with the status of its response.
    pub fn finish_request(self, status: u16) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            span.set_attribute(KeyValue::new("error.type", status.to_string()));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Ends the span of an operation with the kind of its error, if it failed.
    pub fn finish_operation(&self, error_kind: Option<&'static str>) {
        let span = self.0.span();
        if let Some(kind) = error_kind {
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_status(Status::error(kind));
        }
        span.end();
    }
}
