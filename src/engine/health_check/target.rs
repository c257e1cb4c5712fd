//! An endpoint as its checker knows it.

use crate::base::time::{Moment, Nanos};
use crate::document::HealthCheck;
use crate::engine::metrics::MetricTable;
use crate::host::{Host, MetricId, SharedCounter};
use crate::policy::health_check::{EndpointRecord, Streaks};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// An endpoint that is checked.
#[derive(Debug)]
pub(super) struct Target {
    /// Its number in the schedule; [`GONE`]: the upstream has it no more.
    pub(super) at: Cell<usize>,
    pub(super) address: String,
    pub(super) record: EndpointRecord,
    pub(super) reason: MetricId,
    pub(super) changed: MetricId,
    pub(super) streaks: RefCell<Streaks>,
    /// When its last answer came, or its checker began.
    pub(super) answered: Cell<Moment>,
    /// Counts how often the proxy did not ask it when it should.
    pub(super) strays: SharedCounter,
    /// Its value when it was last read, and until when answers are nobody's.
    pub(super) doubt: Cell<(u64, Moment)>,
}

/// The place of an endpoint that is in no schedule.
pub(super) const GONE: usize = usize::MAX;

/// For how long the answers to an endpoint's checks are taken for others', after the proxy has not
/// asked the endpoint for a request that it was to have.
const DOUBT: Nanos = Nanos::from_secs(60);

impl Target {
    pub(super) fn new<H: Host>(
        at: usize,
        address: &str,
        name: &str,
        check: &HealthCheck,
        host: &H,
    ) -> Rc<Self> {
        let metrics = MetricTable(host);
        Rc::new(Self {
            at: Cell::new(at),
            record: EndpointRecord::new(name, address, check),
            reason: metrics.endpoint_reason(name, address),
            changed: metrics.endpoint_changed(name, address),
            streaks: RefCell::default(),
            answered: Cell::default(),
            strays: metrics.endpoint_strays(name, address),
            doubt: Cell::default(),
            address: address.to_owned(),
        })
    }

    /// Nothing is known of it by this checker, which asks it from this moment on.
    pub(super) fn begin<H: Host>(&self, host: &H, start: Moment) {
        if let Ok(mut streaks) = self.streaks.try_borrow_mut() {
            *streaks = Streaks::default();
        }
        self.answered.set(start);
        self.doubt.set((host.load(self.strays), Moment::ZERO));
    }

    /// Whether its checks are likely to reach others: requests for it do.
    pub(super) fn is_doubtful<H: Host>(&self, host: &H, now: Moment) -> bool {
        let strays = host.load(self.strays);
        let (seen, mut until) = self.doubt.get();
        if strays != seen {
            until = now.plus(DOUBT);
            self.doubt.set((strays, until));
        }
        now < until
    }
}
