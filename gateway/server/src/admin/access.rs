//! Who may do what at the admin server: by the certificate that a client shows, or without TLS by where it comes from.
//!
//! Nobody types a password here. Without TLS a client on this machine may operate, as root on it could anyway, and one
//! from elsewhere may read if the operator wants that. With TLS every client shows a certificate, and its names say its
//! role. What is asked for by a web page is refused whoever shows it: see [`refusal`].

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Method};

use fieldgate_core::head::split_port;

use super::tls::{Names, TlsFiles};
use crate::audit::{Role, Who};

/// Paths that are read by whatever name the server was reached: they are asked for by probes and Prometheus.
const BY_ANY_NAME: [&str; 3] = ["/ready", "/metrics", "/stats/prometheus"];
/// Bytes of the kernel's table of connections that are searched for a client's user.
const MAX_TABLE: u64 = 8 << 20;

/// What `fieldgate run` was told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// With TLS, what it is made of.
    pub tls: Option<TlsFiles>,
    /// Which certificates have which role.
    pub roles: Vec<Rule>,
    /// Whether everybody may read without TLS.
    pub plaintext: bool,
}

/// `operate=spiffe://cluster.local/ns/ops/sa/*`: a role, and the name of those who have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    role: Role,
    name: Name,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// Whoever the authority signed.
    Any,
    /// A URI; `true`: everything that begins so.
    Uri(String, bool),
    Dns(String),
    /// The subject's common name.
    Subject(String),
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "write ROLE=NAME, where ROLE is read or operate, and NAME is a URI (spiffe://..., a * at its end stands for \
             anything), DNS:name, CN=name, or * for every certificate of the authority"
                .to_owned()
        };
        let (role, name) = text.split_once('=').ok_or_else(wrong)?;
        let role = match role {
            "read" => Role::Read,
            "operate" => Role::Operate,
            _ => return Err(wrong()),
        };
        let name = if name == "*" {
            Name::Any
        } else if name.contains("://") {
            let prefix = name.strip_suffix('*');
            Name::Uri(prefix.unwrap_or(name).to_owned(), prefix.is_some())
        } else if let Some(dns) = name.strip_prefix("DNS:").filter(|dns| !dns.is_empty()) {
            Name::Dns(dns.to_ascii_lowercase())
        } else if let Some(common) = name.strip_prefix("CN=").filter(|common| !common.is_empty()) {
            Name::Subject(common.to_owned())
        } else {
            return Err(wrong());
        };
        Ok(Self { role, name })
    }
}

impl Name {
    fn is_of(&self, names: &Names) -> bool {
        match self {
            Self::Any => true,
            Self::Uri(prefix, true) => names.uris.iter().any(|uri| uri.starts_with(prefix)),
            Self::Uri(uri, false) => names.uris.contains(uri),
            Self::Dns(dns) => names.dns.iter().any(|name| name.eq_ignore_ascii_case(dns)),
            Self::Subject(common) => names.common_name.as_ref() == Some(common),
        }
    }
}

/// Who has which role.
#[derive(Clone, Debug, Default)]
pub struct Access {
    rules: Vec<Rule>,
    /// Whether clients from elsewhere may operate without TLS (`--api-write-from-anywhere`).
    anyone: bool,
}

impl Access {
    /// From what was told.
    pub fn new(options: &Options, anyone: bool) -> Self {
        Self { rules: options.roles.clone(), anyone }
    }

    /// A client without TLS.
    pub fn plain(&self, peer: SocketAddr) -> Who {
        let operates = self.anyone || peer.ip().to_canonical().is_loopback();
        Who::peer(if operates { Role::Operate } else { Role::Read }, peer)
    }

    /// A client by its certificate, which is verified. The highest role that fits is its.
    pub fn certified(&self, peer: SocketAddr, names: &Names) -> Result<Who, String> {
        let fitting = self.rules.iter().filter(|rule| rule.name.is_of(names)).map(|rule| rule.role).max();
        // Without any rule the authority alone decides who may look.
        let role = fitting.or(self.rules.is_empty().then_some(Role::Read));
        let identity = names.to_string();
        match role {
            Some(role) => Ok(Who::Client { role, peer, identity: Some(identity), uid: None }),
            None => Err(format!("{identity} has no role here (hint: --admin-role read=NAME)")),
        }
    }
}

/// Why a request is refused, if it is, whatever it asks for: a change by somebody who may only read, or what a web page
/// can make a browser send. Such requests have an `Origin`, or name this server as an attacker's DNS does.
pub(super) fn refusal(
    who: &Who,
    tls: bool,
    anyone: bool,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<String> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let host = headers.get(HOST).map(|host| host.to_str().unwrap_or_default());
    if reads {
        let by_name = host.is_some_and(|host| !is_own_host(host, true));
        return (by_name && !tls && !BY_ANY_NAME.contains(&path)).then(|| NAMED.to_owned());
    }
    if headers.contains_key(ORIGIN) {
        return Some("changes from web pages are refused".to_owned());
    }
    if !tls && !is_own_host(host.unwrap_or_default(), anyone) {
        return Some(NAMED.to_owned());
    }
    match who {
        Who::Client { role: Role::Operate, .. } => None,
        _ => {
            Some(format!("{who} may read, and this needs the role operate (hint: --admin-role operate=NAME)"))
        }
    }
}

const NAMED: &str = "Host must be an address of the admin server or localhost, not a name that DNS gave";

/// An address cannot be rebound to another host, and neither can `localhost`.
fn is_own_host(host: &str, anywhere: bool) -> bool {
    let name = split_port(host).0.trim_matches(['[', ']']);
    let address = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| anywhere || ip.is_loopback())
}

/// Adds the user of a client on this machine, as the kernel knows it.
pub(super) async fn with_user(who: Who, local: SocketAddr) -> Who {
    let Who::Client { role, peer, identity, uid: None } = who else { return who };
    if !peer.ip().is_loopback() {
        return Who::Client { role, peer, identity, uid: None };
    }
    let uid = tokio::task::spawn_blocking(move || uid_of(peer, local)).await.ok().flatten();
    Who::Client { role, peer, identity, uid }
}

fn uid_of(client: SocketAddr, server: SocketAddr) -> Option<u32> {
    let table = if client.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let mut text = String::new();
    std::fs::File::open(table).ok()?.take(MAX_TABLE).read_to_string(&mut text).ok()?;
    user_in(&text, client, server)
}

fn user_in(table: &str, client: SocketAddr, server: SocketAddr) -> Option<u32> {
    let (client, server) = (in_table(client), in_table(server));
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next()? == client && fields.next()? == server).then(|| fields.nth(4)?.parse().ok())?
    })
}

/// As the kernel writes it: words as they lie in memory, the port as a number.
fn in_table(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |four: &[u8]| format!("{:08X}", u32::from_ne_bytes([four[0], four[1], four[2], four[3]]));
    let words: String = octets.chunks_exact(4).map(word).collect();
    format!("{words}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn access(rules: &[&str]) -> Access {
        Access { rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(), anyone: false }
    }

    fn peer(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn roles_by_certificate() {
        let names = Names {
            uris: vec!["spiffe://corp/ns/ops/sa/ann".to_owned()],
            dns: vec!["laptop.corp".to_owned()],
            common_name: Some("ann".to_owned()),
        };
        let role = |rules: &[&str]| {
            access(rules).certified(peer("10.0.0.1:5"), &names).ok().and_then(|who| match who {
                Who::Client { role, .. } => Some(role),
                _ => None,
            })
        };
        for (rules, expected) in [
            (&[][..], Some(Role::Read)),
            (&["operate=spiffe://corp/ns/ops/sa/ann"], Some(Role::Operate)),
            (&["operate=spiffe://corp/ns/ops/*"], Some(Role::Operate)),
            (&["operate=spiffe://corp/ns/ops/sa/an"], None),
            (&["operate=spiffe://corp/ns/dev/*"], None),
            (&["operate=spiffe://corp/ns/dev/*", "read=*"], Some(Role::Read)),
            (&["read=*", "operate=CN=ann"], Some(Role::Operate)),
            (&["operate=CN=Ann"], None),
            (&["read=DNS:LAPTOP.corp"], Some(Role::Read)),
        ] {
            assert_eq!(role(rules), expected, "{rules:?}");
        }
        for wrong in ["admin=*", "operate", "operate=ann", "operate=CN=", "=x"] {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_tls_the_machine_operates_and_others_read() {
        let role = |access: &Access, text| match access.plain(peer(text)) {
            Who::Client { role, .. } => role,
            _ => unreachable!(),
        };
        let usual = access(&[]);
        assert_eq!(role(&usual, "127.0.0.1:1"), Role::Operate);
        assert_eq!(role(&usual, "[::1]:1"), Role::Operate);
        assert_eq!(role(&usual, "[::ffff:127.0.0.1]:1"), Role::Operate);
        assert_eq!(role(&usual, "10.0.0.1:1"), Role::Read);
        assert_eq!(role(&Access { anyone: true, ..usual }, "10.0.0.1:1"), Role::Operate);
    }

    #[test]
    fn hosts_that_dns_cannot_give() {
        for (host, loopback, anywhere) in [
            ("127.0.0.1:15000", true, true),
            ("127.0.0.1", true, true),
            ("[::1]:15000", true, true),
            ("[::1]", true, true),
            ("localhost:15000", true, true),
            ("LOCALHOST", true, true),
            ("10.0.0.7:15000", false, true),
            ("evil.example:15000", false, false),
            ("127.0.0.1.evil.example", false, false),
            ("", false, false),
        ] {
            assert_eq!((is_own_host(host, false), is_own_host(host, true)), (loopback, anywhere), "{host}");
        }
    }

    #[test]
    fn web_pages_and_readers_change_nothing() {
        let operator = Who::peer(Role::Operate, peer("127.0.0.1:1"));
        let reader = Who::peer(Role::Read, peer("10.0.0.1:1"));
        let of =
            |who: &Who, tls, method: Method, path: &str, headers: &[(http::HeaderName, &'static str)]| {
                let headers =
                    headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
                refusal(who, tls, false, &method, path, &headers.collect()).is_some()
            };
        let local = (HOST, "127.0.0.1:15000");
        let evil = (HOST, "evil.example:15000");
        let origin = (ORIGIN, "http://evil.example");
        for (expected, who, tls, method, path, headers) in [
            (false, &operator, false, Method::POST, "/quitquitquit", std::slice::from_ref(&local)),
            (true, &operator, false, Method::POST, "/quitquitquit", std::slice::from_ref(&evil)),
            (true, &operator, false, Method::POST, "/quitquitquit", &[][..]),
            (true, &operator, false, Method::POST, "/quitquitquit", &[local.clone(), origin.clone()]),
            (true, &operator, true, Method::POST, "/quitquitquit", &[evil.clone(), origin]),
            (false, &operator, true, Method::POST, "/quitquitquit", std::slice::from_ref(&evil)),
            (true, &reader, true, Method::POST, "/quitquitquit", std::slice::from_ref(&evil)),
            (true, &reader, false, Method::DELETE, "/api/v1/objects/a", std::slice::from_ref(&local)),
            (false, &reader, false, Method::GET, "/config_dump", &[(HOST, "10.0.0.9:15000")]),
            (true, &operator, false, Method::GET, "/config_dump", std::slice::from_ref(&evil)),
            (false, &reader, false, Method::GET, "/metrics", &[(HOST, "gateway.prod.svc:15000")]),
            (false, &operator, false, Method::GET, "/config_dump", &[]),
        ] {
            assert_eq!(
                of(who, tls, method.clone(), path, headers),
                expected,
                "{who} {method} {path} {headers:?}"
            );
        }
    }

    #[test]
    fn the_user_of_a_connection_is_in_the_kernels_table() {
        // Both sides of a connection, as they stand in the table of a machine that is little-endian.
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:3A98 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n\
            1: 0100007F:D431 0100007F:3A98 01 00000000:00000000 00:00000000 00000000  1000        0 2 1\n";
        if cfg!(target_endian = "little") {
            assert_eq!(user_in(table, peer("127.0.0.1:54321"), peer("127.0.0.1:15000")), Some(1000));
            assert_eq!(user_in(table, peer("127.0.0.1:54322"), peer("127.0.0.1:15000")), None);
            assert_eq!(in_table(peer("[::1]:80")), "00000000000000000000000001000000:0050");
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let own = rustix::process::getuid().as_raw();
        assert_eq!(uid_of(client.local_addr().unwrap(), listener.local_addr().unwrap()), Some(own));
    }
}
