//! What stays the same in all requests to one endpoint: where to, which headers, which keys. Invariant: a subscription's
//! own headers never replace one of ours or one that frames the request. Never shows a header's value: they are secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::credentials::{Credentials, CredentialsError, authorization_value};
use super::signature::{SecretError, SigningKeys};
use crate::catalog::model::{PushFormat, Secret, Subscription};
use crate::clock::Timestamp;
use crate::delivery::envelope::PushBody;
use crate::message::{Message, MessageId, TopicName};
use crate::store::Lease;

/// Sent with every request.
const USER_AGENT: &str = concat!("Sluice/", env!("CARGO_PKG_VERSION"));
/// Extra headers of one subscription at most: as many as a message may have.
const EXTRA_HEADERS_MAX: usize = 64;
/// Their names and values together: half of what common servers take as a whole head (16 KiB).
const EXTRA_HEADERS_BYTES_MAX: usize = 8 * 1024;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const TOPIC_NAME: HeaderName = HeaderName::from_static("x-topic-name");
const MESSAGE_ID: HeaderName = HeaderName::from_static("x-message-id");
const DELIVERY_ATTEMPT: HeaderName = HeaderName::from_static("x-delivery-attempt");

/// Names that a subscription's extra headers may not have: ours, and those that frame the request or its connection.
const RESERVED: [HeaderName; 20] = [
    WEBHOOK_ID,
    WEBHOOK_TIMESTAMP,
    WEBHOOK_SIGNATURE,
    TRACEPARENT,
    TRACESTATE,
    TOPIC_NAME,
    MESSAGE_ID,
    DELIVERY_ATTEMPT,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::USER_AGENT,
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
];

/// Why nothing can be sent for a subscription.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It has no endpoint, or one that is no URL.
    #[error("the subscription has no endpoint that can be sent to")]
    Endpoint,
    /// Its secret cannot sign.
    #[error("the subscription's signing secret cannot be used: {0}")]
    Secret(#[from] SecretError),
    /// One of its extra headers cannot be sent.
    #[error("{0}")]
    Header(String),
    /// Its certificates cannot be used.
    #[error("the subscription's certificates cannot be used: {0}")]
    Credentials(#[from] CredentialsError),
}

/// Checks a subscription's extra headers.
///
/// # Errors
/// A sentence for the sender, without the value.
pub fn validate_headers(headers: &BTreeMap<String, Secret>) -> Result<(), String> {
    if headers.len() > EXTRA_HEADERS_MAX {
        return Err(format!("headers: more than {EXTRA_HEADERS_MAX}"));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.expose().len()).sum();
    if bytes > EXTRA_HEADERS_BYTES_MAX {
        return Err(format!("headers: more than {EXTRA_HEADERS_BYTES_MAX} bytes of names and values"));
    }
    for (name, value) in headers {
        let (name, _) = parse_header(name, value)?;
        if is_reserved(&name) {
            return Err(format!("headers: '{name}' is set by Sluice itself"));
        }
    }
    Ok(())
}

fn parse_header(name: &str, value: &Secret) -> Result<(HeaderName, HeaderValue), String> {
    let parsed = HeaderName::try_from(name).map_err(|_| format!("headers: '{name}' is not a header name"))?;
    let mut value = HeaderValue::try_from(value.expose())
        .map_err(|_| format!("headers: the value of '{name}' holds characters that no header may have"))?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

fn is_reserved(name: &HeaderName) -> bool {
    RESERVED.contains(name) || name.as_str().starts_with("proxy-")
}

/// One endpoint, as one version of its subscription sets it.
#[derive(Clone)]
pub struct Target {
    /// Where to.
    pub url: Url,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// How bodies look.
    pub format: PushFormat,
    /// The topic, as receivers are told.
    pub topic: TopicName,
    /// What its connections are made with, beyond what all are made with.
    pub credentials: Option<Credentials>,
    extra: HeaderMap,
    keys: SigningKeys,
    /// Header values that every request shares.
    topic_value: HeaderValue,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("host", &self.url.host_str()).field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// One request to be made.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Which message: the `webhook-id`.
    pub id: MessageId,
    /// The body of all attempts.
    pub body: PushBody,
    /// 1 for the first.
    pub attempt: u32,
    /// It is not sent after this.
    pub deadline: Timestamp,
    /// Nor from then on; an answer may come later.
    pub expires_at: Option<Timestamp>,
    /// The trace of the publish.
    pub trace: Option<crate::message::TraceContext>,
}

impl Delivery {
    /// What sending this lease takes. `lease.message` is as the subscription's stages left it.
    #[must_use]
    pub fn of(target: &Target, lease: &Lease) -> Delivery {
        let message: &Message = &lease.message;
        Delivery {
            id: message.id,
            body: PushBody::of(target.format, &target.topic, lease.position, message),
            attempt: lease.attempt,
            deadline: lease.deadline,
            expires_at: message.meta.expires_at,
            trace: message.meta.trace.clone(),
        }
    }

    /// Whether sending it may begin.
    #[must_use]
    pub fn may_begin(&self, at: Timestamp) -> bool {
        at < self.deadline && self.expires_at.is_none_or(|expires| at < expires)
    }
}

impl Target {
    /// The endpoint of a Push subscription.
    ///
    /// # Errors
    /// When nothing can be sent to it.
    pub fn of(subscription: &Subscription) -> Result<Target, TargetError> {
        let settings = &subscription.settings;
        let url = settings.endpoint.as_deref().and_then(|url| Url::parse(url).ok()).ok_or(TargetError::Endpoint)?;
        let mut extra = HeaderMap::with_capacity(settings.headers.len());
        for (name, value) in settings.headers.iter().take(EXTRA_HEADERS_MAX) {
            let (name, value) = parse_header(name, value).map_err(TargetError::Header)?;
            if !is_reserved(&name) {
                extra.insert(name, value);
            }
        }
        if let Some(authorization) = &settings.authorization {
            let value = Secret::new(authorization_value(authorization));
            let (name, value) = parse_header(header::AUTHORIZATION.as_str(), &value).map_err(TargetError::Header)?;
            extra.insert(name, value);
        }
        Ok(Target {
            url,
            credentials: Credentials::of(settings)?,
            timeout: settings.ack_timeout,
            format: settings.format,
            topic: subscription.topic_name.clone(),
            extra,
            keys: SigningKeys::of(subscription)?,
            topic_value: HeaderValue::try_from(subscription.topic_name.as_str())
                .expect("topic names are letters, digits, dots, underscores and hyphens"),
        })
    }

    /// All headers of one request that is sent `now`.
    #[must_use]
    pub fn headers(&self, delivery: &Delivery, now: Timestamp) -> HeaderMap {
        // Ours come after the extra ones and replace them, should one have slipped through or bear an attribute's name.
        let mut headers = self.extra.clone();
        for (name, value) in &delivery.body.headers {
            headers.insert(name, value.clone());
        }
        let id = delivery.id.to_string();
        let ascii =
            |text: String| HeaderValue::try_from(text).expect("digits, hyphens and base64 are header characters");
        headers.insert(WEBHOOK_SIGNATURE, ascii(self.keys.sign(&id, now, &delivery.body.bytes)));
        headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now.0.div_euclid(1000)));
        headers.insert(MESSAGE_ID, ascii(id.clone()));
        headers.insert(WEBHOOK_ID, ascii(id));
        headers.insert(TOPIC_NAME, self.topic_value.clone());
        headers.insert(DELIVERY_ATTEMPT, HeaderValue::from(delivery.attempt));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if let Some(given) = &delivery.body.content_type {
            headers.insert(header::CONTENT_TYPE, media_type(given));
        }
        if let Some(trace) = &delivery.trace {
            // Stored as parsed, so it fits; what does not is left out rather than failing the delivery.
            headers.extend(HeaderValue::try_from(&*trace.parent).ok().map(|value| (TRACEPARENT, value)));
            let state = trace.state.as_deref().and_then(|state| HeaderValue::try_from(state).ok());
            headers.extend(state.map(|value| (TRACESTATE, value)));
        }
        headers
    }

    /// The headers of a request as they may be shown: the extra ones without their values.
    #[must_use]
    pub fn shown(&self, headers: &HeaderMap) -> BTreeMap<String, String> {
        let show = |(name, value): (&HeaderName, &HeaderValue)| {
            let value =
                if value.is_sensitive() { "[redacted]".into() } else { String::from_utf8_lossy(value.as_bytes()) };
            (name.to_string(), value.into_owned())
        };
        headers.iter().map(show).collect()
    }
}

/// A publisher's content type is any text: what no header may hold is sent as bytes of no known type.
fn media_type(content_type: &Arc<str>) -> HeaderValue {
    HeaderValue::try_from(&**content_type).unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::testing;
    use super::*;
    use crate::catalog::model::Authorization;
    use crate::message::{TopicId, TraceContext};

    fn delivery() -> Delivery {
        Delivery {
            id: MessageId::new(Timestamp(1_700_000_000_000), TopicId(1), 0, 1),
            body: PushBody {
                bytes: Bytes::from_static(b"{}"),
                content_type: Some("application/json".into()),
                headers: vec![(HeaderName::from_static("ce-id"), HeaderValue::from_static("1"))],
            },
            attempt: 3,
            deadline: Timestamp::MAX,
            expires_at: None,
            trace: Some(TraceContext { parent: "00-a-b-01".into(), state: Some("v=1".into()) }),
        }
    }

    #[test]
    fn extra_headers_are_sent_but_never_replace_ours() {
        let mut subscription = testing::subscription("https://example.com/");
        for (name, value) in
            [("Webhook-Id", "forged"), ("X-Team", "blue"), ("CONTENT-TYPE", "x"), ("Host", "x"), ("Ce-Id", "x")]
        {
            subscription.settings.headers.insert(name.to_owned(), Secret::new(value.to_owned()));
        }
        let target = Target::of(&subscription).unwrap();
        let delivery = delivery();
        let headers = target.headers(&delivery, Timestamp(1_700_000_000_999));
        let is = |name: &str, value: &str| assert_eq!(headers[name], value, "{name}");
        is("webhook-id", &delivery.id.to_string());
        is("x-message-id", &delivery.id.to_string());
        is("webhook-timestamp", "1700000000");
        is("x-topic-name", "orders");
        is("x-delivery-attempt", "3");
        is("content-type", "application/json");
        is("traceparent", "00-a-b-01");
        is("tracestate", "v=1");
        is("x-team", "blue");
        is("ce-id", "1");
        assert_eq!(headers.get_all("ce-id").iter().count(), 1);
        assert!(headers["user-agent"].to_str().unwrap().starts_with("Sluice/"));
        assert!(!headers.contains_key("host"));
        let shown = target.shown(&headers);
        assert_eq!(shown["x-team"], "[redacted]");
        assert_eq!(shown["x-topic-name"], "orders");
    }

    #[test]
    fn a_token_goes_out_and_is_never_shown() {
        let mut subscription = testing::subscription("https://example.com/");
        let token = Secret::new("t0k3n".to_owned());
        subscription.settings.authorization = Some(Authorization::Bearer { token });
        let target = Target::of(&subscription).unwrap();
        let headers = target.headers(&delivery(), Timestamp(0));
        assert_eq!(headers["authorization"], "Bearer t0k3n");
        assert_eq!(target.shown(&headers)["authorization"], "[redacted]");
        assert!(!format!("{target:?} {headers:?}").contains("t0k3n"));
    }

    #[test]
    fn extra_headers_are_checked_when_they_are_set() {
        let of = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), Secret::new(value.to_owned()))]);
        assert_eq!(validate_headers(&of("Authorization", "Bearer x")), Ok(()));
        for (name, value) in [("webhook-signature", "x"), ("Transfer-Encoding", "x"), ("Proxy-Authorization", "x")] {
            assert!(validate_headers(&of(name, value)).unwrap_err().contains("set by Sluice"), "{name}");
        }
        assert!(validate_headers(&of("no good", "x")).unwrap_err().contains("not a header name"));
        let error = validate_headers(&of("x", "hidden\r\ninjected: 1")).unwrap_err();
        assert!(!error.contains("hidden"), "{error}");
        assert!(validate_headers(&of("x", &"y".repeat(9000))).is_err());
    }

    #[test]
    fn a_content_type_that_no_header_may_hold_does_not_stop_a_delivery() {
        assert_eq!(media_type(&"text/plain\r\nx: y".into()), "application/octet-stream");
    }
}
