//! Who takes part: authorities, certificates of all kinds, and clients by OpenSSL.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};

/// Seconds that a client waits for anything.
const BOUND: &str = "20";
const DAY: Duration = Duration::from_hours(24);

/// An authority with a key of its own.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key as files.
#[derive(Clone)]
pub struct Shown {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Begin and end as days from now. It does not fail; those that change certificates may.
pub fn lives(params: &mut CertificateParams, from: i64, to: i64) -> Result<(), String> {
    let now = SystemTime::now();
    let at = |days: i64| {
        let span = DAY * days.unsigned_abs() as u32;
        if days < 0 { now - span } else { now + span }
    };
    (params.not_before, params.not_after) = (at(from).into(), at(to).into());
    Ok(())
}

pub fn uri(params: &mut CertificateParams, uri: &str) -> Result<(), String> {
    let uri = uri.try_into().map_err(|error| format!("{uri}: {error}"))?;
    params.subject_alt_names.push(SanType::URI(uri));
    Ok(())
}

impl Signer {
    pub fn new(name: &str) -> Result<Self, String> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        lives(&mut params, -1, 30)?;
        let key = KeyPair::generate().map_err(text)?;
        let pem = params.self_signed(&key).map_err(text)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A client's certificate: of SPIFFE identity `spiffe://td.test/ns/shop/sa/NAME`, unless it is changed.
    pub fn issue(
        &self,
        directory: &Path,
        name: &str,
        change: impl FnOnce(&mut CertificateParams) -> Result<(), String>,
    ) -> Result<Shown, String> {
        let mut params = client(name)?;
        change(&mut params)?;
        let key = KeyPair::generate().map_err(text)?;
        let made = params.signed_by(&key, &self.issuer).map_err(text)?;
        Shown::write(directory, name, &made.pem(), &key)
    }

    /// A list of these serial numbers.
    pub fn list(&self, serials: &[u64]) -> Result<String, String> {
        self.list_of(serials.iter().map(|serial| SerialNumber::from(*serial)).collect())
    }

    /// A list of one long serial number.
    pub fn list_bytes(&self, serial: &[u8]) -> Result<String, String> {
        self.list_of(vec![SerialNumber::from_slice(serial)])
    }

    fn list_of(&self, serials: Vec<SerialNumber>) -> Result<String, String> {
        let mut dates = CertificateParams::default();
        lives(&mut dates, -1, 5)?;
        let revoked = |serial| RevokedCertParams {
            serial_number: serial,
            revocation_time: dates.not_before,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: dates.not_before,
            next_update: dates.not_after,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.into_iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).map_err(text)?.pem().map_err(text)
    }
}

impl Shown {
    /// One that is signed by nobody but itself.
    pub fn alone(directory: &Path) -> Result<Self, String> {
        let key = KeyPair::generate().map_err(text)?;
        let made = client("alone")?.self_signed(&key).map_err(text)?;
        Self::write(directory, "alone", &made.pem(), &key)
    }

    fn write(directory: &Path, name: &str, pem: &str, key: &KeyPair) -> Result<Self, String> {
        let shown = Self {
            certificate: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        std::fs::write(&shown.certificate, pem).map_err(text)?;
        std::fs::write(&shown.key, key.serialize_pem()).map_err(text)?;
        Ok(shown)
    }

    fn flags(&self, certificate: &str, key: &str) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        vec![certificate.to_owned(), path(&self.certificate), key.to_owned(), path(&self.key)]
    }
}

fn client(name: &str) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Shop");
    params.distinguished_name.push(DnType::CommonName, name);
    uri(&mut params, &format!("spiffe://td.test/ns/shop/sa/{name}"))?;
    lives(&mut params, -1, 10)?;
    Ok(params)
}

/// Where to, and whom to believe there.
pub struct Target<'a> {
    pub address: SocketAddr,
    pub ca: &'a Path,
}

/// What a client met: a status, and what curl says of an error.
pub struct Met {
    pub status: String,
    pub error: String,
}

impl Target<'_> {
    /// One GET by curl, with these flags besides.
    pub fn get(&self, host: &str, shown: Option<&Shown>, flags: &[&str]) -> Result<Met, String> {
        let port = self.address.port();
        let resolve = format!("{host}:{port}:{}", self.address.ip());
        let mut command = Command::new("curl");
        command.args(["-sS", "-m", BOUND, "-o", "/dev/null", "-w", "%{http_code}", "--resolve", &resolve]);
        command.arg("--cacert").arg(self.ca).args(flags);
        command.args(shown.map(|shown| shown.flags("--cert", "--key")).unwrap_or_default());
        let output = command.arg(format!("https://{host}:{port}/")).output();
        let output = output.map_err(|error| format!("curl: {error}"))?;
        let read = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok(Met { status: read(&output.stdout), error: read(&output.stderr) })
    }

    /// A client that keeps its connection.
    pub fn stay(&self, host: &str, shown: Option<&Shown>, flags: &[&str]) -> Result<Staying, String> {
        let flags: Vec<_> = ["-servername", host].iter().chain(flags).copied().collect();
        self.connect(host, shown, &flags)
    }

    /// The same for one that names nobody.
    pub fn stay_unnamed(&self) -> Result<Staying, String> {
        self.connect("", None, &["-noservername"])
    }

    fn connect(&self, host: &str, shown: Option<&Shown>, flags: &[&str]) -> Result<Staying, String> {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect", &self.address.to_string()]);
        command.arg("-CAfile").arg(self.ca).args(["-verify_return_error", "-alpn", "http/1.1"]).args(flags);
        command.args(shown.map(|shown| shown.flags("-cert", "-key")).unwrap_or_default());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("openssl: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("openssl: no pipes".to_owned());
        };
        Ok(Staying { host: host.to_owned(), child, input, output: BufReader::new(output) })
    }
}

/// A client with an open connection. It ends when dropped.
pub struct Staying {
    host: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Staying {
    /// The status of a request on the connection; an error if there is none any more.
    pub fn get(&mut self) -> Result<u16, String> {
        self.get_from(&self.host.clone())
    }

    /// The same for another host.
    pub fn get_from(&mut self, host: &str) -> Result<u16, String> {
        write!(self.input, "GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").map_err(text)?;
        self.input.flush().map_err(text)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if self.output.read_until(b'\n', &mut head).map_err(text)? == 0 {
                return Err(format!("the connection ended after {:?}", String::from_utf8_lossy(&head)));
            }
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        self.output.read_exact(&mut body).map_err(text)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.ok_or_else(|| format!("no status in {head:?}"))
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
