//! Clients that do not wait for each other: each request goes at its moment, fixed beforehand,
//! whatever became of the ones before.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::Client;
use super::endpoint::NUMBER;

/// A request to send.
#[derive(Clone, Debug)]
pub struct Request {
    /// When, counted from the beginning.
    pub at: Duration,
    /// Over the connections of which client.
    pub client: usize,
    /// Its method.
    pub method: &'static str,
    /// What it asks for.
    pub path: String,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// After so long its client hangs up.
    pub patience: Duration,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The status; 0 if nothing came before its client hung up.
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

/// Sends them all from `begin` on; what came of each, in their order.
pub async fn send(
    clients: &[Client],
    requests: impl Iterator<Item = Request>,
    begin: Instant,
) -> Vec<Outcome> {
    let mut tasks = JoinSet::new();
    for (number, request) in requests.enumerate() {
        let due = begin + request.at;
        if due > Instant::now() {
            sleep_until(due).await;
        }
        let client = clients[request.client].clone();
        tasks.spawn(async move { (number, one(&client, &request, number, due).await) });
    }
    let mut outcomes = tasks.join_all().await;
    outcomes.sort_unstable_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn one(client: &Client, request: &Request, number: usize, due: Instant) -> Outcome {
    let sent = Instant::now();
    let text = number.to_string();
    let mut fields = vec![(NUMBER, text.as_str())];
    fields.extend(
        request
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str())),
    );
    let body = if request.method == "POST" { "{}" } else { "" };
    let reply = client.request(request.method, &request.path, &fields, body);
    let reply = timeout(request.patience, reply).await;
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
    outcome
}
