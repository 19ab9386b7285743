//! What a node agent says to the server, with its certificate.

use crate::config::{self, NodeConfig};
use crate::error::Error;
use crate::http::{Answer, CALL, Call, Http};
use crate::keys::node;
use claviger_domain::cluster::Observation;
use claviger_domain::id::JobId;
use claviger_wire::agent::{
    Acknowledgement, Certificate, CommitRequest, JobReport, JoinRequest, Lease, LeaseRequest,
    Nudge, RenewRequest, State,
};
use futures_util::stream::{Stream, try_unfold};
use reqwest::header::{ACCEPT, HeaderValue};
use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Silence after which a stream counts as dead. The server sends a comment every 5 seconds.
pub const SILENCE: Duration = Duration::from_secs(12);
/// Longest line of a stream: a nudge has under 100 bytes.
const LINE_MAX: usize = 4096;

/// The agents' side of the server. Cheap to clone.
#[derive(Clone)]
pub struct AgentApi {
    http: Http,
}

/// Nudges as they come. Ends, or gives one error and ends, when the connection does; whoever
/// reads it connects again, with a pause.
pub type NudgeStream = Pin<Box<dyn Stream<Item = Result<Nudge, Error>> + Send>>;

impl AgentApi {
    /// The server, seen by the agent with this certificate. After a renewal, connect anew.
    pub fn connect(config: &NodeConfig) -> Result<Self, Error> {
        Ok(Self { http: node(config)? })
    }

    /// Gets a node's first certificate for a one-time token. `ca` is PEM. Never retried here; while
    /// the token's hour lasts, the same request may be made again with the same key.
    pub async fn join(url: &str, ca: &str, request: &JoinRequest) -> Result<Certificate, Error> {
        let client = config::client(ca.as_bytes(), None)?;
        let http = Http { client, base: config::base(url)? };
        let call = Call::post("/agent/v1/join".to_owned()).json(request)?;
        http.send(&call, deadline()).await?.json()
    }

    /// Gets the node's next certificate.
    pub async fn renew(&self, request: &RenewRequest) -> Result<Certificate, Error> {
        self.post("renew", request).await?.json()
    }

    /// Everything the agent needs to know.
    pub async fn state(&self) -> Result<State, Error> {
        let call = Call::get("/agent/v1/state".to_owned());
        self.http.send(&call, deadline()).await?.json()
    }

    /// Says what the node looks like.
    pub async fn observe(&self, observation: &Observation) -> Result<(), Error> {
        self.post("observation", observation).await.map(|_| ())
    }

    /// Takes or keeps the lease. None while another agent holds it.
    pub async fn lease(&self, request: &LeaseRequest) -> Result<Option<Lease>, Error> {
        match self.post("lease", request).await {
            Ok(answer) => answer.json().map(Some),
            Err(Error::Refused { status: 409, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for one durable change. Refused with 409 when the lease or the revision is stale,
    /// or the rules forbid it; then nothing was changed. Unreachable: it may have been made, so
    /// read the state before planning again.
    pub async fn commit(&self, request: &CommitRequest) -> Result<State, Error> {
        let call = Call::post("/agent/v1/commit".to_owned()).json(request)?;
        self.http.send(&call, deadline()).await?.json()
    }

    /// Says that a key event was acted on.
    pub async fn acknowledge(&self, request: &Acknowledgement) -> Result<(), Error> {
        self.post("ack", request).await.map(|_| ())
    }

    /// Says how a job stands.
    pub async fn report(&self, job: JobId, report: &JobReport) -> Result<(), Error> {
        self.post(&format!("jobs/{job}"), report).await.map(|_| ())
    }

    /// Opens the stream of nudges.
    pub async fn stream(&self) -> Result<NudgeStream, Error> {
        let mut call = Call::get("/agent/v1/stream".to_owned());
        call.headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let response = self.http.open(&call, deadline()).await?;
        let base = self.http.base.clone();
        let open = (response, Events::default(), VecDeque::new());
        Ok(Box::pin(try_unfold(open, move |(mut response, mut events, mut ready)| {
            let base = base.clone();
            async move {
                loop {
                    if let Some(nudge) = ready.pop_front() {
                        return Ok(Some((nudge, (response, events, ready))));
                    }
                    let silent = |_| Error::Unreachable {
                        url: base.clone(),
                        what: format!("the stream was silent for {SILENCE:?}"),
                    };
                    match timeout(SILENCE, response.chunk()).await.map_err(silent)? {
                        Ok(Some(chunk)) => events.push(&chunk, &mut ready)?,
                        Ok(None) => return Ok(None),
                        Err(error) => return Err(Error::transport(&base, &error)),
                    }
                }
            }
        })))
    }

    /// A call that says the same when it is said twice.
    async fn post(&self, what: &str, body: &impl serde::Serialize) -> Result<Answer, Error> {
        let call = Call::post(format!("/agent/v1/{what}")).idempotent().json(body)?;
        self.http.send(&call, deadline()).await
    }
}

fn deadline() -> Instant {
    Instant::now() + CALL
}

/// Reads server-sent events (WHATWG HTML, section 9.2) as far as ours need it: `data` lines and
/// comments, lines ended by LF or CR LF.
#[derive(Default)]
struct Events {
    line: Vec<u8>,
    data: String,
}

impl Events {
    fn push(&mut self, chunk: &[u8], ready: &mut VecDeque<Nudge>) -> Result<(), Error> {
        for &byte in chunk {
            if byte != b'\n' {
                if self.line.len() >= LINE_MAX {
                    return Err(Error::protocol("a line of the stream is too long"));
                }
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = std::str::from_utf8(&line)
                .map_err(|_| Error::protocol("the stream is not UTF-8"))?;
            let line = line.strip_suffix('\r').unwrap_or(line);
            if let Some(data) = line.strip_prefix("data:") {
                if self.data.len() + data.len() > LINE_MAX {
                    return Err(Error::protocol("an event of the stream is too long"));
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            } else if line.is_empty() && !self.data.is_empty() {
                let nudge = serde_json::from_str(&std::mem::take(&mut self.data))
                    .map_err(|_| Error::protocol("an event of the stream is not a nudge"))?;
                ready.push_back(nudge);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&str]) -> Result<Vec<Nudge>, Error> {
        let (mut events, mut ready) = (Events::default(), VecDeque::new());
        for chunk in chunks {
            events.push(chunk.as_bytes(), &mut ready)?;
        }
        Ok(ready.into())
    }

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = ": hello\n\nevent: nudge\ndata: {\"revision\":1,\"event\":2}\n\n:\n\n\
                    data:{\"revision\":3,\r\ndata:\"event\":4}\r\n\r\ndata: {\"rev";
        let whole = [Nudge { revision: 1, event: 2 }, Nudge { revision: 3, event: 4 }];
        for cut in 0..text.len() {
            assert_eq!(read(&[&text[..cut], &text[cut..]]).unwrap(), whole);
        }
    }

    #[test]
    fn nonsense_and_floods_end_the_stream() {
        assert!(matches!(read(&["data: no\n\n"]), Err(Error::Protocol { .. })));
        assert!(matches!(read(&[&"x".repeat(LINE_MAX + 1)]), Err(Error::Protocol { .. })));
        let many = "data: aaaaaaaaaaaaaaaaaaaaaaa\n".repeat(LINE_MAX / 20);
        assert!(matches!(read(&[&many]), Err(Error::Protocol { .. })));
    }
}
