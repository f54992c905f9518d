//! No spans.

/// A span that is none.
#[derive(Debug)]
pub struct Span;

impl Span {
    /// The span of a request.
    #[must_use]
    pub fn of_request<'a>(
        _method: &'static str,
        _route: &str,
        _request_id: &str,
        _header: impl Fn(&str) -> Option<&'a str>,
    ) -> Self {
        Self
    }

    /// The span of an operation of the store.
    #[must_use]
    pub fn of_operation(_verb: &'static str) -> Self {
        Self
    }

    /// What happens within this span.
    pub fn around<F: Future>(&self, future: F) -> F {
        future
    }

    /// Ends the span of a request.
    pub fn answered(self, _status: u16) {}

    /// Ends the span of an operation.
    pub fn ended(&self, _error_kind: Option<&'static str>) {}
}
