//! The gRPC service: Encrypt and Decrypt over [`message`](crate::message), everything else by
//! the code that is generated from the protos.
//!
//! It needs no router in front of it: it is the only service of its socket, and says itself that
//! it does not know a method.

use crate::message::{self, Malformed, Stored};
use crate::proto::key_management_service_server::KeyManagementServiceServer;
use crate::service::Plugin;
use crate::socket::MESSAGE_MAX;
use claviger_crypto::SecretBytes;
use prost::bytes::{Buf, BufMut, Bytes};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};

/// First size of the buffers of a call. Longer messages make them grow.
const ENCRYPT: Buffers = Buffers { request: 128, response: 1024 };
const DECRYPT: Buffers = Buffers { request: 1024, response: 128 };

/// The service of a [`Plugin`].
#[derive(Clone)]
pub(crate) struct KmsServer {
    plugin: Plugin,
    generated: KeyManagementServiceServer<Plugin>,
}

impl KmsServer {
    pub(crate) fn new(plugin: Plugin) -> Self {
        let generated = KeyManagementServiceServer::new(plugin.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        Self { plugin, generated }
    }
}

impl Service<http::Request<Body>> for KmsServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path() {
            "/v2.KeyManagementService/Encrypt" => {
                let method = Encrypt(self.plugin.clone());
                Box::pin(async move { Ok(grpc(ENCRYPT).unary(method, request).await) })
            }
            "/v2.KeyManagementService/Decrypt" => {
                let method = Decrypt(self.plugin.clone());
                Box::pin(async move { Ok(grpc(DECRYPT).unary(method, request).await) })
            }
            _ => self.generated.call(request),
        }
    }
}

fn grpc(buffers: Buffers) -> Grpc<Buffers> {
    Grpc::new(buffers).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
}

struct Encrypt(Plugin);

impl UnaryService<Bytes> for Encrypt {
    type Response = Answer;
    type Future = Ready<Result<Response<Answer>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        // Nothing else has the buffer any more, so this is no copy, and it is wiped.
        let message = SecretBytes::new(request.into_inner().into());
        let answer = message::encrypt_request(message.expose())
            .map_err(Status::from)
            .and_then(|seed| self.0.seal(seed));
        ready(answer.map(|message| Response::new(Answer::Public(message))))
    }
}

struct Decrypt(Plugin);

impl UnaryService<Bytes> for Decrypt {
    type Response = Answer;
    type Future = BoxFuture<Response<Answer>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (plugin, message) = (self.0.clone(), request.into_inner());
        Box::pin(async move {
            let seed = plugin.open(Stored::parse(&message)?).await?;
            let message = message::decrypt_response(seed.expose());
            Ok(Response::new(Answer::Secret(SecretBytes::new(message))))
        })
    }
}

impl From<Malformed> for Status {
    fn from(error: Malformed) -> Self {
        // As gRPC has it for what cannot be parsed.
        Status::internal(error.to_string())
    }
}

/// An encoded answer.
enum Answer {
    Public(Vec<u8>),
    /// Wiped once it is in the buffer of the connection, which is not: kube-apiserver, at the
    /// other end, keeps the same seed in its memory as well.
    Secret(SecretBytes),
}

/// Messages as bytes, without the 8 KiB of buffer that tonic gives to each otherwise.
#[derive(Clone, Copy)]
struct Buffers {
    request: usize,
    response: usize,
}

impl Codec for Buffers {
    type Encode = Answer;
    type Decode = Bytes;
    type Encoder = Buffer;
    type Decoder = Buffer;

    fn encoder(&mut self) -> Buffer {
        Buffer(self.response)
    }

    fn decoder(&mut self) -> Buffer {
        Buffer(self.request)
    }
}

struct Buffer(usize);

impl Buffer {
    fn settings(&self) -> BufferSettings {
        // An answer is one message, so it is never yielded before its end.
        BufferSettings::new(self.0, MESSAGE_MAX)
    }
}

impl Encoder for Buffer {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, item: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let message = match &item {
            Answer::Public(message) => message.as_slice(),
            Answer::Secret(message) => message.expose(),
        };
        buffer.reserve(message.len());
        buffer.put_slice(message);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.settings()
    }
}

impl Decoder for Buffer {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.settings()
    }
}
