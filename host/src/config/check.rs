//! Whether settings fit together. Invariant: each fault names the setting and says what would be right. Never changes one.

use std::net::IpAddr;

use super::{Config, Profile};
use crate::api::auth::token::{SECRET_BYTES_MIN, TOKEN_BYTES_MAX};
use crate::pipeline::PluginKeys;

/// Bytes of a request around its longest payload: names, headers of a message, the rest of the JSON.
const ENVELOPE_BYTES: u64 = 64 << 10;
/// A token must fit into a request's head with room for the rest; the table's lower bound of `head_bytes_max` sees to it.
const _: () = assert!(TOKEN_BYTES_MAX * 2 <= 16 << 10);

/// Bytes of a body that carries a payload of `max_message_size`: as a JSON text, where each quote takes two bytes.
pub(super) fn body_bytes_for(max_message_size: u64) -> u64 {
    max_message_size * 2 + ENVELOPE_BYTES
}

/// Adds what is wrong to `faults`.
pub(super) fn check(config: &Config, faults: &mut Vec<String>) {
    check_limits(config, faults);
    check_ports(config, faults);
    check_names(config, faults);
    for network in &config.push.allow_networks {
        if let Err(wrong) = check_network(network) {
            faults.push(format!("push.allow_networks: {wrong}"));
        }
    }
    if let Err(wrong) = PluginKeys::read(&config.plugins.trust.trusted_keys) {
        faults.push(format!("plugins.trusted_keys: {wrong}"));
    }
    if let Some(endpoint) = &config.telemetry.otlp_endpoint {
        let usable = url::Url::parse(endpoint)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some());
        if !usable {
            faults.push(format!("telemetry.otlp_endpoint takes a URL such as http://localhost:4318, not '{endpoint}'"));
        }
    }
    if let Err(error) = crate::telemetry::level(&config.telemetry.log_level) {
        faults.push(error.to_string());
    }
    if config.storage.is_some() && config.profile == Profile::Development && config.jwt.secret.is_none() {
        faults.push(
            "jwt.secret is not set: the brokers of one database have to have the same (SLUICE__JWT__SECRET; for example the \
             output of `openssl rand -hex 32`)"
                .to_owned(),
        );
    }
    if config.profile == Profile::Production {
        check_production(config, faults);
    }
}

/// What is allowed but should be known.
pub(super) fn warnings(config: &Config) -> Option<String> {
    let secret = config.jwt.secret.as_ref().filter(|secret| secret.expose().len() < SECRET_BYTES_MIN)?;
    Some(format!(
        "jwt.secret has {} bytes; HS256 is as strong as its name from {SECRET_BYTES_MIN} on, and production refuses less",
        secret.expose().len()
    ))
}

fn check_limits(config: &Config, faults: &mut Vec<String>) {
    let needed = body_bytes_for(config.messaging.max_message_size);
    if (config.limits.body_bytes_max as u64) < needed {
        faults.push(format!(
            "limits.body_bytes_max is {}, but a request with a message of messaging.max_message_size takes {needed}; \
             raise the one or lower the other",
            config.limits.body_bytes_max
        ));
    }
}

fn check_ports(config: &Config, faults: &mut Vec<String>) {
    if config.messaging.broker_port == Some(config.listen.port()) {
        faults.push(format!(
            "messaging.broker_port is {}, the port of listen, which serves the same: leave it out, or take another",
            config.listen.port()
        ));
    }
}

fn check_names(config: &Config, faults: &mut Vec<String>) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if config.node_id.is_empty() || config.node_id.len() > 255 || !config.node_id.bytes().all(plain) {
        faults.push(format!(
            "node_id takes 1 to 255 letters, digits, dots, hyphens or underscores, not '{}'",
            config.node_id
        ));
    }
}

fn check_network(text: &str) -> Result<(), String> {
    let wrong = || format!("'{text}' is not a network such as 10.0.0.0/8 or fd00::/8");
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let bits: u8 = bits.parse().map_err(|_| wrong())?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    if bits <= bits_max { Ok(()) } else { Err(wrong()) }
}

fn check_production(config: &Config, faults: &mut Vec<String>) {
    match &config.jwt.secret {
        None => faults.push(
            "jwt.secret is not set: the production profile takes it from you (SLUICE__JWT__SECRET, JWT__Secret or \
             JWT_SECRET; for example the output of `openssl rand -hex 32`)"
                .to_owned(),
        ),
        Some(secret) if secret.expose().len() < SECRET_BYTES_MIN => {
            faults.push(format!(
                "jwt.secret has {} bytes; HS256 takes at least {SECRET_BYTES_MIN}",
                secret.expose().len()
            ));
        }
        Some(_) => {}
    }
    if config.test_clock_file.is_some() {
        faults.push("test_clock_file is for tests and is refused with the production profile".to_owned());
    }
}
