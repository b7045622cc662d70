//! A DNS server that answers as it is told: with some of the hosts, that the name does not exist, or that it failed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The name that stands for all backends.
pub const NAME: &str = "backends.test";
const PORT: u16 = 53;
const LOOK_UP: Duration = Duration::from_millis(100);
/// Seconds that an answer holds.
const TTL: u32 = 1;
const A: u16 = 1;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answers {
    /// These addresses.
    Addresses(Vec<Ipv4Addr>),
    /// NXDOMAIN.
    NoSuchName,
    /// SERVFAIL.
    Failure,
}

/// A server that runs until it is dropped.
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    answers: Arc<Mutex<Answers>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves on port 53 of this address, for `resolv.conf` knows no other.
    pub fn start(ip: IpAddr, answers: Answers) -> Result<Self, String> {
        let address = SocketAddr::new(ip, PORT);
        let socket = UdpSocket::bind(address)
            .and_then(|socket| socket.set_read_timeout(Some(LOOK_UP)).map(|()| socket))
            .map_err(|error| format!("DNS server on {address}: {error}"))?;
        let answers = Arc::new(Mutex::new(answers));
        let stop = Arc::new(AtomicBool::new(false));
        let (given, stopped) = (Arc::clone(&answers), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut query = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((read, from)) = socket.recv_from(&mut query) else { continue };
                let answers = given.lock().expect("nobody panics with the lock").clone();
                if let Some(answer) = answer(&query[..read], &answers) {
                    // Who asked may be gone.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self { address, answers, stop, thread: Some(thread) })
    }

    /// Answers this from now on.
    pub fn answer(&self, answers: Answers) {
        *self.answers.lock().expect("nobody panics with the lock") = answers;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to panic for.
            let _ = thread.join();
        }
    }
}

/// The answer to a query of one question (RFC 1035 section 4); what else a query holds, such as EDNS, is ignored.
fn answer(query: &[u8], answers: &Answers) -> Option<Vec<u8>> {
    let mut end = 12;
    while *query.get(end)? != 0 {
        end += usize::from(query[end]) + 1;
    }
    let question = query.get(12..end + 5)?;
    let kind = u16::from_be_bytes([query[end + 1], query[end + 2]]);
    let (code, addresses) = match answers {
        Answers::Addresses(addresses) if kind == A => (0, addresses.as_slice()),
        Answers::Addresses(_) => (0, [].as_slice()),
        Answers::NoSuchName => (NXDOMAIN, [].as_slice()),
        Answers::Failure => (SERVFAIL, [].as_slice()),
    };
    let count = addresses.len() as u8;
    let mut reply = query[..2].to_vec();
    // An authoritative answer, recursion wanted and available; one question.
    reply.extend([0x85, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    reply.extend_from_slice(question);
    for address in addresses {
        reply.extend([0xc0, 12, 0, 1, 0, 1]);
        reply.extend(TTL.to_be_bytes());
        reply.extend([0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_with_what_there_is() {
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01";
        let two = Answers::Addresses(vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
        let reply = answer(query, &two).unwrap();
        assert_eq!(&reply[..8], b"\x12\x34\x85\x80\x00\x01\x00\x02");
        assert_eq!(reply.len(), query.len() + 2 * 16);
        assert!(reply.ends_with(&[10, 0, 0, 2]));
        assert_eq!(answer(query, &Answers::NoSuchName).unwrap()[3], 0x83);
        assert_eq!(answer(query, &Answers::Failure).unwrap()[3], 0x82);
        assert_eq!(answer(&query[..14], &two), None);
    }
}
