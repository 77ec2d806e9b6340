//! An answer in pieces, for what is too large to be held: the next one is made when the one before has gone.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::from_store;
use crate::reject::Reject;
use crate::store::StoreError;

/// Gives one piece after the other, and then none. It may block.
type Source = Box<dyn FnMut() -> Result<Option<Bytes>, StoreError> + Send>;

/// What is answered.
#[derive(Debug)]
pub enum Content {
    Whole(Bytes),
    Flowing(Box<Flow>),
}

/// Holds one piece, and no thread while nobody takes it.
pub struct Flow(State);

enum State {
    /// The first piece, which was good.
    Begins(Bytes, Source),
    Waits(Source),
    Runs(JoinHandle<(Source, Result<Option<Bytes>, StoreError>)>),
    Ended,
}

impl Flow {
    pub(super) fn new(
        first: Bytes,
        source: impl FnMut() -> Result<Option<Bytes>, StoreError> + Send + 'static,
    ) -> Self {
        Self(State::Begins(first, Box::new(source)))
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Reject>>> {
        match std::mem::replace(&mut self.0, State::Ended) {
            State::Begins(first, source) => {
                self.0 = State::Waits(source);
                return Poll::Ready(Some(Ok(first)));
            }
            State::Waits(mut source) => {
                let work = move || {
                    let piece = source();
                    (source, piece)
                };
                self.0 = State::Runs(tokio::task::spawn_blocking(work));
            }
            State::Runs(running) => self.0 = State::Runs(running),
            State::Ended => return Poll::Ready(None),
        }
        let State::Runs(running) = &mut self.0 else { return Poll::Ready(None) };
        let done = ready!(Pin::new(running).poll(cx));
        self.0 = State::Ended;
        Poll::Ready(match done {
            Ok((source, Ok(Some(piece)))) => {
                self.0 = State::Waits(source);
                Some(Ok(piece))
            }
            Ok((_, Ok(None))) => None,
            Ok((_, Err(error))) => Some(Err(from_store(error))),
            Err(_) => Some(Err(Reject::Internal)),
        })
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flow")
    }
}
