//! What operators and neighbours write: questions to `explain`, queries of the admin API, durations, answers to health
//! checks, metrics. A question is understood as a worker understands the same request.

#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use fieldgate::admin::query_values;
use fieldgate::cli::fuzzing::{duration, encode, services};
use fieldgate::explain::{Question, explain};
use fieldgate::health::final_status;
use fieldgate::worker::fuzzing::{client, request};
use fieldgate_config::kinds::duration::parse_gateway_duration;
use fieldgate_config::{Configuration, FileChange};
use fieldgate_core::Snapshot;
use fieldgate_core::ir::Touched;
use fieldgate_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let text = Some(include_str!("../seeds/good.yaml").to_owned());
    let outcome = Configuration::default().apply(vec![FileChange { name: "good.yaml".into(), text }]);
    Snapshot::compile(None, outcome.config, &Touched::All, 1)
});

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    match input.below(5) {
        0 | 1 => check_question(&mut input),
        2 => check_query(&mut input),
        3 => {
            check_durations(&input.text());
            check_client(&mut input);
        }
        _ => check_answers(&mut input),
    }
});

/// The same request, asked about and sent.
fn check_question(input: &mut Input<'_>) {
    let method = input.one_of(&["GET", "POST", "OPTIONS", "BREW"]);
    let (url, client) = (input.text(), input.text());
    let headers: Vec<String> = (0..input.below(3)).map(|_| input.text()).collect();
    let client = (!client.is_empty()).then_some(client.as_str());
    let Ok(question) = Question::new(method, &url, &headers, client) else { return };
    let answer = explain(&SNAPSHOT, &question, 0);
    assert!(!answer.result.is_empty() && !answer.to_string().is_empty());
    let told = serde_json::to_string(&answer).expect("it is shown as JSON");
    assert_eq!(serde_json::from_str::<fieldgate::explain::Answer>(&told).expect("and read again"), answer);
    let rest = url.split_once("://").map_or(&*url, |(_, rest)| rest).split('#').next().unwrap_or_default();
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let slash = if target.starts_with('/') { "" } else { "/" };
    let wire = format!("{method} {slash}{target} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    let sent = request(wire.as_bytes(), question.head.https);
    if !headers.is_empty() {
        return;
    }
    let Ok(Some(sent)) = sent else { panic!("explained, and a worker refuses it: {url:?} {sent:?}") };
    assert_eq!((&question.head.target, &question.head.authority), (&sent.head.target, &sent.head.authority));
    assert_eq!(question.head.path_len, sent.head.path_len);
}

/// What is encoded is decoded, and anything at all is decoded to something.
fn check_query(input: &mut Input<'_>) {
    let (query, value) = (input.text(), input.text());
    for name in ["", "url", "header", &query] {
        query_values(&query, name);
    }
    let query = format!("a=1&url={}&url=x&header=", encode(&value));
    assert_eq!(query_values(&query, "url"), [value.as_str(), "x"]);
}

fn check_durations(text: &str) {
    let ours = duration(text);
    let gateways = parse_gateway_duration(text);
    if let (Ok(ours), Ok(gateways)) = (&ours, &gateways) {
        assert_eq!(ours, gateways, "{text}");
    }
    if let Ok(read) = gateways {
        assert!(read <= Duration::from_secs(99_999 * 3600 * 4));
        assert_eq!(
            parse_gateway_duration(&format!("{}ms", read.as_millis() % 99_999)).map(|d| d.as_millis()),
            Ok(read.as_millis() % 99_999)
        );
    }
    assert!(ours.err().is_none_or(|told| !told.is_empty()));
}

/// The entry that the outermost trusted proxy wrote, or the peer.
fn check_client(input: &mut Input<'_>) {
    let (hops, list) = (input.below(4), input.line());
    let peer: IpAddr = [192, 0, 2, 1].into();
    let entries: Vec<&[u8]> = list.split(|b| *b == b',').collect();
    let entry = entries.len().checked_sub(hops).filter(|_| hops > 0 && std::str::from_utf8(list).is_ok());
    let written = entry.and_then(|at| std::str::from_utf8(entries[at]).ok()?.trim().parse().ok());
    let expected = written.unwrap_or(peer);
    assert_eq!(client((peer, 1).into(), Some(list), hops as u32), expected);
    assert_eq!(client((peer, 1).into(), None, hops as u32), peer);
}

fn check_answers(input: &mut Input<'_>) {
    let metrics = input.text();
    assert!(services(&metrics) <= metrics.lines().count());
    let answer = input.0;
    let whole = final_status(answer);
    if let Ok(Some(status)) = whole {
        assert!((200..=999).contains(&status));
    }
    // In pieces: nothing is said before it is known, and what is said is not taken back.
    for cut in 0..answer.len().min(64) {
        if let Ok(Some(status)) = final_status(&answer[..cut]) {
            assert_eq!(whole, Ok(Some(status)));
        }
    }
}
