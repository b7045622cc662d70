//! What listeners ask of clients: Gateway API's `spec.tls.frontend`, Istio's mode of termination, and our options of a listener
//! for what both lack.
//!
//! Fails closed: a listener whose demands cannot be read or met keeps its port and its names, and lets nobody in.

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldgate_core::ir::{
    ClientCertDetails, ClientCertificates, ClientValidation, ForwardedClientCert, PemBundle, StringMatch,
};
use gateway_api::experimental::gateways::{
    GatewayListeners, GatewaySpec, GatewayTlsFrontendDefaultValidationMode as DefaultMode,
    GatewayTlsFrontendPerPortTlsValidationMode as PortMode,
};

use super::backends::{Reference, granted};
use super::gateways::GROUP;
use super::{Notes, Objects};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::{Kind, Spec};

const MODE: &str = "fieldgate.dev/client-certificates";
const AUTHORITIES: &str = "fieldgate.dev/client-ca";
const NAMES: &str = "fieldgate.dev/client-names";
const TRUST_DOMAINS: &str = "fieldgate.dev/trust-domains";
const REVOKED: &str = "fieldgate.dev/client-crl";
const FORWARD: &str = "fieldgate.dev/forward-client-cert";
const DETAILS: &str = "fieldgate.dev/forward-client-cert-details";
pub(super) const MIN_VERSION: &str = "fieldgate.dev/min-tls-version";
/// Istio's.
const TERMINATE_MODE: &str = "gateway.istio.io/tls-terminate-mode";

const KNOWN: [&str; 8] = [MODE, AUTHORITIES, NAMES, TRUST_DOMAINS, REVOKED, FORWARD, DETAILS, MIN_VERSION];

/// Keys of an authority's certificates and of a revocation list, the usual one first.
const AUTHORITY_KEYS: [&str; 2] = ["ca.crt", "cacert"];
const REVOKED_KEYS: [&str; 2] = ["ca.crl", "crl"];

/// Gateway API's reason of a condition, and a message.
pub(super) type Why = (&'static str, String);

/// What one listener asks.
#[derive(Default)]
pub(super) struct ClientTls {
    pub validation: Option<Arc<ClientValidation>>,
    pub forward: ForwardedClientCert,
    pub details: ClientCertDetails,
    /// Why nobody is let in.
    pub refused: Option<Why>,
    /// The first reference that does not hold; others may.
    pub bad_refs: Option<Why>,
}

/// Reads what a listener asks of its clients.
pub(super) fn translate(
    object: &Object,
    spec: &GatewaySpec,
    at: usize,
    objects: &Objects,
    note: &mut Notes,
) -> ClientTls {
    let Some(listener) = spec.listeners.get(at) else { return ClientTls::default() };
    let none = BTreeMap::new();
    let options = listener.tls.as_ref().and_then(|tls| tls.options.as_ref()).unwrap_or(&none);
    let place = format!("spec.listeners[{at}].tls.options");
    let mut reading =
        Reading { object, objects, options, place, note, out: ClientTls::default(), asked: None };
    reading.unknown_options();
    if listener.protocol == "HTTPS" {
        let demand = reading.demand(spec, listener);
        reading.judge(demand);
    }
    reading.forwarding();
    let Reading { mut out, asked, .. } = reading;
    if out.refused.is_some() {
        // Without an authority no handshake succeeds.
        let mode = ClientCertificates::Required;
        let (roots, revoked, names, trust_domains) = Default::default();
        out.validation = Some(Arc::new(ClientValidation { mode, roots, revoked, names, trust_domains }));
    }
    out.forward = asked.unwrap_or(if out.validation.is_some() {
        ForwardedClientCert::SanitizeSet
    } else {
        ForwardedClientCert::Sanitize
    });
    out
}

struct Reading<'a> {
    object: &'a Object,
    objects: &'a Objects,
    options: &'a BTreeMap<String, String>,
    /// The field of the options.
    place: String,
    note: &'a mut Notes,
    out: ClientTls,
    /// What is to become of `x-forwarded-client-cert`.
    asked: Option<ForwardedClientCert>,
}

/// Authorities by reference, before it is known what they are.
#[derive(Default)]
struct Demand {
    mode: Option<ClientCertificates>,
    /// Where a reference is written, and what it names: kinds to look among, namespace, name.
    authorities: Vec<(String, Named)>,
    revoked: Vec<(String, Named)>,
}

struct Named {
    group: String,
    kinds: Vec<String>,
    namespace: String,
    name: String,
}

impl Reading<'_> {
    fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(|value| value.trim())
    }

    /// An option that cannot be understood closes the listener: what it was to keep out must not come in.
    fn refuse(&mut self, reason: &'static str, field: &str, message: String, hint: &str) {
        self.out.refused.get_or_insert_with(|| (reason, message.clone()));
        self.say(reason, field, message, hint);
    }

    /// Listeners of one Gateway share what it asks of clients; it is said once.
    fn say(&mut self, reason: &'static str, field: &str, message: String, hint: &str) {
        let error = self.object.error(reason, field, message).hint(hint);
        if !self.note.diagnostics.contains(&error) {
            self.note.diagnostics.push(error);
        }
    }

    fn refuse_option(&mut self, key: &str, message: &str, hint: &str) {
        let place = self.place.clone();
        self.refuse("UnsupportedValue", &place, format!("{key}: {message}"), hint);
    }

    fn unknown_options(&mut self) {
        let unknown =
            self.options.keys().find(|key| key.starts_with("fieldgate.dev/") && !KNOWN.contains(&&***key));
        if let Some(key) = unknown.cloned() {
            let hint = did_you_mean_hint(&key, KNOWN);
            let hint = hint.unwrap_or_else(|| format!("there are {}", KNOWN.join(", ")));
            self.refuse_option(&key, "there is no such option", &hint);
        }
        if let Some(version) = self.option(MIN_VERSION)
            && !matches!(version, "1.2" | "1.3")
        {
            self.refuse_option(MIN_VERSION, "no such version is served", "1.2 or 1.3");
        }
    }

    /// Puts together what the Gateway, Istio's mode and our options say; ours have the last word.
    fn demand(&mut self, spec: &GatewaySpec, listener: &GatewayListeners) -> Demand {
        let mut demand = self.frontend(spec, listener.port);
        self.istio_mode(listener, &mut demand);
        if let Some(mode) = self.option(MODE) {
            match mode {
                "required" => demand.mode = Some(ClientCertificates::Required),
                "optional" => demand.mode = Some(ClientCertificates::Optional),
                "unverified" => demand.mode = Some(ClientCertificates::Unverified),
                other => {
                    let message = format!("\"{other}\" is no way to ask for certificates");
                    self.refuse_option(MODE, &message, "required, optional or unverified");
                }
            }
        }
        for (key, revoked) in [(AUTHORITIES, false), (REVOKED, true)] {
            for reference in self.option(key).map(words).unwrap_or_default() {
                let named = match reference.split_once('/') {
                    None => Ok((vec!["ConfigMap", "Secret"], &*reference)),
                    Some((kind @ ("ConfigMap" | "Secret"), name)) => Ok((vec![kind], name)),
                    Some(_) => Err(()),
                };
                let Ok((kinds, name)) = named else {
                    let message = format!("\"{reference}\" names neither a ConfigMap nor a Secret");
                    self.refuse_option(key, &message, "ConfigMap/NAME, Secret/NAME or NAME");
                    continue;
                };
                let named = Named {
                    group: String::new(),
                    kinds: kinds.into_iter().map(str::to_owned).collect(),
                    namespace: self.object.namespace.to_string(),
                    name: name.to_owned(),
                };
                let list = if revoked { &mut demand.revoked } else { &mut demand.authorities };
                list.push((self.place.clone(), named));
            }
        }
        if demand.mode.is_none() && !demand.authorities.is_empty() {
            demand.mode = Some(ClientCertificates::Required);
        }
        demand
    }

    /// Gateway API's, for the listener's port.
    fn frontend(&self, spec: &GatewaySpec, port: i32) -> Demand {
        let Some(frontend) = spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref()) else {
            return Demand::default();
        };
        let own = frontend.per_port.iter().flatten().enumerate().find(|(_, of)| of.port == port);
        let named = |group: &str, kind: &str, namespace: &Option<String>, name: &str| Named {
            group: group.to_owned(),
            kinds: vec![kind.to_owned()],
            namespace: namespace.clone().unwrap_or_else(|| self.object.namespace.to_string()),
            name: name.to_owned(),
        };
        let (fallback, authorities): (_, Vec<_>) = match own {
            Some((index, own)) => {
                let Some(validation) = &own.tls.validation else { return Demand::default() };
                let place = format!("spec.tls.frontend.perPort[{index}].tls.validation.caCertificateRefs");
                let refs = validation.ca_certificate_refs.iter().enumerate();
                let refs = refs
                    .map(|(i, r)| (format!("{place}[{i}]"), named(&r.group, &r.kind, &r.namespace, &r.name)));
                (matches!(validation.mode, Some(PortMode::AllowInsecureFallback)), refs.collect())
            }
            None => {
                let Some(validation) = &frontend.default.validation else { return Demand::default() };
                let place = "spec.tls.frontend.default.validation.caCertificateRefs";
                let refs = validation.ca_certificate_refs.iter().enumerate();
                let refs = refs
                    .map(|(i, r)| (format!("{place}[{i}]"), named(&r.group, &r.kind, &r.namespace, &r.name)));
                (matches!(validation.mode, Some(DefaultMode::AllowInsecureFallback)), refs.collect())
            }
        };
        let mode = if fallback { ClientCertificates::Unverified } else { ClientCertificates::Required };
        Demand { mode: Some(mode), authorities, revoked: Vec::new() }
    }

    /// Istio's MUTUAL and OPTIONAL_MUTUAL: authorities and revocation list are in the Secret of the certificate, or in the one
    /// beside it whose name ends in `-cacert`.
    fn istio_mode(&mut self, listener: &GatewayListeners, demand: &mut Demand) {
        let Some(mode) = self.option(TERMINATE_MODE) else { return };
        demand.mode = Some(match mode {
            "SIMPLE" => return,
            "MUTUAL" => ClientCertificates::Required,
            "OPTIONAL_MUTUAL" => ClientCertificates::Optional,
            other => {
                let message = format!("{other} is not supported");
                return self.refuse_option(TERMINATE_MODE, &message, "SIMPLE, MUTUAL or OPTIONAL_MUTUAL");
            }
        });
        let refs = listener.tls.as_ref().and_then(|tls| tls.certificate_refs.as_ref());
        for reference in refs.into_iter().flatten() {
            let namespace = reference.namespace.clone().unwrap_or_else(|| self.object.namespace.to_string());
            let has = |name: &str, keys: &[&str]| {
                let secret = self.objects.get(Kind::Secret, &namespace, name);
                secret.is_some_and(|secret| keys.iter().any(|key| value(secret, key).is_some()))
            };
            let beside = format!("{}-cacert", reference.name);
            let named = |name: &str| Named {
                group: String::new(),
                kinds: vec!["Secret".to_owned()],
                namespace: namespace.clone(),
                name: name.to_owned(),
            };
            let in_beside = has(&beside, &AUTHORITY_KEYS);
            let name = if in_beside { &beside } else { &reference.name };
            demand.authorities.push((self.place.clone(), named(name)));
            if has(name, &REVOKED_KEYS) {
                demand.revoked.push((self.place.clone(), named(name)));
            }
        }
    }

    /// From references to what they refer to.
    fn judge(&mut self, demand: Demand) {
        let names: Vec<_> =
            self.option(NAMES).map(words).unwrap_or_default().iter().map(|n| pattern(n)).collect();
        let trust_domains: Vec<Arc<str>> = self
            .option(TRUST_DOMAINS)
            .map(words)
            .unwrap_or_default()
            .iter()
            .map(|d| Arc::from(&**d))
            .collect();
        let Some(mode) = demand.mode else {
            let lonely =
                [NAMES, TRUST_DOMAINS, REVOKED, MODE].into_iter().find(|key| self.options.contains_key(*key));
            if let Some(key) = lonely.filter(|_| self.out.refused.is_none()) {
                let hint = format!("name one by spec.tls.frontend of the Gateway or {AUTHORITIES}");
                self.refuse_option(
                    key,
                    "there is no authority that certificates of clients could be held against",
                    &hint,
                );
            }
            return;
        };
        for (key, empty) in [(NAMES, names.is_empty()), (TRUST_DOMAINS, trust_domains.is_empty())] {
            // Empty is nothing asked for, which nobody means who writes the key.
            if empty && self.options.contains_key(key) {
                self.refuse_option(key, "it is empty", "name what is accepted, separated by commas");
            }
        }
        if let Some(domain) = trust_domains.iter().find(|domain| domain.contains(['/', ':', '*'])) {
            let message = format!("\"{domain}\" is no trust domain");
            self.refuse_option(TRUST_DOMAINS, &message, "such as cluster.local, without scheme and path");
        }
        let mut roots = Vec::new();
        for (place, named) in &demand.authorities {
            match self.bundle(named, &AUTHORITY_KEYS, "-----BEGIN CERTIFICATE-----") {
                Ok(bundle) => roots.push(Arc::new(bundle)),
                Err((reason, message, hint)) => {
                    self.out.bad_refs.get_or_insert((reason, message.clone()));
                    self.say(reason, place, message, &hint);
                }
            }
        }
        if roots.is_empty() && self.out.refused.is_none() {
            let message = match &self.out.bad_refs {
                Some((_, why)) => {
                    format!("no authority of clients can be read, so no client is let in: {why}")
                }
                None => "no authority of clients is named, so no client is let in".to_owned(),
            };
            if self.out.bad_refs.is_none() {
                let (place, hint) = (self.place.clone(), format!("name one by {AUTHORITIES}"));
                self.say("NoValidCACertificate", &place, message.clone(), &hint);
            }
            self.out.refused = Some(("NoValidCACertificate", message));
        }
        let mut revoked = Vec::new();
        for (place, named) in &demand.revoked {
            match self.bundle(named, &REVOKED_KEYS, "-----BEGIN X509 CRL-----") {
                Ok(bundle) => revoked.push(Arc::new(bundle)),
                // Without the list nobody knows who is on it.
                Err((reason, message, hint)) => {
                    self.out.bad_refs.get_or_insert((reason, message.clone()));
                    self.refuse(reason, place, message, &hint);
                }
            }
        }
        self.out.validation = Some(Arc::new(ClientValidation { mode, roots, revoked, names, trust_domains }));
    }

    /// The text that a reference means, or reason, message and hint.
    fn bundle(
        &self,
        named: &Named,
        keys: &[&str],
        marker: &str,
    ) -> Result<PemBundle, (&'static str, String, String)> {
        let Named { group, kinds, namespace, name } = named;
        let kinds: Vec<_> = kinds
            .iter()
            .filter_map(|kind| match (&**group, &**kind) {
                ("", "ConfigMap") => Some(Kind::ConfigMap),
                ("", "Secret") => Some(Kind::Secret),
                _ => None,
            })
            .collect();
        let Some(first) = kinds.first() else {
            let message =
                format!("authorities cannot come from a {} of group \"{group}\"", named.kinds.join(", "));
            return Err(("InvalidCACertificateKind", message, "name a ConfigMap or a Secret".to_owned()));
        };
        let wanted = Reference {
            from_group: GROUP,
            from_kind: "Gateway",
            from_namespace: &self.object.namespace,
            group: "",
            kind: first.as_str(),
            namespace,
            name,
        };
        if !granted(self.objects, &wanted) {
            let message = format!("{first} {namespace}/{name} is in another namespace");
            return Err(("RefNotPermitted", message, wanted.hint()));
        }
        let Some(found) = kinds.iter().find_map(|kind| self.objects.get(*kind, namespace, name)) else {
            let names: Vec<_> = kinds.iter().flat_map(|kind| self.objects.names(*kind, namespace)).collect();
            let hint = did_you_mean_hint(name, names.iter().map(String::as_str))
                .unwrap_or_else(|| "is its file among those that are read?".to_owned());
            let kinds: Vec<_> = kinds.iter().map(|kind| kind.as_str()).collect();
            let message = format!("there is no {} {namespace}/{name}", kinds.join(" or "));
            return Err(("InvalidCACertificateRef", message, hint));
        };
        let origin = format!("{} {namespace}/{name}", found.kind);
        let invalid = |why: String| {
            let hint = format!("its key {} is to hold PEM", keys[0]);
            Err(("InvalidCACertificateRef", format!("{origin} {why}"), hint))
        };
        let Some(pem) = keys.iter().find_map(|key| value(found, key)) else {
            return invalid(format!("has no {}", keys[0]));
        };
        if memchr::memmem::find(pem, marker.as_bytes()).is_none() {
            return invalid(format!("has a {} without a section {marker}", keys[0]));
        }
        Ok(PemBundle { origin: origin.into(), pem: pem.into() })
    }

    /// What becomes of `x-forwarded-client-cert`: the listener's option, else the Gateway's annotation.
    fn forwarding(&mut self) {
        let places = [self.place.clone(), "metadata.annotations".to_owned()];
        let of = |key| [self.options.get(key), self.object.annotations.get(key)];
        let (mode, details) = (of(FORWARD), of(DETAILS));
        if let Some((at, text)) = mode.into_iter().enumerate().find_map(|(at, text)| Some((at, text?))) {
            match forward_mode(text) {
                Some(mode) => self.asked = Some(mode),
                None => {
                    self.asked = Some(ForwardedClientCert::Sanitize);
                    let hint = "sanitize, forward-only, append-forward, sanitize-set or always-forward-only";
                    let message =
                        format!("{FORWARD}: \"{text}\" is no way to treat the field; it is taken off");
                    self.say("UnsupportedValue", &places[at], message, hint);
                }
            }
        }
        if let Some((at, text)) = details.into_iter().enumerate().find_map(|(at, text)| Some((at, text?))) {
            match forward_details(text) {
                Ok(details) => self.out.details = details,
                Err(word) => {
                    let message = format!("{DETAILS}: there is no detail \"{word}\"");
                    self.say(
                        "UnsupportedValue",
                        &places[at],
                        message,
                        "none, or some of cert, chain, subject, uri, dns",
                    );
                }
            }
        }
    }
}

/// The value of a key of a ConfigMap or Secret, if it is not empty.
fn value<'a>(object: &'a Object, key: &str) -> Option<&'a [u8]> {
    let bytes = match &object.spec {
        Spec::Secret(secret) => secret.data.as_ref()?.get(key)?.0.as_slice(),
        Spec::ConfigMap(map) => match map.data.as_ref().and_then(|data| data.get(key)) {
            Some(text) => text.as_bytes(),
            None => map.binary_data.as_ref()?.get(key)?.0.as_slice(),
        },
        _ => return None,
    };
    Some(bytes).filter(|bytes| !bytes.is_empty())
}

fn words(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// As Istio writes patterns.
fn pattern(text: &str) -> StringMatch {
    match (text.strip_suffix('*'), text.strip_prefix('*')) {
        (Some(""), _) => StringMatch::Present,
        (Some(prefix), _) => StringMatch::Prefix(prefix.into()),
        (None, Some(suffix)) => StringMatch::Suffix(suffix.into()),
        (None, None) => StringMatch::Exact(text.into()),
    }
}

/// As Envoy's enumeration has it, in either way of writing.
fn forward_mode(text: &str) -> Option<ForwardedClientCert> {
    Some(match &*text.trim().to_ascii_lowercase().replace('_', "-") {
        "sanitize" => ForwardedClientCert::Sanitize,
        "forward-only" => ForwardedClientCert::ForwardOnly,
        "append-forward" => ForwardedClientCert::AppendForward,
        "sanitize-set" => ForwardedClientCert::SanitizeSet,
        "always-forward-only" => ForwardedClientCert::AlwaysForwardOnly,
        _ => return None,
    })
}

fn forward_details(text: &str) -> Result<ClientCertDetails, String> {
    let mut details = ClientCertDetails { cert: false, chain: false, subject: false, uri: false, dns: false };
    for word in words(text) {
        match &*word.to_ascii_lowercase() {
            "none" => {}
            "cert" => details.cert = true,
            "chain" => details.chain = true,
            "subject" => details.subject = true,
            "uri" => details.uri = true,
            "dns" => details.dns = true,
            _ => return Err(word),
        }
    }
    Ok(details)
}
