//! An open-loop load: requests at moments that were drawn before, whatever the answers do, over HTTP/1.1 connections
//! that stay open. Latency counts from the moment that a request was due, so that a proxy which stalls cannot hide the
//! requests that it kept from being sent. One thread, one system call each to send and to receive: it is made to share
//! its core with a backend. It says how late it was itself; what is judged of that is the caller's.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};

const BUFFER: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// How long answers may take that are due when the last request has been sent.
const GRACE: Duration = Duration::from_secs(5);
/// Names the timer among the connections.
const TIMER: u64 = u64::MAX;
/// Every run draws the same moments, so that all proxies meet the same bursts.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// What to send, and how often.
#[derive(Clone, Debug)]
pub struct Paced {
    /// Where connections go; also the `Host`.
    pub address: SocketAddr,
    /// The request target.
    pub path: String,
    /// Bytes of the request's body; with one it is a POST.
    pub body: usize,
    /// Connections kept open. A request that finds none free waits, and its clock runs.
    pub connections: usize,
    /// Requests per second on average; their moments are a Poisson process, as those of independent users are.
    pub rate: f64,
    /// How long requests are sent.
    pub duration: Duration,
    /// Requests due before this are sent but not counted.
    pub warm_up: Duration,
}

/// What came of a paced load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PacedReport {
    /// Requests counted: due after the warm-up and answered in full with 2xx.
    pub requests: u64,
    /// All that were answered, also in the warm-up.
    pub answered: u64,
    /// Requests that got another answer, or none because their connection ended.
    pub failed: u64,
    /// Those of them that were refused for want of capacity, by 503 or 429.
    #[serde(default)]
    pub refused: u64,
    /// Requests without an answer when the time was up.
    pub unanswered: u64,
    /// Seconds from the first moment to the last answer.
    pub seconds: f64,
    /// Answers in full with 2xx that came between the end of the warm-up and the moment of the last request, whenever
    /// they were due: what was carried in that time.
    pub carried: u64,
    /// From the moment that a request was due to the end of its answer.
    pub latency: Percentiles,
    /// The same from the moment that it was sent, which may be later where all connections were taken.
    pub from_sent: Percentiles,
    /// From the moment that a request was due until it was sent, of those that found a connection free: the
    /// generator's own delay, which is part of the latency.
    pub late: Percentiles,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are within it.
    pub p99: f64,
    /// 999 of 1,000 are within it.
    pub p999: f64,
}

impl Percentiles {
    /// Of some durations in microseconds, which are put in order.
    pub fn of(micros: &mut [u32]) -> Self {
        micros.sort_unstable();
        let at = |share: f64| {
            let rank = (micros.len() as f64 * share).ceil() as usize;
            micros.get(rank.max(1) - 1).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
        };
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

impl Paced {
    /// Sends the load on the calling thread.
    pub fn run(&self) -> io::Result<PacedReport> {
        let mut run = Run::new(self)?;
        run.go()?;
        Ok(run.report())
    }

    fn request(&self) -> Vec<u8> {
        let Self { address, path, body, .. } = self;
        let mut request = if *body == 0 {
            format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n")
        } else {
            format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {body}\r\n\r\n")
        }
        .into_bytes();
        request.resize(request.len() + body, b'.');
        request
    }
}

struct Run<'a> {
    plan: &'a Paced,
    request: Vec<u8>,
    epoll: OwnedFd,
    timer: OwnedFd,
    connections: Vec<Connection>,
    /// Connections without a request, the one that has rested longest first.
    free: VecDeque<usize>,
    /// Moments of requests that no connection was free for.
    waiting: VecDeque<Instant>,
    arrivals: Arrivals,
    started: Instant,
    carried: u64,
    latency: Vec<u32>,
    from_sent: Vec<u32>,
    late: Vec<u32>,
    answered: u64,
    failed: u64,
    refused: u64,
    last_answer: Instant,
}

struct Connection {
    stream: TcpStream,
    input: Box<[u8; BUFFER]>,
    filled: usize,
    /// Bytes of the request that are sent.
    sent: usize,
    /// Bytes of the answer's body that are to come; nothing before its head is complete.
    body_left: Option<u64>,
    status: u16,
    /// The answer says that the connection ends with it.
    closes: bool,
    /// When the request under way was due, and when it was sent.
    due: Option<Instant>,
    begun: Instant,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Paced) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // Edge-triggered, so that an expiry need not be read: the next one is set before the next wait.
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        let connections = (0..plan.connections.max(1))
            .map(|number| Connection::open(plan.address, &epoll, number))
            .collect::<io::Result<Vec<_>>>()?;
        let started = Instant::now();
        Ok(Self {
            plan,
            request: plan.request(),
            epoll,
            timer,
            free: (0..connections.len()).collect(),
            connections,
            waiting: VecDeque::new(),
            arrivals: Arrivals::new(plan.rate, started, started + plan.duration),
            started,
            carried: 0,
            latency: Vec::new(),
            from_sent: Vec::new(),
            late: Vec::new(),
            answered: 0,
            failed: 0,
            refused: 0,
            last_answer: started,
        })
    }

    fn go(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(256);
        let end = self.started + self.plan.duration;
        loop {
            self.send_due()?;
            let next = self.arrivals.next;
            if next.is_none() && self.free.len() == self.connections.len() {
                return Ok(());
            }
            let wake = next.unwrap_or(end + GRACE);
            let Some(pause) = wake.checked_duration_since(Instant::now()).filter(|pause| !pause.is_zero())
            else {
                if next.is_none() {
                    return Ok(());
                }
                continue;
            };
            self.set_timer(pause)?;
            events.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut events), None)?;
            for event in events.drain(..) {
                let number = event.data.u64();
                if number != TIMER {
                    self.advance(number as usize)?;
                }
            }
        }
    }

    fn set_timer(&self, pause: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    fn send_due(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some(due) = self.arrivals.take_until(now) {
            match self.free.pop_front() {
                // Those who wait go first; a free connection means that nobody does.
                Some(number) => {
                    if self.counts(due) {
                        self.late.push(micros(due.elapsed()));
                    }
                    self.begin(number, due)?;
                }
                None => self.waiting.push_back(due),
            }
        }
        Ok(())
    }

    fn begin(&mut self, number: usize, due: Instant) -> io::Result<()> {
        let connection = &mut self.connections[number];
        connection.begin(due);
        // A request that fails here is seen again as soon as its connection is read.
        let _ = connection.send(&self.request);
        Ok(())
    }

    /// Goes on with a connection that something has happened to.
    fn advance(&mut self, number: usize) -> io::Result<()> {
        let connection = &mut self.connections[number];
        let sent = connection.send(&self.request);
        let received = connection.receive();
        match (connection.due, received) {
            // An answer that came in full counts, whatever became of the rest of the request.
            (Some(due), Ok(true)) => {
                let status = connection.status;
                if sent.is_err() || connection.closes || connection.sent < self.request.len() {
                    self.reopen(number)?;
                }
                self.finish(number, due, status)
            }
            (Some(_), Ok(false)) if sent.is_ok() => Ok(()),
            (Some(due), _) => {
                self.reopen(number)?;
                self.finish(number, due, 0)
            }
            (None, Ok(_)) => Ok(()),
            // A server may end a connection that rests.
            (None, Err(_)) => self.reopen(number),
        }
    }

    fn finish(&mut self, number: usize, due: Instant, status: u16) -> io::Result<()> {
        if (200..300).contains(&status) {
            self.answered += 1;
            self.last_answer = Instant::now();
            let in_time = self.counts(self.last_answer);
            self.carried += u64::from(in_time && self.last_answer < self.started + self.plan.duration);
            if self.counts(due) {
                self.latency.push(micros(self.last_answer - due));
                self.from_sent.push(micros(self.last_answer - self.connections[number].begun));
            }
        } else {
            self.failed += 1;
            self.refused += u64::from(matches!(status, 429 | 503));
        }
        match self.waiting.pop_front() {
            Some(due) => self.begin(number, due),
            None => {
                self.connections[number].due = None;
                self.free.push_back(number);
                Ok(())
            }
        }
    }

    fn reopen(&mut self, number: usize) -> io::Result<()> {
        self.connections[number] = Connection::open(self.plan.address, &self.epoll, number)?;
        Ok(())
    }

    fn counts(&self, moment: Instant) -> bool {
        moment >= self.started + self.plan.warm_up
    }

    fn report(mut self) -> PacedReport {
        let unanswered = self.connections.len() - self.free.len() + self.waiting.len();
        PacedReport {
            requests: self.latency.len() as u64,
            answered: self.answered,
            failed: self.failed,
            refused: self.refused,
            unanswered: unanswered as u64,
            seconds: (self.last_answer - self.started).as_secs_f64(),
            carried: self.carried,
            latency: Percentiles::of(&mut self.latency),
            from_sent: Percentiles::of(&mut self.from_sent),
            late: Percentiles::of(&mut self.late),
        }
    }
}

impl Connection {
    fn open(address: SocketAddr, epoll: &OwnedFd, number: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(epoll, &stream, EventData::new_u64(number as u64), flags)?;
        let input = vec![0; BUFFER].into_boxed_slice().try_into().expect("it is as long as it is made");
        Ok(Self {
            stream,
            input,
            filled: 0,
            sent: 0,
            body_left: None,
            status: 0,
            closes: false,
            due: None,
            begun: Instant::now(),
        })
    }

    fn begin(&mut self, due: Instant) {
        self.due = Some(due);
        self.begun = Instant::now();
        self.sent = 0;
        self.filled = 0;
        self.body_left = None;
    }

    /// Sends what the socket takes of the request under way.
    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        while self.due.is_some() && self.sent < request.len() {
            match self.stream.write(&request[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what there is; `true` when the answer under way is complete.
    fn receive(&mut self) -> io::Result<bool> {
        loop {
            if self.filled == BUFFER {
                return Err(invalid("a head that is too long"));
            }
            match self.stream.read(&mut self.input[self.filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.filled += read;
                    let full = self.filled == BUFFER;
                    if self.take()? {
                        return Ok(true);
                    }
                    // A read that did not fill the buffer took all there was: the edge will come again.
                    if !full {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Understands what has been read; `true` at the answer's end.
    fn take(&mut self) -> io::Result<bool> {
        if self.due.is_none() {
            return Err(invalid("an answer that nobody asked for"));
        }
        let (left, here) = match self.body_left {
            Some(left) => (left, self.filled),
            None => {
                let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
                let mut head = httparse::Response::new(&mut headers);
                match head.parse(&self.input[..self.filled]).map_err(io::Error::other)? {
                    httparse::Status::Partial => return Ok(false),
                    httparse::Status::Complete(length) => {
                        self.status = head.code.unwrap_or_default();
                        self.closes = closes(&head);
                        (content_length(&head)?, self.filled - length)
                    }
                }
            }
        };
        let left = left.checked_sub(here as u64).ok_or_else(|| invalid("more than was announced"))?;
        self.body_left = Some(left);
        self.filled = 0;
        Ok(left == 0)
    }
}

/// The moments that requests are due at.
struct Arrivals {
    next: Option<Instant>,
    rate: f64,
    end: Instant,
    random: u64,
}

impl Arrivals {
    fn new(rate: f64, start: Instant, end: Instant) -> Self {
        let mut arrivals = Self { next: Some(start), rate, end, random: SEED };
        arrivals.draw();
        arrivals
    }

    fn take_until(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next.filter(|due| *due <= now)?;
        self.draw();
        Some(due)
    }

    fn draw(&mut self) {
        // xorshift64*; the top 53 bits are a fraction, and 1 minus it is never 0.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        let fraction = bits as f64 / (1u64 << 53) as f64;
        let pause = Duration::from_secs_f64(-(1.0 - fraction).ln() / self.rate);
        self.next = self.next.map(|due| due + pause).filter(|due| *due < self.end);
    }
}

fn closes(head: &httparse::Response<'_, '_>) -> bool {
    head.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("connection") && header.value.eq_ignore_ascii_case(b"close")
    })
}

fn content_length(head: &httparse::Response<'_, '_>) -> io::Result<u64> {
    let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let value = header.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok());
    value.ok_or_else(|| invalid("an answer without content-length"))
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const REQUESTS_IN_A_SECOND: f64 = 1000.0;

    #[test]
    fn arrivals_keep_their_rate_and_are_the_same_each_time() {
        let start = Instant::now();
        let all = |seconds| {
            let mut arrivals =
                Arrivals::new(REQUESTS_IN_A_SECOND, start, start + Duration::from_secs(seconds));
            let mut moments = Vec::new();
            while let Some(due) = arrivals.take_until(start + Duration::from_secs(1000)) {
                moments.push(due - start);
            }
            moments
        };
        let moments = all(100);
        assert!((95_000..105_000).contains(&moments.len()), "{}", moments.len());
        assert!(moments.is_sorted());
        assert_eq!(moments, all(100));
    }

    #[test]
    fn percentiles_are_ranks() {
        let mut micros: Vec<u32> = (1..=1000).rev().map(|millis| millis * 1000).collect();
        let Percentiles { p50, p99, p999 } = Percentiles::of(&mut micros);
        assert_eq!((p50, p99, p999), (500.0, 990.0, 999.0));
        assert_eq!(Percentiles::of(&mut []).p99, 0.0);
    }

    /// A server that stalls holds back only what it was sent; the clock of what is due meanwhile runs all the same.
    #[test]
    fn a_stall_is_in_the_latency_of_all_that_were_due() {
        const STALL: Duration = Duration::from_millis(300);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let mut stall = Some(STALL);
            while let Ok(1..) = stream.read(&mut buffer) {
                if let Some(stall) = stall.take() {
                    thread::sleep(stall);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            }
        });
        let paced = Paced {
            address,
            path: "/".to_owned(),
            body: 0,
            connections: 1,
            rate: 200.0,
            duration: STALL,
            warm_up: Duration::ZERO,
        };
        let report = paced.run().unwrap();
        server.join().unwrap();
        assert_eq!((report.failed, report.unanswered), (0, 0));
        assert!(report.requests > 20, "{report:?}");
        // Half of them were due in the first half of the stall, and had to wait for its end.
        assert!(report.latency.p50 >= 100.0, "{report:?}");
    }

    #[test]
    fn other_answers_and_lost_connections_are_failures() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; 4096];
                if number == 0 && stream.read(&mut buffer).is_ok() {
                    stream.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
                // And the connection ends with the next request.
                let _ = stream.read(&mut buffer);
            }
        });
        let paced = Paced {
            address,
            path: "/".to_owned(),
            body: 10,
            connections: 1,
            rate: 100.0,
            duration: Duration::from_millis(200),
            warm_up: Duration::ZERO,
        };
        let report = paced.run().unwrap();
        assert_eq!((report.requests, report.unanswered), (0, 0), "{report:?}");
        assert_eq!(report.refused, 1, "{report:?}");
        assert!(report.failed > 2, "{report:?}");
    }
}
