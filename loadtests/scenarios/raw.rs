//! What must be seen on the wire: clients written here byte by byte, because no library would send it so.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use fieldgate_loadtests::rig::http::{self, Response};
use fieldgate_loadtests::rig::{Backend, Gateway, config};

use crate::context::{Context, Figures, Outcome, Stage, ensure};

/// An edge with one HTTP/1.1 backend.
struct Scene {
    _stage: Stage,
    backends: Vec<Backend>,
    _gateway: Gateway,
    address: SocketAddr,
}

impl Scene {
    fn start(context: &Context) -> Result<Self, String> {
        let stage = context.stage()?;
        let address = stage.plain_edge()?;
        let backends = stage.pools(&["one"])?;
        stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
        let gateway = stage.gateway(&context.options())?;
        Ok(Self { _stage: stage, backends, _gateway: gateway, address })
    }

    fn connect(&self) -> Result<Wire, String> {
        Wire::connect(self.address)
    }
}

/// HTTP/1.0 clients with and without keep-alive, down to one without a Host.
pub fn http10(context: &Context) -> Outcome {
    let scene = Scene::start(context)?;
    let mut wire = scene.connect()?;
    wire.send("GET / HTTP/1.0\r\nhost: shop.test\r\n\r\n")?;
    let answer = http::parse(&wire.rest()?)?;
    ensure(answer.status == 200 && answer.body.len() == 128, || format!("without keep-alive: {answer:?}"))?;

    let mut wire = scene.connect()?;
    for _ in 0..3 {
        wire.send("GET / HTTP/1.0\r\nhost: shop.test\r\nconnection: keep-alive\r\n\r\n")?;
        let answer = wire.answer()?;
        let kept = answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("keep-alive"));
        ensure(answer.status == 200 && kept, || format!("with keep-alive: {answer:?}"))?;
    }

    let mut wire = scene.connect()?;
    wire.send("GET /slow-body HTTP/1.0\r\nhost: shop.test\r\n\r\n")?;
    let bytes = wire.rest()?;
    let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    ensure(!head.contains("transfer-encoding"), || {
        "a chunked answer was sent to an HTTP/1.0 client".to_owned()
    })?;
    let answer = http::parse(&bytes)?;
    ensure(answer.body.len() == 1280, || {
        format!("a body of unknown length came as {} bytes", answer.body.len())
    })?;

    let mut wire = scene.connect()?;
    wire.send("POST /echo HTTP/1.0\r\nhost: shop.test\r\ncontent-length: 5\r\n\r\nhello")?;
    let answer = http::parse(&wire.rest()?)?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    ensure(body.contains("\"body\":\"hello\"") && body.contains("HTTP/1.1"), || format!("POST: {body}"))?;
    let mut figures = Figures::default();
    figures.add(
        "closed after one; kept on request; chunked bodies end with the connection; upstream speaks 1.1",
    );
    Ok(figures)
}

/// Many requests in one write are answered in order, also when they arrive byte by byte.
pub fn pipelining(context: &Context) -> Outcome {
    let scene = Scene::start(context)?;
    let count = context.count(1000, 200);
    let mut wire = scene.connect()?;
    let requests: String = (0..count)
        .fold(String::new(), |text, n| text + &format!("GET /echo?{n} HTTP/1.1\r\nhost: shop.test\r\n\r\n"));
    let mut writer = wire.stream.try_clone().map_err(|error| error.to_string())?;
    // From another thread, so that answers never wait for the requests' end.
    let sender = std::thread::spawn(move || writer.write_all(requests.as_bytes()));
    for number in 0..count {
        let answer = wire.answer()?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        ensure(body.contains(&format!("\"/echo?{number}\"")), || {
            format!("answer {number} is {answer:?} {body}")
        })?;
    }
    sender.join().map_err(|_| "the sender panicked")?.map_err(|error| error.to_string())?;

    let mut wire = scene.connect()?;
    let mixed = "POST /echo HTTP/1.1\r\nhost: shop.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
                 GET /status/204 HTTP/1.1\r\nhost: shop.test\r\n\r\nHEAD / HTTP/1.1\r\nhost: shop.test\r\n\r\n\
                 GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n";
    for byte in mixed.as_bytes() {
        wire.stream.write_all(&[*byte]).map_err(|error| error.to_string())?;
    }
    let first = wire.answer()?;
    ensure(String::from_utf8_lossy(&first.body).contains("\"body\":\"hello\""), || {
        format!("POST: {first:?}")
    })?;
    let second = wire.answer()?;
    ensure(second.status == 204, || format!("204: {second:?}"))?;
    let third = wire.head()?;
    ensure(third.status == 200 && third.header("content-length") == Some("128"), || {
        format!("HEAD: {third:?}")
    })?;
    let last = http::parse(&wire.rest()?)?;
    ensure(last.status == 200 && last.body.len() == 128, || format!("last: {last:?}"))?;
    let mut figures = Figures::default();
    figures.add(format!("{count} requests of one write in order; POST, GET, HEAD and a close byte by byte"));
    Ok(figures)
}

/// A client that waits for 100 gets it before it has sent its body.
pub fn expect(context: &Context) -> Outcome {
    let scene = Scene::start(context)?;
    let mut wire = scene.connect()?;
    for _ in 0..2 {
        wire.send(
            "POST /upload HTTP/1.1\r\nhost: shop.test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
        )?;
        let interim = wire.head()?;
        ensure(interim.status == 100, || format!("before the body: {interim:?}"))?;
        wire.send("hello")?;
        let answer = wire.answer()?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        ensure(answer.status == 200 && body.contains("\"bytes\":5"), || {
            format!("after the body: {answer:?} {body}")
        })?;
    }
    let mut figures = Figures::default();
    figures.add("100 came before the body, twice on one connection");
    Ok(figures)
}

/// An answer that comes while the request still uploads reaches the client, and the gateway survives it.
pub fn early_response(context: &Context) -> Outcome {
    let scene = Scene::start(context)?;
    for _ in 0..10 {
        let mut wire = scene.connect()?;
        let length = 64 * 1024 * 1024;
        wire.send(&format!("POST /early HTTP/1.1\r\nhost: shop.test\r\ncontent-length: {length}\r\n\r\n"))?;
        wire.send(&".".repeat(64 * 1024))?;
        let answer = wire.answer()?;
        ensure(answer.status == 413, || format!("the early answer is {answer:?}"))?;
    }
    let answer = http::get(scene.address, "/")?;
    ensure(answer.status == 200, || format!("afterwards: {answer:?}"))?;
    let received = scene.backends[0].counter("received_bytes")?;
    let mut figures = Figures::default();
    figures.add(format!("ten early answers arrived; the backend took {} KiB", received / 1024));
    Ok(figures)
}

/// A connection read answer by answer.
pub struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Result<Self, String> {
        let stream = http::connect(address).map_err(|error| error.to_string())?;
        Ok(Self { stream, input: Vec::new() })
    }

    pub fn send(&mut self, text: &str) -> Result<(), String> {
        self.stream.write_all(text.as_bytes()).map_err(|error| format!("send: {error}"))
    }

    /// A head without a body: an interim answer, or one to HEAD.
    pub fn head(&mut self) -> Result<Response, String> {
        loop {
            if let Some(end) = self.input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let rest = self.input.split_off(end + 4);
                let head = std::mem::replace(&mut self.input, rest);
                return http::parse(&head);
            }
            if self.fill()? == 0 {
                return Err(format!(
                    "the connection ended in a head: {}",
                    String::from_utf8_lossy(&self.input)
                ));
            }
        }
    }

    /// A final answer with its body, if it says how long that is.
    fn answer(&mut self) -> Result<Response, String> {
        let mut answer = self.head()?;
        let length = answer.header("content-length").map_or(Ok(0), str::parse::<usize>);
        let length = length.map_err(|error| format!("content-length: {error}"))?;
        while self.input.len() < length {
            if self.fill()? == 0 {
                return Err(format!("the connection ended in a body of {length} bytes"));
            }
        }
        let rest = self.input.split_off(length);
        answer.body = std::mem::replace(&mut self.input, rest);
        Ok(answer)
    }

    /// All that comes until the connection ends.
    pub fn rest(&mut self) -> Result<Vec<u8>, String> {
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.input))
    }

    fn fill(&mut self) -> Result<usize, String> {
        let mut piece = [0; 16 * 1024];
        let read = self.stream.read(&mut piece).map_err(|error| format!("receive: {error}"))?;
        self.input.extend_from_slice(&piece[..read]);
        Ok(read)
    }
}
