//! What can be wrong with an address.

use std::{io, net::SocketAddr};

/// Why a server cannot be.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Others can reach the address, and there is no key.
    #[error(
        "{0} can be reached from other machines: set {variable} to a key that clients have to give, or leave out --host to \
         be reachable from this machine alone",
        variable = crate::access::KEY
    )]
    NoKey(SocketAddr),
    /// The key is none.
    #[error("{variable} is {0}: give a key of visible ASCII characters, at least 8 of them", variable = crate::access::KEY)]
    Key(&'static str),
    /// An origin that browsers would never send.
    #[error(
        "--allow-origin {0:?}: expected a scheme and a host such as http://localhost:3000, without a path"
    )]
    Origin(String),
    /// Another process has the address, or it is none of this machine's.
    #[error("cannot listen on {address}: {source}; give another port with --port")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system gives no threads or no sockets.
    #[error("serving: {0}")]
    Io(#[from] io::Error),
}
