//! The callers: many connections on one thread, every answer checked to the last byte.
//!
//! A wrong byte, a wrong status, an early end or a silence is an error, and ends the run.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

mod answer;
mod check;
mod histogram;
mod http2;
mod over;

pub(crate) use check::Want;
pub(crate) use histogram::Histogram;
pub(crate) use over::Over;

use crate::script::{self, Clock};
use crate::tls::{self, Speaks, Wire, must_wait};
use answer::Answer;
use check::{Check, Piece};
use http2::Http2;

/// Callers who do the same.
pub(crate) struct Group {
    /// For messages.
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Connections.
    pub(crate) callers: usize,
    pub(crate) over: Over,
    pub(crate) ask: Ask,
    pub(crate) want: Want,
    pub(crate) pace: Pace,
    /// A new connection for each request, which the other side has to close.
    pub(crate) fresh: bool,
    /// The callers begin one after the other, spread over this time.
    pub(crate) spread: Duration,
}

/// What is sent.
pub(crate) enum Ask {
    Same(Vec<u8>),
    /// Another request each time, made from its number.
    Numbered(Box<dyn Fn(u64) -> Vec<u8>>),
    /// A head, and that many bytes of the pattern.
    Upload {
        head: Vec<u8>,
        length: u64,
    },
}

/// When a caller asks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// Each caller, as soon as the last answer is complete.
    Closed,
    /// The group, so often a second, whether or not answers come.
    PerSecond(f64),
}

/// What a group's callers saw since the last [`Load::take`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) answers: u64,
    pub(crate) tokens: u64,
    /// From a request to the end of its answer.
    pub(crate) latency: Histogram,
    /// From the sending of a stream's first token to its arrival.
    pub(crate) first: Histogram,
    /// The same, and the way of the request to the backend.
    pub(crate) both_ways: Histogram,
    /// From the sending of a token to its arrival.
    pub(crate) token: Histogram,
    /// The same of the last one of each stream.
    pub(crate) last: Histogram,
}

/// Callers at work.
pub(crate) struct Load {
    clock: Clock,
    poll: Poll,
    events: Option<Events>,
    groups: Vec<State>,
    callers: Vec<Caller>,
    /// What happens by itself: when, and what.
    due: BinaryHeap<Reverse<(u64, Act)>>,
    buffer: Vec<u8>,
    looked: u64,
}

struct State {
    group: Group,
    tally: Tally,
    asked: u64,
    idle: Vec<usize>,
    /// Requests that nobody was free to send, with the time when they were due.
    waiting: VecDeque<u64>,
    /// Nobody asks any more.
    ending: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    /// A caller's first request.
    Begin(usize),
    /// One more request of a group with a pace.
    Arrive(usize),
}

struct Caller {
    group: usize,
    wire: Option<Wire>,
    /// Where that is what it speaks.
    http2: Option<Box<Http2>>,
    doing: Doing,
    /// The request, and how much of it the socket has taken.
    out: Vec<u8>,
    out_at: usize,
    upload: Option<(u64, u64)>,
    answer: Answer,
    check: Check,
    asked_at: u64,
    /// When something last came or went.
    moved_at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Idle,
    Asking,
    /// The answer was the last one of its connection.
    WaitingForClose,
}

/// How long nothing may move on a connection that waits for something.
const SILENCE: Duration = Duration::from_secs(30);

impl Load {
    /// Makes the callers; they begin in [`Self::run_for`].
    ///
    /// # Errors
    /// The system gives no poll.
    pub(crate) fn start(clock: Clock, groups: Vec<Group>) -> anyhow::Result<Self> {
        let mut load = Self {
            clock,
            poll: Poll::new()?,
            events: Some(Events::with_capacity(1024)),
            groups: Vec::new(),
            callers: Vec::new(),
            due: BinaryHeap::new(),
            buffer: vec![0; 64 * 1024],
            looked: clock.now(),
        };
        for group in groups {
            load.add(group);
        }
        Ok(load)
    }

    /// Further callers; they begin in the next [`Self::run_for`].
    pub(crate) fn add(&mut self, group: Group) {
        let number = self.groups.len();
        let first = self.callers.len();
        let now = self.clock.now();
        self.callers.extend((0..group.callers).map(|_| Caller::new(number)));
        if group.pace == Pace::Closed {
            let all = group.callers * group.over.streams();
            for one in 0..all {
                let share = one as f64 / all as f64;
                let at = now + (group.spread.as_nanos() as f64 * share) as u64;
                self.due.push(Reverse((at, Act::Begin(first + one % group.callers))));
            }
        }
        let mut idle = Vec::new();
        if group.pace != Pace::Closed {
            idle.extend(first..self.callers.len());
            self.due.push(Reverse((now, Act::Arrive(number))));
        }
        let tally = Tally::default();
        self.groups.push(State {
            group,
            tally,
            asked: 0,
            idle,
            waiting: VecDeque::new(),
            ending: false,
        });
    }

    /// Lets the callers do their work for that long.
    ///
    /// # Errors
    /// Any answer is wrong, late, or cut off.
    pub(crate) fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = self.clock.now() + time.as_nanos() as u64;
        while self.clock.now() < end {
            self.turn(end)?;
        }
        Ok(())
    }

    /// Lets them work until there are that many answers, or the time is over.
    ///
    /// # Errors
    /// The time is over first, or an answer is wrong.
    pub(crate) fn run_until(&mut self, answers: u64, time: Duration) -> anyhow::Result<()> {
        let end = self.clock.now() + time.as_nanos() as u64;
        while self.groups.iter().map(|state| state.tally.answers).sum::<u64>() < answers {
            ensure!(self.clock.now() < end, "no {answers} answers in {} s", time.as_secs());
            self.turn(end)?;
        }
        Ok(())
    }

    /// What was seen since the last time, group by group.
    pub(crate) fn take(&mut self) -> Vec<Tally> {
        self.groups.iter_mut().map(|state| std::mem::take(&mut state.tally)).collect()
    }

    /// Asks no more, waits a little for answers that are under way (streams are cut off), and
    /// closes everything.
    ///
    /// # Errors
    /// One of the last answers is wrong.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.groups.iter_mut().for_each(|state| state.ending = true);
        self.due.clear();
        let end = self.clock.now() + Duration::from_secs(1).as_nanos() as u64;
        while self.clock.now() < end && self.callers.iter().any(Caller::is_nearly_done) {
            self.turn(end)?;
        }
        Ok(())
    }

    fn turn(&mut self, end: u64) -> anyhow::Result<()> {
        self.act_on_time()?;
        let next = self.due.peek().map_or(end, |Reverse((at, _))| (*at).min(end));
        let left = Duration::from_nanos(next.saturating_sub(self.clock.now()));
        let mut events = self.events.take().context("the poll is in use")?;
        match self.poll.poll(&mut events, Some(left)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        for event in &events {
            let at = event.token().0;
            self.serve(at, event.is_writable(), event.is_read_closed())
                .with_context(|| self.name_of(at))?;
        }
        self.events = Some(events);
        self.look_for_silence()
    }

    fn act_on_time(&mut self) -> anyhow::Result<()> {
        while let Some(Reverse((at, act))) = self.due.peek().copied() {
            let now = self.clock.now();
            if at > now {
                break;
            }
            self.due.pop();
            match act {
                Act::Begin(caller) => {
                    self.ask(caller, now).with_context(|| self.name_of(caller))?;
                }
                Act::Arrive(group) => self.arrive(group, at, now)?,
            }
        }
        Ok(())
    }

    /// One more request of a group with a pace: by a free caller, or by the next that is.
    fn arrive(&mut self, group: usize, at: u64, now: u64) -> anyhow::Result<()> {
        let state = self.groups.get_mut(group).context("no such group")?;
        if let Pace::PerSecond(rate) = state.group.pace {
            self.due.push(Reverse((at + (1e9 / rate) as u64, Act::Arrive(group))));
        }
        match state.idle.pop() {
            Some(caller) => self.ask(caller, now).with_context(|| self.name_of(caller)),
            None => {
                state.waiting.push_back(now);
                Ok(())
            }
        }
    }

    fn name_of(&self, caller: usize) -> String {
        let group = self.callers.get(caller).and_then(|caller| self.groups.get(caller.group));
        group.map(|state| state.group.name.clone()).unwrap_or_default()
    }

    /// Sends a caller's next request, which was due at that time.
    fn ask(&mut self, at: usize, since: u64) -> anyhow::Result<()> {
        let caller = self.callers.get_mut(at).context("no such caller")?;
        let state = self.groups.get_mut(caller.group).context("no such group")?;
        caller.moved_at = since;
        caller.doing = Doing::Asking;
        state.asked += 1;
        match state.group.over {
            Over::Plain | Over::Tls(_) => {
                caller.take_request(&state.group.ask, state.asked - 1);
                caller.check.begin(since);
                caller.answer.reset();
                caller.asked_at = since;
            }
            Over::Http2(_, streams) => caller.open_stream(&state.group.ask, streams, since)?,
        }
        if caller.wire.is_some() {
            return caller.flush(self.clock);
        }
        let socket = TcpStream::connect(state.group.address).context("cannot connect")?;
        let tls = state.group.over.tls().map(tls::session).transpose()?.map(Box::new);
        let is_plain = tls.is_none();
        caller.wire = Some(Wire { socket, tls });
        caller.flush(self.clock)?;
        // on this machine a connection is there at once; one event less for each new one
        let whole = caller.out_at == caller.out.len() && caller.upload.is_none() && is_plain;
        let interest =
            if whole { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        if let Some(wire) = caller.wire.as_mut() {
            self.poll.registry().register(&mut wire.socket, Token(at), interest)?;
        }
        Ok(())
    }

    fn serve(&mut self, at: usize, writable: bool, closed: bool) -> anyhow::Result<()> {
        let Some(caller) = self.callers.get_mut(at) else { return Ok(()) };
        if writable {
            caller.flush(self.clock)?;
        }
        let Some(state) = self.groups.get_mut(caller.group) else { return Ok(()) };
        let heard = caller.listen(&mut self.buffer, closed, state, self.clock)?;
        match heard {
            Heard::Nothing => Ok(()),
            Heard::Answer => self.go_on(at),
            Heard::Close => {
                caller.wire = None;
                let again = caller.http2.as_deref_mut().map_or(1, |http2| {
                    http2.renew();
                    http2.idle()
                });
                (0..again).try_for_each(|_| self.go_on(at))
            }
        }
    }

    /// What a caller does after an answer.
    fn go_on(&mut self, at: usize) -> anyhow::Result<()> {
        let caller = self.callers.get_mut(at).context("no such caller")?;
        caller.doing = Doing::Idle;
        let state = self.groups.get_mut(caller.group).context("no such group")?;
        if state.ending {
            return Ok(());
        }
        match state.group.pace {
            Pace::Closed => self.ask(at, self.clock.now()),
            Pace::PerSecond(_) => match state.waiting.pop_front() {
                Some(since) => self.ask(at, since),
                None => {
                    state.idle.push(at);
                    Ok(())
                }
            },
        }
    }

    fn look_for_silence(&mut self) -> anyhow::Result<()> {
        let now = self.clock.now();
        if now - self.looked < 1_000_000_000 {
            return Ok(());
        }
        self.looked = now;
        let limit = SILENCE.as_nanos() as u64;
        let silent = self.callers.iter().enumerate().find(|(_, caller)| {
            caller.doing != Doing::Idle && now.saturating_sub(caller.moved_at) > limit
        });
        if let Some((at, _)) = silent {
            bail!("{}: nothing came for {} s", self.name_of(at), SILENCE.as_secs());
        }
        Ok(())
    }
}

/// What came on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Answer,
    /// The end that was announced.
    Close,
}

impl Caller {
    fn new(group: usize) -> Self {
        Self {
            group,
            wire: None,
            http2: None,
            doing: Doing::Idle,
            out: Vec::new(),
            out_at: 0,
            upload: None,
            answer: Answer::default(),
            check: Check::default(),
            asked_at: 0,
            moved_at: 0,
        }
    }

    /// Worth waiting for at the end.
    fn is_nearly_done(&self) -> bool {
        match self.http2.as_deref() {
            Some(http2) => http2.is_nearly_done(),
            None => self.doing == Doing::Asking && self.check.tokens() == 0,
        }
    }

    fn open_stream(&mut self, ask: &Ask, streams: usize, since: u64) -> anyhow::Result<()> {
        if self.http2.is_none() {
            let Ask::Same(request) = ask else { bail!("over HTTP/2 only the same request") };
            self.http2 = Some(Box::new(Http2::new(streams, request)?));
        }
        self.forget_what_was_sent();
        match self.http2.as_deref_mut() {
            // where none can be opened now, the next connection opens them all
            Some(http2) => http2.ask(since, &mut self.out).map(drop),
            None => Ok(()),
        }
    }

    fn forget_what_was_sent(&mut self) {
        if self.out_at == self.out.len() {
            self.out.clear();
            self.out_at = 0;
        }
    }

    fn take_request(&mut self, ask: &Ask, number: u64) {
        self.out_at = 0;
        match ask {
            // the same as the last time
            Ask::Same(_) if !self.out.is_empty() => {}
            Ask::Same(request) => self.out.clone_from(request),
            Ask::Numbered(make) => self.out = make(number),
            Ask::Upload { head, length } => {
                self.out.clone_from(head);
                self.upload = Some((0, *length));
            }
        }
    }

    /// Sends what the socket takes.
    fn flush(&mut self, clock: Clock) -> anyhow::Result<()> {
        if self.doing != Doing::Asking {
            return Ok(());
        }
        let Some(wire) = self.wire.as_mut() else { return Ok(()) };
        wire.push()?;
        loop {
            let rest = match self.out.get(self.out_at..) {
                Some(rest) if !rest.is_empty() => rest,
                Some(_) | None => match self.upload {
                    Some((at, length)) if at < length => script::pattern(at, length - at),
                    Some(_) | None => return Ok(()),
                },
            };
            match wire.write(rest) {
                // TLS holds as much as it may
                Ok(0) => return Ok(()),
                Ok(written) => {
                    if self.out_at < self.out.len() {
                        self.out_at += written;
                    } else if let Some((at, _)) = self.upload.as_mut() {
                        *at += written as u64;
                        self.moved_at = clock.now();
                    }
                }
                Err(error) if must_wait(&error) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot send"),
            }
        }
    }

    /// Takes in what has come.
    fn listen(
        &mut self,
        buffer: &mut [u8],
        closed: bool,
        state: &mut State,
        clock: Clock,
    ) -> anyhow::Result<Heard> {
        let mut heard = Heard::Nothing;
        loop {
            let room = buffer.len();
            let Some(wire) = self.wire.as_mut() else { return Ok(heard) };
            let over_tls = wire.tls.is_some();
            let length = match wire.read(buffer) {
                Ok(0) => return self.hear_close(state, clock),
                Ok(length) => length,
                Err(error) if must_wait(&error) => return Ok(heard),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("cannot receive"),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            if self.http2.is_some() {
                if self.take_frames(bytes, state, clock)? {
                    return Ok(Heard::Close);
                }
            } else if self.take_in(bytes, state, clock)? {
                heard = Heard::Answer;
            }
            // less than there was room for: the next bytes bring an event of their own
            if length < room && !closed && !over_tls {
                return Ok(heard);
            }
        }
    }

    /// True when nothing is under way on a connection that takes no more requests.
    fn take_frames(
        &mut self,
        bytes: &[u8],
        state: &mut State,
        clock: Clock,
    ) -> anyhow::Result<bool> {
        let agreed = self.wire.as_ref().is_some_and(|wire| wire.agreed(Speaks::Http2));
        ensure!(agreed, "no HTTP/2 was agreed on");
        self.moved_at = clock.now();
        self.forget_what_was_sent();
        let Some(http2) = self.http2.as_deref_mut() else { return Ok(false) };
        http2.take_in(bytes, state, self.moved_at, &mut self.out)?;
        let is_over = http2.is_over();
        self.flush(clock)?;
        Ok(is_over)
    }

    /// True when an answer is complete and its connection stays.
    fn take_in(&mut self, bytes: &[u8], state: &mut State, clock: Clock) -> anyhow::Result<bool> {
        ensure!(self.doing == Doing::Asking, "{} bytes that nobody asked for", bytes.len());
        let now = clock.now();
        self.moved_at = now;
        let Self { answer, check, .. } = self;
        let State { group, tally, .. } = state;
        let left = answer.feed(bytes, |status, data| {
            check.take(&group.want, Piece { status, data, now }, tally)
        })?;
        ensure!(left.is_empty(), "{} bytes after the answer", left.len());
        if !self.answer.is_done() {
            return Ok(false);
        }
        self.complete(state, now)?;
        if self.answer.close || state.group.fresh {
            self.doing = Doing::WaitingForClose;
            return Ok(false);
        }
        self.doing = Doing::Idle;
        Ok(true)
    }

    fn complete(&mut self, state: &mut State, now: u64) -> anyhow::Result<()> {
        self.check.end(&state.group.want, self.answer.status)?;
        let sent = self.upload.is_none_or(|(at, length)| at == length);
        ensure!(sent && self.out_at == self.out.len(), "an answer before the request's end");
        state.tally.answers += 1;
        state.tally.latency.add(now.saturating_sub(self.asked_at));
        Ok(())
    }

    fn hear_close(&mut self, state: &mut State, clock: Clock) -> anyhow::Result<Heard> {
        match self.doing {
            Doing::WaitingForClose => Ok(Heard::Close),
            Doing::Asking => {
                self.answer.closed()?;
                self.complete(state, clock.now())?;
                Ok(Heard::Close)
            }
            Doing::Idle => bail!("a connection was closed that was to be kept"),
        }
    }
}

#[cfg(test)]
mod tests;
