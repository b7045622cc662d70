//! Request filters beyond what routes say, one file each. They are given a head and facts and answer with a decision;
//! they do no IO, and the server puts the decision into effect.

pub mod authz;
pub mod cors;
pub mod edge;
pub mod ext_authz;
pub mod grpc;
pub mod guards;
pub mod jwt;
pub mod login;
pub mod rate_limit;
