//! By which network and from which address a request came, and whether its instance takes it.
//! The socket tells. A header counts only as far as a configured proxy wrote it, since whoever
//! calls can write what he likes there.

use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::listen::Peer;
use axum::http::{Extensions, HeaderMap, StatusCode};
use claviger_domain::id::InstanceId;
use claviger_store::policies::{self, InstancePolicyKind};
use claviger_store::{StoreError, Tx};
use claviger_wire::kp::policies::{AllowedIp, AllowedNetwork};
use std::net::{IpAddr, SocketAddr};

/// The network that a listener serves. The accept loop puts it into the request; its absence
/// means the private one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The operator's own.
    #[default]
    Private,
    /// Whoever can reach it.
    Public,
}

/// What an instance says of networks when it lets anyone come by both.
pub const BOTH: &str = "public-and-private";
/// What it says when only the private one counts.
pub const PRIVATE_ONLY: &str = "private-only";

/// Where a request came from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin {
    /// The peer of its socket, or of the proxy's; none for a request that came by no socket.
    pub address: Option<IpAddr>,
    /// The network of its listener.
    pub network: Network,
}

impl Origin {
    /// As the accept loop noted it.
    pub fn of(extensions: &Extensions) -> Origin {
        Origin {
            // An IPv4 peer of an IPv6 socket is an IPv4 peer.
            address: extensions.get().map(|Peer(peer)| peer.to_canonical()),
            network: extensions.get().copied().unwrap_or_default(),
        }
    }
}

/// Whether an `allowed_network` of this text takes requests by `network`. A text that is not
/// known takes the private ones only.
pub fn network_allowed(policy: &str, network: Network) -> bool {
    network == Network::Private || policy == BOTH
}

/// Addresses that begin alike: a subnet in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    bits: u8,
}

impl Subnet {
    /// Out of text; none if it is not one.
    pub fn parse(text: &str) -> Option<Subnet> {
        let (address, bits) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        // No sign and no leading zeros: one way to write each subnet.
        let sane =
            bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
        let bits: u8 = bits.parse().ok().filter(|_| sane)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Subnet { address, bits })
    }

    /// Of one address alone.
    pub fn of(address: IpAddr) -> Subnet {
        Subnet { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether it has this address.
    pub fn has(&self, address: IpAddr) -> bool {
        // The bits that count are at the upper end; a shift by all of them leaves nothing.
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let apart = own.to_bits() ^ other.to_bits();
                apart.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let apart = own.to_bits() ^ other.to_bits();
                apart.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Proxies between a client and this server that are looked through; more stand in no path.
const PROXIES_MAX: usize = 16;

/// Who called, where `peer` is the other end of the socket: itself, unless it is one of `proxies`.
/// Then it is the last one in the path that is none of them. The path is what proxies append to
/// `X-Forwarded-For`, or to `Forwarded` (RFC 7239, section 5.2); what stands left of
/// the one who is found was written by himself. Where a request has both and they differ, one of them
/// is not the proxy's: then nobody before the proxy is believed.
pub(crate) fn client(peer: IpAddr, headers: &HeaderMap, proxies: &[Subnet]) -> IpAddr {
    let peer = peer.to_canonical();
    let listed = path(peer, headers, "x-forwarded-for", proxies, address);
    let forwarded = path(peer, headers, "forwarded", proxies, forwarded_for);
    match (listed, forwarded) {
        (Some(one), Some(other)) if one != other => peer,
        (Some(found), _) | (None, Some(found)) => found,
        (None, None) => peer,
    }
}

/// The same by one header; none if it is not there.
fn path(
    peer: IpAddr,
    headers: &HeaderMap,
    name: &str,
    proxies: &[Subnet],
    hop: fn(&str) -> Option<IpAddr>,
) -> Option<IpAddr> {
    let mut lines = headers.get_all(name).iter().rev().peekable();
    lines.peek()?;
    // From right to left, since each proxy appends.
    let hops = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    let mut at = peer;
    for hop in hops.map(|text| hop(text.trim())).take(PROXIES_MAX) {
        if !trusted(at, proxies) {
            break;
        }
        // Who hides before a proxy is not known: the proxy stands for him.
        let Some(hop) = hop else { break };
        at = hop;
    }
    Some(at)
}

/// Whether an address is a proxy's.
pub(crate) fn trusted(address: IpAddr, proxies: &[Subnet]) -> bool {
    proxies.iter().any(|proxy| proxy.has(address.to_canonical()))
}

/// An address, with or without a port: `192.0.2.1:80`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let found = bare.parse().or_else(|_| text.parse().map(|at: SocketAddr| at.ip()));
    found.ok().map(|address: IpAddr| address.to_canonical())
}

/// The `for` of an element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut of_client = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = of_client.next()?;
    address(value.trim().trim_matches('"'))
}

/// Whether the instance takes calls from where the caller is. Addresses do not bind a service
/// that calls as a resource of its own, such as a cluster; networks bind everyone.
pub(crate) fn admit(
    tx: &Tx<'_>,
    instance: InstanceId,
    caller: &Caller,
    any_address: bool,
) -> Result<(), KpError> {
    // Who has nothing to do with the instance is refused by what follows, and learns no policy.
    if !caller.sees(instance) {
        return Ok(());
    }
    let damaged = || StoreError::Damaged("attributes of an instance policy".to_owned());
    for (kind, attributes) in policies::gates(tx, instance)? {
        if kind == InstancePolicyKind::AllowedNetwork {
            let policy: AllowedNetwork =
                serde_json::from_str(&attributes).map_err(|_| damaged())?;
            if !network_allowed(&policy.allowed_network, caller.trace.origin.network) {
                let what = "The instance takes calls by the private network only; use the private endpoint";
                let code = "CONFIG_RULE_CONFLICT_ERR";
                return Err(KpError::new(StatusCode::FORBIDDEN, code, what));
            }
        } else if caller.crn.is_none() && !any_address {
            let policy: AllowedIp = serde_json::from_str(&attributes).map_err(|_| damaged())?;
            let allowed = caller.trace.origin.address.is_some_and(|address| {
                let subnets = policy.allowed_ip.iter().filter_map(|text| Subnet::parse(text));
                subnets.into_iter().any(|subnet| subnet.has(address))
            });
            if !allowed {
                return Err(KpError::unauthorized());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_have_what_they_say() {
        let rows = [
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.0.0/16", "10.2.0.1", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("10.1.2.3/32", "10.1.2.2", false),
            ("10.1.2.3/16", "10.1.9.9", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db8::1", true),
            ("::1/128", "::1", true),
        ];
        for (subnet, address, has) in rows {
            let subnet = Subnet::parse(subnet).expect(subnet);
            assert_eq!(
                subnet.has(address.parse().expect("an address")),
                has,
                "{subnet:?} {address}"
            );
        }
        for bad in [
            "10.1.2.3",
            "10.1.2.3/33",
            "::1/129",
            "10.1.2/8",
            "10.1.2.3/-1",
            "x/8",
            "",
            "/",
            "1.2.3.4/08",
            "1.2.3.4/+8",
        ] {
            assert_eq!(Subnet::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_header_counts_as_far_as_a_proxy_wrote_it() {
        let proxies = ["10.0.0.0/8", "2001:db8:f::/48"].map(|text| Subnet::parse(text).unwrap());
        let xff = "x-forwarded-for";
        for (what, peer, headers, want) in [
            ("no proxy, no header", "192.0.2.1", vec![], "192.0.2.1"),
            (
                "nobody is believed but a proxy",
                "192.0.2.1",
                vec![(xff, "198.51.100.1")],
                "192.0.2.1",
            ),
            ("a proxy without a header", "10.0.0.1", vec![], "10.0.0.1"),
            ("the one before the proxy", "10.0.0.1", vec![(xff, "198.51.100.1")], "198.51.100.1"),
            (
                "what he wrote himself",
                "10.0.0.1",
                vec![(xff, "1.1.1.1, 198.51.100.1")],
                "198.51.100.1",
            ),
            (
                "in lines of his own",
                "10.0.0.1",
                vec![(xff, "1.1.1.1"), (xff, "198.51.100.1")],
                "198.51.100.1",
            ),
            (
                "proxies in a row",
                "10.0.0.1",
                vec![(xff, "1.1.1.1,198.51.100.1, 10.2.2.2 ,10.3.3.3")],
                "198.51.100.1",
            ),
            ("all of them proxies", "10.0.0.1", vec![(xff, "10.2.2.2, 10.3.3.3")], "10.2.2.2"),
            ("who hides", "10.0.0.1", vec![(xff, "1.1.1.1, unknown")], "10.0.0.1"),
            ("who hides behind two", "10.0.0.1", vec![(xff, "x, 10.2.2.2")], "10.2.2.2"),
            ("nothing", "10.0.0.1", vec![(xff, "")], "10.0.0.1"),
            ("a port", "10.0.0.1", vec![(xff, "198.51.100.1:4711")], "198.51.100.1"),
            ("six", "2001:db8:f::1", vec![(xff, "[2001:db8::9]:80")], "2001:db8::9"),
            ("four in six", "::ffff:10.0.0.1", vec![(xff, "::ffff:198.51.100.1")], "198.51.100.1"),
            (
                "by the standard",
                "10.0.0.1",
                vec![("forwarded", "for=1.1.1.1, proto=https; For=\"[2001:db8::9]:80\";by=x")],
                "2001:db8::9",
            ),
            (
                "a quote that stays open",
                "10.0.0.1",
                vec![("forwarded", "for=\"a, for=1.2.3.4")],
                "1.2.3.4",
            ),
            ("a name", "10.0.0.1", vec![("forwarded", "for=_hidden")], "10.0.0.1"),
            ("no for", "10.0.0.1", vec![("forwarded", "for=1.1.1.1, by=10.0.0.2")], "10.0.0.1"),
            (
                "both say the same",
                "10.0.0.1",
                vec![(xff, "198.51.100.1"), ("forwarded", "for=198.51.100.1")],
                "198.51.100.1",
            ),
            (
                "one is not the proxy's",
                "10.0.0.1",
                vec![(xff, "198.51.100.1"), ("forwarded", "for=10.9.9.9")],
                "10.0.0.1",
            ),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, value.parse().expect("a value"));
            }
            let found = client(peer.parse().expect("an address"), &map, &proxies);
            assert_eq!(found.to_string(), want, "{what}");
        }
        let mut long = HeaderMap::new();
        long.append(xff, vec!["10.1.1.1"; 1000].join(",").parse().expect("a value"));
        assert_eq!(client("10.0.0.1".parse().unwrap(), &long, &proxies).to_string(), "10.1.1.1");
        assert_eq!(client("10.0.0.1".parse().unwrap(), &long, &[]).to_string(), "10.0.0.1");
    }

    #[test]
    fn networks() {
        assert!(network_allowed(PRIVATE_ONLY, Network::Private));
        assert!(!network_allowed(PRIVATE_ONLY, Network::Public));
        assert!(network_allowed(BOTH, Network::Public));
        assert!(!network_allowed("", Network::Public), "what is not known is not public");
    }
}
