//! A log format, compiled to segments when the log is opened.

use std::io::Write as _;

use super::operator::Operator;
use crate::telemetry::Outcome;

/// Istio's default text.
pub(super) const ISTIO_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

/// Istio's default JSON, and two keys of our own.
pub(super) const ISTIO_JSON: [(&str, &str); 26] = [
    ("start_time", "START_TIME"),
    ("method", "REQ(:METHOD)"),
    ("path", "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)"),
    ("protocol", "PROTOCOL"),
    ("response_code", "RESPONSE_CODE"),
    ("response_flags", "RESPONSE_FLAGS"),
    ("response_code_details", "RESPONSE_CODE_DETAILS"),
    ("connection_termination_details", "CONNECTION_TERMINATION_DETAILS"),
    ("upstream_transport_failure_reason", "UPSTREAM_TRANSPORT_FAILURE_REASON"),
    ("bytes_received", "BYTES_RECEIVED"),
    ("bytes_sent", "BYTES_SENT"),
    ("duration", "DURATION"),
    ("upstream_service_time", "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)"),
    ("x_forwarded_for", "REQ(X-FORWARDED-FOR)"),
    ("user_agent", "REQ(USER-AGENT)"),
    ("request_id", "REQ(X-REQUEST-ID)"),
    ("authority", "REQ(:AUTHORITY)"),
    ("upstream_host", "UPSTREAM_HOST"),
    ("upstream_cluster", "UPSTREAM_CLUSTER_RAW"),
    ("upstream_local_address", "UPSTREAM_LOCAL_ADDRESS"),
    ("downstream_local_address", "DOWNSTREAM_LOCAL_ADDRESS"),
    ("downstream_remote_address", "DOWNSTREAM_REMOTE_ADDRESS"),
    ("requested_server_name", "REQUESTED_SERVER_NAME"),
    ("route_name", "ROUTE_NAME"),
    ("generation", "GENERATION"),
    ("attempts", "UPSTREAM_REQUEST_ATTEMPT_COUNT"),
];

/// A compiled format.
#[derive(Debug)]
pub(super) struct Compiled {
    segments: Vec<Segment>,
    json: bool,
}

#[derive(Debug)]
enum Segment {
    Literal(Box<[u8]>),
    Operator { operator: Operator, max: Option<usize> },
}

impl Compiled {
    /// From text with `%OPERATORS%`; `%%` is a percent sign.
    pub(super) fn text(format: &str) -> Result<Self, String> {
        let mut segments = Vec::new();
        let mut rest = format.trim_end_matches('\n');
        let mut literal = String::new();
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            push_literal(&mut segments, &mut literal);
            let end = end_of_operator(rest)
                .ok_or_else(|| format!("`%{rest}` has no closing `%`; write `%%` for a percent sign"))?;
            segments.push(operator(&rest[..end])?);
            rest = &rest[end + 1..];
        }
        literal.push_str(rest);
        push_literal(&mut segments, &mut literal);
        Ok(Self { segments, json: false })
    }

    /// From keys and operators: one JSON object. Numbers stay numbers; what is absent is `null`.
    pub(super) fn json(fields: &[(&str, &str)]) -> Result<Self, String> {
        let mut segments = Vec::new();
        let mut literal = String::from("{");
        for (index, (key, source)) in fields.iter().enumerate() {
            if index > 0 {
                literal.push(',');
            }
            literal.push_str(&format!("\"{key}\":"));
            push_literal(&mut segments, &mut literal);
            segments.push(operator(source)?);
        }
        literal.push('}');
        push_literal(&mut segments, &mut literal);
        Ok(Self { segments, json: true })
    }

    /// Writes a line, without its end.
    pub(super) fn write(&self, outcome: &Outcome<'_>, out: &mut Vec<u8>) {
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => out.extend_from_slice(text),
                Segment::Operator { operator, max } if self.json => write_json(operator, *max, outcome, out),
                Segment::Operator { operator, max } => write_text(operator, *max, outcome, out),
            }
        }
    }
}

fn push_literal(segments: &mut Vec<Segment>, literal: &mut String) {
    if !literal.is_empty() {
        segments.push(Segment::Literal(std::mem::take(literal).into_bytes().into()));
    }
}

/// Where the operator ends: a `%` inside parentheses (as in `START_TIME(%s)`) belongs to it.
fn end_of_operator(text: &str) -> Option<usize> {
    let mut inside = false;
    text.bytes().position(|b| {
        match b {
            b'(' => inside = true,
            b')' => inside = false,
            _ => {}
        }
        b == b'%' && !inside
    })
}

/// `NAME`, `NAME(argument)`, `NAME(argument):max`.
fn operator(source: &str) -> Result<Segment, String> {
    let (name, rest) = match source.split_once('(') {
        Some((name, rest)) => {
            let (argument, after) =
                rest.rsplit_once(')').ok_or_else(|| format!("`%{source}%` has no closing parenthesis"))?;
            (name, Some((argument, after)))
        }
        None => (source, None),
    };
    let (argument, after) = rest.unzip();
    let max = match after.and_then(|after| after.strip_prefix(':')) {
        Some(max) => {
            let max = max.parse().map_err(|_| format!("`{max}` in `%{source}%` is not a length in bytes"))?;
            Some(max)
        }
        None => None,
    };
    Ok(Segment::Operator { operator: Operator::parse(name, argument)?, max })
}

fn write_text(operator: &Operator, max: Option<usize>, outcome: &Outcome<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    if !operator.write(outcome, out) {
        return out.push(b'-');
    }
    cut(out, start, max);
    // A line is a line, whatever a header holds.
    for byte in &mut out[start..] {
        if *byte < b' ' || *byte == 0x7f {
            *byte = b'?';
        }
    }
}

fn write_json(operator: &Operator, max: Option<usize>, outcome: &Outcome<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    if operator.is_number() {
        if !operator.write(outcome, out) {
            out.extend_from_slice(b"null");
        }
        return;
    }
    out.push(b'"');
    if !operator.write(outcome, out) {
        out.truncate(start);
        return out.extend_from_slice(b"null");
    }
    cut(out, start + 1, max);
    if out[start + 1..].iter().any(|b| !matches!(b, b' '..=b'~') || matches!(b, b'"' | b'\\')) {
        escape(out, start + 1);
    }
    out.push(b'"');
}

fn cut(out: &mut Vec<u8>, start: usize, max: Option<usize>) {
    if let Some(max) = max {
        out.truncate(start.saturating_add(max));
    }
}

fn escape(out: &mut Vec<u8>, start: usize) {
    let raw = out.split_off(start);
    for c in String::from_utf8_lossy(&raw).chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => {
                let mut utf8 = [0; 4];
                out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::testing::Sample;

    fn line(format: &Compiled, sample: &Sample) -> String {
        let mut out = Vec::new();
        format.write(&sample.outcome(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn check(format: &str, expected: &str) {
        assert_eq!(line(&Compiled::text(format).unwrap(), &Sample::default()), expected, "{format}");
    }

    #[test]
    fn the_default_text_is_istios() {
        check(
            ISTIO_TEXT,
            "[2023-11-14T22:13:20.123Z] \"GET /old?q=1 HTTP/1.1\" 200 - via_upstream - \"-\" 5 128 7 6 \"-\" \
             \"curl \"8\"\" \"id-1\" \"shop.example\" \"10.0.0.1:8080\" \
             outbound|80||shop.default.svc.cluster.local 10.0.0.9:40000 192.0.2.2:80 192.0.2.1:50000 - \
             default/shop#1",
        );
    }

    #[test]
    fn json_is_json() {
        let mut sample = Sample::default();
        sample.head.headers.push(b"x-forwarded-for", b"a\\\xff\t");
        let text = line(&Compiled::json(&ISTIO_JSON).unwrap(), &sample);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["response_code"], 200);
        assert_eq!(value["user_agent"], "curl \"8\"");
        assert_eq!(value["x_forwarded_for"], "a\\\u{fffd}\t");
        assert_eq!(value["requested_server_name"], serde_json::Value::Null);
        assert_eq!(value["generation"], 3);
        assert_eq!(value.as_object().unwrap().len(), ISTIO_JSON.len());
    }

    #[test]
    fn custom_formats() {
        check("100%% %REQ(x-none)% %REQ(X-NONE?User-Agent):4%|", "100% - curl|");
        check("|%REQ(:METHOD):18446744073709551615%|", "|GET|");
        check("%START_TIME(%s %Y/%m/%d)%", "1700000000 2023/11/14");
        check("%REQ_WITHOUT_QUERY(:PATH)%\n", "/new");
        check("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %LISTENER%", "192.0.2.1 default/edge/http");
    }

    #[test]
    fn mistakes_are_named() {
        for (format, part) in [
            ("%REQ(a%", "no closing"),
            ("50% of", "no closing"),
            ("%RESPONCE_CODE%", "RESPONCE_CODE"),
            ("%REQ%", "needs a header"),
            ("%REQ(a):x%", "not a length"),
            ("%START_TIME(%Q)%", "%Q"),
        ] {
            let error = Compiled::text(format).unwrap_err();
            assert!(error.contains(part), "{format}: {error}");
        }
    }
}
