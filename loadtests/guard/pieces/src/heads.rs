//! Heads in and out: parsing, canonical paths, what the gateway adds and takes off, writing.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use fieldgate::worker::guarded::{
    ClientCert, Request, http2_request, http2_response, prepare_request, prepare_response, read_http1,
    read_http2, write_request, write_response,
};
use fieldgate_core::{RequestHead, ResponseHead, path};
use fieldgate_wire::h1::{BodyKind, HeadLimits, parse_response};

use crate::Measure;

/// As curl asks.
pub const SMALL: &str = "GET /api/v1/items?page=2 HTTP/1.1\r\n\
    Host: shop.example.com\r\n\
    User-Agent: curl/8.5.0\r\n\
    Accept: */*\r\n\r\n";

/// As a browser asks for a page that it has visited before.
pub const BROWSER: &str = "GET /catalogue/garden/chairs?sort=price&page=3 HTTP/1.1\r\n\
    Host: shop.example.com\r\n\
    Connection: keep-alive\r\n\
    Cache-Control: max-age=0\r\n\
    sec-ch-ua: \"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-User: ?1\r\n\
    Sec-Fetch-Dest: document\r\n\
    Referer: https://shop.example.com/catalogue/garden\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=3c9f1f0a5b7d4e2c8a6b; user=u-4711; theme=dark; consent=necessary,statistics; _id=GA1.2.1234567890.1700000000\r\n\
    If-None-Match: W/\"5e15153d-120f\"\r\n\
    DNT: 1\r\n\r\n";

const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
    Date: Mon, 02 Jun 2025 10:00:00 GMT\r\n\
    Content-Type: text/html; charset=utf-8\r\n\
    Content-Length: 128\r\n\
    Cache-Control: private, max-age=0\r\n\
    Set-Cookie: session=3c9f1f0a5b7d4e2c8a6b; Path=/; HttpOnly\r\n\
    Vary: Accept-Encoding\r\n\
    Server: app\r\n\r\n";

pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 17));

pub fn pieces(measure: &mut Measure<'_>) {
    parse(measure);
    paths(measure);
    prepare(measure);
    write(measure);
}

/// A head as it is after parsing.
pub fn parsed(text: &str) -> RequestHead {
    let mut request = Request::default();
    read_http1(text.as_bytes(), &mut request).expect("a sound head").expect("a whole head");
    request.head
}

fn parse(measure: &mut Measure<'_>) {
    let mut request = Request::default();
    for (name, text) in [("parse/h1-request-small", SMALL), ("parse/h1-request-browser", BROWSER)] {
        measure(name, &mut || {
            let read = read_http1(black_box(text.as_bytes()), &mut request);
            assert_eq!(read, Ok(Some(text.len())));
        });
    }
    for (name, text) in [("parse/h2-request-small", SMALL), ("parse/h2-request-browser", BROWSER)] {
        let parts = parts(text);
        measure(name, &mut || {
            assert_eq!(read_http2(black_box(&parts), &mut request), Ok(()));
        });
    }
    let mut response = ResponseHead::default();
    measure("parse/h1-response", &mut || read_response(black_box(RESPONSE), &mut response));
}

/// As the exchange does it.
fn read_response(text: &str, head: &mut ResponseHead) {
    head.headers.clear();
    let parsed = parse_response(text.as_bytes(), HeadLimits::default(), |name, value| {
        head.headers.push(name, value);
    });
    let parsed = parsed.expect("a sound head").expect("a whole head");
    head.status = parsed.status;
}

fn paths(measure: &mut Measure<'_>) {
    for (name, path) in [
        ("path/plain", "/catalogue/garden/chairs"),
        ("path/escaped", "/catalogue/./garden/%63hairs/../ben%20ches%2Fold"),
    ] {
        measure(name, &mut || {
            assert!(path::normalise(black_box(path)).is_some());
        });
    }
}

fn prepare(measure: &mut Measure<'_>) {
    let mut request = parsed(SMALL);
    let mut random = 1_u64;
    let mut draw = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random
    };
    measure("prepare/request", &mut || {
        prepare_request(&mut request, black_box(CLIENT), 0, ClientCert::default(), &mut draw);
        // It would be appended to; the other fields are replaced.
        request.headers.remove("x-forwarded-for");
    });
    let mut response = ResponseHead::default();
    read_response(RESPONSE, &mut response);
    measure("prepare/response", &mut || prepare_response(black_box(&mut response)));
}

fn write(measure: &mut Measure<'_>) {
    let mut response = ResponseHead::default();
    read_response(RESPONSE, &mut response);
    let mut out = Vec::with_capacity(4096);
    for (name, text) in [("write/h1-request-small", SMALL), ("write/h1-request-browser", BROWSER)] {
        let head = parsed(text);
        measure(name, &mut || {
            out.clear();
            write_request(black_box(&mut out), black_box(&head), BodyKind::None, None);
        });
    }
    measure("write/h1-response", &mut || {
        out.clear();
        write_response(black_box(&mut out), black_box(&response), BodyKind::Length(128), None, None);
    });
    let head = parsed(BROWSER);
    measure("write/h2-request-browser", &mut || {
        black_box(http2_request(black_box(&head)).expect("a sound head"));
    });
    measure("write/h2-response", &mut || {
        black_box(http2_response(200, black_box(&response.headers)).expect("a sound head"));
    });
}

/// The same request as the `h2` crate hands it over.
fn parts(text: &str) -> http::request::Parts {
    let head = parsed(text);
    let mut request = http::Request::builder()
        .method(head.method.as_str())
        .uri(format!("https://{}{}", head.authority, head.target))
        .version(http::Version::HTTP_2);
    for (_, name, value) in head.headers.iter().filter(|(id, _, _)| !id.is_hop_by_hop()) {
        request = request.header(name, value);
    }
    request.body(()).expect("a sound head").into_parts().0
}
