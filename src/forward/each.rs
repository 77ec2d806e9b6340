//! A call that goes to several backends, to each as if it were the only one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Forwarding, Origin, outbound};
use crate::call::Call;
use crate::meter::{Began, Questioned, Speaking, Voice};
use crate::pool::{Failed, Finding, Lease, Outbound};
use crate::reject::Reject;

/// To be sent to each, as soon as the answer is asked for.
///
/// # Errors
/// 400 for a target that cannot be passed on.
pub fn to_each(
    call: Call<'_>,
    leases: Vec<Lease>,
    rules: &Forwarding,
    origin: &Origin<'_>,
) -> Result<Questioned, Reject> {
    let began = Began::default();
    let mut voices = Vec::new();
    for lease in leases {
        let name = Arc::clone(lease.backend().name());
        // Its lines are read here, so they have to come whole and plain.
        let request = outbound(&mut call.again(), true, (lease.backend(), rules), origin)?;
        let asking = ask(lease, request, rules.first_byte, Arc::clone(&began));
        voices.push(Voice::new(name, Box::pin(asking)));
    }
    Ok(Questioned { voices, began, body: call.body })
}

/// It goes out a second time only if nothing of it went out over a kept connection.
async fn ask(
    mut lease: Lease,
    mut request: Outbound,
    first_byte: Duration,
    began: Began,
) -> Result<Speaking, Reject> {
    if lease.backend().is_drained() {
        return Err(Reject::NoBackend("it is in maintenance".into()));
    }
    let mut kept = lease.kept(Instant::now());
    loop {
        let is_fresh = kept.is_none();
        let mut connection = match kept.take() {
            Some(kept) => kept,
            None => lease.connect().await?,
        };
        began.get_or_init(Instant::now);
        let (finding, reject) = match connection.exchange(&mut request, first_byte).await {
            Ok(head) => {
                lease.found(Finding::Answer);
                return Ok(Speaking::new(head.status, connection, lease));
            }
            Err(Failed::NotBegun) if !is_fresh => continue,
            Err(Failed::NotBegun | Failed::Upload) => {
                let says = "it ended the connection at once";
                (Finding::Failure, Reject::BackendFailed(says.into()))
            }
            Err(Failed::Late) => (Finding::Silence, Reject::BackendTimeout),
            Err(Failed::Broken(cause)) => (Finding::Failure, Reject::BackendFailed(cause)),
        };
        lease.found(finding);
        return Err(reject);
    }
}
