//! The clients of a history that wait for changes: held polls, and streams of events.
//!
//! After the last write they stay until they have the final version, or until it is overdue.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{Method, Response, StatusCode, body::Incoming};
use tokio::time::{sleep, timeout};

use super::{
    callers::{CALLERS, Caller, CallerPicker},
    line::{Answer, Line, Outgoing, number_in},
    push_judge::{Bounds, Subscription},
    record::{How, Micros, Read},
    workload::{Observations, pick},
    world::{Door, World},
};

/// Longest time for which a poll asks to be held, in seconds.
const MAX_WAIT: u64 = 8;
/// Longest time for which a stream is read, in milliseconds.
const MAX_STREAM_MS: u64 = 6_000;
/// Time between two looks whether a client may go.
const TICK: Duration = Duration::from_millis(50);
/// Polls of one job in a row.
const ROUNDS: u8 = 4;

/// The clients that wait, and the settings of the sidecars for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct PushLoad {
    pub(super) polls: usize,
    pub(super) streams: usize,
    /// `push.recheck`.
    pub(super) recheck: Duration,
}

impl PushLoad {
    pub(super) const NONE: Self = Self { polls: 0, streams: 0, recheck: Duration::from_secs(30) };

    pub(super) const fn is_on(self) -> bool {
        self.polls + self.streams > 0
    }
}

/// A job that a client watches through a sidecar.
struct Watch {
    job: u16,
    sidecar: usize,
    caller: Caller,
    door: Door,
    start: Micros,
    /// The newest version that the client has.
    seen: Option<u32>,
}

impl Watch {
    fn request(&self, world: &World) -> Outgoing {
        let target = world.ids.path(self.job).parse().expect("a path");
        let headers = CALLERS[usize::from(self.caller)].iter();
        headers.fold(Outgoing::new(Method::GET, target), |request, (name, value)| {
            request.header(name, value)
        })
    }

    /// Returns the record of a version that was received now.
    fn read(&self, world: &World, (version, view): (u32, Option<Caller>), how: How) -> Read {
        self.read_since(world, self.start, (version, view), how)
    }

    fn read_since(
        &self,
        world: &World,
        start: Micros,
        (version, view): (u32, Option<Caller>),
        how: How,
    ) -> Read {
        let took_us = u32::try_from(world.clock.now().0.saturating_sub(start.0));
        let took_us = took_us.expect("less than an hour");
        let (job, process, caller) = (self.job, self.door.process, self.caller);
        Read { start, took_us, version, job, process, how, caller, view }
    }

    fn subscription(&self, is_stream: bool) -> Subscription {
        let known = self.seen.map(|version| (self.start, version));
        Subscription {
            job: self.job,
            caller: self.caller,
            process: self.door.process,
            is_stream,
            start: self.start,
            end: self.start,
            versions: known.into_iter().collect(),
            error: None,
        }
    }

    /// Whether the client may go: it has the final version, or that is overdue.
    fn is_done(&self, world: &World) -> bool {
        let Some(since) = world.writers_done.get() else { return false };
        let is_final = self.seen == Some(world.truth.version(self.job));
        is_final || world.clock.now() > since.plus_ms(Bounds::of(&world.plan).latest_ms())
    }

    async fn done(&self, world: &World) {
        while !self.is_done(world) {
            sleep(TICK).await;
        }
    }
}

/// Polls jobs with `Prefer: wait`, a few times each.
pub(super) async fn hold_polls(
    world: Arc<World>,
    mut rng: fastrand::Rng,
    callers: CallerPicker,
) -> Observations {
    let mut told = Observations::default();
    let mut tags: HashMap<(u16, Caller), (String, u32)> = HashMap::new();
    let mut line: Option<(usize, Line)> = None;
    let (mut job, mut caller, mut rounds) = (0, 0, 0_u8);
    loop {
        if rounds == 0 && !world.is_over() {
            (job, caller) = (pick(&mut rng, world.plan.jobs), callers.draw(&mut rng));
            rounds = rng.u8(1..=ROUNDS);
        }
        rounds = rounds.saturating_sub(1);
        let sidecar = world.pick_sidecar(&mut rng);
        let Some(door) = world.door(sidecar) else {
            sleep(TICK).await;
            continue;
        };
        let kept = line.take().filter(|(of, _)| *of == sidecar).map(|(_, line)| line);
        let Some(open) = Line::ready(kept, Some(door)).await else { continue };
        let door = Door { process: open.process, ..door };
        let tag = tags.get(&(job, caller)).cloned();
        let seen = tag.as_ref().map(|(_, version)| *version);
        let watch = Watch { job, sidecar, caller, door, start: world.clock.now(), seen };
        if watch.is_done(&world) {
            return told;
        }
        let wait = rng.u64(1..=MAX_WAIT);
        let (kept, tag) = hold_poll(&world, &watch, (open, tag), wait, &mut told).await;
        line = kept.map(|line| (watch.sidecar, line));
        match tag {
            Some(tag) => drop(tags.insert((job, caller), tag)),
            None => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Sends one poll. Returns the connection if it can be used again, and the tag that the client has.
async fn hold_poll(
    world: &World,
    watch: &Watch,
    (mut line, tag): (Line, Option<(String, u32)>),
    wait: u64,
    told: &mut Observations,
) -> (Option<Line>, Option<(String, u32)>) {
    let mut request = watch.request(world).header("prefer", &format!("wait={wait}"));
    if let Some((tag, _)) = &tag {
        request = request.header("if-none-match", tag);
    }
    let mut subscription = watch.subscription(false);
    let answer = tokio::select! {
        answer = line.exchange(request) => answer,
        () = watch.done(world) => None,
    };
    subscription.end = world.clock.now();
    let (kept, tag) = match answer {
        Some(answer) if answer.status == StatusCode::OK => {
            let version = answer.version.expect("a version");
            told.reads.push(watch.read(world, (version, answer.view), answer.how));
            if !answer.is_applied {
                // Answered at once, as an ordinary read: another sidecar may have shown the client a
                // newer version, whose change is not acknowledged yet.
                subscription.versions.clear();
            }
            subscription.versions.push((subscription.end, version));
            (Some(line), answer.tag.map(|tag| (tag, version)))
        }
        Some(answer) if answer.status == StatusCode::NOT_MODIFIED => {
            let (_, version) = tag.as_ref().expect("a tag that was sent");
            // At the end of its time a poll is answered after another look.
            let waited = if answer.is_applied { wait * 1000 } else { 0 };
            let since = watch.start.plus_ms(waited).min(subscription.end);
            let how = if answer.is_applied { How::Held } else { answer.how };
            told.reads.push(watch.read_since(world, since, (*version, None), how));
            (Some(line), tag)
        }
        Some(_) => {
            told.failed_reads += 1;
            (Some(line), tag)
        }
        None => {
            told.dropped_reads += 1;
            (None, tag)
        }
    };
    told.subscriptions.push(subscription);
    (kept, tag)
}

/// Reads streams of events, one after another.
pub(super) async fn read_streams(
    world: Arc<World>,
    mut rng: fastrand::Rng,
    callers: CallerPicker,
) -> Observations {
    let mut told = Observations::default();
    let mut last: HashMap<(u16, Caller), (String, u32)> = HashMap::new();
    let (mut job, mut caller) = (0, 0);
    loop {
        if !world.is_over() {
            (job, caller) = (pick(&mut rng, world.plan.jobs), callers.draw(&mut rng));
        }
        let sidecar = world.pick_sidecar(&mut rng);
        let Some(door) = world.door(sidecar) else {
            sleep(TICK).await;
            continue;
        };
        let Some(line) = Line::ready(None, Some(door)).await else { continue };
        let had = last.get(&(job, caller));
        let seen = had.map(|(_, version)| *version);
        let watch = Watch { job, sidecar, caller, door, start: world.clock.now(), seen };
        if watch.is_done(&world) {
            return told;
        }
        let known = had.cloned().filter(|_| rng.bool());
        let most = Duration::from_millis(rng.u64(300..MAX_STREAM_MS));
        let seen = read_stream(&world, watch, (line, known), most, &mut told).await;
        if let Some(seen) = seen {
            last.insert((job, caller), seen);
        }
    }
}

/// Reads one stream. Returns the last id and version.
async fn read_stream(
    world: &World,
    watch: Watch,
    (mut line, known): (Line, Option<(String, u32)>),
    most: Duration,
    told: &mut Observations,
) -> Option<(String, u32)> {
    let seen = known.as_ref().map(|(_, version)| *version);
    let watch = Watch { seen, ..watch };
    let mut request = watch.request(world).header("accept", "text/event-stream");
    if let Some((id, _)) = &known {
        request = request.header("last-event-id", id);
    }
    let head = tokio::select! {
        head = line.send(request) => head,
        () = watch.done(world) => None,
    };
    let Some(head) = head else {
        told.failed_reads += 1;
        return None;
    };
    Stream { world, watch, told, text: String::new() }.read(head, most).await
}

/// One stream of events.
struct Stream<'r> {
    world: &'r World,
    watch: Watch,
    told: &'r mut Observations,
    text: String,
}

impl Stream<'_> {
    /// Reads events for a time, or until the end of the run. Returns the last id and version.
    async fn read(&mut self, head: Response<Incoming>, most: Duration) -> Option<(String, u32)> {
        let is_stream = head.headers().get("content-type");
        if is_stream.is_none_or(|name| name != "text/event-stream") {
            self.read_ordinary(head).await;
            return None;
        }
        let mut subscription = self.watch.subscription(true);
        let mut body = head.into_body();
        let mut last = None;
        let until = self.watch.start.plus_ms(u64::try_from(most.as_millis()).expect("few"));
        loop {
            match timeout(TICK, body.frame()).await {
                Err(_) => {}
                Ok(Some(Ok(frame))) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.text.push_str(std::str::from_utf8(&data).expect("text"));
                    while let Some(event) = self.take_event() {
                        last = self.note(&mut subscription, &event).or(last);
                    }
                }
                Ok(_) => break,
            }
            let is_over = self.world.is_over();
            let is_long = !is_over && self.world.clock.now() > until;
            if is_long || self.watch.is_done(self.world) {
                break;
            }
        }
        subscription.end = self.world.clock.now();
        self.told.subscriptions.push(subscription);
        last
    }

    /// Reads the answer to a read that push has not answered.
    async fn read_ordinary(&mut self, head: Response<Incoming>) {
        match Answer::read(head).await {
            Some(Answer { status: StatusCode::OK, version: Some(version), view, how, .. }) => {
                self.told.reads.push(self.watch.read(self.world, (version, view), how));
            }
            _ => self.told.failed_reads += 1,
        }
    }

    fn take_event(&mut self) -> Option<String> {
        let (event, rest) = self.text.split_once("\n\n")?;
        let (event, rest) = (event.to_owned(), rest.to_owned());
        self.text = rest;
        Some(event)
    }

    /// Records an event. Returns its id and version.
    fn note(&mut self, subscription: &mut Subscription, event: &str) -> Option<(String, u32)> {
        if event.starts_with("event: error") {
            subscription.error = Some(event.replace('\n', " "));
        }
        let id = event.lines().find_map(|line| line.strip_prefix("id: "))?;
        let version = number_in(event.as_bytes(), r#""version":"#).expect("a version");
        let view = number_in(event.as_bytes(), r#""caller":"#);
        let view = view.and_then(|view| Caller::try_from(view).ok());
        self.told.reads.push(self.watch.read(self.world, (version, view), How::Held));
        subscription.versions.push((self.world.clock.now(), version));
        self.watch.seen = Some(version);
        Some((id.to_owned(), version))
    }
}
