//! The clients of a scenario, each with an address and a connection of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::time::Instant;

use super::support::Client;
use super::support::open_loop::{Outcome, Request, send};
use super::world::{Path, World};

/// The clients of a world.
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
        let requests = world.arrivals.iter().map(|arrival| Request {
            at: arrival.at,
            client: arrival.client,
            method: "GET",
            path: arrival.path.text().to_owned(),
            headers: Vec::new(),
            patience: world.deadline,
        });
        send(&self.0, requests, begin).await
    }
}
