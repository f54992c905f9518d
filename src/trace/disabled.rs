//! Empty spans, for builds without the feature `otel`.

/// A span that records nothing.
#[derive(Debug)]
pub struct Span;

impl Span {
    /// Starts the span of a request.
    #[must_use]
    pub fn of_request<'a>(
        _method: &'static str,
        _route: &str,
        _request_id: &str,
        _header: impl Fn(&str) -> Option<&'a str>,
    ) -> Self {
        Self
    }

    /// Starts the span of an operation of the store.
    #[must_use]
    pub fn of_operation(_operation: &'static str) -> Self {
        Self
    }

    /// Runs `future` within this span.
    pub fn around<F: Future>(&self, future: F) -> F {
        future
    }

    /// Ends the span of a request with the status of its response.
    pub fn finish_request(self, _status: u16) {}

    /// Ends the span of an operation with the kind of its error, if it failed.
    pub fn finish_operation(&self, _error_kind: Option<&'static str>) {}
}
