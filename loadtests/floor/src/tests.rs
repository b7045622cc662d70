//! Every engine carries bytes whole and in order, and ends with the ends of its two sides.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use super::*;

fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || {
                let mut reader = client.try_clone().unwrap();
                let _ = io::copy(&mut reader, &mut client);
                let _ = client.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn start(upstream: SocketAddr, more: &[&str]) -> SocketAddr {
    let listener = sockets::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (listen, upstream) = (address.to_string(), upstream.to_string());
    let words = [&["fieldgate-floor", "--listen", &listen, "--upstream", &upstream], more].concat();
    let arguments = Arguments::try_parse_from(words).unwrap();
    thread::spawn(move || relay(&arguments, &listener).unwrap());
    address
}

/// Sends `len` bytes and the end, on one thread, and reads what comes back on another.
fn round_trip(relay: SocketAddr, len: usize) {
    let sent: Vec<u8> = (0..len).map(|n| (n * 31 + n / 251) as u8).collect();
    let mut client = TcpStream::connect(relay).unwrap();
    let mut writer = client.try_clone().unwrap();
    let copy = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == sent, "{len} bytes sent, {} came back, or others", got.len());
}

fn check(more: &[&str]) {
    let relay = start(echo_server(), more);
    let clients =
        [1, 100, 16 * 1024, 3_000_000, 20_000_000].map(|len| thread::spawn(move || round_trip(relay, len)));
    for client in clients {
        client.join().unwrap();
    }
    // Slots that were used before are as good as new ones.
    for _ in 0..20 {
        round_trip(relay, 1000);
    }
    let mut client = TcpStream::connect(relay).unwrap();
    for exchange in 0..100_u32 {
        let sent = exchange.to_be_bytes();
        client.write_all(&sent).unwrap();
        let mut got = [0; 4];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, sent);
    }
}

#[test]
fn epoll() {
    check(&[]);
}

#[test]
fn splice() {
    check(&["--engine", "splice", "--buffer", "4096"]);
}

#[test]
fn uring_or_what_stands_in_for_it() {
    check(&["--engine", "uring"]);
    check(&["--engine", "uring", "--uring", "zero-copy,no-fixed-files"]);
    check(&["--engine", "uring", "--uring", "single-shot,no-defer"]);
}

#[test]
fn uring_with_fewer_buffers_than_connections_want() {
    check(&["--engine", "uring", "--buffers", "4", "--buffer", "1024"]);
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_else() {
    for engine in ["epoll", "splice", "uring"] {
        let relay = start(echo_server(), &["--engine", engine]);
        let stuck = TcpStream::connect(relay).unwrap();
        stuck.set_nonblocking(true).unwrap();
        // Until nothing more fits anywhere on the way there and back.
        let (piece, mut writer, mut refused) = (vec![7; 64 * 1024], &stuck, 0);
        while refused < 3 {
            // How much of the piece was taken does not matter.
            let taken = writer.write(&piece).unwrap_or(0);
            if taken > 0 {
                refused = 0;
            } else {
                refused += 1;
                round_trip(relay, 1000);
            }
        }
        round_trip(relay, 1_000_000);
    }
}

#[test]
fn a_dead_upstream_ends_the_connection() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for engine in ["epoll", "splice", "uring"] {
        let relay = start(nobody, &["--engine", engine]);
        let mut client = TcpStream::connect(relay).unwrap();
        let _ = client.write_all(b"anyone?");
        // A reset is an end as well.
        let mut got = Vec::new();
        let _ = client.read_to_end(&mut got);
        assert!(got.is_empty());
    }
}
