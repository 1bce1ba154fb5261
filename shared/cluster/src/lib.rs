//! What a cluster decides, without doing it: what a plan costs, which plan to take, which step runs
//! next, which token is drawn, and the state machines of both sides of the control plane.
//!
//! Everything here is a function of its arguments. Time is a [`std::time::Duration`] since some start
//! of the caller's, randomness a seed; there is no socket, clock, thread or entropy. The drivers are in
//! the `coordinator` and `worker` crates: they feed events into a machine, drain its actions and carry
//! them out. [`sim`] drives the same machines over virtual time.
//!
//! | module | lives there |
//! |---|---|
//! | [`cost`] | devices, links and workloads; what a plan is predicted to do |
//! | [`flow`] | a plan's messages and kernels as discrete events over the cost model |
//! | [`planner`] | the five strategies, priced side by side, and the choice |
//! | [`scheduler`] | sequences and steps |
//! | [`sampling`] | drawing a token from the answers of a distributed output head |
//! | [`coordinator`] | membership, plan, epochs and scheduling as one state machine |
//! | [`worker`] | the control side of a worker as one state machine |
//! | [`sim`] | both machines under seeded delays, crashes and slow nodes |

pub mod coordinator;
pub mod cost;
pub mod flow;
pub mod planner;
pub mod sampling;
pub mod scheduler;
pub mod sim;
pub mod worker;
