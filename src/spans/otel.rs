//! Spans that are sent to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! A request that comes with a `traceparent` (W3C Trace Context) belongs to the trace of its caller, who also says whether it
//! is sampled. Spans are sent in batches, on a thread of the SDK's own; what it cannot send it drops.

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
/// Where a collector takes spans (OTLP/HTTP).
const PATH: &str = "/v1/traces";
/// How long a service that stops tries to send its last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// What the methods that have no name are called (semantic conventions of HTTP).
const OTHER_METHOD: &str = "_OTHER";

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Spans are sent until this is dropped, which sends the last ones.
#[derive(Debug)]
pub struct Exporting(SdkTracerProvider);

/// Sends spans to the collector at this URL from now on, for the whole process.
///
/// # Errors
/// If the URL cannot be used.
pub fn start(endpoint: &str) -> Result<Exporting, String> {
    let url = format!("{}{PATH}", endpoint.trim_end_matches('/'));
    let exporter = OtlpExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_endpoint(url);
    let exporter = Told(exporter.build().map_err(|error| format!("cannot send spans to {endpoint}: {error}"))?);
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
    let _ = TRACER.set(provider.tracer(SERVICE));
    Ok(Exporting(provider))
}

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans may not have been sent");
        }
    }
}

/// Who we are: what the standard variables of OpenTelemetry say, or else `sessiond`.
fn resource() -> Resource {
    let resource = Resource::builder().build();
    let name = resource.get(&Key::from_static_str("service.name")).map(|name| name.to_string());
    let is_named = name.is_some_and(|name| !name.starts_with("unknown_service"));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    if is_named { builder.build() } else { builder.with_service_name(SERVICE).build() }
}

/// An exporter whose failures are told the log.
#[derive(Debug)]
struct Told(OtlpExporter);

impl SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.0.export(batch).await;
        if let Err(error) = &sent
            && log::admits("spans")
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

/// A span that has begun. It ends when it is told to, or with the last who has it.
pub struct Span(Context);

impl fmt::Debug for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Span").field(self.0.span().span_context()).finish()
    }
}

impl Span {
    /// The span of a request. `method` is one of the contract's or `other`, `route` a template of the router's or `unmatched`,
    /// `header` the value of a header.
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

    /// The span of an operation of the store, in the span around.
    #[must_use]
    pub fn of_operation(verb: &'static str) -> Self {
        let attributes = vec![KeyValue::new("db.system.name", "redis"), KeyValue::new("db.operation.name", verb)];
        Self::begin(verb.to_owned(), SpanKind::Client, attributes, Context::current())
    }

    fn begin(name: String, kind: SpanKind, attributes: Vec<KeyValue>, parent: Context) -> Self {
        let Some(tracer) = TRACER.get() else {
            return Self(parent);
        };
        let span = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
        let span = span.start_with_context(tracer, &parent);
        Self(parent.with_span(span))
    }

    /// What happens within this span.
    pub fn around<F: Future>(&self, future: F) -> WithContext<F> {
        future.with_context(self.0.clone())
    }

    /// Ends the span of a request.
    pub fn answered(self, status: u16) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            span.set_attribute(KeyValue::new("error.type", status.to_string()));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Ends the span of an operation.
    pub fn ended(&self, error_kind: Option<&'static str>) {
        let span = self.0.span();
        if let Some(kind) = error_kind {
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_status(Status::error(kind));
        }
        span.end();
    }
}
