//! By which listener a request came.

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
