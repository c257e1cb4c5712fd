//! What docs/recipes.md and docs/envoy.md show, read out of the documents and driven in a real
//! Envoy: a recipe is envoy.yaml with its JSON and its diffs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::filter::{Steady, assert_sound, counted, decisions, grpc, nothing_in_flight};
use crate::support::{
    Client, Envoy, EnvoyConfig, Reply, Tally, Upstream, checkout, load, run, wait_for,
};

/// Where the clients of these tests sit: of 127.0.0.1 Envoy writes another address into
/// `x-forwarded-for`.
const CLIENT: &str = "127.0.0.9";

/// A section of a document: its fenced blocks by their language.
pub(crate) struct Section(BTreeMap<String, Vec<String>>);

impl Section {
    /// The section under this heading.
    pub(crate) fn of(document: &str, title: &str) -> Self {
        let text = std::fs::read_to_string(checkout(document)).unwrap();
        let heading = format!("\n## {title}\n");
        let (_, text) = text
            .split_once(&heading)
            .unwrap_or_else(|| panic!("{document} has no {title:?}"));
        let (text, _) = text.split_once("\n## ").unwrap_or((text, ""));
        let mut blocks: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut rest = text;
        while let Some((_, fence)) = rest.split_once("\n```") {
            let (language, body) = fence.split_once('\n').unwrap();
            let (body, after) = body.split_once("```").unwrap();
            blocks
                .entry(language.to_owned())
                .or_default()
                .push(body.to_owned());
            rest = after;
        }
        Self(blocks)
    }

    pub(crate) fn recipe(title: &str) -> Self {
        Self::of("docs/recipes.md", title)
    }

    pub(crate) fn blocks(&self, language: &str) -> &[String] {
        self.0.get(language).map_or(&[], Vec::as_slice)
    }

    /// envoy.yaml with what the section changes.
    pub(crate) fn envoy_yaml(&self) -> String {
        let mut text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
        for json in self.blocks("json") {
            text = with_filter(&text, json);
            for diff in Self::recipe("How to use one").blocks("diff") {
                text = patched(&text, diff);
            }
        }
        for diff in self.blocks("diff") {
            text = patched(&text, diff);
        }
        text
    }
}

/// The text with another JSON for the filter.
pub(crate) fn with_filter(text: &str, json: &str) -> String {
    let begin = format!("{}value: |\n", " ".repeat(18));
    let indent = " ".repeat(20);
    let (before, rest) = text.split_once(&begin).unwrap();
    let length: usize = rest
        .split_inclusive('\n')
        .take_while(|line| line.starts_with(&indent))
        .map(str::len)
        .sum();
    let json: String = json
        .lines()
        .map(|line| format!("{indent}{line}\n"))
        .collect();
    format!("{before}{begin}{json}{}", &rest[length..])
}

/// The text with each hunk of a diff applied, at the only place that it fits.
fn patched(text: &str, diff: &str) -> String {
    let mut text = text.to_owned();
    for hunk in diff
        .split_inclusive('\n')
        .collect::<Vec<_>>()
        .split(|line| line.starts_with("@@"))
    {
        let side = |sign: char| -> String {
            hunk.iter()
                .filter_map(|line| line.strip_prefix(sign))
                .collect()
        };
        let (from, to) = (side('-'), side('+'));
        assert_eq!(
            text.matches(&from).count(),
            1,
            "envoy.yaml has changed:\n{from}"
        );
        text = text.replacen(&from, &to, 1);
    }
    text
}

/// A recipe that is not started yet: the text, and an upstream for each of its endpoints, called
/// by the address that the document has for it.
pub(crate) struct Prepared {
    pub(crate) text: String,
    upstreams: BTreeMap<String, Upstream>,
}

impl Prepared {
    pub(crate) async fn new(text: String) -> Self {
        let mut upstreams = BTreeMap::new();
        for place in text.split("socket_address: { address: ").skip(1) {
            let (ip, rest) = place.split_once(", port_value: ").unwrap();
            let (port, _) = rest.split_once(' ').unwrap();
            if !["0.0.0.0", "127.0.0.1"].contains(&ip) {
                let name = format!("{ip}:{port}");
                upstreams.insert(name.clone(), Upstream::start(&name).await);
            }
        }
        Self { text, upstreams }
    }

    pub(crate) async fn recipe(title: &str) -> Self {
        Self::new(Section::recipe(title).envoy_yaml()).await
    }

    /// With other words at one place.
    fn with(mut self, from: &str, to: &str) -> Self {
        assert!(self.text.contains(from), "{from}");
        self.text = self.text.replace(from, to);
        self
    }

    /// The text with this machine's addresses.
    pub(crate) fn local(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, upstream) in &self.upstreams {
            let (ip, port) = name.split_once(':').unwrap();
            let addr = upstream.addr();
            text = text.replace(
                &format!("address: {ip}, port_value: {port} "),
                &format!("address: {}, port_value: {} ", addr.ip(), addr.port()),
            );
            text = text.replace(&format!("\"{name}\""), &format!("\"{addr}\""));
        }
        let wasm = crate::support::haven_wasm().unwrap().display().to_string();
        for (from, to) in [
            (
                "address: 0.0.0.0, port_value: 10000",
                "address: 127.0.0.1, port_value: 0",
            ),
            (
                "address: 127.0.0.1, port_value: 9901",
                "address: 127.0.0.1, port_value: 0",
            ),
            ("dist/haven.wasm", &wasm),
            ("/etc/haven/haven.wasm", &wasm),
        ] {
            text = text.replace(from, to);
        }
        text
    }

    pub(crate) async fn start(self) -> Kitchen {
        let text = self.local(&self.text);
        self.start_with(text).await
    }

    async fn start_with(self, bootstrap: String) -> Kitchen {
        let envoy = Envoy::start(EnvoyConfig::text(bootstrap)).await;
        Kitchen {
            recipe: self,
            envoy,
        }
    }

    fn named(&self) -> impl Iterator<Item = (&String, &Upstream)> {
        self.upstreams.iter()
    }
}

/// A recipe under way.
pub(crate) struct Kitchen {
    recipe: Prepared,
    pub(crate) envoy: Envoy,
}

impl Kitchen {
    pub(crate) fn client(&self) -> Client {
        Client::h1_from(self.envoy.addr(), CLIENT.parse().unwrap())
    }

    fn from(&self, address: &str) -> Client {
        Client::h1_from(self.envoy.addr(), address.parse().unwrap())
    }

    /// The upstream of the endpoint with this IP in the document.
    pub(crate) fn at(&self, ip: &str) -> &Upstream {
        let (_, upstream) = self
            .recipe
            .named()
            .find(|(name, _)| name.starts_with(&format!("{ip}:")))
            .unwrap();
        upstream
    }

    pub(crate) async fn all(&self, change: impl Fn(&mut crate::support::Faults)) {
        for (_, upstream) in self.recipe.named() {
            upstream.set(&change).await;
        }
    }

    /// The IPs, as the document has them, of the endpoints that these requests reach, all
    /// of which get an answer.
    async fn reached(&self, requests: u64) -> BTreeSet<String> {
        let (reached, tally) = self.tried(requests).await;
        assert_eq!(tally.count(200), requests, "{tally:?}");
        reached
    }

    async fn tried(&self, requests: u64) -> (BTreeSet<String>, Tally) {
        let before: Vec<u64> = self.requests();
        let tally = load(&self.client(), requests, 4, "/", &[]).await;
        let reached = self
            .recipe
            .named()
            .zip(self.requests().iter().zip(before))
            .filter(|(_, (after, before))| *after > before)
            .map(|((name, _), _)| name.split(':').next().unwrap().to_owned())
            .collect();
        (reached, tally)
    }

    pub(crate) fn requests(&self) -> Vec<u64> {
        let all = self.recipe.named();
        all.map(|(_, upstream)| upstream.counters().requests)
            .collect()
    }

    /// Types what a document has at the prompt; the answers are to be those of the document, as
    /// [`is_like`] compares them.
    async fn console(&self, console: &str) -> Result<(), String> {
        let mut commands = console.split("$ curl ").skip(1).peekable();
        assert!(commands.peek().is_some());
        for command in commands {
            let (line, want) = command.split_once('\n').unwrap();
            let got = self.typed(line).await;
            let got = self.recipe.named().fold(got, |text, (name, upstream)| {
                text.replace(&upstream.addr().to_string(), name.as_str())
            });
            self.compare(line, &got, want.trim_end())?;
        }
        Ok(())
    }

    fn compare(&self, line: &str, got: &str, want: &str) -> Result<(), String> {
        let fail = || {
            Err(format!(
                "curl {line}\n--- the document has\n{want}\n--- here\n{got}"
            ))
        };
        if line.contains("| grep") {
            // In whichever order Envoy has them.
            let set = |text: &str| -> BTreeSet<String> { text.lines().map(numberless).collect() };
            return if set(got) == set(want) {
                Ok(())
            } else {
                fail()
            };
        }
        let (want_head, want_body) = want.split_once("\n\n").unwrap_or((want, ""));
        let (got_head, got_body) = got.split_once("\n\n").unwrap();
        let (want_status, want_headers) = want_head.split_once('\n').unwrap_or((want_head, ""));
        let same_status = got_head.starts_with(&want_status[.."HTTP/1.1 200".len()]);
        let has = |line: &str| {
            got_head
                .lines()
                .any(|got| numberless(got) == numberless(line))
        };
        let same_body = want_body.is_empty() || is_like(got_body.trim_end(), want_body);
        if same_status && want_headers.lines().all(has) && same_body {
            Ok(())
        } else {
            fail()
        }
    }

    /// What curl writes, for the few options that the documents use.
    async fn typed(&self, line: &str) -> String {
        let (line, pattern) = match line.split_once(" | grep ") {
            Some((line, pattern)) => (line, Some(pattern.trim_matches('\''))),
            None => (line, None),
        };
        let (mut headers, mut method, mut body, mut url) = (Vec::new(), "GET", "", "");
        let mut words = words(line).into_iter();
        while let Some(word) = words.next() {
            match word {
                "-i" | "-s" => {}
                "-H" => headers.push(words.next().unwrap().split_once(": ").unwrap()),
                "-d" => (method, body) = ("POST", words.next().unwrap()),
                _ => url = word,
            }
        }
        let url = url.strip_prefix("http://127.0.0.1:").unwrap();
        let (port, path) = url.split_at(url.find('/').unwrap());
        if port == "9901" {
            let pattern = pattern.unwrap();
            let parts: Vec<&str> = pattern.trim_start_matches('^').split(".*").collect();
            let page = self.envoy.admin_get(path).await;
            let lines = page.lines().filter(|line| {
                !line.starts_with('#')
                    && line.starts_with(parts[0])
                    && parts.iter().all(|part| line.contains(part))
            });
            return lines.map(|line| format!("{line}\n")).collect();
        }
        assert_eq!(port, "10000");
        let reply = self
            .client()
            .request(method, path, &headers, body.to_owned())
            .await
            .unwrap();
        let mut text = format!("HTTP/1.1 {}\n", reply.status);
        for (name, value) in &reply.headers {
            text.push_str(&format!(
                "{name}: {}\n",
                String::from_utf8_lossy(value.as_bytes())
            ));
        }
        format!("{text}\n{}", reply.text())
    }
}

/// A line as a shell splits it, with single quotes only.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part);
        } else {
            words.extend(part.split_whitespace());
        }
    }
    words
}

/// A text with each of its numbers replaced: they may differ.
fn numberless(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out
}

/// Whether a text is another but for numbers, and for what that leaves out with `…`.
fn is_like(text: &str, want: &str) -> bool {
    let (text, want) = (numberless(text), numberless(want));
    let mut rest = text.as_str();
    for (index, part) in want.split('…').enumerate() {
        match rest.find(part) {
            Some(at) if at == 0 || index > 0 => rest = &rest[at + part.len()..],
            _ => return false,
        }
    }
    rest.is_empty()
}

fn assert_refused(reply: &Reply, status: u16, details: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    let proxy_status = reply.header("proxy-status").unwrap();
    assert!(
        proxy_status.ends_with(&format!("details=\"{details}\"")),
        "{proxy_status}"
    );
}

#[test]
fn api_keys() {
    run(async {
        let recipe = Section::recipe("API keys");
        let internal = "127.0.0.77";
        let prepared = Prepared::recipe("API keys").await;
        let mut kitchen = prepared.with("10.0.0.0/8", "127.0.0.77/32").start().await;
        let client = kitchen.client();
        let asked = async |key: &str, requests| {
            let tally = load(&client, requests, 4, "/api/orders", &[("x-api-key", key)]).await;
            assert_eq!(tally.count(200) + tally.count(429), requests, "{tally:?}");
            tally.count(200)
        };
        let free = asked("free-1", 60).await;
        assert!((10..30).contains(&free), "{free}");
        let premium = asked("premium-7f3a", 200).await;
        assert!((100..180).contains(&premium), "{premium}");
        assert_eq!(asked("free-2", 10).await, 10, "a quota of its own");
        wait_for("the document's answer", async || {
            load(&client, 30, 4, "/api/orders", &[("x-api-key", "free-1")]).await;
            kitchen.console(&recipe.blocks("console")[0]).await.is_ok()
        })
        .await;

        let without = load(&client, 30, 4, "/api/orders", &[]).await.count(200);
        assert!((5..15).contains(&without), "{without}");
        let other = kitchen.from("127.0.0.10");
        assert_eq!(load(&other, 5, 1, "/api/orders", &[]).await.count(200), 5);
        let refused = client.get("/api/orders").await.unwrap();
        if refused.status != 200 {
            assert_refused(&refused, 429, "rate_limited no-key");
        }

        let own = kitchen.from(internal);
        assert_eq!(load(&own, 60, 4, "/api/orders", &[]).await.count(200), 60);
        let spent = [("x-api-key", "free-1")];
        assert_eq!(
            load(&own, 60, 4, "/api/orders", &spent).await.count(200),
            60
        );
        let forged = load(
            &client,
            60,
            4,
            "/api/orders",
            &[("x-forwarded-for", internal)],
        )
        .await;
        assert!(
            forged.count(429) > 0,
            "an address that is only claimed: {forged:?}"
        );
        assert_sound(&mut kitchen.envoy).await;
    });
}

#[test]
fn a_login() {
    run(async {
        let recipe = Section::recipe("A login");
        let mut kitchen = Prepared::recipe("A login").await.start().await;
        let client = kitchen.client();
        let login = async |client: &Client| {
            client
                .request("POST", "/login", &[], "user=ada")
                .await
                .unwrap()
        };
        for _ in 0..3 {
            assert_eq!(login(&client).await.status, 200);
        }
        let refused = login(&client).await;
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (429, &"too_many_tries".into())
        );
        let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=20).contains(&wait), "{wait}");
        assert!(
            refused.text().contains(&format!("请在 {wait} 秒后重试")),
            "{}",
            refused.text()
        );
        kitchen.console(&recipe.blocks("console")[0]).await.unwrap();
        assert_eq!(
            login(&kitchen.from("127.0.0.10")).await.status,
            200,
            "another address"
        );
        assert_eq!(
            load(&client, 20, 1, "/login", &[]).await.count(200),
            20,
            "the page itself"
        );
        assert_sound(&mut kitchen.envoy).await;
    });
}

#[test]
fn a_canary_with_testers() {
    run(async {
        let recipe = Section::recipe("A canary with testers");
        let mut kitchen = Prepared::recipe("A canary with testers")
            .await
            .start()
            .await;
        kitchen.console(&recipe.blocks("console")[0]).await.unwrap();
        let client = kitchen.client();
        let side = async |headers: &[(&str, &str)]| {
            let echo = client.get_with("/echo", headers).await.unwrap().json();
            let new = echo["upstream"] == "10.77.0.13:8080";
            let color = if new { "shop-v2" } else { "shop" };
            assert_eq!(echo["headers"]["x-traffic-color"], color, "{echo}");
            new
        };
        assert!(side(&[("x-canary", "true"), ("x-traffic-color", "shop")]).await);
        assert!(!side(&[("x-canary", "false"), ("cookie", "session=1")]).await);
        assert!(!side(&[]).await, "without a session");
        let mut new = BTreeSet::new();
        for session in 0..200 {
            let cookie = format!("session={session}");
            if side(&[("cookie", &cookie)]).await {
                new.insert(cookie);
            }
        }
        assert!(
            (2..=20).contains(&new.len()),
            "{} of 200 are about 5 %",
            new.len()
        );
        for cookie in &new {
            assert!(
                side(&[("cookie", cookie)]).await,
                "{cookie} has changed sides"
            );
        }

        kitchen
            .at("10.77.0.13")
            .set(|faults| faults.status = Some(500))
            .await;
        let tester = [("x-canary", "true")];
        let tally = load(&client, 200, 1, "/echo", &tester).await;
        assert!(tally.count(500) >= 1 && tally.count(500) < 180, "{tally:?}");
        assert_eq!(load(&client, 20, 1, "/echo", &tester).await.count(200), 20);
        assert!(!side(&tester).await, "testers too go to the old version");
        assert_sound(&mut kitchen.envoy).await;
    });
}

#[test]
fn payments_and_recommendations() {
    run(async {
        let title = "Payments and recommendations";
        let mut kitchen = Prepared::recipe(title).await.start().await;
        let client = kitchen.client();
        let none = async || {
            let reply = client.get("/recommendations").await.unwrap();
            (
                reply.status,
                reply.text(),
                reply.header("proxy-status").unwrap_or_default(),
            )
        };
        assert!(none().await.2.is_empty(), "the service's own answer");
        kitchen.all(|faults| faults.delay_ms = 1000).await;
        let payments = tokio::spawn({
            let client = client.clone();
            async move { load(&client, 16, 16, "/payments", &[]).await }
        });
        let in_flight = async || {
            kitchen
                .envoy
                .metric("haven_concurrency_in_flight", &[])
                .await
        };
        wait_for("the payments are in flight", async || {
            in_flight().await == Some(16.0)
        })
        .await;
        let (status, body, proxy_status) = none().await;
        assert_eq!((status, body.as_str()), (200, "[]"));
        assert!(proxy_status.contains("overload"), "{proxy_status}");
        assert_eq!(payments.await.unwrap().count(200), 16);
        let (status, body, proxy_status) = none().await;
        assert_eq!((status, body.as_str()), (200, "[]"), "too slow");
        assert!(proxy_status.contains("timeout"), "{proxy_status}");
        kitchen
            .all(|faults| (faults.delay_ms, faults.status) = (0, Some(500)))
            .await;
        assert_eq!(none().await.1, "[]");
        assert_eq!(client.get("/payments").await.unwrap().status, 500);
        assert_sound(&mut kitchen.envoy).await;

        let off = (r#""recommendations": "on""#, r#""recommendations": "off""#);
        let kitchen = Prepared::recipe(title)
            .await
            .with(off.0, off.1)
            .start()
            .await;
        let console = &Section::recipe(title).0["console"][0];
        kitchen.console(console).await.unwrap();
        assert_eq!(kitchen.client().get("/payments").await.unwrap().status, 200);
        assert_eq!(kitchen.requests().iter().sum::<u64>(), 1);
    });
}

#[test]
fn two_sites_and_a_cold_third() {
    run(async {
        let title = "Two sites and a cold third";
        let mut kitchen = Prepared::recipe(title).await.start().await;
        let client = kitchen.client();
        kitchen
            .console(&Section::recipe(title).0["console"][0])
            .await
            .unwrap();
        let sites =
            |ips: &[&str]| -> BTreeSet<String> { ips.iter().map(|ip| (*ip).to_owned()).collect() };
        let [a1, a2, b1, b2, c] = [
            "10.77.1.11",
            "10.77.1.12",
            "10.77.2.11",
            "10.77.2.12",
            "10.77.3.11",
        ];
        assert_eq!(kitchen.reached(40).await, sites(&[a1, a2]));

        let clients = (1..5).map(|host| kitchen.from(&format!("127.0.1.{host}")));
        let clients: Vec<Client> = clients.collect();
        let steady = Steady::start(clients, "/", Duration::from_millis(20));
        for (lost, left) in [(&[a1, a2][..], &[b1, b2][..]), (&[b1], &[b2, c])] {
            for ip in lost {
                kitchen.at(ip).set(|faults| faults.close = true).await;
            }
            wait_for("they are found dead", async || {
                kitchen.reached(60).await == sites(left)
            })
            .await;
            assert_eq!(client.get("/readyz").await.unwrap().status, 200);
        }
        let tally = steady.stop().await;
        assert!(
            tally.total() > 0 && tally.total() == tally.count(200),
            "{tally:?}"
        );
        // Requests on the way to the last endpoint of a level find no other there.
        kitchen.at(b2).set(|faults| faults.close = true).await;
        wait_for("the reserve has all", async || {
            kitchen.tried(60).await.0 == sites(&[c])
        })
        .await;
        assert_eq!(kitchen.reached(60).await, sites(&[c]));
        assert_eq!(client.get("/readyz").await.unwrap().status, 200);
        kitchen.at(c).set(|faults| faults.close = true).await;
        wait_for("the site is out", async || {
            client.get("/readyz").await.unwrap().status == 503
        })
        .await;
        assert_sound(&mut kitchen.envoy).await;
    });
}

#[test]
fn grpc_with_health_checks() {
    run(async {
        let prepared = Prepared::recipe("gRPC with health checks").await;
        // Each call is answered with a message that, to a health check, says SERVING or not.
        let serving = |faults: &mut crate::support::Faults, status: char| {
            faults
                .headers
                .insert("content-type".into(), "application/grpc".into());
            faults.trailers.insert("grpc-status".into(), "0".into());
            faults.body = Some(format!("\0\0\0\0\x02\x08{status}"));
        };
        for (_, upstream) in prepared.named() {
            upstream.set(|faults| serving(faults, '\x01')).await;
        }
        let mut kitchen = prepared.start().await;
        let addr = kitchen.envoy.addr();
        let client = Client::h2_from(addr, CLIENT.parse().unwrap());
        let calls = async |count| {
            for _ in 0..count {
                let (status, reply) = grpc(&client, addr, "/helloworld.Greeter/SayHello").await;
                assert_eq!(status.as_deref(), Some("0"), "{reply:?}");
            }
        };
        let health = async || {
            let channel = Endpoint::from_shared(format!("http://{addr}"))
                .unwrap()
                .connect()
                .await
                .unwrap();
            let service = "greeter".to_owned();
            let answer = HealthClient::new(channel)
                .check(HealthCheckRequest { service })
                .await
                .unwrap();
            answer.into_inner().status().as_str_name().to_owned()
        };
        let healthy = async || {
            kitchen
                .envoy
                .metrics()
                .await
                .total("haven_endpoint_healthy", &[])
        };
        wait_for("all have been asked", async || {
            let labels = [("upstream", "greeter"), ("reason", "ok")];
            kitchen
                .envoy
                .metrics()
                .await
                .total("haven_health_checks_total", &labels)
                >= 3.0
        })
        .await;
        calls(12).await;
        assert_eq!((healthy().await, health().await.as_str()), (3.0, "SERVING"));

        kitchen
            .at("10.77.0.11")
            .set(|faults| faults.close = true)
            .await;
        calls(20).await;
        kitchen
            .at("10.77.0.12")
            .set(|faults| serving(faults, '\x02'))
            .await;
        wait_for("both are out", async || healthy().await == 1.0).await;
        assert_eq!(health().await, "SERVING");
        kitchen
            .at("10.77.0.13")
            .set(|faults| serving(faults, '\x02'))
            .await;
        wait_for("nothing is left", async || health().await == "NOT_SERVING").await;
        assert_sound(&mut kitchen.envoy).await;
    });
}

#[test]
fn shadow_first() {
    run(async {
        let recipe = Section::recipe("Shadow first");
        let mut kitchen = Prepared::recipe("Shadow first").await.start().await;
        assert_eq!(
            load(&kitchen.client(), 15, 1, "/", &[]).await.count(200),
            15
        );
        let log = kitchen.envoy.access_log_of(15).await;
        let would = decisions(&log)
            .iter()
            .filter(|d| *d == "rate_limited per-client shadow")
            .count();
        assert!((3..=5).contains(&would), "{would}");
        let labels = [("policy", "per-client"), ("mode", "shadow")];
        assert_eq!(counted(&kitchen.envoy, &labels).await, would as u64);
        kitchen.console(&recipe.blocks("console")[0]).await.unwrap();
        assert_sound(&mut kitchen.envoy).await;

        let earnest = Prepared::recipe("Shadow first")
            .await
            .with("\"mode\": \"shadow\",", "");
        let kitchen = earnest.start().await;
        let tally = load(&kitchen.client(), 15, 1, "/", &[]).await;
        assert!(
            (10..=12).contains(&tally.count(200)) && tally.total() == 15,
            "{tally:?}"
        );
    });
}

#[test]
fn why_did_this_request_get_a_503() {
    run(async {
        let recipe = Section::recipe("Why did this request get a 503?");
        let mut kitchen = Prepared::recipe("Why did this request get a 503?")
            .await
            .start()
            .await;
        let client = kitchen.client();
        // haven's word is in all four places.
        let check = async |path: &str, reason: &str, policy: &str| {
            let counter = [("reason", reason), ("policy", policy)];
            let before = counted(&kitchen.envoy, &counter).await;
            let reply = client.get(path).await.unwrap();
            assert_refused(&reply, 503, &format!("{reason} {policy}"));
            assert_eq!(
                counted(&kitchen.envoy, &counter).await,
                before + 1,
                "{path}"
            );
            let decision = format!("{reason} {policy} enforce");
            wait_for("the log has it", async || {
                decisions(&kitchen.envoy.access_log()).contains(&decision)
            })
            .await;
            reply
        };
        for (path, reason, policy) in [
            ("/exports", "switched_off", "exports"),
            ("/archive", "no_endpoint", "drained"),
        ] {
            let problem = check(path, reason, policy).await.json();
            assert_eq!(
                (&problem["reason"], &problem["policy"]),
                (&reason.into(), &policy.into())
            );
        }
        kitchen.all(|faults| faults.hang = true).await;
        let first = crate::filter::hanging({
            let client = client.clone();
            async move { client.get("/reports").await }
        });
        wait_for("one is in flight", async || {
            kitchen
                .envoy
                .metric("haven_concurrency_in_flight", &[])
                .await
                == Some(1.0)
        })
        .await;
        assert_eq!(
            check("/reports", "overload", "reports").await.json()["reason"],
            "overload"
        );
        drop(first);

        // The service's own 503, by itself and with a fallback.
        kitchen
            .all(|faults| (faults.hang, faults.status) = (false, Some(503)))
            .await;
        let news = check("/news", "upstream_error", "sorry").await;
        assert_eq!(news.text(), "Please try again later.");
        assert!(
            news.header("proxy-status")
                .unwrap()
                .contains("received-status=503")
        );
        let last_of = async |path: &str| {
            let mut last = Value::Null;
            wait_for("the log has it", async || {
                let log = kitchen.envoy.access_log();
                let found = log.iter().rev().find(|line| line["path"] == path);
                found.is_some_and(|line| {
                    last = line.clone();
                    true
                })
            })
            .await;
            last
        };
        for _ in 0..5 {
            let reply = client.get("/api/users").await.unwrap();
            assert_eq!((reply.status, reply.header("proxy-status")), (503, None));
        }
        let line = last_of("/api/users").await;
        assert_eq!(
            (&line["details"], &line["flags"]),
            (&"via_upstream".into(), &"-".into()),
            "{line}"
        );
        assert!(line["decision"].is_null(), "{line}");
        kitchen.console(&recipe.blocks("console")[0]).await.unwrap();

        // Envoy's own.
        kitchen.all(|faults| faults.close = true).await;
        let reply = client.get("/elsewhere").await.unwrap();
        assert_eq!((reply.status, reply.header("proxy-status")), (503, None));
        let line = last_of("/elsewhere").await;
        let details = line["details"].as_str().unwrap();
        assert!(
            details.starts_with("upstream_reset_before_response_started{"),
            "{line}"
        );
        assert!(
            line["flags"] == "UF" && line["decision"].is_null(),
            "{line}"
        );
        nothing_in_flight(&kitchen.envoy).await;
        assert_sound(&mut kitchen.envoy).await;
    });
}

/// The files of "Scaling and reloading without loss", in a folder of their own.
struct Files(PathBuf);

impl Files {
    /// Written as by the shell: aside, then moved into place.
    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.0.join("new"), text).unwrap();
        std::fs::rename(self.0.join("new"), self.0.join(name)).unwrap();
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A list of envoy.yaml as a file of resources.
fn resources(list: &str, kind: &str) -> String {
    let head = format!("  - \"@type\": type.googleapis.com/envoy.config.{kind}\n    name:");
    let list: String = list
        .lines()
        .map(|line| match line.strip_prefix("  - name:") {
            Some(rest) => format!("{head}{rest}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    format!("resources:\n{list}")
}

/// A block of YAML that stands in an item of a list, which [`Section`] passes over; `spaces` deep.
fn yaml(title: &str, begin: &str, spaces: usize) -> String {
    let text = std::fs::read_to_string(checkout("docs/recipes.md")).unwrap();
    let (_, text) = text.split_once(&format!("\n## {title}\n")).unwrap();
    let (_, block) = text.split_once(&format!("   ```yaml\n   {begin}")).unwrap();
    let (block, _) = block.split_once("   ```\n").unwrap();
    let lines = format!("   {begin}{block}");
    let lines = lines.lines().map(|line| line.strip_prefix("   ").unwrap());
    lines
        .map(|line| format!("{}{line}\n", " ".repeat(spaces)))
        .collect()
}

#[test]
fn scaling_and_reloading_without_loss() {
    run(async {
        let title = "Scaling and reloading without loss";
        let recipe = Prepared::recipe(title).await;
        let files =
            Files(std::env::temp_dir().join(format!("haven-recipe-{}", std::process::id())));
        std::fs::create_dir_all(&files.0).unwrap();

        // The four files out of the one.
        let text = recipe.local(&recipe.text);
        let (head, rest) = text
            .split_once("static_resources:\n  listeners:\n")
            .unwrap();
        let (listeners, all) = rest.split_once("\n  clusters:\n").unwrap();
        let (before, filter) = listeners.split_once("          - &haven\n").unwrap();
        let end = filter
            .find("          - name: envoy.filters.http.grpc_http1")
            .unwrap();
        let (filter, after) = filter.split_at(end);
        let (_, filter) = filter.split_once("              config:\n").unwrap();
        let wrapper = yaml(title, "resources:", 0);
        let (wrapper, _) = wrapper.split_once("      # name").unwrap();
        let filter = format!("{wrapper}{filter}");
        let here = |text: &str| text.replace("/etc/haven", &files.0.display().to_string());
        let listeners = format!("{before}{}{after}", yaml(title, "- &haven", 10));
        let bootstrap = here(&format!("{head}{}", yaml(title, "node:", 0)));
        let new = recipe.upstreams["10.77.0.13:8080"].addr();
        let third = format!("address: {}, port_value: {} ", new.ip(), new.port());
        let first = recipe.upstreams["10.77.0.11:8080"].addr();
        let clusters = |without: &str| {
            let left = all.lines().filter(|line| !line.contains(without));
            let left: String = left.map(|line| format!("{line}\n")).collect();
            assert_ne!(left.lines().count(), all.lines().count(), "{without}");
            resources(&left, "cluster.v3.Cluster")
        };
        let two =
            r#""endpoints": [{"address": "10.77.0.11:8080"}, {"address": "10.77.0.12:8080"}]"#;
        let filter_of = |endpoints: &str, switch: &str| {
            let (old, new) = (recipe.local(two), recipe.local(endpoints));
            assert!(filter.contains(&old) && filter.contains(r#""users": "on""#));
            let filter = filter.replace(&old, &new);
            filter.replace(r#""users": "on""#, &format!(r#""users": "{switch}""#))
        };
        files.put("clusters.yaml", &clusters(&third));
        files.put(
            "listeners.yaml",
            &here(&resources(&listeners, "listener.v3.Listener")),
        );
        files.put("filter.yaml", &filter_of(two, "on"));
        let three = two.replace(']', r#", {"address": "10.77.0.13:8080"}]"#);
        let drained = three.replace(r#"10.77.0.11:8080""#, r#"10.77.0.11:8080", "weight": 0"#);
        let last = two.replace("10.77.0.11", "10.77.0.13");
        let filters = [&three, &drained, &last].map(|endpoints| filter_of(endpoints, "on"));
        let off = filter_of(&last, "off");
        let all = resources(all, "cluster.v3.Cluster");
        let without_first = clusters(&format!(
            "address: {}, port_value: {} ",
            first.ip(),
            first.port()
        ));

        let mut kitchen = recipe.start_with(bootstrap).await;
        let client = kitchen.client();
        let reload = async |counter: &str, name: &str, text: &str| {
            let before = kitchen.envoy.stat(counter).await;
            files.put(name, text);
            wait_for(name, async || kitchen.envoy.stat(counter).await > before).await;
        };
        let ecds = "extension_config_discovery.http_filter.haven";
        let (filter_taken, clusters_taken) = (
            format!("{ecds}.update_success"),
            "cluster_manager.cds.update_success",
        );
        let key = [("x-api-key", "a")];
        assert_eq!(load(&client, 2, 1, "/", &key).await.count(200), 2);
        wait_for("both serve", async || kitchen.reached(20).await.len() == 2).await;
        let steady = Steady::start(
            [kitchen.envoy.h1(), kitchen.envoy.h2(), kitchen.envoy.h1()],
            "/",
            Duration::from_millis(5),
        );

        reload(clusters_taken, "clusters.yaml", &all).await;
        reload(&filter_taken, "filter.yaml", &filters[0]).await;
        let reach = async |what: &str, ips: &[&str]| {
            let ips: BTreeSet<String> = ips.iter().map(|ip| (*ip).to_owned()).collect();
            wait_for(what, async || kitchen.reached(60).await == ips).await;
        };
        reach(
            "the new one serves",
            &["10.77.0.11", "10.77.0.12", "10.77.0.13"],
        )
        .await;
        reload(&filter_taken, "filter.yaml", &filters[1]).await;
        reach("the first is drained", &["10.77.0.12", "10.77.0.13"]).await;
        let endpoint = first.to_string();
        wait_for("nothing is in flight there", async || {
            let labels = [("endpoint", endpoint.as_str())];
            kitchen
                .envoy
                .metric("haven_endpoint_in_flight", &labels)
                .await
                == Some(0.0)
        })
        .await;
        reload(&filter_taken, "filter.yaml", &filters[2]).await;
        reload(clusters_taken, "clusters.yaml", &without_first).await;
        reach("the first is gone", &["10.77.0.12", "10.77.0.13"]).await;

        reload(
            &format!("{ecds}.update_rejected"),
            "filter.yaml",
            &filters[2].replace("\"1d\"", "\"0d\""),
        )
        .await;
        assert!(
            kitchen
                .envoy
                .logs()
                .contains("configuration refused: rate_limits.daily.period")
        );
        reach("the one before goes on", &["10.77.0.12", "10.77.0.13"]).await;
        let tally = steady.stop().await;
        assert!(
            tally.total() > 20 && tally.total() == tally.count(200),
            "{tally:?}"
        );
        assert_eq!(
            load(&client, 4, 1, "/", &key).await.count(200),
            1,
            "the bucket is kept"
        );

        reload(&filter_taken, "filter.yaml", &off).await;
        // On the connection of before.
        wait_for("it is off", async || {
            client.get("/").await.unwrap().status == 503
        })
        .await;
        let last = client.get("/").await.unwrap();
        assert_refused(&last, 503, "switched_off users");
        assert_eq!(
            kitchen
                .envoy
                .stat("listener_manager.lds.update_success")
                .await,
            1
        );
        // A refused configuration leaves its line in the log, so not `assert_sound`.
        assert!(kitchen.envoy.is_running() && !kitchen.envoy.logs().contains("panicked"));
    });
}
