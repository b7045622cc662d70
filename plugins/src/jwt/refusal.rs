//! Why a token is refused. Where Envoy knows the same reason the text is Envoy's, so that alerts and clients which look for
//! it go on working.

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the texts say it
pub enum Refusal {
    Missing,
    TooLong,
    NotThreeParts,
    HeaderBadBase64,
    HeaderNotJson,
    HeaderBadAlgorithm,
    HeaderUnknownAlgorithm,
    HeaderBadKeyId,
    HeaderCritical,
    Nested,
    PayloadBadBase64,
    PayloadNotJson,
    IssuerNotString,
    SubjectNotString,
    AudienceNotString,
    IdNotString,
    ExpiryNotInteger,
    ExpiryOutOfRange,
    NotBeforeNotInteger,
    NotBeforeOutOfRange,
    IssuedNotInteger,
    IssuedOutOfRange,
    SignatureBadBase64,
    UnknownIssuer,
    NotYetValid,
    Expired,
    AudienceNotAllowed,
    NoKeys,
    NoValidKeys,
    NoSuchKey,
    BadSignature,
    TooManyTokens,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 32] = [
        Self::Missing,
        Self::TooLong,
        Self::NotThreeParts,
        Self::HeaderBadBase64,
        Self::HeaderNotJson,
        Self::HeaderBadAlgorithm,
        Self::HeaderUnknownAlgorithm,
        Self::HeaderBadKeyId,
        Self::HeaderCritical,
        Self::Nested,
        Self::PayloadBadBase64,
        Self::PayloadNotJson,
        Self::IssuerNotString,
        Self::SubjectNotString,
        Self::AudienceNotString,
        Self::IdNotString,
        Self::ExpiryNotInteger,
        Self::ExpiryOutOfRange,
        Self::NotBeforeNotInteger,
        Self::NotBeforeOutOfRange,
        Self::IssuedNotInteger,
        Self::IssuedOutOfRange,
        Self::SignatureBadBase64,
        Self::UnknownIssuer,
        Self::NotYetValid,
        Self::Expired,
        Self::AudienceNotAllowed,
        Self::NoKeys,
        Self::NoValidKeys,
        Self::NoSuchKey,
        Self::BadSignature,
        Self::TooManyTokens,
    ];

    /// For the client.
    pub const fn text(self) -> &'static str {
        self.texts().0
    }

    /// For the access log: Envoy's response code details.
    pub const fn details(self) -> &'static str {
        self.texts().1
    }

    /// For metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::UnknownIssuer => "unknown_issuer",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::AudienceNotAllowed => "audience",
            Self::NoKeys | Self::NoValidKeys => "no_keys",
            Self::NoSuchKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::TooManyTokens => "too_many",
            _ => "malformed",
        }
    }

    /// The status of the answer.
    pub const fn status(self) -> u16 {
        match self {
            Self::AudienceNotAllowed => 403,
            _ => 401,
        }
    }

    const fn texts(self) -> (&'static str, &'static str) {
        /// Envoy's details are the text with `_` for spaces.
        macro_rules! texts {
            ($text:literal, $details:literal) => {
                ($text, concat!("jwt_authn_access_denied{", $details, "}"))
            };
        }
        match self {
            Self::Missing => texts!("Jwt is missing", "Jwt_is_missing"),
            Self::TooLong => texts!("Jwt is too long", "Jwt_is_too_long"),
            Self::NotThreeParts => texts!(
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
                "Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections"
            ),
            Self::HeaderBadBase64 => texts!(
                "Jwt header is an invalid Base64url encoded",
                "Jwt_header_is_an_invalid_Base64url_encoded"
            ),
            Self::HeaderNotJson => texts!("Jwt header is an invalid JSON", "Jwt_header_is_an_invalid_JSON"),
            Self::HeaderBadAlgorithm => texts!(
                "Jwt header [alg] field is required and must be a string",
                "Jwt_header_[alg]_field_is_required_and_must_be_a_string"
            ),
            Self::HeaderUnknownAlgorithm => {
                texts!("Jwt header [alg] is not supported", "Jwt_header_[alg]_is_not_supported")
            }
            Self::HeaderBadKeyId => {
                texts!("Jwt header [kid] field is not a string", "Jwt_header_[kid]_field_is_not_a_string")
            }
            Self::HeaderCritical => texts!(
                "Jwt header has extensions that are not supported",
                "Jwt_header_has_extensions_that_are_not_supported"
            ),
            Self::Nested => texts!("Jwt is nested or encrypted", "Jwt_is_nested_or_encrypted"),
            Self::PayloadBadBase64 => texts!(
                "Jwt payload is an invalid Base64url encoded",
                "Jwt_payload_is_an_invalid_Base64url_encoded"
            ),
            Self::PayloadNotJson => {
                texts!("Jwt payload is an invalid JSON", "Jwt_payload_is_an_invalid_JSON")
            }
            Self::IssuerNotString => {
                texts!("Jwt payload [iss] field is not a string", "Jwt_payload_[iss]_field_is_not_a_string")
            }
            Self::SubjectNotString => {
                texts!("Jwt payload [sub] field is not a string", "Jwt_payload_[sub]_field_is_not_a_string")
            }
            Self::AudienceNotString => texts!(
                "Jwt payload [aud] field is not a string or string list",
                "Jwt_payload_[aud]_field_is_not_a_string_or_string_list"
            ),
            Self::IdNotString => {
                texts!("Jwt payload [jti] field is not a string", "Jwt_payload_[jti]_field_is_not_a_string")
            }
            Self::ExpiryNotInteger => texts!(
                "Jwt payload [exp] field is not an integer",
                "Jwt_payload_[exp]_field_is_not_an_integer"
            ),
            Self::ExpiryOutOfRange => texts!(
                "Jwt payload [exp] field is not a positive 64 bit integer",
                "Jwt_payload_[exp]_field_is_not_a_positive_64_bit_integer"
            ),
            Self::NotBeforeNotInteger => texts!(
                "Jwt payload [nbf] field is not an integer",
                "Jwt_payload_[nbf]_field_is_not_an_integer"
            ),
            Self::NotBeforeOutOfRange => texts!(
                "Jwt payload [nbf] field is not a positive 64 bit integer",
                "Jwt_payload_[nbf]_field_is_not_a_positive_64_bit_integer"
            ),
            Self::IssuedNotInteger => texts!(
                "Jwt payload [iat] field is not an integer",
                "Jwt_payload_[iat]_field_is_not_an_integer"
            ),
            Self::IssuedOutOfRange => texts!(
                "Jwt payload [iat] field is not a positive 64 bit integer",
                "Jwt_payload_[iat]_field_is_not_a_positive_64_bit_integer"
            ),
            Self::SignatureBadBase64 => texts!(
                "Jwt signature is an invalid Base64url encoded",
                "Jwt_signature_is_an_invalid_Base64url_encoded"
            ),
            Self::UnknownIssuer => {
                texts!("Jwt issuer is not configured", "Jwt_issuer_is_not_configured")
            }
            Self::NotYetValid => texts!("Jwt not yet valid", "Jwt_not_yet_valid"),
            Self::Expired => texts!("Jwt is expired", "Jwt_is_expired"),
            Self::AudienceNotAllowed => {
                texts!("Audiences in Jwt are not allowed", "Audiences_in_Jwt_are_not_allowed")
            }
            Self::NoKeys => texts!("Jwks remote fetch is failed", "Jwks_remote_fetch_is_failed"),
            Self::NoValidKeys => {
                texts!("Jwks doesn't have any valid public key", "Jwks_doesn't_have_any_valid_public_key")
            }
            Self::NoSuchKey => texts!(
                "Jwks doesn't have key to match kid or alg from Jwt",
                "Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt"
            ),
            Self::BadSignature => texts!("Jwt verification fails", "Jwt_verification_fails"),
            Self::TooManyTokens => texts!("Found too many Jwt tokens", "Found_too_many_Jwt_tokens"),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_the_text_without_spaces() {
        for refusal in Refusal::ALL {
            let expected = format!("jwt_authn_access_denied{{{}}}", refusal.text().replace(' ', "_"));
            assert_eq!(refusal.details(), expected);
        }
    }
}
