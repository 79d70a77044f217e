//! Services of a Kubernetes cluster: what its objects mean, and who follows them.
//!
//! In: Services, EndpointSlices and pods as they change, in any order. Out: changes of services, one for each port. Promise:
//! whatever order objects come in, the same objects make the same services; of each object only what is needed is kept; a
//! pod that comes later than the slice that names it is not missed.

mod alone;
mod feed;
mod handover;
mod index;
mod projection;
#[cfg(test)]
mod tests;

pub(crate) use feed::ClusterFeed;
pub use index::{Index, ObjectName};
pub use projection::{KeptPod, KeptService, KeptSlice};
