//! haven as the endpoint discovery of the Envoy that runs it: what etcd names, Envoy has.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::filter::assert_sound;
use crate::support::etcd::Etcd;
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, Reserved, Route, Upstream, raw, run, wait_for,
};
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PREFIX: &str = "/services/users/";
const PATH: &str = "/v3/discovery:endpoints";

/// The filter whose upstream has its endpoints from etcd.
fn filter(discovery: &Value) -> Value {
    json!({
        "discovery": discovery,
        "upstreams": {"users": {"endpoints": {"etcd": {"cluster": "etcd", "prefix": PREFIX}}}},
        "routes": [{"name": "users", "upstream": "users"}],
    })
}

/// An Envoy with it that asks haven for endpoints after `refresh`, up to twice of it.
fn config(etcd: &Etcd, refresh: Duration, discovery: &Value) -> EnvoyConfig {
    EnvoyConfig::empty()
        .cluster(Cluster::served("users", refresh))
        .cluster(Cluster::new("etcd", [etcd.addr()]).plain())
        .route(Route::to("/", "users"))
        .haven(&filter(discovery))
}

const SOON: Duration = Duration::from_millis(100);

async fn put(etcd: &Etcd, name: &str, value: &Value) {
    let value = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    etcd.put(&format!("{PREFIX}{name}"), &value).await;
}

/// The hosts that Envoy's cluster has, by their addresses: weight, priority and zone.
async fn hosts(envoy: &Envoy) -> BTreeMap<String, (u64, u64, String)> {
    let page = envoy.admin_get("/clusters?format=json").await;
    let page: Value = serde_json::from_str(&page).unwrap();
    let clusters = page["cluster_statuses"].as_array().unwrap();
    let users = clusters.iter().find(|it| it["name"] == "users").unwrap();
    let hosts = users["host_statuses"].as_array();
    hosts
        .into_iter()
        .flatten()
        .map(|host| {
            let socket = &host["address"]["socket_address"];
            let ip: IpAddr = socket["address"].as_str().unwrap().parse().unwrap();
            let port = u16::try_from(socket["port_value"].as_u64().unwrap()).unwrap();
            let zone = host["locality"]["zone"].as_str().unwrap_or_default();
            let (weight, priority) = (&host["weight"], &host["priority"]);
            let number = |it: &Value| it.as_u64().unwrap_or(0);
            (
                SocketAddr::new(ip, port).to_string(),
                (number(weight), number(priority), zone.to_owned()),
            )
        })
        .collect()
}

async fn has_hosts(envoy: &Envoy, want: &[(&str, u64, u64, &str)]) {
    let want: BTreeMap<_, _> = want
        .iter()
        .map(|(address, weight, priority, zone)| {
            (
                (*address).to_owned(),
                (*weight, *priority, (*zone).to_owned()),
            )
        })
        .collect();
    wait_for(&format!("Envoy has {want:?}"), async || {
        hosts(envoy).await == want
    })
    .await;
}

/// Answers of haven's that Envoy has had, and of them those that said that nothing changed.
async fn answers(envoy: &Envoy) -> [u64; 2] {
    let stat = async |name| envoy.stat(&format!("cluster.users.haven-eds.{name}")).await;
    [stat("upstream_rq_200").await, stat("upstream_rq_304").await]
}

#[test]
fn envoy_has_what_etcd_names_and_is_told_of_changes_alone() {
    run(async {
        let etcd = Etcd::start().await;
        put(
            &etcd,
            "a",
            &json!({"address": "127.0.0.1:7001", "weight": 3, "zone": "a"}),
        )
        .await;
        put(&etcd, "b", &json!("127.0.0.1:7002")).await;
        put(
            &etcd,
            "c",
            &json!({"address": "[::1]:7003", "priority": 1, "zone": "b"}),
        )
        .await;
        let config = config(&etcd, SOON, &json!({})).serves_endpoints(&["users"]);
        let mut envoy = Envoy::start(config).await;
        let [a, c] = [("127.0.0.1:7001", 3, 0, "a"), ("[::1]:7003", 1, 1, "b")];
        has_hosts(&envoy, &[a, ("127.0.0.1:7002", 1, 0, ""), c]).await;
        // Many questions, and not one update.
        let [full, same] = answers(&envoy).await;
        let updates = envoy.stat("cluster.users.update_success").await;
        wait_for("Envoy has asked again and again", async || {
            answers(&envoy).await[1] >= same + 5
        })
        .await;
        assert_eq!(answers(&envoy).await[0], full);
        assert_eq!(envoy.stat("cluster.users.update_success").await, updates);

        put(
            &etcd,
            "b",
            &json!({"address": "127.0.0.1:7002", "weight": 9, "zone": "a"}),
        )
        .await;
        has_hosts(&envoy, &[a, ("127.0.0.1:7002", 9, 0, "a"), c]).await;
        etcd.delete(&format!("{PREFIX}b")).await;
        has_hosts(&envoy, &[a, c]).await;
        // One that cannot be has nothing sent on of all that is said with it.
        put(&etcd, "d", &json!({"address": "users.internal:80"})).await;
        put(&etcd, "e", &json!("127.0.0.1:7005")).await;
        wait_for("haven has refused it", async || {
            let labels = [("upstream", "users"), ("result", "refused")];
            envoy
                .metrics()
                .await
                .total("haven_discovery_updates_total", &labels)
                > 0.0
        })
        .await;
        has_hosts(&envoy, &[a, c]).await;
        etcd.delete(&format!("{PREFIX}d")).await;
        has_hosts(&envoy, &[a, c, ("127.0.0.1:7005", 1, 0, "")]).await;
        assert_eq!(envoy.stat("cluster.users.update_rejected").await, 0);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn all_endpoints_go_only_where_that_may_be_true() {
    run(async {
        for real in [false, true] {
            let etcd = Etcd::start().await;
            put(&etcd, "a", &json!("127.0.0.1:7001")).await;
            let config = config(&etcd, SOON, &json!({"empty_is_real": real}));
            let envoy = Envoy::start(config.serves_endpoints(&["users"])).await;
            let a = ("127.0.0.1:7001", 1, 0, "");
            has_hosts(&envoy, &[a]).await;
            etcd.delete(&format!("{PREFIX}a")).await;
            if real {
                has_hosts(&envoy, &[]).await;
                continue;
            }
            wait_for("haven has refused it", async || {
                let labels = [("upstream", "users"), ("result", "refused")];
                envoy
                    .metrics()
                    .await
                    .total("haven_discovery_updates_total", &labels)
                    > 0.0
            })
            .await;
            let [_, same] = answers(&envoy).await;
            wait_for("Envoy has asked again", async || {
                answers(&envoy).await[1] > same + 2
            })
            .await;
            has_hosts(&envoy, &[a]).await;
        }
    });
}

/// Envoy says that it is live before it has any endpoint; haven says that it is not ready.
#[test]
fn it_is_ready_when_envoy_has_the_endpoints_and_not_before() {
    run(async {
        let (etcd, service) = (Etcd::start().await, Upstream::start("a").await);
        put(&etcd, "a", &json!(service.addr().to_string())).await;
        let config = config(&etcd, Duration::from_secs(3), &json!({}));
        let envoy = Envoy::start(config.serves_endpoints(&["users"])).await;
        let client = envoy.h1();
        let ready = async || client.get("/readyz").await.unwrap();
        let mut waited = false;
        wait_for("it is ready", async || {
            let reply = ready().await;
            if reply.status == 200 {
                return true;
            }
            assert!(envoy.admin_get("/ready").await.contains("LIVE"));
            let users = &reply.json()["details"]["users"];
            waited |= users["error"]
                .as_str()
                .is_some_and(|it| it.contains("Envoy"));
            false
        })
        .await;
        assert!(
            waited,
            "haven knew the endpoints before Envoy did, and said so"
        );
        // Not one request is lost from then on.
        for _ in 0..20 {
            assert_eq!(client.get("/").await.unwrap().status, 200);
        }
    });
}

/// A proxy that loses the first answers: it takes the question, and hangs up.
async fn lossy(to: SocketAddr, losses: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let lost = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lost);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let Ok(mut on) = TcpStream::connect(to).await else {
                continue;
            };
            let loses = count.load(Ordering::Relaxed) < losses;
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                if !loses {
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut on).await;
                    return;
                }
                let (mut reads, mut writes) = from.split();
                let (mut back, mut forth) = on.split();
                let (mut answer, mut head) = ([0; 1024], Vec::new());
                tokio::select! {
                    _ = tokio::io::copy(&mut reads, &mut forth) => {}
                    // HTTP/1: the answer begins with its status.
                    _ = async {
                        while !head.starts_with(b"HTTP/1.1 200") {
                            let size = back.read(&mut answer).await.unwrap_or(0);
                            if size == 0 {
                                break;
                            }
                            head.extend_from_slice(&answer[..size]);
                        }
                    } => {}
                }
                if head.starts_with(b"HTTP/1.1 200") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                let _ = writes.shutdown().await;
            });
        }
    });
    (addr, lost)
}

#[test]
fn an_answer_that_was_lost_comes_again() {
    run(async {
        let etcd = Etcd::start().await;
        put(&etcd, "a", &json!("127.0.0.1:7001")).await;
        let at = Arc::new(Reserved::new(Ipv4Addr::LOCALHOST.into()));
        let (proxy, lost) = lossy(at.addr, 3).await;
        let listener = EnvoyConfig::empty()
            .haven(&json!({"serve_endpoints": true, "state": "haven"}))
            .at(&at);
        let config = config(&etcd, SOON, &json!({}))
            .listener(&listener)
            .cluster(Cluster::new("users.haven-eds", [proxy]).plain());
        let envoy = Envoy::start(config).await;
        has_hosts(&envoy, &[("127.0.0.1:7001", 1, 0, "")]).await;
        assert_eq!(lost.load(Ordering::Relaxed), 3);
        wait_for("and then it is told that nothing changed", async || {
            answers(&envoy).await[1] > 2
        })
        .await;
    });
}

/// An address of this machine that is not on the loopback, if it has one.
fn elsewhere() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Nothing is sent: the kernel says from where it would be.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

/// A question for the endpoints of `users`, to this address.
fn question(to: SocketAddr, headers: &[(&str, &str)]) -> Request<Full<hyper::body::Bytes>> {
    let mut request = Request::builder()
        .method("POST")
        .uri(format!("http://{to}{PATH}"))
        .header("host", "users.haven-eds");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new("{}".into())).unwrap()
}

#[test]
fn only_the_loopback_is_answered() {
    run(async {
        let Some(elsewhere) = elsewhere() else {
            println!("skipped: this machine has no address but the loopback's");
            return;
        };
        let etcd = Etcd::start().await;
        put(&etcd, "a", &json!("127.0.0.1:7001")).await;
        let at = Arc::new(Reserved::new(Ipv4Addr::UNSPECIFIED.into()));
        let port = at.addr.port();
        // Envoy takes the peer's address from a header here: haven does not.
        let listener = EnvoyConfig::empty()
            .haven(&json!({"serve_endpoints": true, "state": "haven"}))
            .use_remote_address(false)
            .at(&at);
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let config = config(&etcd, SOON, &json!({}))
            .listener(&listener)
            .cluster(Cluster::new("users.haven-eds", [here]).plain().http2());
        let envoy = Envoy::start(config).await;
        has_hosts(&envoy, &[("127.0.0.1:7001", 1, 0, "")]).await;
        let there = SocketAddr::new(elsewhere, port);
        for headers in [&[][..], &[("x-forwarded-for", "127.0.0.1")]] {
            let ask = async |to| Client::h1(to).send(question(to, headers)).await.unwrap();
            let reply = ask(here).await;
            assert_eq!(reply.status, 200);
            let endpoints = &reply.json()["resources"][0]["endpoints"];
            assert_eq!(endpoints.as_array().map(Vec::len), Some(1));
            let reply = ask(there).await;
            assert_eq!(reply.status, 403, "{reply:?}");
            assert!(!reply.text().contains("7001"));
        }
        assert!(envoy.logs().contains("did not come in on the loopback"));
    });
}

#[test]
fn hostile_questions_harm_nothing() {
    run(async {
        let etcd = Etcd::start().await;
        put(&etcd, "a", &json!("127.0.0.1:7001")).await;
        let at = Arc::new(Reserved::new(Ipv4Addr::LOCALHOST.into()));
        let listener = EnvoyConfig::empty()
            .haven(&json!({"serve_endpoints": true, "state": "haven"}))
            .at(&at);
        let config = config(&etcd, SOON, &json!({}))
            .listener(&listener)
            .cluster(Cluster::new("users.haven-eds", [at.addr]).plain().http2());
        let mut envoy = Envoy::start(config).await;
        let a = [("127.0.0.1:7001", 1, 0, "")];
        has_hosts(&envoy, &a).await;
        let head = |start: &str, host: &str, length: usize| {
            format!(
                "{start} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
            )
        };
        let long = format!("{}.haven-eds", "a".repeat(8_000));
        let post = format!("POST {PATH}");
        for (start, host, body, want) in [
            (
                post.as_str(),
                "users.haven-eds",
                &b"\xff\0{\"version_info\":"[..],
                200,
            ),
            (&post, "users.haven-eds", &[b'{'; 60_000], 200),
            (&post, "nobody.haven-eds", b"{}", 304),
            (&post, &long, b"{}", 304),
            (&post, "users", b"{}", 404),
            (&post, "", b"{}", 404),
            ("POST /", "users.haven-eds", b"{}", 404),
            ("GET /v3/discovery:endpoints", "users.haven-eds", b"", 405),
            ("GET /livez", "users.haven-eds", b"", 404),
            ("GET /v3/discovery:clusters", "users.haven-eds", b"", 404),
        ] {
            let request = [head(start, host, body.len()).as_bytes(), body].concat();
            let reply = raw::exchange(at.addr, &request).await.unwrap();
            assert_eq!(reply.status, want, "{start} of {:.20}", host);
        }
        // Hung up before, within and after the headers; and without the body that was announced.
        for sent in [0, 10, 60, 200] {
            let request = head(&post, "users.haven-eds", 77_000);
            let mut stream = TcpStream::connect(at.addr).await.unwrap();
            let sent = request.len().min(sent);
            stream.write_all(&request.as_bytes()[..sent]).await.unwrap();
        }
        has_hosts(&envoy, &a).await;
        put(
            &etcd,
            "a",
            &json!({"address": "127.0.0.1:7001", "weight": 2}),
        )
        .await;
        has_hosts(&envoy, &[("127.0.0.1:7001", 2, 0, "")]).await;
        assert_sound(&mut envoy).await;
    });
}

/// Without `allow_on_headers_stop_iteration` haven sees no body, and says so.
#[test]
fn without_the_setting_that_shows_bodies_envoy_is_answered_in_full() {
    run(async {
        let etcd = Etcd::start().await;
        put(&etcd, "a", &json!("127.0.0.1:7001")).await;
        let at = Arc::new(Reserved::new(Ipv4Addr::LOCALHOST.into()));
        let listener = EnvoyConfig::empty()
            .haven(&json!({"serve_endpoints": true, "state": "haven"}))
            .stop_all()
            .at(&at);
        let config = config(&etcd, SOON, &json!({}))
            .listener(&listener)
            .cluster(Cluster::new("users.haven-eds", [at.addr]).plain().http2());
        let mut envoy = Envoy::start(config).await;
        has_hosts(&envoy, &[("127.0.0.1:7001", 1, 0, "")]).await;
        assert!(envoy.logs().contains("allow_on_headers_stop_iteration"));
        put(&etcd, "b", &json!("127.0.0.1:7002")).await;
        has_hosts(
            &envoy,
            &[("127.0.0.1:7001", 1, 0, ""), ("127.0.0.1:7002", 1, 0, "")],
        )
        .await;
        assert_sound(&mut envoy).await;
    });
}

/// As many as an upstream may have.
#[test]
fn a_thousand_endpoints_reach_envoy_whole() {
    run(async {
        let etcd = Etcd::start().await;
        for number in 0..1_000 {
            let value = json!({"address": format!("127.1.{}.{}:80", number / 250, number % 250 + 1),
                "zone": format!("z{}", number % 5), "priority": number % 3, "weight": number % 7 + 1});
            put(&etcd, &format!("{number:04}"), &value).await;
        }
        let config = config(&etcd, SOON, &json!({})).serves_endpoints(&["users"]);
        let mut envoy = Envoy::start(config).await;
        wait_for("Envoy has them all", async || {
            hosts(&envoy).await.len() == 1_000
        })
        .await;
        let [full, same] = answers(&envoy).await;
        wait_for("and keeps them", async || {
            answers(&envoy).await[1] > same + 2
        })
        .await;
        assert_eq!(answers(&envoy).await[0], full);
        assert_sound(&mut envoy).await;
    });
}
