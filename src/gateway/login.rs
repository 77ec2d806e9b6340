//! Who a caller is, by what the request shows.

use http::request::Parts;

use super::Visit;
use crate::api::Target;
use crate::auth::{Identity, Presented};
use crate::client_addr::ClientAddr;
use crate::record::Record;
use crate::reject::Reject;
use crate::tls::ClientCertificate;

impl Visit<'_> {
    /// # Errors
    /// 401, 429.
    pub(super) async fn login(
        &self,
        parts: &Parts,
        target: &Target,
        client: ClientAddr,
        record: &mut Record,
    ) -> Result<Identity, Reject> {
        let Self { live, state, link, .. } = self;
        let presented = presented(parts, target, link.door.certificate(state)?);
        let started = record.started();
        let who = state.auth().authenticate(&live.memory, client, presented, started).await?;
        self.met(client, &who, parts, record);
        Ok(who)
    }
}

pub(super) fn presented<'a>(
    parts: &'a Parts,
    target: &'a Target,
    certificate: Option<&'a ClientCertificate>,
) -> Presented<'a> {
    let mut pairs = parts.uri.query().unwrap_or_default().split('&');
    Presented {
        headers: &parts.headers,
        path_key: target.path_key.as_deref(),
        method: parts.method.as_str(),
        path: &target.path,
        ts: pairs.find_map(|pair| pair.strip_prefix("ts=")),
        certificate,
    }
}
