//! Takes running pods to another image of the sidecar, while their applications go on.
//!
//! In: a `SidecarRollout`, the pods, the time. Out: the next changes to pods, and a status. Promise: never more pods of a
//! workload at once than `maxUnavailable`; the first pod alone, and a share of them before all others; a pod in which the
//! next sidecar is not well stops everything, and what was changed goes back; whatever is known stands in the resource
//! and in the pods, so that whoever is killed at any moment, the next one goes on to the same end.

mod change;
mod controller;
mod gate;
mod moment;
mod order;
mod plan;
mod pod;
mod record;
mod spec;
mod status;
mod traffic;
mod view;

pub use change::{Action, Do, PatchKind};
pub use controller::Rollouts;
pub use moment::Moment;
pub use plan::{Plan, Rollout, plan};
pub use pod::{Keeper, KeeperState, Pod, Sidecar, SidecarState, Traffic};
pub use record::{ANNOTATION, Record, Stage};
pub use spec::{HandOver, OnFailure, Share, Spec};
pub use status::{Failure, Phase, Status, Told};
