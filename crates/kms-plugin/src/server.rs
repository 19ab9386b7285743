//! The gRPC service: Encrypt and Decrypt over [`message`](crate::message) and
//! [`frame`](crate::frame), everything else by the code that is generated from the protos.
//!
//! It needs no router in front of it: it is the only service of its socket, and what it does not
//! know, the generated code refuses.

use crate::frame::{Received, Reply};
use crate::message::{self, Malformed, Stored};
use crate::proto::key_management_service_server::KeyManagementServiceServer;
use crate::service::Plugin;
use crate::socket::{CALL_TIMEOUT, MESSAGE_MAX};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;

/// The service of a [`Plugin`].
#[derive(Clone)]
pub(crate) struct KmsServer {
    plugin: Plugin,
    generated: KeyManagementServiceServer<Plugin>,
}

#[derive(Clone, Copy)]
enum Method {
    Encrypt,
    Decrypt,
    Other,
}

type Answer = Result<hyper::Response<Reply>, Status>;

impl KmsServer {
    pub(crate) fn new(plugin: Plugin) -> Self {
        let generated = KeyManagementServiceServer::new(plugin.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        Self { plugin, generated }
    }

    async fn answer(mut self, method: Method, request: hyper::Request<Incoming>) -> Answer {
        let reply = match method {
            Method::Encrypt => {
                let request = Received::read(request.into_body()).await?;
                let seed = message::encrypt_request(request.message()?)?;
                Reply::Message(Bytes::from(self.plugin.seal(seed)?))
            }
            Method::Decrypt => {
                let request = Received::read(request.into_body()).await?;
                let seed = self.plugin.open(Stored::parse(request.message()?)?).await?;
                Reply::secret(message::decrypt_response(seed.expose()))
            }
            Method::Other => {
                let Ok(answer) = self.generated.call(request.map(Body::new)).await;
                return Ok(answer.map(Reply::Other));
            }
        };
        let mut response = hyper::Response::new(reply);
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, grpc);
        Ok(response)
    }
}

impl hyper::service::Service<hyper::Request<Incoming>> for KmsServer {
    type Response = hyper::Response<Reply>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        let method = match request.uri().path() {
            "/v2.KeyManagementService/Encrypt" => Method::Encrypt,
            "/v2.KeyManagementService/Decrypt" => Method::Decrypt,
            _ => Method::Other,
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.clone().answer(method, request));
        Box::pin(async move {
            let late = |_| Err(Status::deadline_exceeded("the call took too long"));
            let refused = |status: Status| status.into_http::<Body>().map(Reply::Other);
            Ok(answer.await.unwrap_or_else(late).unwrap_or_else(refused))
        })
    }
}

impl From<Malformed> for Status {
    fn from(error: Malformed) -> Self {
        // As gRPC has it for what cannot be parsed.
        Status::internal(error.to_string())
    }
}
