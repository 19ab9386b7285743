//! Which trace a call is a part of, told to the server in the header `traceparent` (W3C Trace
//! Context).

use opentelemetry::trace::TraceContextExt as _;
use reqwest::header::HeaderValue;
use std::sync::OnceLock;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The trace that this process was started in.
static STARTED_IN: OnceLock<HeaderValue> = OnceLock::new();

/// Lets all calls of this process be a part of the trace that `traceparent` names, unless they are
/// made within a span. What is none is left out: a trace is never worth a failure.
pub fn continue_trace(traceparent: &str) {
    if let (true, Ok(value)) = (is_traceparent(traceparent), HeaderValue::from_str(traceparent)) {
        // Set once, at the start.
        let _ = STARTED_IN.set(value);
    }
}

/// A span for one call; costs nothing while traces are off.
pub(crate) fn span(method: &reqwest::Method) -> Span {
    tracing::debug_span!(
        target: "claviger::trace",
        "call",
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = method.as_str(),
        http.response.status_code = Empty,
    )
}

/// What to tell the server of the trace that this call is in; none if it is in none.
pub(crate) fn traceparent(span: &Span) -> Option<HeaderValue> {
    if span.is_disabled() {
        return STARTED_IN.get().cloned();
    }
    let context = span.context();
    let span = context.span();
    let told = span.span_context();
    if !told.is_valid() {
        return STARTED_IN.get().cloned();
    }
    let flags = told.trace_flags().to_u8();
    let text = format!("00-{}-{}-{flags:02x}", told.trace_id(), told.span_id());
    HeaderValue::from_str(&text).ok()
}

/// Whether a text is a `traceparent` of version 00: two ids that are not zero, and flags.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|b| b != b'0');
    match text.split('-').collect::<Vec<_>>()[..] {
        ["00", trace, span, flags] => id(trace, 32) && id(span, 16) && hex(flags, 2),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_told_from_anything_else() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(good));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    #[test]
    fn a_call_outside_of_traces_tells_nothing() {
        assert!(traceparent(&Span::none()).is_none());
    }
}
