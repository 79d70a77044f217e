//! The source `development`: an SVID from the tiny authority in a shared folder.
//!
//! In: the folder, and who we are. Out: a fresh SVID when the one at hand is half used up
//! or comes from another authority. Promise: as `authority` promises; not for production.

use std::time::{Duration, SystemTime};

use outrigger_config::{DevelopmentAuthority, SpiffeId, TrustDomain};

use crate::authority::{Authority, paths};
use crate::error::Error;
use crate::material::{Material, Origin};
use crate::snapshot::Snapshot;

/// No SVID lives longer; the authority lives ten times as long.
const LONGEST_TTL: Duration = Duration::from_secs(365 * 86400);
/// Certificates count in whole seconds.
const SHORTEST_TTL: Duration = Duration::from_secs(2);

/// A new SVID; `None` while `current` is still good.
pub(crate) async fn load(
    settings: &DevelopmentAuthority,
    trust_domain: &TrustDomain,
    current: Option<&Snapshot>,
    now: SystemTime,
) -> Result<Option<Material>, Error> {
    let ttl = settings.ttl.0.clamp(SHORTEST_TTL, LONGEST_TTL);
    let authority = Authority::open(&settings.directory, trust_domain, ttl, now).await?;
    let id = workload_id(settings, trust_domain);
    let good = |current: &Snapshot| {
        let lifetime = current.not_after.duration_since(now).unwrap_or_default();
        current.spiffe_id == id
            && current.trust_bundle() == std::slice::from_ref(authority.certificate())
            && now < renew_at(current)
            && lifetime <= ttl
    };
    if current.is_some_and(good) {
        return Ok(None);
    }
    let (certificate, key) = authority.issue(&id, ttl, now).map_err(|error| Error::Authority {
        directory: settings.directory.clone(),
        action: "issue a certificate",
        source: error.to_string().into(),
    })?;
    let [ca, _] = paths(&settings.directory);
    let origin = Origin { certificate: ca.clone(), key: ca.clone(), bundle: ca };
    let bundle = vec![authority.certificate().clone()];
    Material::new(vec![certificate], key, bundle, &origin, trust_domain, now).map(Some)
}

/// When an SVID is half used up.
pub(crate) fn renew_at(snapshot: &Snapshot) -> SystemTime {
    let lifetime = snapshot.not_after.duration_since(snapshot.not_before).unwrap_or_default();
    snapshot.not_after - lifetime / 2
}

fn workload_id(settings: &DevelopmentAuthority, trust_domain: &TrustDomain) -> SpiffeId {
    let id = format!("spiffe://{trust_domain}/ns/{}/sa/{}", settings.namespace, settings.service_account);
    id.parse().expect("names and trust domains hold only characters that SPIFFE IDs allow")
}
