//! HTTP/1.1 on the wire (RFC 9112): heads and bodies, read strictly and written in few pieces.
//!
//! Both sides of the gate use it. The parser of heads is `httparse`; what is ours is when bytes are
//! read and written: into one buffer per thread, so that a silent connection holds none, and out in
//! one call, so that a chunk costs one write.

mod answer;
mod caller;
mod due;
mod framing;
mod head;
mod inbox;
mod outbox;
mod stall;

pub use answer::{Ending, FieldLines, Form, push_field, with_date};
pub use caller::{Arrival, Broken, HeadError, Incoming, Wire};
pub use due::Due;
pub use framing::{BadFraming, Framing, Piece};
pub use head::{Fields, MAX_HEAD, Malformed, RequestHead, ResponseHead};
pub use inbox::Inbox;
pub use outbox::Outbox;
pub use stall::Stall;
