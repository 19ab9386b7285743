//! gRPC over HTTP/2, as far as one message each way needs it.
//!
//! Source: the gRPC project's `doc/PROTOCOL-HTTP2.md`: a message is a byte that says whether it is
//! compressed, its length in four bytes, big-endian, and its content; the status follows in
//! trailers.

use crate::socket::MESSAGE_MAX;
use claviger_crypto::SecretBytes;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;

/// Bytes in front of a message.
const PREFIX: usize = 5;

/// A buffer for a message of at most `len` bytes.
pub(crate) fn begin(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX + len);
    out.extend_from_slice(&[0; PREFIX]);
    out
}

/// Writes the length of the message that was appended since [`begin`].
pub(crate) fn end(out: &mut [u8]) {
    let len = u32::try_from(out.len() - PREFIX).expect("messages are bounded far below 4 GiB");
    out[1..PREFIX].copy_from_slice(&len.to_be_bytes());
}

/// A request as it came: usually one piece of the connection's read buffer.
pub(crate) enum Received {
    /// In that buffer, which is not wiped: it is the connection's.
    Whole(Bytes),
    /// Put together from several pieces.
    Joined(SecretBytes),
}

impl Received {
    /// Reads a request to its end, of [`MESSAGE_MAX`] bytes at most.
    pub(crate) async fn read(mut body: Incoming) -> Result<Received, Status> {
        let Some(first) = next(&mut body).await? else {
            return Ok(Received::Whole(Bytes::new()));
        };
        if body.is_end_stream() {
            bounded(first.len())?;
            return Ok(Received::Whole(first));
        }
        let mut pieces = vec![first];
        let mut len = pieces[0].len();
        while let Some(piece) = next(&mut body).await? {
            len += piece.len();
            bounded(len)?;
            pieces.push(piece);
        }
        if pieces.len() == 1 {
            bounded(len)?;
            return Ok(Received::Whole(pieces.remove(0)));
        }
        let mut joined = Vec::with_capacity(len);
        pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
        Ok(Received::Joined(SecretBytes::new(joined)))
    }

    /// Its one message.
    pub(crate) fn message(&self) -> Result<&[u8], Status> {
        let bytes = match self {
            Received::Whole(bytes) => bytes,
            Received::Joined(bytes) => bytes.expose(),
        };
        let (prefix, message) = bytes
            .split_first_chunk::<PREFIX>()
            .ok_or_else(|| Status::internal("the request ends before its message"))?;
        let [compressed, len @ ..] = *prefix;
        match compressed {
            0 => {}
            1 => return Err(Status::unimplemented("no compression was agreed on")),
            _ => return Err(Status::internal("the request does not begin as gRPC has it")),
        }
        let len = u32::from_be_bytes(len) as usize;
        bounded(len)?;
        if message.len() != len {
            return Err(Status::internal("the request is not one whole message"));
        }
        Ok(message)
    }
}

fn bounded(len: usize) -> Result<(), Status> {
    if len > MESSAGE_MAX + PREFIX {
        return Err(Status::out_of_range(format!("a request has at most {MESSAGE_MAX} bytes")));
    }
    Ok(())
}

/// The next piece that is not empty. Trailers of a client mean nothing.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Status> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            },
        }
    }
}

/// The body of an answer.
pub(crate) enum Reply {
    /// A message that [`begin`] and [`end`] made.
    Message(Bytes),
    /// The status OK.
    Trailers,
    /// Nothing more.
    End,
    /// What tonic answers.
    Other(tonic::body::Body),
}

impl Reply {
    /// For a message that holds a seed: wiped once it is in the buffer of the connection, which is
    /// not: kube-apiserver, at the other end, keeps the same seed in its memory as well.
    pub(crate) fn secret(message: Vec<u8>) -> Reply {
        struct Wiped(SecretBytes);
        impl AsRef<[u8]> for Wiped {
            fn as_ref(&self) -> &[u8] {
                self.0.expose()
            }
        }
        Reply::Message(Bytes::from_owner(Wiped(SecretBytes::new(message))))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = match &mut *self {
            Reply::Message(message) => {
                let message = std::mem::take(message);
                (Reply::Trailers, Frame::data(message))
            }
            Reply::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                let status = HeaderName::from_static("grpc-status");
                trailers.insert(status, HeaderValue::from_static("0"));
                (Reply::End, Frame::trailers(trailers))
            }
            Reply::End => return Poll::Ready(None),
            Reply::Other(body) => return Pin::new(body).poll_frame(cx),
        };
        let (state, frame) = next;
        *self = state;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Message(_) | Reply::Trailers => false,
            Reply::End => true,
            Reply::Other(body) => body.is_end_stream(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn a_request_is_one_whole_message() {
        let read = |bytes: &[u8]| {
            let received = Received::Whole(Bytes::copy_from_slice(bytes));
            received.message().map(<[u8]>::to_vec).map_err(|status| status.code())
        };
        assert_eq!(read(&[0, 0, 0, 0, 2, 7, 8]), Ok(vec![7, 8]));
        assert_eq!(read(&[0, 0, 0, 0, 0]), Ok(Vec::new()));
        let too_long = u32::try_from(MESSAGE_MAX + PREFIX + 1).unwrap().to_be_bytes();
        for (bytes, code) in [
            (&[][..], Code::Internal),
            (&[0, 0, 0, 0], Code::Internal),
            (&[0, 0, 0, 0, 2, 7], Code::Internal),
            (&[0, 0, 0, 0, 1, 7, 8], Code::Internal),
            (&[1, 0, 0, 0, 1, 7], Code::Unimplemented),
            (&[2, 0, 0, 0, 1, 7], Code::Internal),
            (&[&[0][..], &too_long].concat(), Code::OutOfRange),
            (&[0, 255, 255, 255, 255, 7], Code::OutOfRange),
        ] {
            assert_eq!(read(bytes), Err(code), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_is_written_as_it_is_read() {
        let mut out = begin(3);
        out.extend_from_slice(b"abc");
        end(&mut out);
        assert_eq!(Received::Joined(SecretBytes::new(out)).message().unwrap(), b"abc");
    }
}
