//! A request as the router reads it: which API it calls, its body (bounded in bytes, time and memory), and one pass over
//! the body that notes the few fields the router acts on. The body itself is forwarded as it came, except that
//! `workflow_metadata` is cut out.

mod ask;
mod body;
mod route;

pub use ask::{Ask, ContextSharing, Metadata, Places, parse};
pub use body::{Received, read_body};
pub use route::{Api, Route, Target};
