//! Which addresses webhooks may reach. Invariant: resolving a name and checking what it resolves to are one step, so that
//! a name cannot show one address to the check and another to the connection; whatever is not public is refused unless
//! `push.allow_networks` lists it. Never connects to anything.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use url::{Host, Url};

use crate::config;

/// Bytes of an endpoint's URL: what proxies and servers commonly take.
const ENDPOINT_BYTES_MAX: usize = 2048;
/// Names that are looked up at once. Each one may hold a thread of the runtime's blocking pool (512) until the system's
/// resolver gives up, and files need threads of that pool too.
const LOOKUPS_MAX: usize = 128;
/// How long a request waits for a name; the system's resolver may try on for longer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `10.0.0.0/8`, `::1/128`, or one bare address.
    ///
    /// # Errors
    /// A sentence for the operator when the text is no network.
    pub fn parse(text: &str) -> Result<Network, String> {
        let wrong = || format!("'{text}' is not a network such as 10.0.0.0/8 or fd00::/8");
        let (address, prefix) = match text.trim().split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.trim(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), |prefix| prefix.parse::<u8>().map_err(|_| wrong()))?;
        if prefix > longest {
            return Err(wrong());
        }
        Ok(Network { address, prefix })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                u32::from(network).checked_shr(shift) == u32::from(address).checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                u128::from(network).checked_shr(shift) == u128::from(address).checked_shr(shift)
            }
            _ => false,
        }
    }
}

/// An address that webhooks may not reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {kind}; webhooks go to public addresses only, unless push.allow_networks lists the network")]
pub struct AddressRefused {
    /// The address.
    pub address: IpAddr,
    /// What it is: `a loopback address`, ….
    pub kind: &'static str,
}

/// Why a name gave no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// It resolves to refused addresses only.
    #[error("{host}: {refused}")]
    Refused {
        /// The name.
        host: Arc<str>,
        /// The first of them.
        refused: AddressRefused,
    },
    /// It does not resolve.
    #[error("{host} does not resolve: {reason}")]
    Failed {
        /// The name.
        host: Arc<str>,
        /// The resolver's word.
        reason: Arc<str>,
    },
}

/// Decides which addresses may be reached.
#[derive(Debug, Clone, Default)]
pub struct AddressGuard {
    allowed: Arc<[Network]>,
}

impl AddressGuard {
    /// Reads `push.allow_networks`.
    ///
    /// # Errors
    /// A sentence for the operator when an entry is no network.
    pub fn new(settings: &config::Push) -> Result<AddressGuard, String> {
        let networks = settings.allow_networks.iter().map(|network| Network::parse(network));
        Ok(AddressGuard { allowed: networks.collect::<Result<Vec<_>, _>>()?.into() })
    }

    /// Whether the address may be reached.
    ///
    /// # Errors
    /// What kind of address it is, when it may not.
    pub fn check(&self, address: IpAddr) -> Result<(), AddressRefused> {
        // `::ffff:10.0.0.1` is 10.0.0.1, for the list of allowed networks too.
        let address = address.to_canonical();
        match kind_of(address) {
            Some(kind) if !self.allowed.iter().any(|network| network.contains(address)) => {
                Err(AddressRefused { address, kind })
            }
            _ => Ok(()),
        }
    }

    /// [`AddressGuard::check`] for a URL whose host is an address: such a host is never looked up, so the resolver does
    /// not see it.
    ///
    /// # Errors
    /// When it is an address that may not be reached.
    pub fn check_literal(&self, url: &Url) -> Result<(), AddressRefused> {
        match url.host() {
            Some(Host::Ipv4(address)) => self.check(address.into()),
            Some(Host::Ipv6(address)) => self.check(address.into()),
            _ => Ok(()),
        }
    }
}

/// What an address is, if it is not a public one.
fn kind_of(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => kind_of_v4(address),
        IpAddr::V6(address) => kind_of_v6(address),
    }
}

/// The IANA IPv4 Special-Purpose Address Registry, and two metadata services outside it.
fn kind_of_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        // AWS, Google, Azure and most others; Alibaba; Azure's wire server.
        [169, 254, 169, 254] | [100, 100, 100, 200] | [168, 63, 129, 16] => Some("a metadata service"),
        [0, ..] => Some("an unspecified address"),
        [127, ..] => Some("a loopback address"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("a private address"),
        [100, 64..=127, ..] => Some("a carrier's shared address"),
        [169, 254, ..] => Some("a link-local address"),
        [255, 255, 255, 255] => Some("the broadcast address"),
        [224..=239, ..] => Some("a multicast address"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("an address for documentation"),
        [198, 18..=19, ..] => Some("an address for benchmarks"),
        [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => Some("a reserved address"),
        _ => None,
    }
}

/// The IANA IPv6 Special-Purpose Address Registry. Only what is known to be public passes: global unicast (2000::/3)
/// less its special parts, and translations of public IPv4 addresses.
fn kind_of_v6(address: Ipv6Addr) -> Option<&'static str> {
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        kind_of_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        // NAT64 (RFC 6052) and 6to4 (RFC 3056): the IPv4 address inside is what would be reached.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254] => Some("a metadata service"),
        [0xfc00..=0xfdff, ..] => Some("a private address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Some("an address for documentation"),
        // Protocol assignments, Teredo, ORCHID, benchmarks.
        [0x2001, 0..=0x01ff, ..] => Some("a reserved address"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("a reserved address"),
    }
}

/// Reads a Push subscription's endpoint.
///
/// # Errors
/// A sentence for the sender: not absolute, not `https` (unless `push.allow_http`), with credentials or a fragment, or
/// an address that may not be reached. A name is judged at each connection, by what it then resolves to.
pub fn validate_endpoint(url: &str, settings: &config::Push) -> Result<Url, String> {
    if url.len() > ENDPOINT_BYTES_MAX {
        return Err(format!("consumerEndpoint is longer than {ENDPOINT_BYTES_MAX} bytes"));
    }
    // The parser would leave some of them out: what is shown would not be what is asked.
    if url.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return Err("consumerEndpoint holds a space or a control character; percent-encode it".to_owned());
    }
    let parsed = Url::parse(url).map_err(|error| format!("consumerEndpoint is not an absolute URL: {error}"))?;
    match parsed.scheme() {
        "https" => {}
        "http" if settings.allow_http => {}
        "http" => return Err("consumerEndpoint must be https (push.allow_http is not set)".to_owned()),
        other => return Err(format!("consumerEndpoint must be https, not {other}")),
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("consumerEndpoint holds credentials; put them into headers, where they are kept secret".to_owned());
    }
    if parsed.fragment().is_some() {
        return Err("consumerEndpoint has a fragment, which is never sent".to_owned());
    }
    if parsed.port() == Some(0) {
        return Err("consumerEndpoint has port 0, which nothing listens on".to_owned());
    }
    AddressGuard::new(settings)?.check_literal(&parsed).map_err(|refused| format!("consumerEndpoint: {refused}"))?;
    Ok(parsed)
}

type LookupFuture = Pin<Box<dyn Future<Output = Result<Arc<[SocketAddr]>, LookupError>> + Send>>;
type FoundFuture = Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>>;
/// What says which addresses a name has now: the system's resolver, or a test's word.
type NameService = Arc<dyn Fn(Arc<str>) -> FoundFuture + Send + Sync>;

/// Resolves names for the HTTP client and hands out only addresses that may be reached. Requests for one name at the same
/// time share one lookup, so a name that does not answer holds one thread and not one per request.
#[derive(Clone)]
pub struct GuardedResolver(Arc<ResolverState>);

struct ResolverState {
    guard: AddressGuard,
    names: NameService,
    permits: Arc<Semaphore>,
    /// The lookups under way; at most one a name in use, removed when they end.
    under_way: Mutex<HashMap<Arc<str>, Shared<LookupFuture>>>,
}

impl GuardedResolver {
    /// A resolver that hands out what `guard` lets pass.
    #[must_use]
    pub fn new(guard: AddressGuard) -> GuardedResolver {
        GuardedResolver::asking(guard, Arc::new(|host| Box::pin(ask_the_system(host))))
    }

    /// The same over another source of names.
    pub(super) fn asking(guard: AddressGuard, names: NameService) -> GuardedResolver {
        let permits = Arc::new(Semaphore::new(LOOKUPS_MAX));
        GuardedResolver(Arc::new(ResolverState { guard, names, permits, under_way: Mutex::default() }))
    }

    fn lookup(&self, host: &str) -> Shared<LookupFuture> {
        let mut under_way = self.0.under_way.lock();
        if let Some(lookup) = under_way.get(host) {
            return lookup.clone();
        }
        let host: Arc<str> = host.into();
        let task = tokio::spawn(resolve(Arc::clone(&self.0), Arc::clone(&host)));
        let name = Arc::clone(&host);
        let ended: LookupFuture = Box::pin(async move {
            task.await
                .unwrap_or_else(|_| Err(LookupError::Failed { host: name, reason: "the lookup was ended".into() }))
        });
        let lookup = ended.shared();
        under_way.insert(host, lookup.clone());
        lookup
    }
}

async fn ask_the_system(host: Arc<str>) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((&*host, 0)).await?.collect())
}

/// One lookup, in a task of its own: it ends with the system's resolver, not with the request that began it.
async fn resolve(state: Arc<ResolverState>, host: Arc<str>) -> Result<Arc<[SocketAddr]>, LookupError> {
    let _permit = state.permits.acquire().await.expect("the semaphore is never closed");
    let found = (state.names)(Arc::clone(&host)).await;
    state.under_way.lock().remove(&host);
    let found =
        found.map_err(|error| LookupError::Failed { host: Arc::clone(&host), reason: error.to_string().into() })?;
    let mut refused = None;
    let mut allowed = Vec::with_capacity(found.len());
    for address in found {
        match state.guard.check(address.ip()) {
            Ok(()) => allowed.push(address),
            Err(this) => {
                refused.get_or_insert(this);
            }
        }
    }
    match refused {
        Some(refused) if allowed.is_empty() => Err(LookupError::Refused { host, refused }),
        None if allowed.is_empty() => Err(LookupError::Failed { host, reason: "it has no addresses".into() }),
        _ => Ok(allowed.into()),
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let slow =
                || LookupError::Failed { host: name.as_str().into(), reason: "the resolver took too long".into() };
            let found =
                tokio::time::timeout(LOOKUP_TIMEOUT, resolver.lookup(name.as_str())).await.map_err(|_| slow())??;
            let count = found.len();
            let addresses: Addrs = Box::new((0..count).map(move |at| found[at]));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(allow_http: bool, networks: &[&str]) -> config::Push {
        config::Push {
            allow_http,
            allow_networks: networks.iter().map(|&network| network.to_owned()).collect(),
            concurrency_max: 8,
            requests_max: 1,
        }
    }

    fn guard(networks: &[&str]) -> AddressGuard {
        AddressGuard::new(&settings(true, networks)).unwrap()
    }

    #[test]
    fn what_is_not_public_is_refused() {
        let refused = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for address in refused {
            assert!(guard(&[]).check(address.parse().unwrap()).is_err(), "{address}");
        }
    }

    #[test]
    fn what_is_public_passes() {
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "2001:4860:4860::8888",
        ];
        for address in public {
            assert_eq!(guard(&[]).check(address.parse().unwrap()), Ok(()), "{address}");
        }
    }

    #[test]
    fn listed_networks_pass_and_no_more() {
        let guard = guard(&["127.0.0.0/8", "fd00::/8", "10.1.2.3"]);
        for address in ["127.0.0.1", "::ffff:127.9.9.9", "fd12::1", "10.1.2.3"] {
            assert_eq!(guard.check(address.parse().unwrap()), Ok(()), "{address}");
        }
        for address in ["10.1.2.4", "::1", "192.168.0.1", "fc00::1"] {
            assert!(guard.check(address.parse().unwrap()).is_err(), "{address}");
        }
        let all = AddressGuard::new(&settings(true, &["0.0.0.0/0", "::/0"])).unwrap();
        assert_eq!(all.check("10.0.0.1".parse().unwrap()), Ok(()));
        assert_eq!(all.check("::1".parse().unwrap()), Ok(()));
    }

    #[test]
    fn networks_are_read_or_refused_with_a_reason() {
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "example.com", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(Network::parse(bad).unwrap_err().contains("is not a network"), "{bad}");
        }
    }

    #[test]
    fn every_way_to_write_an_address_is_the_same_address() {
        let hosts = [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.1.",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[0:0:0:0:0:ffff:7f00:1]",
            "%31%32%37.0.0.1",
            "①②⑦.0.0.1",
            "169.254.169.254",
            "0",
        ];
        for host in hosts {
            let error = validate_endpoint(&format!("https://{host}/hook"), &settings(false, &[])).unwrap_err();
            assert!(error.contains("public addresses only"), "{host}: {error}");
        }
        assert!(validate_endpoint("http://127.0.0.1:8080/hook", &settings(true, &["127.0.0.0/8"])).is_ok());
    }

    #[test]
    fn endpoints_are_absolute_https_and_plain() {
        let strict = settings(false, &[]);
        assert!(validate_endpoint("https://example.com/hook?a=b", &strict).is_ok());
        for (bad, word) in [
            ("/hook", "absolute"),
            ("example.com/hook", "absolute"),
            ("http://example.com", "push.allow_http"),
            ("ftp://example.com", "not ftp"),
            ("file:///etc/passwd", "not file"),
            ("https://user:secret@example.com", "credentials"),
            ("https://user@example.com", "credentials"),
            ("https://example.com/#part", "fragment"),
            ("https://example.com:0/", "port 0"),
            ("https://", "absolute"),
        ] {
            let error = validate_endpoint(bad, &strict).unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
            assert!(!error.contains("secret@"), "{error}");
        }
        assert!(validate_endpoint(&format!("https://example.com/{}", "x".repeat(3000)), &strict).is_err());
        assert!(validate_endpoint("http://example.com", &settings(true, &[])).is_ok());
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_loopback_is_refused_as_such() {
        let resolver = GuardedResolver::new(guard(&[]));
        let error = resolver.lookup("localhost").await.unwrap_err();
        assert!(
            matches!(&error, LookupError::Refused { refused, .. } if refused.kind == "a loopback address"),
            "{error}"
        );
        assert!(resolver.0.under_way.lock().is_empty(), "an ended lookup is forgotten");
        let resolver = GuardedResolver::new(guard(&["127.0.0.0/8", "::1"]));
        assert!(resolver.lookup("localhost").await.unwrap().iter().all(|address| address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn requests_for_one_name_share_a_lookup() {
        let resolver = GuardedResolver::new(guard(&[]));
        let (one, two) = (resolver.lookup("localhost"), resolver.lookup("localhost"));
        assert!(one.ptr_eq(&two));
    }
}
