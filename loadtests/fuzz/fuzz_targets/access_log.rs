//! Any format is compiled or refused with a word for people, and whatever is in a request, its line is one line, and JSON
//! where JSON is asked for.

#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fieldgate::telemetry::access_log::{Format, line};
use fieldgate::telemetry::{Outcome, Stages};
use fieldgate_core::ir::ListenerKey;
use fieldgate_core::{Headers, Method, RequestHead};
use fieldgate_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let format = match input.below(8) {
        0 => "json".to_owned(),
        1 => "text".to_owned(),
        _ => input.text(),
    };
    let format: Format = match format.parse() {
        Ok(format) => format,
        Err(told) => return assert!(!told.is_empty()),
    };
    let request = Logged::new(&mut input);
    let line = line(&format, &request.outcome()).expect("a format that was taken is compiled");
    let shown = String::from_utf8_lossy(&line);
    if let Format::Custom(text) = &format {
        // What the format itself says is the operator's own.
        assert!(text.contains(char::is_control) || !line.iter().any(u8::is_ascii_control), "{shown:?}");
        return;
    }
    assert!(!line.iter().any(u8::is_ascii_control), "{shown:?}");
    if format == Format::Json {
        let value: serde_json::Value =
            serde_json::from_slice(&line).unwrap_or_else(|e| panic!("{e}: {shown}"));
        assert_eq!(value["method"], request.head.method.as_str());
        assert_eq!(value["path"], request.original.clone().unwrap_or(request.head.target.clone()));
        assert_eq!(value["response_code"], request.status);
    }
});

struct Logged {
    listener: ListenerKey,
    head: RequestHead,
    original: Option<String>,
    response: Headers,
    status: u16,
    sni: String,
    details: String,
    number: u64,
}

impl Logged {
    fn new(input: &mut Input<'_>) -> Self {
        let mut head = RequestHead { authority: input.text(), ..RequestHead::default() };
        head.method = Method::from_bytes(input.line());
        head.set_target(&input.text());
        let mut response = Headers::new();
        for _ in 0..input.below(4) {
            head.headers.push(
                input.one_of(&["User-Agent", "X-Forwarded-For", "X-Request-Id", "a"]).as_bytes(),
                input.line(),
            );
            response.push(input.one_of(&["x-envoy-upstream-service-time", "a"]).as_bytes(), input.line());
        }
        let name = || Arc::from("n");
        Self {
            listener: ListenerKey { namespace: name(), gateway: name(), name: name() },
            head,
            original: input.rarely(2).then(|| input.text()),
            response,
            status: input.u16(),
            sni: input.text(),
            details: input.text(),
            number: input.u64(),
        }
    }

    fn outcome(&self) -> Outcome<'_> {
        Outcome {
            listener: &self.listener,
            rule: None,
            backend: None,
            pool: None,
            upstream: None,
            upstream_local: None,
            head: &self.head,
            original_path: self.original.as_deref(),
            status: self.status,
            response: Some(&self.response),
            grpc_status: None,
            flags: "-",
            details: &self.details,
            failure: Some(&self.sni),
            started: Instant::now(),
            // Up to the year 5849: what a clock can say.
            started_wall: SystemTime::UNIX_EPOCH + Duration::from_micros(self.number % (1 << 57)),
            duration: Duration::from_nanos(self.number),
            stages: Stages { body: Some(Duration::from_nanos(self.number / 3)), ..Stages::default() },
            bytes_received: self.number,
            bytes_sent: self.number,
            peer: ([192, 0, 2, 1], 1).into(),
            local: ([192, 0, 2, 2], 80).into(),
            sni: Some(&self.sni),
            generation: self.number,
            attempts: self.status.into(),
        }
    }
}
