//! LoginPolicies to IR. What they need of Secrets must be there and sound, or everything that they guard is refused. No text
//! of a Secret is ever part of a message.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    ApiKeys, BasicAuth, GuardKind, Jwks, Login, Oidc, RemoteJwks, Secret as SecretText, StringMatch,
};

use super::Notes;
use super::attached::Refusal;
use super::guards::{Maker, service};
use super::policies::paths;
use super::routes::Surroundings;
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::login_policy::{ApiKeysSpec, BasicSpec, OidcSpec, SecretRef};
use crate::kinds::{Kind, Spec};

/// How logins are made.
pub(crate) const MAKER: Maker = Maker { kind: Kind::LoginPolicy, targets, make };

const SESSION: Duration = Duration::from_hours(1);
/// How often keys are fetched again, and how long that may take; as RequestAuthentication has it.
const REFRESH: Duration = Duration::from_mins(5);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a secret that encrypts.
const MIN_SECRET: usize = 32;

fn targets(spec: &Spec) -> &[crate::kinds::fieldgate::TargetRef] {
    match spec {
        Spec::LoginPolicy(spec) => &spec.target_refs,
        _ => &[],
    }
}

fn make(object: &Object, around: &Surroundings<'_>, _: &mut Notes) -> Result<GuardKind, Refusal> {
    let Spec::LoginPolicy(spec) = &object.spec else { unreachable!("it is made for its own kind") };
    let from = From { object, around };
    Ok(GuardKind::Login(Box::new(Login {
        api_keys: spec.api_keys.as_ref().map(|keys| from.api_keys(keys)).transpose()?,
        basic: spec.basic.as_ref().map(|basic| from.basic(basic)).transpose()?,
        oidc: spec.oidc.as_ref().map(|oidc| from.oidc(oidc)).transpose()?.map(Arc::new),
        user_header: spec.user_header.as_ref().map(|name| name.to_ascii_lowercase().into()),
    })))
}

struct From<'a> {
    object: &'a Object,
    around: &'a Surroundings<'a>,
}

impl From<'_> {
    fn api_keys(&self, spec: &ApiKeysSpec) -> Result<ApiKeys, Refusal> {
        let place = "spec.apiKeys.secretRef";
        let entries = self.secret(&spec.secret_ref, place)?;
        let mut keys: Vec<(Arc<str>, SecretText)> = Vec::new();
        for (client, key) in entries {
            // An editor's newline at the end is no part of a key.
            let key = key.trim_ascii_end();
            if key.is_empty() {
                return Err(invalid(place, format!("the key of client \"{client}\" is empty")));
            }
            if keys.iter().any(|(_, other)| *other.0 == *key) {
                return Err(invalid(place, format!("client \"{client}\" has the key of another")));
            }
            keys.push((client.into(), SecretText(key.into())));
        }
        let lower =
            |names: &[String]| names.iter().map(|n| n.to_ascii_lowercase().into()).collect::<Vec<_>>();
        let texts = |names: &[String]| names.iter().map(|n| n.as_str().into()).collect::<Vec<_>>();
        let nowhere = spec.headers.is_empty() && spec.params.is_empty() && spec.cookies.is_empty();
        Ok(ApiKeys {
            headers: if nowhere { vec!["x-api-key".into()] } else { lower(&spec.headers) },
            params: texts(&spec.params),
            cookies: texts(&spec.cookies),
            keys,
            strip: !spec.forward,
        })
    }

    fn basic(&self, spec: &BasicSpec) -> Result<BasicAuth, Refusal> {
        let place = "spec.basic.secretRef";
        let text = self.entry(&spec.secret_ref, ".htpasswd", place)?;
        let text = std::str::from_utf8(text).map_err(|_| invalid(place, "it is no text".to_owned()))?;
        let mut users = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let user = line.split_once(':').filter(|(user, _)| !user.is_empty());
            let Some((user, hash)) = user.filter(|(_, hash)| is_known(hash)) else {
                let message = format!("line {} is not a user with a bcrypt, argon2 or {{SHA}} hash", at + 1);
                return Err(Refusal {
                    hint: Some("make it with htpasswd -B".to_owned()),
                    ..invalid(place, message)
                });
            };
            users.push((user.into(), SecretText(hash.as_bytes().into())));
        }
        let realm = spec.realm.as_deref().unwrap_or(&self.object.name).into();
        Ok(BasicAuth { realm, users, strip: !spec.forward })
    }

    fn oidc(&self, spec: &OidcSpec) -> Result<Oidc, Refusal> {
        let at = "spec.oidc";
        let text = |given: &Option<String>, default: &str| -> Arc<str> {
            given.as_deref().unwrap_or(default).into()
        };
        let pool = service(self.object, &spec.backend_ref, "spec.oidc.backendRef", self.around)?;
        let client_secret = match &spec.client_secret_ref {
            Some(reference) => {
                self.entry(reference, "client-secret", "spec.oidc.clientSecretRef")?.trim_ascii_end()
            }
            None => &[],
        };
        Ok(Oidc {
            issuer: spec.issuer.as_str().into(),
            authorization_endpoint: spec.authorization_endpoint.as_str().into(),
            token_endpoint: (spec.token_endpoint.as_str().into(), pool),
            end_session_endpoint: spec.end_session_endpoint.as_deref().map(Into::into),
            jwks: jwks(spec),
            client_id: spec.client_id.as_str().into(),
            client_secret: SecretText(client_secret.into()),
            scopes: spec.scopes.iter().map(|s| s.as_str().into()).collect(),
            callback_path: text(&spec.callback_path, "/oauth2/callback"),
            logout_path: text(&spec.logout_path, "/oauth2/logout"),
            after_logout: text(&spec.after_logout, "/"),
            cookie_secrets: self.cookie_secrets(&spec.cookie_secret_ref)?,
            cookie_name: text(&spec.cookie_name, "fieldgate-session"),
            cookie_domain: spec.cookie_domain.as_deref().map(Into::into),
            session: spec.session.map_or(SESSION, |session| session.0),
            user_claim: text(&spec.user_claim, "sub"),
            external_url: spec.external_url.as_deref().map(Into::into),
            forward_access_token: spec.forward_access_token,
            pass_through: pass_through(spec, at)?,
        })
    }

    fn cookie_secrets(&self, reference: &SecretRef) -> Result<Vec<SecretText>, Refusal> {
        let place = "spec.oidc.cookieSecretRef";
        let entries = self.secret(reference, place)?;
        let named = |name: &str| entries.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let current = reference.key.as_deref().unwrap_or("current");
        let Some(first) = named(current) else { return Err(no_key(place, reference, current)) };
        let all = [Some(first), named("previous").filter(|_| current != "previous")];
        let secrets: Vec<SecretText> =
            all.into_iter().flatten().map(|value| SecretText(value.into())).collect();
        if secrets.iter().any(|secret| secret.0.len() < MIN_SECRET) {
            let message = format!("a secret that encrypts cookies needs {MIN_SECRET} bytes or more");
            let hint = Some("make it with openssl rand -base64 48".to_owned());
            return Err(Refusal { hint, ..invalid(place, message) });
        }
        Ok(secrets)
    }

    /// All entries of a Secret.
    fn secret(&self, reference: &SecretRef, place: &str) -> Result<Vec<(&str, &[u8])>, Refusal> {
        let namespace = &self.object.namespace;
        let Some(object) = self.around.objects.get(Kind::Secret, namespace, &reference.name) else {
            let names = self.around.objects.names(Kind::Secret, namespace);
            return Err(Refusal {
                reason: "RefNotFound",
                field: format!("{place}.name"),
                message: format!("there is no Secret {namespace}/{}", reference.name),
                hint: did_you_mean_hint(&reference.name, names.iter().map(String::as_str)),
            });
        };
        let data = match &object.spec {
            Spec::Secret(secret) => secret.data.as_ref(),
            _ => None,
        };
        let entries = data.into_iter().flatten();
        Ok(entries.map(|(key, value)| (key.as_str(), value.0.as_slice())).collect())
    }

    /// One entry of a Secret.
    fn entry(&self, reference: &SecretRef, default: &str, place: &str) -> Result<&[u8], Refusal> {
        let key = reference.key.as_deref().unwrap_or(default);
        let entries = self.secret(reference, place)?;
        let found = entries.into_iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| value).ok_or_else(|| no_key(place, reference, key))
    }
}

/// What a check of a password understands; whether the rest of it is sound is seen where it is made ready.
fn is_known(hash: &str) -> bool {
    ["{SHA}", "$2y$", "$2b$", "$2a$", "$argon2id$", "$argon2i$", "$argon2d$"]
        .iter()
        .any(|p| hash.starts_with(p))
}

fn jwks(spec: &OidcSpec) -> Jwks {
    if let Some(document) = &spec.jwks {
        return Jwks::Inline(document.as_str().into());
    }
    Jwks::Remote(Arc::new(RemoteJwks {
        uri: spec.jwks_uri.as_deref().unwrap_or(&spec.issuer).into(),
        discover: spec.jwks_uri.is_none(),
        refresh: REFRESH,
        timeout: TIMEOUT,
        roots: None,
    }))
}

fn pass_through(spec: &OidcSpec, at: &str) -> Result<Vec<StringMatch>, Refusal> {
    paths(&spec.pass_through, at, "passThrough").map_err(|(reason, field, message)| Refusal {
        reason,
        field,
        message,
        hint: None,
    })
}

fn invalid(place: &str, message: String) -> Refusal {
    Refusal { reason: "InvalidValue", field: place.to_owned(), message, hint: None }
}

fn no_key(place: &str, reference: &SecretRef, key: &str) -> Refusal {
    Refusal {
        reason: "RefNotFound",
        field: place.to_owned(),
        message: format!("Secret {} has no key \"{key}\"", reference.name),
        hint: None,
    }
}
