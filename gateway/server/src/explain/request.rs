//! A request that somebody asks about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use fieldgate_core::head::split_port;
use fieldgate_core::{Method, RequestHead};
use fieldgate_wire::h1::valid_authority;
use http::{HeaderName, HeaderValue};

use crate::worker::set_target;

/// A request that was never sent.
#[derive(Clone, Debug)]
pub struct Question {
    /// The head as a worker would see it.
    pub head: RequestHead,
    /// The port of the URL, or the well-known one of its scheme.
    pub port: u16,
    /// Whether the URL named the port.
    pub port_given: bool,
    /// The client's address.
    pub client: IpAddr,
}

impl Question {
    /// From a method, a URL and fields written as `name: value`.
    pub fn new(method: &str, url: &str, headers: &[String], client: Option<&str>) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let https = match scheme {
            "http" => false,
            "https" => true,
            other => return Err(format!("the scheme `{other}` is not http or https")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(format!("`{url}` has no host; write http://shop.example/path"));
        }
        let authority = authority.to_ascii_lowercase();
        let (host, port) = split_port(&authority);
        if port.is_none() && host.len() != authority.len() {
            return Err(format!("`{authority}` has no valid port"));
        }
        if !valid_authority(&authority) {
            return Err(format!("`{authority}` is not a host that a request can name"));
        }
        if http::Method::from_bytes(method.as_bytes()).is_err() {
            return Err(format!("`{method}` is not a method"));
        }
        let mut head =
            RequestHead { method: Method::from_bytes(method.as_bytes()), https, ..RequestHead::default() };
        // The same steps as for a request that is sent, or the answer would be about another path.
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        if !target.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("`{target}` holds what must be percent-encoded in a URL"));
        }
        if head.method == Method::Connect {
            head.set_target(&target);
        } else {
            set_target(&mut head, &target)
                .map_err(|_| format!("`{target}` is refused with 400: it has no canonical form"))?;
        }
        let (port, port_given) = (port.unwrap_or(if https { 443 } else { 80 }), port.is_some());
        head.authority = authority;
        for header in headers {
            let (name, value) = header
                .split_once(':')
                .ok_or_else(|| format!("`{header}` is not a header; write 'name: value'"))?;
            match name.trim().to_ascii_lowercase().as_str() {
                "host" if valid_authority(value.trim()) => {
                    value.trim().to_ascii_lowercase().clone_into(&mut head.authority);
                }
                name if name == "host"
                    || HeaderName::from_bytes(name.as_bytes()).is_err()
                    || HeaderValue::from_str(value.trim()).is_err() =>
                {
                    return Err(format!("`{header}` cannot be a header of a request"));
                }
                name => head.headers.push(name.as_bytes(), value.trim().as_bytes()),
            }
        }
        head.drop_trailing_dot();
        let client = match client {
            Some(text) => text.parse().map_err(|_| format!("`{text}` is not an IP address"))?,
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        Ok(Self { head, port, port_given, client })
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.head.https { "https" } else { "http" };
        write!(f, "{} {scheme}://{}{}", self.head.method.as_str(), self.head.authority, self.head.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, shown, port, given) in [
            ("http://Shop.example", "GET http://shop.example/", 80, false),
            ("shop.example:8080/a?b=c#d", "GET http://shop.example:8080/a?b=c", 8080, true),
            ("https://[::1]?q", "GET https://[::1]/?q", 443, false),
            ("http://a/x/../%61dmin?b=../c", "GET http://a/admin?b=../c", 80, false),
        ] {
            let question = Question::new("GET", url, &[], None).unwrap();
            assert_eq!(
                (question.to_string().as_str(), question.port, question.port_given),
                (shown, port, given)
            );
        }
        for bad in ["ftp://a/", "http:///a", "http://a:x/", "http://u@a/", "http://a/b c", "http://a/%zz"] {
            assert!(Question::new("GET", bad, &[], None).is_err(), "{bad}");
        }
        assert!(Question::new("G T", "http://a/", &[], None).is_err());
    }

    #[test]
    fn headers() {
        let headers = ["X-A: 1".to_owned(), "Host: Other.example".to_owned()];
        let question = Question::new("GET", "http://a/", &headers, Some("10.0.0.1")).unwrap();
        assert_eq!(question.head.authority, "other.example");
        assert_eq!(question.head.headers.get("x-a"), Some(&b"1"[..]));
        for bad in ["nope", "a b: c", "a: b\nc", "host: u@a"] {
            assert!(Question::new("GET", "http://a/", &[bad.to_owned()], None).is_err(), "{bad}");
        }
    }
}
