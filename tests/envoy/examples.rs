//! The whole configurations of discovery in `examples/`, as they stand but for addresses.

use std::net::{IpAddr, SocketAddr};

use crate::filter::assert_sound;
use crate::support::consul::{Consul, instance};
use crate::support::dns::Dns;
use crate::support::etcd::Etcd;
use crate::support::{
    Dir, Envoy, EnvoyConfig, Reserved, Upstream, checkout, dead_addr, haven_wasm, run, wait_for,
};

/// An example with these texts in place of those that it has.
fn example(name: &str, replaced: &[(&str, &str)]) -> EnvoyConfig {
    let path = checkout(&format!("examples/{name}.yaml"));
    let mut text = std::fs::read_to_string(path).unwrap();
    let wasm = haven_wasm().unwrap().display().to_string();
    let usual = [
        ("dist/haven.wasm", wasm.as_str()),
        (
            "address: 0.0.0.0, port_value: 10000",
            "address: 127.0.0.1, port_value: 0",
        ),
    ];
    for (from, to) in usual.iter().chain(replaced) {
        assert!(text.contains(from), "examples/{name}.yaml has no {from:?}");
        text = text.replace(from, to);
    }
    EnvoyConfig::text(text)
}

fn socket(addr: SocketAddr) -> String {
    format!("address: {}, port_value: {}", addr.ip(), addr.port())
}

/// Ready as it says, it answers each request, and each of these endpoints gets some.
async fn serves(envoy: &mut Envoy, upstreams: &[Upstream]) {
    let client = envoy.h1();
    wait_for("it is ready", async || {
        client.get("/readyz").await.is_ok_and(|it| it.status == 200)
    })
    .await;
    for _ in 0..40 {
        assert_eq!(client.get("/").await.unwrap().status, 200);
    }
    for upstream in upstreams {
        assert!(upstream.counters().requests > 0, "{}", upstream.addr());
    }
    assert_sound(envoy).await;
}

/// Where an example has its admin page on a port, and haven's endpoint discovery.
fn ports() -> [(&'static str, String); 2] {
    [
        (
            "address: 127.0.0.1, port_value: 9901",
            "address: 127.0.0.1, port_value: 0".to_owned(),
        ),
        (
            "address: 127.0.0.1, port_value: 9905",
            socket(Reserved::for_good()),
        ),
    ]
}

#[test]
fn etcd_yaml_serves() {
    run(async {
        let (etcd, upstreams) = (Etcd::start().await, Upstream::start_many(2).await);
        let key = |name: &str| format!("/services/users/{name}");
        etcd.put(&key("a"), &upstreams[0].addr().to_string()).await;
        let value = format!(r#"{{"address": "{}", "zone": "a"}}"#, upstreams[1].addr());
        etcd.put(&key("b"), &value).await;
        // Two of its members are lost.
        let (dead, _kept) = dead_addr();
        let members = [etcd.addr(), dead, dead].map(socket);
        let [admin, eds] = ports();
        let config = example(
            "etcd",
            &[
                (admin.0, &admin.1),
                (eds.0, &eds.1),
                ("address: 10.77.0.21, port_value: 2379", &members[0]),
                ("address: 10.77.0.22, port_value: 2379", &members[1]),
                ("address: 10.77.0.23, port_value: 2379", &members[2]),
            ],
        );
        serves(&mut Envoy::start(config).await, &upstreams).await;
    });
}

#[test]
fn consul_yaml_serves() {
    run(async {
        let (consul, upstreams) = (Consul::start().await, Upstream::start_many(2).await);
        for (id, upstream) in ["a", "b"].iter().zip(&upstreams) {
            consul.register(id, &instance("user-service", upstream.addr()));
        }
        let [admin, eds] = ports();
        let config = example(
            "consul",
            &[
                (admin.0, &admin.1),
                (eds.0, &eds.1),
                (
                    "address: 127.0.0.1, port_value: 8500",
                    &socket(consul.addr()),
                ),
            ],
        );
        serves(&mut Envoy::start(config).await, &upstreams).await;
    });
}

#[test]
fn dns_yaml_serves() {
    run(async {
        let upstream = Upstream::start("a").await;
        let addr = upstream.addr();
        let dns = Dns::start("users.example.internal", &[IpAddr::from([127, 0, 0, 1])]).await;
        let dir = Dir::new().unwrap();
        let pipe = dir.path().join("admin.sock").display().to_string();
        let config = example(
            "dns",
            &[
                ("/tmp/haven-admin.sock", &pipe),
                ("address: 10.77.0.53, port_value: 53", &socket(dns.addr())),
                ("port_value: 8080", &format!("port_value: {}", addr.port())),
            ],
        );
        serves(&mut Envoy::start(config).await, &[upstream]).await;
    });
}
