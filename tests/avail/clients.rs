//! Clients that do not wait for each other: each request goes at its moment, fixed beforehand,
//! whatever became of the ones before.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::support::Client;
use super::upstream::NUMBER;
use super::world::{Path, World};

/// What came of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The status; 0 if nothing came within the client's deadline.
    pub status: u16,
    /// Whether an endpoint gave this answer to this request: not a fallback's, not a kept one.
    pub real: bool,
    /// From the sending to the answer's end.
    pub took: Duration,
    /// How long after its moment it was sent.
    pub late: Duration,
}

impl Outcome {
    /// A good answer in time, from whomever.
    pub fn answered(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// A good answer in time from an endpoint.
    pub fn useful(&self) -> bool {
        self.answered() && self.real
    }
}

/// The clients of a world, each with an address and a connection of its own.
#[derive(Debug)]
pub struct Clients(Vec<Client>);

impl Clients {
    /// Connects them to a proxy, and has each get some answers: what is paid once is paid.
    pub async fn connect(world: &World, proxy: SocketAddr) -> Self {
        let mut clients = Vec::new();
        for number in 0..=world.clients as u8 {
            let local = IpAddr::V4(Ipv4Addr::new(127, 0, 1, number + 1));
            let client = Client::h2_from(proxy, local);
            for path in [Path::Critical, Path::Sheddable, Path::Bad] {
                // A refusal is an answer too; what counts is counted later.
                let _ = client.get(path.text()).await;
            }
            clients.push(client);
        }
        Self(clients)
    }

    /// Sends all of the world's requests from `begin` on; what came of each, in their order.
    pub async fn send(&self, world: &Arc<World>, begin: Instant) -> Vec<Outcome> {
        let mut requests = JoinSet::new();
        for (number, arrival) in world.arrivals.iter().enumerate() {
            let due = begin + arrival.at;
            if due > Instant::now() {
                sleep_until(due).await;
            }
            let client = self.0[arrival.client].clone();
            let (deadline, path) = (world.deadline, arrival.path.text());
            requests.spawn(async move {
                let sent = Instant::now();
                let text = number.to_string();
                let fields = [(NUMBER, text.as_str())];
                let reply = timeout(deadline, client.get_with(path, &fields)).await;
                let mut outcome = Outcome {
                    took: sent.elapsed(),
                    late: sent - due,
                    ..Outcome::default()
                };
                if let Ok(Ok(reply)) = reply
                    && reply.cut.is_none()
                {
                    outcome.status = reply.status;
                    outcome.real = reply.header(NUMBER).is_some_and(|seen| seen == text);
                }
                (number, outcome)
            });
        }
        let mut outcomes = vec![Outcome::default(); world.arrivals.len()];
        for (number, outcome) in requests.join_all().await {
            outcomes[number] = outcome;
        }
        outcomes
    }
}
