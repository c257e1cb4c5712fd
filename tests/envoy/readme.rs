//! The README's first configuration, in envoy.yaml, gives the answer that the README shows.

use crate::filter::assert_sound;
use crate::support::config::reference_text;
use crate::support::{Client, Envoy, EnvoyConfig, Upstream, checkout, haven_wasm, run};

/// A block of code of the README, by its language and its first words.
fn block(language: &str, begin: &str) -> String {
    let readme = std::fs::read_to_string(checkout("README.md")).unwrap();
    let (_, rest) = readme
        .split_once(&format!("```{language}\n{begin}"))
        .unwrap_or_else(|| panic!("the README has no {begin:?}"));
    let (body, _) = rest.split_once("```").unwrap();
    format!("{begin}{body}")
}

/// envoy.yaml with this JSON below `value: |`.
fn envoy_yaml(filter: &str) -> String {
    let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
    let indent = " ".repeat(20);
    let (before, rest) = text.split_once("value: |\n").unwrap();
    let after: Vec<_> = rest
        .split_inclusive('\n')
        .skip_while(|line| line.starts_with(&indent))
        .collect();
    let filter: String = filter
        .lines()
        .map(|line| format!("{indent}{line}\n"))
        .collect();
    [before, "value: |\n", &filter, &after.concat()].concat()
}

#[test]
fn its_first_configuration_answers_as_it_shows() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let addrs: Vec<_> = upstreams.iter().map(|upstream| upstream.addr()).collect();
        let text = envoy_yaml(&block("json", "{"));
        let text = reference_text(&text, &addrs, &haven_wasm().unwrap());
        let mut envoy = Envoy::start(EnvoyConfig::text(text)).await;
        let client = Client::h1_from(envoy.addr(), "127.0.0.31".parse().unwrap());
        let mut refused = None;
        for _ in 0..50 {
            let reply = client.get("/api/users").await.unwrap();
            match reply.status {
                200 => assert!(reply.text().contains("served_by"), "{reply:?}"),
                _ => refused = Some(reply),
            }
        }
        let refused = refused.expect("50 requests in a row are more than 5 a second");

        let shown = block("text", "$ curl");
        let (head, body) = shown.split_once("\n\n").unwrap();
        let mut head = head.lines().skip(1);
        assert_eq!(head.next(), Some("HTTP/1.1 429 Too Many Requests"));
        assert_eq!(refused.status, 429);
        for line in head {
            let (name, value) = line.split_once(": ").unwrap();
            let sent = refused.header(name).unwrap_or_default();
            // The time, and the hash of a client under the proxy's secret, differ.
            let without_key = |value: &str| value.split(";pk=").next().unwrap().to_owned();
            assert!(
                name == "date" || without_key(&sent) == without_key(value),
                "{name}: {sent}, the README has {value}"
            );
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(refused.json(), body);
        assert_sound(&mut envoy).await;
    });
}
