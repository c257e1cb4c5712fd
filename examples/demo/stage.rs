//! What the story needs: Envoy, the upstreams, the traffic, and a place to note what was expected
//! and what happened.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::NAMES;
use crate::out::{Look, Out};
use crate::report::{Counts, columns};
use crate::support::{Client, Envoy, EnvoyConfig, Faults, Metrics, envoy_binary, haven_wasm};
use crate::traffic::{Ledger, Sample, Stream, Who};
use crate::watch::Watch;
use haven_upstream::{Options, Upstream};

/// Service time in milliseconds and requests served at once, by upstream.
pub const SPEEDS: [(u64, u32); NAMES.len()] = [(20, 16), (40, 8), (80, 4)];

/// Ordinary clients, and what each asks for per second.
pub const CROWD: (u8, u32) = (5, 28);

/// What the steady client asks for per second.
pub const STEADY: u32 = 10;

/// Last numbers of the clients' addresses in 127.0.0.0/24: the first of the ordinary ones, the
/// steady and the noisy one.
pub const FIRST: u8 = 11;
pub const CALM: u8 = 31;
pub const LOUD: u8 = 66;

fn clients() -> impl Iterator<Item = u8> {
    (FIRST..FIRST + CROWD.0).chain([CALM, LOUD])
}

const fn loopback(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, host))
}

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    pub out: Arc<Out>,
    pub envoy: Envoy,
    pub upstreams: Vec<Upstream>,
    pub watch: Watch,
    pub ledger: Arc<Ledger>,
    pub began: Instant,
    /// A line of the summary for each act.
    pub summary: Vec<(bool, String)>,
    client: Client,
    streams: Vec<Stream>,
}

/// An act that is on.
pub struct Act {
    pub number: usize,
    title: &'static str,
    before: Metrics,
    expectations: Vec<(bool, String)>,
    progress: JoinHandle<()>,
}

impl Drop for Act {
    fn drop(&mut self) {
        self.progress.abort();
    }
}

impl Act {
    /// Notes something that should have happened, and whether it did.
    pub fn expect(&mut self, met: bool, text: impl Into<String>) {
        self.expectations.push((met, text.into()));
    }
}

/// The counts of an act.
pub struct Ended {
    pub counts: Counts,
    pub samples: Vec<Sample>,
    before: Metrics,
    after: Metrics,
}

impl Ended {
    /// How much a counter of haven grew over the act.
    pub fn grew(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        (self.after.total(name, labels) - self.before.total(name, labels)).max(0.0) as u64
    }

    pub fn of(&self, who: impl Fn(Who) -> bool) -> Counts {
        Counts::of(self.samples.iter().filter(|sample| who(sample.who)))
    }
}

impl Stage {
    /// Starts all but the traffic.
    pub async fn set(out: Arc<Out>) -> Result<Self, String> {
        envoy_binary()?;
        haven_wasm()?;
        for host in clients() {
            std::net::TcpListener::bind((loopback(host), 0)).map_err(|error| {
                format!(
                    "clients need addresses of their own, but {}: {error}",
                    loopback(host)
                )
            })?;
        }
        let mut upstreams = Vec::new();
        for (name, (service_time_ms, capacity)) in NAMES.iter().zip(SPEEDS) {
            let options = Options {
                name: (*name).to_owned(),
                ..Options::default()
            };
            let upstream = Upstream::start(options)
                .await
                .map_err(|error| format!("upstream {name}: {error}"))?;
            upstream
                .update(|faults| {
                    faults.service_time_ms = service_time_ms;
                    faults.capacity = Some(capacity);
                })
                .await?;
            upstreams.push(upstream);
        }
        let addresses: Vec<_> = upstreams.iter().map(Upstream::addr).collect();
        let envoy = Envoy::try_start(EnvoyConfig::reference(&addresses)).await?;
        let watch = Watch::start(envoy.admin_addr(), &addresses, out.clone()).await?;
        let client = Client::h1(envoy.addr());
        let ledger = Arc::new(Ledger::default());
        ledger.next_act();
        Ok(Self {
            out,
            envoy,
            upstreams,
            watch,
            ledger,
            began: Instant::now(),
            summary: Vec::new(),
            client,
            streams: Vec::new(),
        })
    }

    /// The traffic that goes on through all acts.
    pub fn start_traffic(&mut self) {
        for number in 0..CROWD.0 {
            self.streams
                .push(self.stream(Who::Crowd, FIRST + number, CROWD.1));
        }
        self.streams.push(self.stream(Who::Steady, CALM, STEADY));
    }

    pub fn stop_traffic(&mut self) {
        self.streams.clear();
    }

    /// Traffic from `127.0.0.host`.
    pub fn stream(&self, who: Who, host: u8, rate: u32) -> Stream {
        Stream::start(&self.ledger, who, self.envoy.addr(), loopback(host), rate)
    }

    /// Begins an act.
    pub async fn begin(&self, title: &'static str, lead: &[&str]) -> Act {
        let number = self.ledger.act();
        let before = self.watch.now().await;
        self.out.act(&format!("{number} · {title}"));
        for line in lead {
            self.out.plain(&format!("  {line}"));
        }
        self.out.line(Look::Dim, &columns("    time"));
        let (out, ledger) = (self.out.clone(), self.ledger.clone());
        let progress = tokio::spawn(async move {
            let second = Duration::from_secs(1);
            let mut ticks = tokio::time::interval_at(Instant::now() + second, second);
            for passed in 1_u64.. {
                ticks.tick().await;
                let counts = Counts::of(&ledger.answered_within(second));
                out.line(Look::Dim, &counts.row(&format!("{passed:>6} s")));
            }
        });
        Act {
            number,
            title,
            before,
            expectations: Vec::new(),
            progress,
        }
    }

    /// Ends an act: what is on its way comes in, and is counted. Requests sent from now on are the
    /// next act's.
    pub async fn end(&self, act: &Act) -> Ended {
        self.ledger.next_act();
        self.ledger.settle(act.number).await;
        act.progress.abort();
        let samples = self.ledger.of_act(act.number);
        let mut counts = Counts::of(&samples);
        let lost = self.ledger.lost(act.number);
        counts.requests += lost;
        counts.errors += lost;
        let ended = Ended {
            counts,
            samples,
            before: act.before.clone(),
            after: self.watch.now().await,
        };
        let out = &self.out;
        out.line(Look::Bold, &columns("  counts"));
        let groups = [
            ("  5 clients", Who::Crowd),
            ("  steady client", Who::Steady),
            ("  noisy client", Who::Noisy),
        ];
        for (label, group) in groups {
            let counts = ended.of(|who| who == group);
            if counts.requests > 0 {
                out.plain(&counts.row(label));
            }
        }
        out.line(Look::Bold, &ended.counts.row("  all"));
        let opened = ended.grew("haven_circuit_breaker_transitions_total", &[("to", "open")]);
        out.plain(&format!(
            "  haven           retries {} · stale {} · fixed {} · rate limited {} · overload {} · circuits opened {opened}",
            ended.grew("haven_retries_total", &[]),
            ended.grew("haven_fallbacks_total", &[("step", "stale")]),
            ended.grew("haven_fallbacks_total", &[("step", "respond")]),
            ended.grew("haven_decisions_total", &[("reason", "rate_limited")]),
            ended.grew("haven_decisions_total", &[("reason", "overload")]),
        ));
        out.plain(&format!(
            "  circuits        {}",
            self.watch.in_words(&ended.after)
        ));
        for (text, count) in self.ledger.wrongs(act.number).iter().take(5) {
            let text: String = text.chars().take(80).collect();
            out.line(Look::Bad, &format!("  {count:>5} × {text}"));
        }
        ended
    }

    /// Says which expectations were met, and notes the act for the summary.
    pub fn judge(&mut self, act: Act, conclusion: &str) {
        for (met, text) in &act.expectations {
            self.out.verdict(*met, text);
        }
        let met = act.expectations.iter().all(|(met, _)| *met);
        self.summary.push((
            met,
            format!("{} · {:<22} {conclusion}", act.number, act.title),
        ));
    }

    /// Changes an upstream's faults.
    pub async fn fault(&self, upstream: usize, what: &str, change: impl FnOnce(&mut Faults)) {
        let Some(target) = self.upstreams.get(upstream) else {
            return;
        };
        match target.update(change).await {
            Ok(()) => self.out.event(what),
            Err(error) => self.out.event(&format!("{what}: this failed: {error}")),
        }
    }

    /// Takes an upstream's faults back; it stays as fast as it was.
    pub async fn heal(&self, upstream: usize, what: &str) {
        self.fault(upstream, what, |faults| {
            let (service_time_ms, capacity) = (faults.service_time_ms, faults.capacity);
            *faults = Faults {
                service_time_ms,
                capacity,
                ..Faults::default()
            };
        })
        .await;
    }

    /// Status and body of `/readyz`.
    pub async fn readyz(&self) -> (u16, String) {
        match self.client.get("/readyz").await {
            Ok(reply) => (reply.status, reply.text()),
            Err(error) => (0, error),
        }
    }
}
