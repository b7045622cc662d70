//! The account of a fault: which errors clients saw, and which of them an ideal gateway could have hidden.
//!
//! An error cannot be hidden if the answer had begun when the backend that gave it broke off, or if the request must
//! not be processed twice and had been sent to a backend with the fault before that fault could be known. Everything
//! else succeeds by way of another backend.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use fieldgate_loadtests::load::paced::Percentiles;
use fieldgate_loadtests::load::recorded::Record;
use serde::Serialize;

use super::capture::Sent;
use super::faults::Fault;

/// By then a fault can be known: two active checks a second apart that fail within a second, and the time to start.
const KNOWN: Duration = Duration::from_secs(4);
/// By then whatever was in flight when a backend went is over: it ends with the backend. No request comes to one whose
/// handshakes fail.
const OVER: Duration = Duration::from_millis(500);
/// A backend that gets nothing for so long is out: it would have had dozens of requests.
const OUT: Duration = Duration::from_secs(1);

/// When a fault began and ended, and which backends had it.
pub struct Span {
    pub begin: Instant,
    pub end: Instant,
    pub victims: Vec<usize>,
}

/// What came of one fault by one proxy.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Account {
    pub requests: usize,
    /// Clients' errors, by strand and kind.
    pub errors: BTreeMap<String, usize>,
    /// All of them.
    pub failed: usize,
    /// Those that an ideal gateway would have hidden.
    pub avoidable: usize,
    /// Of them the first, in words.
    pub examples: Vec<String>,
    /// Requests that went to backends with the fault, were tried again, and succeeded.
    pub hidden: Option<usize>,
    /// Requests that may not be processed twice, and were sent twice.
    pub repeated: Option<usize>,
    /// Seconds from the fault's begin to the last request before a backend with it was left alone.
    pub ejection: Option<f64>,
    /// Seconds from the fault's end until each such backend had a request again.
    pub recovery: Option<f64>,
    pub latency: Percentiles,
}

/// Examples that are kept.
const EXAMPLES: usize = 5;

/// Makes the account; `sent` is what a capture saw, if there was one.
pub fn account(fault: &Fault, span: &Span, records: &[Record], sent: Option<&[Sent]>) -> Account {
    let tries = sent.map(tries);
    let judge = Judge { fault, span, tries: tries.as_ref() };
    let mut account = Account { requests: records.len(), ..Account::default() };
    for record in records.iter().filter(|record| !record.succeeded) {
        account.failed += 1;
        *account.errors.entry(format!("{} {}", record.strand, record.failure())).or_default() += 1;
        if !judge.is_unavoidable(record) {
            account.avoidable += 1;
            if account.examples.len() < EXAMPLES {
                account.examples.push(judge.describe(record));
            }
        }
    }
    let (from, to) = if fault.is_felt_after() {
        (span.end, span.end + Duration::from_hours(1))
    } else {
        (span.begin, span.end)
    };
    let felt = records.iter().filter(|record| (from..to).contains(&record.due));
    let mut micros: Vec<u32> = felt.map(|record| (record.end - record.due).as_micros() as u32).collect();
    account.latency = Percentiles::of(&mut micros);
    if let (Some(sent), Some(tries)) = (sent, &tries) {
        let once = records.iter().filter(|record| !record.idempotent);
        let times = |record: &Record| tries.get(record.id.as_str()).map_or(0, Vec::len);
        account.repeated = Some(once.filter(|record| times(record) > 1).count());
        let was_saved =
            |record: &&Record| record.succeeded && times(record) > 1 && judge.met(record).is_some();
        account.hidden = Some(records.iter().filter(was_saved).count());
        if !fault.is_mild() {
            account.ejection = latest(span, |host| ejection(span, sent, host));
            account.recovery = latest(span, |host| recovery(span, sent, host));
        }
    }
    if sent.is_none() && fault.is_of_tls() {
        account.recovery = latest(span, |host| first_answer(span, records, host));
    }
    account
}

type Tries<'a> = HashMap<&'a str, Vec<&'a Sent>>;

fn tries(sent: &[Sent]) -> Tries<'_> {
    let mut tries = Tries::new();
    for one in sent {
        tries.entry(&one.id).or_default().push(one);
    }
    tries
}

struct Judge<'a> {
    fault: &'a Fault,
    span: &'a Span,
    tries: Option<&'a Tries<'a>>,
}

impl Judge<'_> {
    fn is_unavoidable(&self, record: &Record) -> bool {
        let by_victim = record.backend.strip_prefix('b').and_then(|host| host.parse().ok());
        let by_victim = by_victim.is_some_and(|host| self.span.victims.contains(&host));
        if record.was_cut() && by_victim {
            return self.fault.cuts_answers();
        }
        if self.fault.begins_answers() && !record.error.is_empty() && self.ended_at_victim(record) {
            return true;
        }
        if record.idempotent || !self.fault.may_have_processed() {
            return false;
        }
        // What is in flight when a host goes may end long after.
        let known = if self.fault.is_mild() { self.span.end } else { self.span.begin + KNOWN };
        let known = known.max(self.span.begin + self.fault.lasts(Duration::ZERO) + KNOWN);
        let known = if self.fault.is_of_tls() { self.span.begin + OVER } else { known };
        match self.tries {
            Some(_) => self.met(record).is_some_and(|met| met <= known),
            None => record.due <= known && record.end >= self.span.begin,
        }
    }

    /// When a request was sent to a backend while it had the fault, or so that it was there when the fault began.
    fn met(&self, record: &Record) -> Option<Instant> {
        let tries = self.tries?.get(record.id.as_str())?;
        let met = tries.iter().find(|sent| {
            self.span.victims.contains(&sent.host)
                && sent.at < self.span.end + KNOWN
                && record.end >= self.span.begin
        });
        met.map(|sent| sent.at)
    }

    /// Whether the last try was at a backend with the fault, as far as tries can be seen.
    fn ended_at_victim(&self, record: &Record) -> bool {
        let tries = self.tries.and_then(|tries| tries.get(record.id.as_str()));
        let last = tries.and_then(|tries| tries.last());
        last.is_none_or(|last| self.span.victims.contains(&last.host))
    }

    fn describe(&self, record: &Record) -> String {
        let since = |at: Instant| at.saturating_duration_since(self.span.begin).as_secs_f64();
        let tries = self.tries.and_then(|tries| tries.get(record.id.as_str())).map_or_else(
            || "none seen".to_owned(),
            |tries| {
                let one = |sent: &&Sent| format!("b{} at {:.2}", sent.host, since(sent.at));
                tries.iter().map(one).collect::<Vec<_>>().join(", ")
            },
        );
        format!(
            "{}: {} {}, from {:.2} s to {:.2} s after the fault; tries: {tries}",
            record.id,
            record.failure(),
            record.backend,
            since(record.due),
            since(record.end)
        )
    }
}

/// The largest of all hosts with the fault; nothing if one has none.
fn latest(span: &Span, of: impl Fn(usize) -> Option<f64>) -> Option<f64> {
    if span.victims.is_empty() {
        return None;
    }
    span.victims.iter().map(|host| of(*host)).try_fold(0.0, |most, one| Some(f64::max(most, one?)))
}

fn ejection(span: &Span, sent: &[Sent], host: usize) -> Option<f64> {
    let during = sent.iter().filter(|one| one.host == host && (span.begin..span.end).contains(&one.at));
    let mut last = span.begin;
    for one in during {
        if one.at - last >= OUT {
            break;
        }
        last = one.at;
    }
    (span.end - last >= OUT).then(|| (last - span.begin).as_secs_f64())
}

fn recovery(span: &Span, sent: &[Sent], host: usize) -> Option<f64> {
    let first = sent.iter().find(|one| one.host == host && one.at >= span.end)?;
    Some((first.at - span.end).as_secs_f64())
}

/// As [`recovery`], by the answers that clients got.
fn first_answer(span: &Span, records: &[Record], host: usize) -> Option<f64> {
    let name = format!("b{host}");
    let ends = records.iter().filter(|record| record.backend == name && record.end >= span.end);
    Some((ends.map(|record| record.end).min()? - span.end).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::faults::FAULTS;

    struct Play {
        start: Instant,
        span: Span,
        records: Vec<Record>,
        sent: Vec<Sent>,
    }

    impl Play {
        /// A fault of host 1 from second 1 to second 11.
        fn new() -> Self {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let span = Span { begin: at(1), end: at(11), victims: vec![1] };
            Self { start, span, records: Vec::new(), sent: Vec::new() }
        }

        fn failed(&mut self, id: &str, seconds: f64, hosts: &[usize], status: u16, error: &'static str) {
            let due = self.start + Duration::from_secs_f64(seconds);
            self.sent.extend(hosts.iter().map(|host| Sent { at: due, host: *host, id: id.to_owned() }));
            self.records.push(Record {
                strand: "h1-get",
                id: id.to_owned(),
                due,
                end: due + Duration::from_millis(10),
                status,
                grpc_status: None,
                backend: hosts.last().map(|host| format!("b{host}")).unwrap_or_default(),
                error,
                idempotent: !id.starts_with("post"),
                succeeded: false,
            });
        }

        fn avoidable(&self, name: &str) -> usize {
            let fault = FAULTS.iter().find(|fault| fault.name == name).unwrap();
            account(fault, &self.span, &self.records, Some(&self.sent)).avoidable
        }
    }

    #[test]
    fn a_request_that_may_be_tried_again_is_hidden_by_an_ideal_gateway() {
        let mut play = Play::new();
        play.failed("get-1", 1.5, &[1], 503, "");
        assert_eq!(play.avoidable("kill"), 1);
        assert_eq!(play.avoidable("resets"), 1);
    }

    #[test]
    fn an_answer_that_has_begun_is_lost_with_its_backend_only() {
        let mut play = Play::new();
        play.failed("get-1", 1.5, &[1], 200, "truncated");
        assert_eq!(play.avoidable("kill"), 0);
        assert_eq!(play.avoidable("refuse"), 1);
        play.failed("get-2", 1.5, &[2], 200, "truncated");
        assert_eq!(play.avoidable("kill"), 1);
        // Whether a reset overtook the head of an answer is nothing that a gateway could have helped.
        play.failed("get-3", 1.5, &[1], 0, "reset");
        assert_eq!(play.avoidable("kill"), 2);
        assert_eq!(play.avoidable("truncate"), 1);
    }

    #[test]
    fn what_may_not_be_tried_again_is_lost_until_the_fault_is_known() {
        let mut play = Play::new();
        play.failed("post-1", 1.5, &[1], 503, "");
        assert_eq!(play.avoidable("kill"), 0);
        assert_eq!(play.avoidable("refuse"), 1);
        play.failed("post-2", 9.0, &[1], 503, "");
        assert_eq!(play.avoidable("kill"), 1);
        assert_eq!(play.avoidable("resets"), 0);
        play.failed("post-3", 1.5, &[2], 503, "");
        assert_eq!(play.avoidable("kill"), 2);
    }

    #[test]
    fn a_backend_is_out_from_the_last_request_before_a_pause() {
        let mut play = Play::new();
        for tenth in 0..300 {
            let seconds = f64::from(tenth) / 10.0;
            if !(1.35..12.45).contains(&seconds) || (6.0..6.3).contains(&seconds) {
                play.failed("get-1", seconds, &[1], 200, "");
            }
        }
        let account = account(&FAULTS[0], &play.span, &play.records, Some(&play.sent));
        assert!((account.ejection.unwrap() - 0.3).abs() < 0.01, "{account:?}");
        assert!((account.recovery.unwrap() - 1.5).abs() < 0.01, "{account:?}");
    }
}
