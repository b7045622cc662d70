//! A backend whose answers a test decides, request by request. HTTP/1.1 only, and in this process: what a scenario wants to
//! know of it, it can ask at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request that came.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Method and target.
    pub line: String,
    /// The whole head.
    pub head: String,
    /// The body, as far as its length was announced.
    pub body: Vec<u8>,
}

/// What to do with a request.
pub enum Reply {
    /// This status with these fields (each with its line end) and `body`.
    Status(u16, &'static str, &'static str),
    /// As above, after a while.
    Late(Duration, u16),
    /// The connection is reset.
    Reset,
    /// Nothing, until the peer goes away.
    Silence,
}

/// A running one. It ends with the process.
pub struct Scripted {
    /// Where it listens.
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

type Script = dyn Fn(usize, &Received) -> Reply + Send + Sync;

impl Scripted {
    /// `script` gets the number of the request, from 0, and the request.
    pub fn start(script: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let received: Arc<Mutex<Vec<Received>>> = Arc::default();
        let (seen, script): (_, Arc<Script>) = (received.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, script) = (seen.clone(), script.clone());
                std::thread::spawn(move || serve(stream, &seen, &*script));
            }
        });
        Ok(Self { address, received })
    }

    /// One that always says 200 and its name.
    pub fn good(name: &'static str) -> Result<Self, String> {
        Self::start(move |_, _| Reply::Status(200, "", name))
    }

    /// All requests so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().map(|received| received.clone()).unwrap_or_default()
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Received>>, script: &Script) {
    let mut input = Vec::new();
    while let Some(request) = read(&mut stream, &mut input) {
        let number = {
            let Ok(mut all) = seen.lock() else { return };
            all.push(request.clone());
            all.len() - 1
        };
        let (status, fields, body) = match script(number, &request) {
            Reply::Status(status, fields, body) => (status, fields, body),
            Reply::Late(pause, status) => {
                std::thread::sleep(pause);
                (status, "", "late")
            }
            Reply::Reset => {
                // What is closed with a linger of none is reset.
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            Reply::Silence => {
                let _ = stream.read(&mut [0; 1]);
                return;
            }
        };
        let answer = format!("HTTP/1.1 {status} x\r\n{fields}content-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<Received> {
    let end = loop {
        if let Some(end) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        fill(stream, input)?;
    };
    let head = String::from_utf8_lossy(&input[..end]).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let length: usize = length.unwrap_or(0);
    while input.len() < end + length {
        fill(stream, input)?;
    }
    let rest = input.split_off(end + length);
    let message = std::mem::replace(input, rest);
    let line = head.lines().next().unwrap_or_default().to_owned();
    Some(Received { line, head, body: message[end..].to_vec() })
}

fn fill(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<()> {
    let mut piece = [0; 16 * 1024];
    let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
    input.extend_from_slice(&piece[..read]);
    Some(())
}
