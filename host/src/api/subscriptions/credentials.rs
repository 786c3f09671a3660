//! How a subscription says who sends its webhooks, and whom they trust. Invariant: tokens and private keys go in and never
//! come out; what stands for one that is stored keeps it. Never does I/O.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::REDACTED;
use crate::api::extract::Object;
use crate::api::problem::Faults;
use crate::api::wire::Time;
use crate::catalog::model::{Authorization, ClientCertificate, Secret, SubscriptionSettings};
use crate::clock::Timestamp;
use crate::delivery::push::credentials::{
    CredentialsError, Part, facts, validate_authorities, validate_client_certificate, validate_token,
};

/// How an `Authorization` header is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum AuthorizationKind {
    /// RFC 6750.
    Bearer,
}

/// What goes out as `Authorization`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthorizationBody {
    #[serde(rename = "type")]
    kind: AuthorizationKind,
    /// Sent behind the word `Bearer`, and never shown again; `[redacted]` keeps the one that is stored.
    token: String,
}

impl AuthorizationBody {
    /// Whether it stands for what is stored.
    pub(super) fn is_kept(&self) -> bool {
        self.token == REDACTED
    }
}

/// What is shown to an endpoint that asks for a certificate. PEM; never shown again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClientCertificateBody {
    /// The certificate, then those that lead to its authority.
    certificate: String,
    /// PKCS #8, PKCS #1 or SEC 1, without a password.
    private_key: String,
}

/// What was given; what is left out stays.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) authorization: Option<Option<Object<AuthorizationBody>>>,
    pub(super) client_certificate: Option<Option<Object<ClientCertificateBody>>>,
    pub(super) ca_certificate: Option<Option<String>>,
}

impl Given {
    /// Puts it over what is stored.
    pub(super) fn over(self, settings: &mut SubscriptionSettings, now: Timestamp, faults: &mut Faults) {
        match self.authorization {
            None => {}
            Some(None) => settings.authorization = None,
            Some(Some(Object(AuthorizationBody { kind: AuthorizationKind::Bearer, token }))) => {
                set_token(settings, token, faults);
            }
        }
        match self.client_certificate {
            None => {}
            Some(None) => settings.client_certificate = None,
            Some(Some(Object(given))) => {
                let private_key = Secret::new(given.private_key);
                let given = ClientCertificate { certificate: given.certificate, private_key };
                if let Err(error) = validate_client_certificate(&given, now) {
                    faults.push(pointer(&error), error.to_string());
                }
                settings.client_certificate = Some(given);
            }
        }
        if let Some(given) = self.ca_certificate {
            if let Some(pem) = &given {
                faults.keep("/caCertificate", validate_authorities(pem, now));
            }
            settings.ca_certificate = given;
        }
    }
}

fn pointer(error: &CredentialsError) -> &'static str {
    match error.part {
        Part::Certificate => "/clientCertificate/certificate",
        Part::PrivateKey => "/clientCertificate/privateKey",
    }
}

fn set_token(settings: &mut SubscriptionSettings, token: String, faults: &mut Faults) {
    if token == REDACTED {
        if settings.authorization.is_none() {
            faults.push("/authorization/token", "there is none yet that this could stand for; give one");
        }
        return;
    }
    faults.keep("/authorization/token", validate_token(&token));
    settings.authorization = Some(Authorization::Bearer { token: Secret::new(token) });
}

/// Holds the settings against each other.
pub(super) fn check(settings: &SubscriptionSettings, faults: &mut Faults) {
    let twice = settings.headers.keys().any(|name| name.eq_ignore_ascii_case("authorization"));
    if settings.authorization.is_some() && twice {
        faults.push("/authorization", "is there twice: take `Authorization` out of `headers`");
    }
    let encrypted =
        settings.endpoint.as_deref().is_none_or(|url| !url.trim().to_ascii_lowercase().starts_with("http:"));
    let certificates = [
        ("/clientCertificate", settings.client_certificate.is_some()),
        ("/caCertificate", settings.ca_certificate.is_some()),
    ];
    for (pointer, _) in certificates.into_iter().filter(|(_, given)| *given && !encrypted) {
        faults.push(pointer, "is for endpoints by https alone");
    }
}

/// What of an `Authorization` may be shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuthorizationView {
    #[serde(rename = "type")]
    kind: AuthorizationKind,
    /// `[redacted]`.
    token: &'static str,
}

impl AuthorizationView {
    pub(super) fn of(authorization: &Authorization) -> AuthorizationView {
        let Authorization::Bearer { .. } = authorization;
        AuthorizationView { kind: AuthorizationKind::Bearer, token: REDACTED }
    }
}

/// What of a client's certificate may be shown.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientCertificateView {
    /// Hex SHA-256 of it, as `openssl x509 -fingerprint -sha256` has it but for the colons.
    sha256: String,
    /// Its last moment.
    not_after: Time,
}

impl ClientCertificateView {
    pub(super) fn of(certificate: &ClientCertificate) -> Option<ClientCertificateView> {
        let facts = facts(certificate)?;
        Some(ClientCertificateView { sha256: facts.sha256, not_after: Time(facts.not_after) })
    }
}
