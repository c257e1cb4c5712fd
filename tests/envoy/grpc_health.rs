//! gRPC health checks in a real Envoy with the reference configuration: gRPC's own client for
//! Python, tonic's, and frames by hand.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame};
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::filter::assert_sound;
use crate::support::config::reference_text;
use crate::support::{
    Envoy, EnvoyConfig, Upstream, checkout, grpcio, haven_wasm, load, run, wait_for,
};

/// The reference configuration; what fails stays out for longer than the test takes.
async fn reference(upstreams: &[Upstream]) -> Envoy {
    let addrs: Vec<SocketAddr> = upstreams.iter().map(|upstream| upstream.addr()).collect();
    let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
    let short = r#""consecutive_failures": 5, "open_duration": "10s""#;
    assert!(
        text.contains(short),
        "the breaker of endpoints in envoy.yaml"
    );
    let text = text.replace(
        short,
        r#""consecutive_failures": 5, "open_duration": "10m""#,
    );
    Envoy::start(EnvoyConfig::text(reference_text(
        &text,
        &addrs,
        &haven_wasm().unwrap(),
    )))
    .await
}

/// What gRPC's client for Python makes of it.
async fn python(addr: SocketAddr, names: &[&str]) -> Value {
    let mut command = Command::new("python3");
    command
        .arg(checkout("tests/envoy/grpc_client.py"))
        .arg(addr.to_string())
        .args(names);
    command.env(
        "PYTHONPATH",
        grpcio().unwrap_or_else(|error| panic!("{error}")),
    );
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What tonic's client makes of it: a status of the service, or of the call.
async fn tonic(addr: SocketAddr, names: &[&str]) -> Vec<String> {
    let channel = Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = HealthClient::new(channel);
    let mut answers = Vec::new();
    for name in names {
        let answer = client
            .check(HealthCheckRequest {
                service: (*name).to_owned(),
            })
            .await;
        answers.push(match answer {
            Ok(answer) => answer.into_inner().status().as_str_name().to_owned(),
            Err(status) => format!("{:?}", status.code()),
        });
    }
    let watch = client.watch(HealthCheckRequest::default()).await;
    answers.push(watch.map_or_else(
        |status| format!("{:?}", status.code()),
        |_| "a stream".to_owned(),
    ));
    answers
}

#[test]
fn clients_of_grpcs_own_get_it_right() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let mut envoy = reference(&upstreams).await;
        let long = "x".repeat(5000);
        assert_eq!(
            python(envoy.addr(), &["", "users", "nobody", "ü", &long]).await,
            json!({"check": {"": "SERVING", "users": "SERVING", "nobody": "NOT_FOUND", "ü": "NOT_FOUND", (long): "RESOURCE_EXHAUSTED"},
                   "watch": "UNIMPLEMENTED"})
        );
        assert_eq!(
            tonic(envoy.addr(), &["", "users", "nobody"]).await,
            ["SERVING", "SERVING", "NotFound", "Unimplemented"]
        );
        for upstream in &upstreams {
            upstream.set(|faults| faults.close = true).await;
        }
        // Not from the machine's own address: the client below is limited, and a health check
        // never.
        let client = crate::support::Client::h1_from(envoy.addr(), "127.0.0.31".parse().unwrap());
        wait_for("each worker knows that all endpoints are out", async || {
            load(&client, 20, 4, "/api/users", &[]).await;
            load(&envoy.h1(), 20, 8, "/readyz", &[]).await.count(503) == 20
        })
        .await;
        assert_eq!(
            python(envoy.addr(), &["", "users", "nobody"]).await["check"],
            json!({"": "NOT_SERVING", "users": "NOT_SERVING", "nobody": "NOT_FOUND"})
        );
        assert_eq!(
            tonic(envoy.addr(), &["", "users", "nobody"]).await,
            ["NOT_SERVING", "NOT_SERVING", "NotFound", "Unimplemented"]
        );
        assert_sound(&mut envoy).await;
    });
}

/// A body that comes in these pieces, each in a DATA frame of its own, and perhaps trailers.
struct Pieces(VecDeque<Frame<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// Sends a call of HTTP/2 with this body: the gRPC status, and the body of the answer.
async fn call(
    addr: SocketAddr,
    method: &str,
    pieces: &[&[u8]],
    trailers: bool,
) -> (String, Vec<u8>) {
    let stream = TokioIo::new(tokio::net::TcpStream::connect(addr).await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let mut frames: VecDeque<_> = pieces
        .iter()
        .map(|piece| Frame::data(Bytes::copy_from_slice(piece)))
        .collect();
    if trailers {
        frames.push_back(Frame::trailers(HeaderMap::from_iter([(
            "x-end".parse().unwrap(),
            "1".parse().unwrap(),
        )])));
    }
    let request = Request::post(format!("http://{addr}/grpc.health.v1.Health/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Pieces(frames))
        .unwrap();
    let exchange = async {
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let said = response.headers().get("grpc-status").cloned();
        let body = response.into_body().collect().await.unwrap();
        let status = said
            .or_else(|| body.trailers()?.get("grpc-status").cloned())
            .unwrap();
        (
            status.to_str().unwrap().to_owned(),
            body.to_bytes().to_vec(),
        )
    };
    let answer = tokio::time::timeout(crate::support::PATIENCE, exchange)
        .await
        .expect("an answer");
    connection.abort();
    answer
}

#[test]
fn frames_that_are_none_split_or_huge_have_a_clear_end() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let mut envoy = reference(&upstreams).await;
        let addr = envoy.addr();
        let serving = ("0".to_owned(), b"\0\0\0\0\x02\x08\x01".to_vec());
        let users: &[u8] = b"\0\0\0\0\x07\x0a\x05users";
        // As Kubernetes asks: the empty name, in one frame.
        assert_eq!(call(addr, "Check", &[b"\0\0\0\0\0"], false).await, serving);
        assert_eq!(call(addr, "Check", &[users], false).await, serving);
        let bytes: Vec<&[u8]> = users.chunks(1).collect();
        assert_eq!(
            call(addr, "Check", &bytes, false).await,
            serving,
            "a byte in each piece"
        );
        let huge = vec![0; 200_000];
        for (pieces, status) in [
            (&[][..], "13"),
            (&[&b""[..]], "13"),
            (&[b"\0\0\0"], "13"),
            (&[b"\0\xff\xff\xff\xff"], "13"),
            (&[users, b"x"], "13"),
            (&[b"\x01\0\0\0\0"], "13"),
            (&[b"\0\0\0\0\x02\x0a\x05"], "13"),
            (&[b"\0\0\0\0\x06\x0a\x04nob", b"o"], "5"),
            (&[&huge], "8"),
        ] {
            let said = call(addr, "Check", pieces, false).await;
            assert_eq!(
                (said.0.as_str(), said.1.len()),
                (status, 0),
                "{} pieces",
                pieces.len()
            );
        }
        assert_eq!(
            call(addr, "Check", &[b"\0\0\0\0\x03\x0a\x01x"], true)
                .await
                .0,
            "5",
            "trailers end a body, too"
        );
        assert_eq!(call(addr, "Check", &[users], true).await, serving);
        for method in ["Watch", "List"] {
            assert_eq!(call(addr, method, &[b"\0\0\0\0\0"], false).await.0, "12");
        }
        assert!(
            upstreams
                .iter()
                .all(|upstream| upstream.counters().requests == 0),
            "nobody else was asked"
        );
        assert_sound(&mut envoy).await;
    });
}
