//! What `portcullis key change` puts in the place of what a key was good for.

use std::path::Path;

use anyhow::bail;
use clap::Args;
use ipnet::IpNet;

use super::{say, the_one, values};
use crate::config::{Allowance, Models};
use crate::store::{Actor, KeyDetails, Store};

/// What is not said stays as it is.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
pub(super) struct Changes {
    /// What the key is called from now on
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Who has the key; empty ('') is whoever its name says
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// viewer, user, operator or admin; `inherit` is what [roles] says of whose key it is
    #[arg(long, value_parser = values::role)]
    role: Option<values::KeyRole>,
    /// Models that it may use, as `gemma3*,qwen3*`, of those that rules allow; or all
    #[arg(long, value_name = "PATTERNS", value_parser = values::models)]
    models: Option<Models>,
    /// Whether it may use models in the cloud: true or false; `inherit` is what the rule says
    #[arg(long, value_name = "WHETHER", value_parser = values::cloud)]
    cloud: Option<values::Cloud>,
    /// Until when it counts: 90d, 2027-01-31 or never
    #[arg(long, value_name = "WHEN", value_parser = values::expiry)]
    expires: Option<values::Expiry>,
    /// A network that it may be used from, in the place of those before; may be given several times.
    /// `any` is from anywhere
    #[arg(long, value_name = "NET", value_parser = values::network_or_any)]
    network: Vec<values::Network>,
    /// How much it may have, as `tokens_per_day=100000`, in the place of all its limits; may be given several
    /// times. `none` is no limit of its own
    #[arg(long, value_name = "LIMIT=NUMBER", value_parser = values::limit_or_none)]
    limit: Vec<values::Limit>,
    /// A line to remember it by
    #[arg(long)]
    note: Option<String>,
}

impl Changes {
    fn onto(self, details: &mut KeyDetails) {
        put(&mut details.name, self.name);
        put(&mut details.owner, self.owner.map(|owner| Some(owner).filter(|it| !it.is_empty())));
        put(&mut details.role, self.role.map(|role| role.0));
        put(&mut details.models, self.models.map(Some));
        put(&mut details.cloud, self.cloud.map(|cloud| cloud.0));
        put(&mut details.expires, self.expires.map(|expiry| expiry.0));
        put(&mut details.note, self.note);
        if !self.limit.is_empty() {
            details.limits = Allowance::default();
            for (measure, number) in self.limit.into_iter().filter_map(|limit| limit.0) {
                // What the parser took is a limit.
                let _ = details.limits.set(measure, number);
            }
        }
        if !self.network.is_empty() {
            // One of them may be anywhere.
            details.networks =
                self.network.iter().map(|network| network.0).collect::<Option<Vec<IpNet>>>();
        }
    }
}

fn put<T>(place: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *place = said;
    }
}

pub(super) fn run(
    folder: &Path,
    keys: &[String],
    changes: &Changes,
    by: &Actor,
) -> anyhow::Result<()> {
    if changes.name.is_some() && keys.len() > 1 {
        bail!("several keys are not called the same by one command; say --name for each");
    }
    let store = Store::open_existing(folder)?;
    // All of them are looked for first: a slip in the last name changes nothing.
    let ids = keys.iter().map(|key| the_one(&store, key)).collect::<anyhow::Result<Vec<_>>>()?;
    for id in ids {
        let changes = changes.clone();
        let key = store.change_key(id, by, move |details| changes.onto(details))?;
        say(&format!("changed {} ({id})", key.details.name));
    }
    Ok(())
}
