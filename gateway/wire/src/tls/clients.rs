//! Whose certificates a server believes: authorities, revocation lists, names, trust domains.
//!
//! `webpki` builds and checks the chains; this asks it, adds what it leaves to others (the time of the authority itself, names
//! that are no server's), and says why not. It must not decide what a client may do that is believed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationOptionsBuilder, VerifiedPath,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::distinguished_name::rfc2253;
use super::{
    ClientCertificate, ClientMode, ClientRules, Dated, DatedKind, NamePattern, Refusal, RefusalReason,
    introduction, provider,
};

/// Seconds for which a session is resumed without its certificate being looked at again, at most; its own end and that of the
/// authorities above it may come before. What was revoked or replaced is not good for longer than that.
const UNSEEN: u64 = 2 * 3600;

/// Rules, ready to judge.
pub struct ClientVerifier {
    mode: ClientMode,
    anchors: Vec<TrustAnchor<'static>>,
    /// Not after, by anchor.
    ends: Vec<i64>,
    /// The certificates themselves, by anchor.
    ders: Vec<CertificateDer<'static>>,
    hints: Vec<DistinguishedName>,
    lists: Vec<CertRevocationList<'static>>,
    names: Vec<NamePattern>,
    trust_domains: Vec<Box<str>>,
    dated: Vec<Dated>,
    scope: Vec<u8>,
}

impl ClientVerifier {
    /// Makes rules ready. What cannot be read makes the whole unusable: a list that is left out would let in whom it names.
    pub fn new(rules: ClientRules<'_>) -> Result<Arc<Self>, String> {
        let scope = rules.scope();
        let mut verifier = Self {
            mode: rules.mode,
            anchors: Vec::new(),
            ends: Vec::new(),
            ders: Vec::new(),
            hints: Vec::new(),
            lists: Vec::new(),
            names: rules.names,
            trust_domains: rules.trust_domains,
            dated: Vec::new(),
            scope,
        };
        for (origin, pem) in &rules.roots {
            verifier.add_roots(origin, pem).map_err(|why| format!("{origin}: {why}"))?;
        }
        if verifier.anchors.is_empty() {
            return Err("there is no authority to believe".to_owned());
        }
        for (origin, pem) in &rules.revoked {
            verifier.add_lists(origin, pem).map_err(|why| format!("{origin}: {why}"))?;
        }
        Ok(Arc::new(verifier))
    }

    /// What of it has its time.
    pub fn dated(&self) -> &[Dated] {
        &self.dated
    }

    /// Whether a client must show a certificate.
    pub fn mode(&self) -> ClientMode {
        self.mode
    }

    /// Tells apart what sessions have proved about their client.
    pub(super) fn scope(&self) -> &[u8] {
        &self.scope
    }

    fn add_roots(&mut self, origin: &str, pem: &[u8]) -> Result<(), String> {
        let before = self.anchors.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let der = certificate.map_err(|error| format!("the PEM cannot be read: {error}"))?;
            let number = self.anchors.len() - before + 1;
            let bad = |why: &dyn fmt::Display| format!("certificate {number} is bad: {why}");
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|error| bad(&error))?.to_owned();
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| bad(&error))?;
            let until = parsed.validity().not_after.timestamp();
            let subject = rfc2253(parsed.subject()).into();
            self.dated.push(Dated { kind: DatedKind::Authority, origin: origin.into(), subject, until });
            self.ends.push(until);
            self.ders.push(der.clone());
            self.hints.push(DistinguishedName::in_sequence(anchor.subject.as_ref()));
            self.anchors.push(anchor);
        }
        if self.anchors.len() == before {
            return Err(
                "no certificate in the PEM; expected a section -----BEGIN CERTIFICATE-----".to_owned()
            );
        }
        Ok(())
    }

    fn add_lists(&mut self, origin: &str, pem: &[u8]) -> Result<(), String> {
        let before = self.lists.len();
        for list in CertificateRevocationListDer::pem_slice_iter(pem) {
            let der = list.map_err(|error| format!("the PEM cannot be read: {error}"))?;
            let number = self.lists.len() - before + 1;
            let bad = |why: &dyn fmt::Display| format!("revocation list {number} is bad: {why}");
            let (_, parsed) = CertificateRevocationList::from_der(&der).map_err(|error| bad(&error))?;
            if let Some(until) = parsed.next_update() {
                let subject = rfc2253(parsed.issuer()).into();
                let until = until.timestamp();
                self.dated.push(Dated {
                    kind: DatedKind::RevocationList,
                    origin: origin.into(),
                    subject,
                    until,
                });
            }
            let list = OwnedCertRevocationList::from_der(&der).map_err(|error| bad(&error))?;
            self.lists.push(list.into());
        }
        if self.lists.len() == before {
            return Err(
                "no revocation list in the PEM; expected a section -----BEGIN X509 CRL-----".to_owned()
            );
        }
        Ok(())
    }

    /// Until when (seconds since 1970) a certificate is good, or why it is not.
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<u64, Refusal> {
        let read = ClientCertificate::parse(leaf).map_err(|why| {
            Refusal::new(RefusalReason::Malformed, format!("the certificate cannot be read: {why}"))
        })?;
        let of_chain = |error: webpki::Error| Refusal::of_chain(&error, &read);
        let entity = EndEntityCert::try_from(leaf).map_err(of_chain)?;
        let lists: Vec<_> = self.lists.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|options| options.with_expiration_policy(ExpirationPolicy::Enforce).build());
        let in_time = |path: &VerifiedPath<'_>| self.in_time(path, now);
        let verified = entity.verify_for_usage(
            provider().signature_verification_algorithms.all,
            &self.anchors,
            between,
            now,
            KeyUsage::client_auth(),
            revocation,
            Some(&in_time),
        );
        let path = match verified {
            Ok(path) => path,
            Err(webpki::Error::CaUsedAsEndEntity) if self.ders.contains(leaf) => {
                return self.judge_pinned(leaf, &read, now);
            }
            Err(error) => return Err(of_chain(error)),
        };
        self.judge_names(&read)?;
        let authorities = path.intermediate_certificates().filter_map(|certificate| {
            let der = certificate.der();
            let (_, parsed) = X509Certificate::from_der(&der).ok()?;
            Some(parsed.validity().not_after.timestamp())
        });
        let end = authorities.chain([read.not_after]).chain(self.end_of(path.anchor())).min();
        Ok(good_for(end.unwrap_or_default(), now))
    }

    /// A certificate that is itself among those that are believed needs nobody above it. webpki builds no chain of one that may
    /// sign others, as those are that `openssl req -x509` makes.
    fn judge_pinned(
        &self,
        leaf: &CertificateDer<'_>,
        read: &ClientCertificate,
        now: UnixTime,
    ) -> Result<u64, Refusal> {
        let malformed = |why: String| Refusal::new(RefusalReason::Malformed, why);
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| malformed(error.to_string()))?;
        let seconds = now.as_secs() as i64;
        let at = |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0) as u64));
        let of_chain = |error: webpki::Error| Err(Refusal::of_chain(&error, read));
        let validity = parsed.validity();
        if seconds > validity.not_after.timestamp() {
            let not_after = at(validity.not_after.timestamp());
            return of_chain(webpki::Error::CertExpired { time: now, not_after });
        }
        if seconds < validity.not_before.timestamp() {
            let not_before = at(validity.not_before.timestamp());
            return of_chain(webpki::Error::CertNotValidYet { time: now, not_before });
        }
        let usage = parsed.extended_key_usage().map_err(|error| malformed(error.to_string()))?;
        if usage.is_some_and(|usage| !usage.value.client_auth && !usage.value.any) {
            return of_chain(webpki::Error::EmptyEkuExtension);
        }
        self.judge_names(read)?;
        Ok(good_for(read.not_after, now))
    }

    /// An authority that is believed is still good for its time only, which webpki leaves to others.
    fn in_time(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        match self.end_of(path.anchor()).and_then(|end| u64::try_from(end).ok()) {
            Some(end) if end < now.as_secs() => {
                let not_after = UnixTime::since_unix_epoch(Duration::from_secs(end));
                Err(webpki::Error::CertExpired { time: now, not_after })
            }
            _ => Ok(()),
        }
    }

    fn end_of(&self, anchor: &TrustAnchor<'_>) -> Option<i64> {
        self.anchors.iter().position(|known| std::ptr::eq(known, anchor)).map(|at| self.ends[at])
    }

    fn judge_names(&self, read: &ClientCertificate) -> Result<(), Refusal> {
        let whose = || {
            let names: Vec<_> =
                read.uris.iter().chain(&read.dns).chain(&read.emails).map(AsRef::as_ref).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("its names: {names}; subject {:?}", &*read.subject)
        };
        if !self.trust_domains.is_empty() {
            let wanted = |domain: &str| self.trust_domains.iter().any(|d| **d == *domain);
            if read.trust_domains().next().is_none() || !read.trust_domains().all(wanted) {
                let why = format!(
                    "its SPIFFE identity is of none of the trust domains that are accepted; {}",
                    whose()
                );
                return Err(Refusal::new(RefusalReason::WrongTrustDomain, why));
            }
        }
        let plain = read.uris.iter().chain(&read.emails);
        let mut fits = self.names.iter().map(|pattern| {
            plain.clone().any(|name| pattern.fits(name)) || read.dns.iter().any(|name| pattern.fits_dns(name))
        });
        if !self.names.is_empty() && !fits.any(|fits| fits) {
            let why = format!("none of its names is one that is accepted; {}", whose());
            return Err(Refusal::new(RefusalReason::WrongName, why));
        }
        Ok(())
    }

    /// A wrong signature says that the client does not hold the key.
    fn signed(
        &self,
        checked: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        let already_refused = introduction::with(|found| found.refusal.is_some()).unwrap_or(false);
        if self.mode == ClientMode::Unverified && already_refused {
            return Ok(HandshakeSignatureValid::assertion());
        }
        checked.or_else(|error| {
            let why = format!("the client has not proved that it holds the certificate's key: {error}");
            self.refuse(Refusal::new(RefusalReason::BadSignature, why))
                .map(|()| HandshakeSignatureValid::assertion())
                .map_err(|_| error)
        })
    }

    /// Notes a refusal; whether the handshake goes on all the same.
    fn refuse(&self, refusal: Refusal) -> Result<(), Error> {
        let error = refusal.as_error();
        let noted = introduction::with(|found| {
            found.until = None;
            found.refusal = Some(refusal);
        });
        // Where nothing is noted, nobody would know that it is not to be believed.
        if self.mode == ClientMode::Unverified && noted.is_some() { Ok(()) } else { Err(error) }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mode == ClientMode::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.judge(end_entity, intermediates, now) {
            Ok(until) => {
                introduction::with(|found| {
                    found.until = Some(until);
                    found.refusal = None;
                });
            }
            Err(refusal) => self.refuse(refusal)?,
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        self.signed(verify_tls12_signature(message, cert, dss, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        self.signed(verify_tls13_signature(message, cert, dss, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier")
            .field("mode", &self.mode)
            .field("dated", &self.dated)
            .field("names", &self.names)
            .field("trust_domains", &self.trust_domains)
            .finish_non_exhaustive()
    }
}

/// Until when a session may go on without another look at a certificate that ends at `end`.
fn good_for(end: i64, now: UnixTime) -> u64 {
    u64::try_from(end).unwrap_or(0).min(now.as_secs() + UNSEEN)
}
