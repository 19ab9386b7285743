//! The proof that nobody answers any more where the API server did: a process may outlive what its
//! unit knows of it.

use reqwest::Url;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use thiserror::Error;

/// How long an address may take to refuse a connection. A node's own does so at once.
const CONNECT: Duration = Duration::from_secs(1);

/// It is not proven that the API server is gone.
#[derive(Debug, Error)]
pub enum NotSilent {
    /// Somebody accepts connections.
    #[error(
        "a process still answers at {0}, and it is none that the unit names; end it, or mend kube.url if that is no address of this node's own API server"
    )]
    Answers(SocketAddr),
    /// Nothing accepts a connection, and nothing refuses one.
    #[error("cannot tell whether a process still answers at {at}")]
    Unknown {
        /// Where.
        at: String,
        /// What happened instead.
        #[source]
        source: std::io::Error,
    },
}

/// Proves that nobody listens at `url`: each of its addresses refuses a connection. Takes a second
/// for each at most, but for the resolving of a name.
pub fn prove(url: &str) -> Result<(), NotSilent> {
    let unknown = |source| NotSilent::Unknown { at: url.to_owned(), source };
    let parsed = Url::parse(url).map_err(|e| unknown(std::io::Error::other(e)))?;
    let addresses = parsed.socket_addrs(|| None).map_err(unknown)?;
    let mut refused = false;
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_) => return Err(NotSilent::Answers(address)),
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => refused = true,
            // A name may have an address of a family that this machine does not have.
            Err(e) if matches!(e.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported) => {}
            Err(e) => return Err(unknown(e)),
        }
    }
    if refused { Ok(()) } else { Err(unknown(ErrorKind::AddrNotAvailable.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn only_a_refused_connection_proves_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("https://{address}");
        assert!(matches!(prove(&url), Err(NotSilent::Answers(at)) if at == address));
        drop(listener);
        prove(&url).unwrap();
        prove("https://localhost:1").unwrap();
        for nowhere in ["https://no.such.name.invalid:1", "nonsense"] {
            assert!(matches!(prove(nowhere), Err(NotSilent::Unknown { .. })), "{nowhere}");
        }
    }
}
