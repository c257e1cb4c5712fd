//! haven's metrics on Envoy's Prometheus page: read ten times a second, changes of breakers printed
//! as they happen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::NAMES;
use crate::out::Out;
use crate::support::{Client, Metrics};

const STATE: &str = "haven_circuit_breaker_state";

/// The newest metrics.
#[derive(Debug)]
pub struct Watch {
    page: Page,
    newest: watch::Receiver<Metrics>,
    task: JoinHandle<()>,
}

/// Where the metrics are, and who is who in them.
#[derive(Clone, Debug)]
struct Page {
    admin: Client,
    addresses: Vec<String>,
}

impl Watch {
    pub async fn start(
        admin: SocketAddr,
        upstreams: &[SocketAddr],
        out: Arc<Out>,
    ) -> Result<Self, String> {
        let addresses = upstreams.iter().map(ToString::to_string).collect();
        let page = Page {
            admin: Client::h1(admin),
            addresses,
        };
        let first = page.read().await?;
        let mut known = page.breakers(&first);
        let (sender, newest) = watch::channel(first);
        let reader = page.clone();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            loop {
                ticks.tick().await;
                // Envoy may be gone already: then there is nothing to print.
                let Ok(metrics) = reader.read().await else {
                    continue;
                };
                for (name, state) in reader.breakers(&metrics) {
                    let before = known.insert(name.clone(), state).unwrap_or(0);
                    if before != state {
                        out.event(&format!(
                            "circuit breaker of {name}: {} → {}",
                            word(before),
                            word(state)
                        ));
                    }
                }
                sender.send_replace(metrics);
            }
        });
        Ok(Self { page, newest, task })
    }

    /// The metrics as they are now; should the page not answer, those before.
    pub async fn now(&self) -> Metrics {
        match self.page.read().await {
            Ok(metrics) => metrics,
            Err(_) => self.newest.borrow().clone(),
        }
    }

    /// Waits until `condition` holds; says whether it did within `patience`.
    pub async fn until(&self, patience: Duration, condition: impl FnMut(&Metrics) -> bool) -> bool {
        let mut newest = self.newest.clone();
        tokio::time::timeout(patience, newest.wait_for(condition))
            .await
            .is_ok_and(|found| found.is_ok())
    }

    /// State of an endpoint's breaker.
    pub fn of_endpoint(&self, metrics: &Metrics, upstream: usize) -> u8 {
        let address = self.page.addresses.get(upstream).map_or("", String::as_str);
        state(metrics, address)
    }

    /// All breakers in words.
    pub fn in_words(&self, metrics: &Metrics) -> String {
        let words = self.page.breakers(metrics);
        let words = words
            .iter()
            .map(|(name, state)| format!("{name} {}", word(*state)));
        words.collect::<Vec<_>>().join(" · ")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Page {
    async fn read(&self) -> Result<Metrics, String> {
        let reply = self.admin.get("/stats/prometheus?filter=haven_").await?;
        if reply.status != 200 || reply.cut.is_some() {
            return Err(format!(
                "/stats/prometheus: {} {}",
                reply.status,
                reply.text()
            ));
        }
        Ok(Metrics::parse(&reply.text()))
    }

    /// The breakers that are used, by name.
    fn breakers(&self, metrics: &Metrics) -> BTreeMap<String, u8> {
        let keys = metrics
            .matching(STATE, &[])
            .filter_map(|series| series.labels.get("key"));
        let named = keys.filter(|key| *key != "users-write").map(|key| {
            let at = self.addresses.iter().position(|address| address == key);
            let name = at
                .and_then(|at| NAMES.get(at))
                .map_or_else(|| format!("route {key}"), |name| format!("upstream {name}"));
            (name, state(metrics, key))
        });
        named.collect()
    }
}

/// State of a route's breaker, or of an endpoint's by its address.
pub fn state(metrics: &Metrics, key: &str) -> u8 {
    match metrics.total(STATE, &[("key", key)]) {
        value if value < 0.5 => 0,
        value if value < 1.5 => 1,
        value if value < 2.5 => 2,
        _ => 3,
    }
}

const fn word(state: u8) -> &'static str {
    match state {
        0 => "closed",
        1 => "open",
        2 => "half-open",
        _ => "forced",
    }
}
