//! gRPC between tonic, which most programs in Rust use, and Python's grpcio.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::stream;
use http::uri::PathAndQuery;
use outrigger_e2e::{Place, Spoken, free_port, peer_server};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

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
