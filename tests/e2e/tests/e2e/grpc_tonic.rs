//! gRPC of tonic, which most programs in Rust use: its client with Python's grpcio, and with its own server.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::future::Future;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_e2e::{Place, Spoken, free_port, listen_on, peer_server};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::server::StreamingService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

/// Messages as they are: what is tested is the way, not protobuf.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

fn method(name: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(name)
}

async fn calls(address: String) {
    let endpoint = Endpoint::from_shared(address).unwrap();
    // Pings on the way, for as long as there are calls.
    let endpoint = endpoint.timeout(Duration::from_secs(20)).http2_keep_alive_interval(Duration::from_millis(50));
    let mut client: Grpc<Channel> = Grpc::new(endpoint.connect().await.unwrap()).max_decoding_message_size(8 << 20);

    // One message each way, with metadata before and after.
    client.ready().await.unwrap();
    let mut request = Request::new(Bytes::from(vec![7; 4 << 20]));
    request.metadata_mut().insert("x-ask", "this".parse().unwrap());
    let answer = client.unary(request, method("/test.Way/Unary"), Raw).await.unwrap();
    assert_eq!(answer.metadata().get("x-initial").unwrap(), "this");
    assert_eq!(answer.metadata().get("x-trailing").unwrap(), "this");
    assert!(answer.into_inner() == vec![7; 4 << 20]);

    // Many from the client, many from the server, many both ways.
    client.ready().await.unwrap();
    let many = || Request::new(stream::iter((0..100_u8).map(|number| Bytes::from(vec![number; 1000]))));
    let sum = client.client_streaming(many(), method("/test.Way/ClientStream"), Raw).await.unwrap();
    assert_eq!(sum.into_inner(), "100 messages, 100000 bytes");
    client.ready().await.unwrap();
    let ask = Request::new(Bytes::from("50 20000"));
    let mut answers = client.server_streaming(ask, method("/test.Way/ServerStream"), Raw).await.unwrap().into_inner();
    for number in 0..50 {
        assert!(answers.message().await.unwrap().unwrap() == vec![number; 20_000]);
    }
    assert_eq!(answers.message().await.unwrap(), None);
    client.ready().await.unwrap();
    let mut answers = client.streaming(many(), method("/test.Way/Both"), Raw).await.unwrap().into_inner();
    for number in 0..100 {
        assert!(answers.message().await.unwrap().unwrap() == vec![number; 1000]);
    }
    assert_eq!(answers.message().await.unwrap(), None);

    // Errors, without a message before them and with.
    client.ready().await.unwrap();
    let error = client.unary(Request::new(Bytes::new()), method("/test.Way/Fail"), Raw).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "nicht möglich: 100 %"));
    assert_eq!(error.metadata().get("x-why").unwrap(), "told to");
    client.ready().await.unwrap();
    let ask = Request::new(Bytes::new());
    let mut answers = client.server_streaming(ask, method("/test.Way/FailLate"), Raw).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap(), "one");
    assert_eq!(answers.message().await.unwrap().unwrap(), "two");
    assert_eq!(answers.message().await.unwrap_err().code(), Code::ResourceExhausted);

    // Given up, which ends it at the server.
    client.ready().await.unwrap();
    let ask = Request::new(Bytes::new());
    let mut answers = client.server_streaming(ask, method("/test.Way/Hang"), Raw).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap(), "begun");
    drop(answers);
    let ended = async {
        loop {
            client.ready().await.unwrap();
            let ask = Request::new(Bytes::new());
            let count = client.unary(ask, method("/test.Way/Cancelled"), Raw).await.unwrap();
            if count.into_inner() == "1" {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the call ends at the server");
}

#[test]
fn tonic_calls_a_server_of_another_kind() {
    for place in [Place::Here, Place::pods()] {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        for way in place.ways(folder.path(), Spoken::HTTP, port) {
            // One for each, for it counts the calls that were given up.
            let _server = place.at_server(|| peer_server("grpc_server.py", port, folder.path()));
            way.at_client(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(calls(way.address()));
            });
        }
    }
}

/// The methods of `grpc_server.py`, by tonic.
#[derive(Clone)]
struct Methods {
    method: String,
    cancelled: Arc<AtomicU32>,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for Methods {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Messages>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.answer(request).await })
    }
}

impl Methods {
    async fn answer(self, request: Request<Streaming<Bytes>>) -> Result<Response<Messages>, Status> {
        let asked = request.metadata().get("x-ask").cloned();
        let mut messages = request.into_inner();
        let of = |messages: Vec<Result<Bytes, Status>>| -> Messages { Box::pin(stream::iter(messages)) };
        let answer = match self.method.as_str() {
            "/test.Way/Both" => Box::pin(messages),
            "/test.Way/Unary" => of(vec![Ok(messages.message().await?.unwrap_or_default())]),
            "/test.Way/ClientStream" => {
                let (mut count, mut size) = (0, 0);
                while let Some(message) = messages.message().await? {
                    (count, size) = (count + 1, size + message.len());
                }
                of(vec![Ok(Bytes::from(format!("{count} messages, {size} bytes")))])
            }
            "/test.Way/ServerStream" => {
                let asked = messages.message().await?.unwrap_or_default();
                let numbers: Vec<usize> =
                    str::from_utf8(&asked).unwrap().split(' ').map(|number| number.parse().unwrap()).collect();
                of((0..numbers[0]).map(|number| Ok(Bytes::from(vec![number as u8; numbers[1]]))).collect())
            }
            "/test.Way/Fail" => {
                let mut metadata = MetadataMap::new();
                metadata.insert("x-why", "told to".parse().unwrap());
                return Err(Status::with_metadata(Code::FailedPrecondition, "nicht möglich: 100 %", metadata));
            }
            "/test.Way/FailLate" => {
                of(vec![Ok(Bytes::from("one")), Ok(Bytes::from("two")), Err(Status::resource_exhausted("no more"))])
            }
            "/test.Way/Hang" => {
                let ends = CountsItsEnd(self.cancelled);
                let forever = stream::pending().map(move |message| {
                    let _ends = &ends;
                    message
                });
                Box::pin(of(vec![Ok(Bytes::from("begun"))]).chain(forever))
            }
            "/test.Way/Cancelled" => of(vec![Ok(Bytes::from(self.cancelled.load(Ordering::Relaxed).to_string()))]),
            other => return Err(Status::unimplemented(other)),
        };
        let mut response = Response::new(answer);
        if let Some(asked) = asked {
            response.metadata_mut().insert("x-initial", asked.clone());
            response.metadata_mut().insert("x-trailing", asked);
        }
        Ok(response)
    }
}

/// Dropped when its call ends.
struct CountsItsEnd(Arc<AtomicU32>);

impl Drop for CountsItsEnd {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Serves them on a thread that ends with the test's process.
fn serve(listener: TcpListener) {
    let serving = async move {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let cancelled = Arc::<AtomicU32>::default();
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let cancelled = Arc::clone(&cancelled);
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let method = request.uri().path().to_owned();
                let methods = Methods { method, cancelled: Arc::clone(&cancelled) };
                async move {
                    let mut grpc = tonic::server::Grpc::new(Raw).max_decoding_message_size(8 << 20);
                    Ok::<_, std::convert::Infallible>(grpc.streaming(methods, request).await)
                }
            });
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            connections.spawn(http2.serve_connection(TokioIo::new(stream), service));
        }
    };
    thread::spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(serving));
}

#[test]
fn tonic_calls_tonic() {
    for place in [Place::Here, Place::pods()] {
        // One for each way, for it counts the calls that were given up.
        let ways = if matches!(place, Place::Here) { 2 } else { 1 };
        for number in 0..ways {
            let listener = place.at_server(|| TcpListener::bind((listen_on(), 0))).unwrap();
            let port = listener.local_addr().unwrap().port();
            serve(listener);
            let folder = tempfile::tempdir().unwrap();
            let way = place.ways(folder.path(), Spoken::HTTP, port).swap_remove(number);
            way.at_client(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(calls(way.address()));
            });
        }
    }
}
