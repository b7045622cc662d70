//! Envoy's format operators: what each says about a request.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use fieldgate_core::Headers;

use crate::telemetry::Outcome;

/// One operator with its argument.
#[derive(Debug)]
pub(super) enum Operator {
    Simple(Simple),
    StartTime(Vec<TimePart>),
    Request { names: Vec<Box<str>>, without_query: bool },
    Response { names: Vec<Box<str>> },
}

macro_rules! simple {
    ($($variant:ident = $name:literal;)*) => {
        /// Operators without an argument.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Simple { $(#[doc = $name] $variant,)* }

        const SIMPLE: &[(&str, Simple)] = &[$(($name, Simple::$variant)),*];
    };
}

simple! {
    Attempts = "UPSTREAM_REQUEST_ATTEMPT_COUNT";
    BytesReceived = "BYTES_RECEIVED";
    BytesSent = "BYTES_SENT";
    Details = "RESPONSE_CODE_DETAILS";
    DownstreamLocal = "DOWNSTREAM_LOCAL_ADDRESS";
    DownstreamLocalPort = "DOWNSTREAM_LOCAL_PORT";
    DownstreamLocalIp = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    DownstreamRemote = "DOWNSTREAM_REMOTE_ADDRESS";
    DownstreamRemoteIp = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    DownstreamDirectRemote = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS";
    Duration = "DURATION";
    FirstByte = "RESPONSE_DURATION";
    Flags = "RESPONSE_FLAGS";
    Generation = "GENERATION";
    GrpcStatus = "GRPC_STATUS_NUMBER";
    Listener = "LISTENER";
    Protocol = "PROTOCOL";
    ResponseCode = "RESPONSE_CODE";
    RouteName = "ROUTE_NAME";
    ServerName = "REQUESTED_SERVER_NAME";
    Termination = "CONNECTION_TERMINATION_DETAILS";
    UpstreamCluster = "UPSTREAM_CLUSTER";
    UpstreamClusterRaw = "UPSTREAM_CLUSTER_RAW";
    UpstreamFailure = "UPSTREAM_TRANSPORT_FAILURE_REASON";
    UpstreamHost = "UPSTREAM_HOST";
    UpstreamLocal = "UPSTREAM_LOCAL_ADDRESS";
    UpstreamRemote = "UPSTREAM_REMOTE_ADDRESS";
}

impl Operator {
    /// By its name and what stands in its parentheses.
    pub(super) fn parse(name: &str, argument: Option<&str>) -> Result<Self, String> {
        let names = || match argument {
            Some(names) if !names.is_empty() => {
                Ok(names.split('?').map(|n| n.to_ascii_lowercase().into()).collect())
            }
            _ => Err(format!("`%{name}%` needs a header: `%{name}(USER-AGENT)%`")),
        };
        match name {
            "REQ" => return Ok(Self::Request { names: names()?, without_query: false }),
            "REQ_WITHOUT_QUERY" => return Ok(Self::Request { names: names()?, without_query: true }),
            "RESP" => return Ok(Self::Response { names: names()? }),
            "START_TIME" => return time_parts(argument.unwrap_or("%FT%T.%3fZ")).map(Self::StartTime),
            _ => {}
        }
        let found = SIMPLE.iter().find(|(known, _)| *known == name).map(|(_, simple)| Self::Simple(*simple));
        match (found, argument) {
            (Some(operator), None) => Ok(operator),
            (Some(_), Some(_)) => Err(format!("`%{name}%` takes no argument")),
            (None, _) => Err(unknown(name)),
        }
    }

    /// Whether JSON shows it as a number.
    pub(super) fn is_number(&self) -> bool {
        use Simple::{
            Attempts, BytesReceived, BytesSent, DownstreamLocalPort, Duration, FirstByte, Generation,
            GrpcStatus, ResponseCode,
        };
        matches!(
            self,
            Self::Simple(
                Attempts
                    | BytesReceived
                    | BytesSent
                    | DownstreamLocalPort
                    | Duration
                    | FirstByte
                    | Generation
                    | GrpcStatus
                    | ResponseCode
            )
        )
    }

    /// Writes its value; `false` if there is none, and then nothing is written.
    pub(super) fn write(&self, outcome: &Outcome<'_>, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Simple(simple) => simple.write(outcome, out),
            Self::StartTime(parts) => {
                write_time(outcome.started_wall, parts, out);
                true
            }
            Self::Request { names, without_query } => {
                let Some(value) = names.iter().find_map(|name| request_field(outcome, name)) else {
                    return false;
                };
                let end = if *without_query { value.iter().position(|b| *b == b'?') } else { None };
                out.extend_from_slice(&value[..end.unwrap_or(value.len())]);
                true
            }
            Self::Response { names } => {
                let found = outcome.response.and_then(|fields| first_of(fields, names));
                put(out, found)
            }
        }
    }
}

impl Simple {
    fn write(self, o: &Outcome<'_>, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Attempts => show(out, Some(o.attempts)),
            Self::BytesReceived => show(out, Some(o.bytes_received)),
            Self::BytesSent => show(out, Some(o.bytes_sent)),
            Self::Details => put(out, Some(o.details.as_bytes()).filter(|d| !d.is_empty())),
            Self::DownstreamLocal => show(out, Some(o.local)),
            Self::DownstreamLocalPort => show(out, Some(o.local.port())),
            Self::DownstreamLocalIp => show(out, Some(o.local.ip())),
            Self::DownstreamRemote | Self::DownstreamDirectRemote => show(out, Some(o.peer)),
            Self::DownstreamRemoteIp => show(out, Some(o.peer.ip())),
            Self::Duration => show(out, Some(o.duration.as_millis())),
            Self::FirstByte => show(out, o.stages.body.map(|b| o.duration.saturating_sub(b).as_millis())),
            Self::Flags => put(out, Some(o.flags.as_bytes())),
            Self::Generation => show(out, Some(o.generation)),
            Self::GrpcStatus => show(out, o.grpc_status),
            Self::Listener => show(out, Some(o.listener)),
            Self::Protocol => put(out, Some(o.head.version.as_str().as_bytes())),
            Self::ResponseCode => show(out, Some(o.status)),
            Self::RouteName => put(out, o.rule.map(|rule| rule.id.as_bytes())),
            Self::ServerName => put(out, o.sni.map(str::as_bytes)),
            // Envoy fills it for connections that it ends by a network filter; there are none here.
            Self::Termination => false,
            Self::UpstreamCluster | Self::UpstreamClusterRaw => {
                // Istio's name of a cluster, which holds no space.
                show(out, o.pool.map(|p| cluster_name(p.key.port, &p.service.host)))
            }
            Self::UpstreamFailure => put(out, o.failure.map(str::as_bytes)),
            Self::UpstreamHost | Self::UpstreamRemote => show(out, o.upstream),
            Self::UpstreamLocal => show(out, o.upstream_local),
        }
    }
}

fn cluster_name(port: u16, host: &str) -> String {
    format!("outbound|{port}||{host}")
}

fn show(out: &mut Vec<u8>, value: Option<impl std::fmt::Display>) -> bool {
    let Some(value) = value else { return false };
    // Writing to memory does not fail.
    let _ = write!(out, "{value}");
    true
}

fn put(out: &mut Vec<u8>, value: Option<&[u8]>) -> bool {
    let Some(value) = value else { return false };
    out.extend_from_slice(value);
    true
}

fn request_field<'o>(outcome: &Outcome<'o>, name: &str) -> Option<&'o [u8]> {
    let head = outcome.head;
    match name {
        ":method" => Some(head.method.as_str().as_bytes()),
        ":path" => Some(head.target.as_bytes()),
        ":authority" | "host" => Some(head.authority.as_bytes()).filter(|a| !a.is_empty()),
        ":scheme" => Some(if head.https { b"https" } else { b"http" }),
        "x-envoy-original-path" => {
            outcome.original_path.map(str::as_bytes).or_else(|| head.headers.get(name))
        }
        name => head.headers.get(name),
    }
}

fn first_of<'h>(fields: &'h Headers, names: &[Box<str>]) -> Option<&'h [u8]> {
    names.iter().find_map(|name| fields.get(name))
}

fn unknown(name: &str) -> String {
    let known =
        SIMPLE.iter().map(|(name, _)| *name).chain(["REQ", "RESP", "REQ_WITHOUT_QUERY", "START_TIME"]);
    match fieldgate_config::diagnostic::did_you_mean(name, known) {
        Some(near) => format!("there is no operator `%{name}%`; did you mean `%{near}%`?"),
        None => format!("there is no operator `%{name}%`"),
    }
}

/// A part of a time format.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TimePart {
    Text(Box<str>),
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    Epoch,
    /// That many digits of the second's fraction.
    Fraction(usize),
}

/// The conversions of strftime that Envoy's documentation uses.
fn time_parts(format: &str) -> Result<Vec<TimePart>, String> {
    use TimePart::{Day, Epoch, Fraction, Hour, Minute, Month, Second, Text, Year};
    let mut parts = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        if at > 0 {
            parts.push(Text(rest[..at].into()));
        }
        rest = &rest[at + 1..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (width, conversion) = (rest[..digits].parse::<usize>().ok(), rest[digits..].chars().next());
        match (width, conversion) {
            (None, Some('Y')) => parts.push(Year),
            (None, Some('m')) => parts.push(Month),
            (None, Some('d')) => parts.push(Day),
            (None, Some('H')) => parts.push(Hour),
            (None, Some('M')) => parts.push(Minute),
            (None, Some('S')) => parts.push(Second),
            (None, Some('s')) => parts.push(Epoch),
            (None, Some('F')) => parts.extend([Year, Text("-".into()), Month, Text("-".into()), Day]),
            (None, Some('T')) => parts.extend([Hour, Text(":".into()), Minute, Text(":".into()), Second]),
            (Some(width @ 1..=9), Some('f')) => parts.push(Fraction(width)),
            (None, Some('f')) => parts.push(Fraction(9)),
            (None, Some('%')) => parts.push(Text("%".into())),
            _ => {
                let given = &rest[..digits + conversion.map_or(0, char::len_utf8)];
                return Err(format!(
                    "`%{given}` in a time format is not supported; use %Y %m %d %H %M %S %F %T %s %3f"
                ));
            }
        }
        rest = &rest[digits + 1..];
    }
    if !rest.is_empty() {
        parts.push(Text(rest.into()));
    }
    Ok(parts)
}

fn write_time(time: SystemTime, parts: &[TimePart], out: &mut Vec<u8>) {
    // A clock before 1970 is shown as 1970.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    for part in parts {
        let _ = match part {
            TimePart::Text(text) => write!(out, "{text}"),
            TimePart::Year => write!(out, "{year:04}"),
            TimePart::Month => write!(out, "{month:02}"),
            TimePart::Day => write!(out, "{day:02}"),
            TimePart::Hour => write!(out, "{:02}", seconds / 3600 % 24),
            TimePart::Minute => write!(out, "{:02}", seconds / 60 % 60),
            TimePart::Second => write!(out, "{:02}", seconds % 60),
            TimePart::Epoch => write!(out, "{seconds}"),
            TimePart::Fraction(digits) => {
                let nanos = format!("{:09}", since.subsec_nanos());
                write!(out, "{}", &nanos[..*digits])
            }
        };
    }
}

/// Year, month and day of a day counted from 1970-01-01 (the Gregorian calendar repeats every 146,097 days; years are
/// counted from March so that the leap day is the last).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_the_calendar() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (19_723, (2024, 1, 1)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }
}
