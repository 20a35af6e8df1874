//! The model for the checker: which steps exist in a state, and what must hold in every state.

use stateright::{Model, Property};

use super::{
    faults::Fault,
    keys::{Keys, Linger},
    run::{Fate, Run},
    scope::Scope,
    state::{
        Behind, FIRST_EPOCH, PURGE, PurgePhase, ReaderPhase, SIDECARS, Stale, State, Target,
        ThirdParty, WritePhase,
    },
    writer::End,
};

/// One step of the model. Each is atomic; the functions of [`Run`] say what it is in the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Get { reader: usize, at: u8, no_cache: bool },
    Pong { reader: usize },
    Look { reader: usize, fate: Fate },
    Keep { reader: usize },
    Lease { reader: usize, fate: Fate },
    LateLease { reader: usize },
    Release { reader: usize },
    FollowUp { reader: usize },
    StartNext { reader: usize },
    ReadUpstream { reader: usize },
    Publish { reader: usize, storable: bool },
    Store { reader: usize, fate: Fate },
    LateFill { reader: usize },
    Put { write: usize, at: u8 },
    Begin { write: usize, fate: Fate },
    LateBegin { write: usize },
    Commit { write: usize },
    End { write: usize, end: End, fate: Fate },
    LateEnd { write: usize, linger: Linger },
    Reply { write: usize },
    ExpireFence { write: u8 },
    CommitPurge { at: u8 },
    Purge { fate: Fate },
    LatePurge,
    ReplyPurge { is_confirmed: bool },
    CommitElsewhere,
    Del { version: u8 },
    SetForeign,
    Repeat { at: usize },
    Confirm { at: usize },
    Evict { at: usize },
    Kill { at: usize },
    Save,
    Restart,
    Promote,
    Connect { at: usize },
}

pub(super) const ACKNOWLEDGED: &str = "no read after an acknowledgement is older";
pub(super) const FENCED: &str = "no read under the fence of a committed write is older";
const STORED: &str = "an entry is stored after an acknowledgement";
const HAPPENED: &str = "every fault happens";

const EITHER: [u8; SIDECARS] = [0, 1];

impl Model for Scope {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let left = self.faults.map(|fault| u8::from(fault.is_some()));
        let filled = State::start(Keys::filled(FIRST_EPOCH), left);
        let mut near = filled;
        for sidecar in &mut near.sidecars {
            sidecar.near = Some(0);
        }
        let mut starts = vec![State::start(Keys::EMPTY, left), filled];
        starts.extend(self.near.then_some(near));
        starts
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.stale.is_some() {
            return;
        }
        self.reader_steps(state, steps);
        self.write_steps(state, steps);
        self.purge_steps(state, steps);
        self.third_party_steps(state, steps);
        Self::sidecar_steps(state, steps);
        self.fault_steps(state, steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut run = Run { scope: self, state: *last };
        run.spend_fault(step);
        run.take(step);
        run.tidy();
        Some(run.state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ACKNOWLEDGED, |scope: &Self, state: &State| {
                scope.verdict(state) != Some(Stale::Acknowledged)
            }),
            Property::always(FENCED, |scope: &Self, state: &State| {
                scope.verdict(state) != Some(Stale::Fenced)
            }),
        ];
        if self.flaw.is_none() {
            properties.push(Property::sometimes(STORED, |_: &Self, state: &State| {
                let acknowledged = state.sidecars[0].acknowledged;
                let entry = state.keys.decode(state.epoch, None);
                acknowledged > 0 && entry.is_ok_and(|entry| entry.version >= acknowledged)
            }));
            properties.push(Property::sometimes(HAPPENED, |_: &Self, state: &State| {
                state.faults_left == [0, 0]
            }));
        }
        properties
    }
}

impl Scope {
    /// Returns what was answered wrongly, or would be to a reader that comes now.
    fn verdict(&self, state: &State) -> Option<Stale> {
        state.stale.or_else(|| Run { scope: self, state: *state }.probe())
    }

    pub(super) fn may(&self, state: &State, fault: Fault) -> bool {
        self.faults.iter().zip(state.faults_left).any(|(of, left)| *of == Some(fault) && left > 0)
    }

    /// The fates that a command may have now, over a connection that may be down.
    fn fates(&self, state: &State, is_connected: bool) -> impl Iterator<Item = Fate> {
        let lost = is_connected && self.may(state, Fault::LostReply);
        let late = is_connected && self.may(state, Fault::LateCommand);
        [Some(Fate::Answered), lost.then_some(Fate::LostReply), late.then_some(Fate::Late)]
            .into_iter()
            .flatten()
    }

    fn reader_steps(&self, state: &State, steps: &mut Vec<Step>) {
        for reader in 0..self.readers {
            let one = &state.readers[reader];
            let is_connected = state.sidecar_of(reader).session.is_some();
            match one.behind {
                Behind::LateLease => steps.push(Step::LateLease { reader }),
                Behind::Release if is_connected => steps.push(Step::Release { reader }),
                Behind::Nothing | Behind::Release => {}
            }
            match one.phase {
                ReaderPhase::Idle => self.arrivals(state, reader, steps),
                ReaderPhase::Barrier if one.awaits_news => {}
                ReaderPhase::Barrier => steps.push(Step::Pong { reader }),
                ReaderPhase::Look => {
                    let fates = self.fates(state, is_connected);
                    let fates = fates.filter(|fate| *fate != Fate::Late);
                    steps.extend(fates.map(|fate| Step::Look { reader, fate }));
                }
                ReaderPhase::Keep => steps.push(Step::Keep { reader }),
                ReaderPhase::Lease => {
                    let fates = self.fates(state, is_connected);
                    steps.extend(fates.map(|fate| Step::Lease { reader, fate }));
                }
                ReaderPhase::Follow => {
                    steps.extend([Step::FollowUp { reader }, Step::ReadUpstream { reader }]);
                }
                ReaderPhase::Queued => steps.push(Step::StartNext { reader }),
                ReaderPhase::Reading => steps.push(Step::ReadUpstream { reader }),
                ReaderPhase::Answered => {
                    steps.push(Step::Publish { reader, storable: true });
                    if self.unstorable && one.target == Target::Lease {
                        steps.push(Step::Publish { reader, storable: false });
                    }
                }
                ReaderPhase::Storing => {
                    let fates = self.fates(state, is_connected);
                    steps.extend(fates.map(|fate| Step::Store { reader, fate }));
                }
                ReaderPhase::LateFill => steps.push(Step::LateFill { reader }),
                ReaderPhase::Joined | ReaderPhase::Done => {}
            }
        }
    }

    fn arrivals(&self, state: &State, reader: usize, steps: &mut Vec<Step>) {
        // The readers are alike, so that they may come in this order.
        if reader > 0 && state.readers[reader - 1].phase == ReaderPhase::Idle {
            return;
        }
        for no_cache in [false, true].into_iter().take(1 + usize::from(self.no_cache)) {
            steps.extend(EITHER.map(|at| Step::Get { reader, at, no_cache }));
        }
    }

    fn write_steps(&self, state: &State, steps: &mut Vec<Step>) {
        for write in 0..self.writes {
            let one = &state.writes[write];
            let is_connected = state.sidecars[usize::from(one.at)].session.is_some();
            let committed = one.version > 0;
            let mut ends = |end: End| {
                let fates = self.fates(state, is_connected);
                steps.extend(fates.map(|fate| Step::End { write, end, fate }));
            };
            match one.phase {
                WritePhase::Forwarded => {
                    ends(End::AtHead);
                    ends(End::Unknown);
                    if committed {
                        ends(End::AtHeadWithBodies);
                    }
                }
                WritePhase::Streaming if committed => ends(End::AfterBodies),
                WritePhase::Idle => {
                    let places = EITHER.into_iter().take(1 + write);
                    steps.extend(places.map(|at| Step::Put { write, at }));
                }
                WritePhase::Arrived => {
                    let fates = self.fates(state, is_connected);
                    steps.extend(fates.map(|fate| Step::Begin { write, fate }));
                }
                WritePhase::HeadEnded { .. } | WritePhase::LastEnded | WritePhase::UnknownEnded => {
                    steps.push(Step::Reply { write });
                }
                WritePhase::Streaming | WritePhase::Orphaned | WritePhase::Done => {}
            }
            Self::server_steps_of_write(state, write, steps);
        }
        if state.keys.fence & (1 << PURGE) != 0 {
            steps.push(Step::ExpireFence { write: PURGE });
        }
    }

    /// The commit, late commands, and the expiry of the fence.
    fn server_steps_of_write(state: &State, write: usize, steps: &mut Vec<Step>) {
        let one = &state.writes[write];
        let is_forwarded =
            !matches!(one.phase, WritePhase::Idle | WritePhase::Arrived | WritePhase::Done);
        if is_forwarded && one.version == 0 {
            steps.push(Step::Commit { write });
        }
        if one.late_begin {
            steps.push(Step::LateBegin { write });
        }
        for (is_late, linger) in one.late_ends.into_iter().zip([Linger::None, Linger::Some]) {
            if is_late {
                steps.push(Step::LateEnd { write, linger });
            }
        }
        let number = Run::write(write);
        if (state.keys.fence | state.fences) & (1 << number) != 0 && !state.is_live(write) {
            steps.push(Step::ExpireFence { write: number });
        }
    }

    fn purge_steps(&self, state: &State, steps: &mut Vec<Step>) {
        let purge = &state.purge;
        match purge.phase {
            PurgePhase::Idle if self.has_purge => {
                steps.extend(EITHER.map(|at| Step::CommitPurge { at }));
            }
            PurgePhase::Committed => {
                let is_connected = state.sidecars[usize::from(purge.at)].session.is_some();
                let fates = self.fates(state, is_connected);
                steps.extend(fates.map(|fate| Step::Purge { fate }));
            }
            PurgePhase::Ended { is_confirmed } => steps.push(Step::ReplyPurge { is_confirmed }),
            PurgePhase::Idle | PurgePhase::Done => {}
        }
        if purge.late_end {
            steps.push(Step::LatePurge);
        }
    }

    fn third_party_steps(&self, state: &State, steps: &mut Vec<Step>) {
        match state.third_party {
            ThirdParty::Idle if self.may(state, Fault::ThirdPartyDel) => {
                steps.push(Step::CommitElsewhere);
            }
            ThirdParty::Committed(version) => steps.push(Step::Del { version }),
            ThirdParty::Deleted if self.may(state, Fault::ForeignSet) => {
                steps.push(Step::SetForeign);
            }
            ThirdParty::Idle | ThirdParty::Deleted | ThirdParty::Done => {}
        }
    }

    fn sidecar_steps(state: &State, steps: &mut Vec<Step>) {
        for (at, sidecar) in state.sidecars.iter().enumerate() {
            if sidecar.session.is_none() {
                steps.push(Step::Connect { at });
                continue;
            }
            match sidecar.pending {
                Some(item) if item.is_repeated => steps.push(Step::Confirm { at }),
                Some(_) => steps.push(Step::Repeat { at }),
                None => {}
            }
            if sidecar.has_news {
                steps.push(Step::Evict { at });
            }
        }
    }

    fn fault_steps(&self, state: &State, steps: &mut Vec<Step>) {
        if self.may(state, Fault::KilledSidecar) {
            steps.extend((0..SIDECARS).map(|at| Step::Kill { at }));
        }
        let restarts = self.may(state, Fault::RestartFromSnapshot);
        let promotes = self.may(state, Fault::Promotion);
        match state.other {
            None if restarts || promotes => steps.push(Step::Save),
            None => {}
            Some(_) => {
                steps.extend(restarts.then_some(Step::Restart));
                steps.extend(promotes.then_some(Step::Promote));
            }
        }
    }
}

impl Run<'_> {
    fn take(&mut self, step: Step) {
        match step {
            Step::Get { reader, at, no_cache } => self.get(reader, at, no_cache),
            Step::Pong { reader } => self.pong(reader),
            Step::Look { reader, fate } => self.look(reader, fate),
            Step::Keep { reader } => self.keep(reader),
            Step::Lease { reader, fate } => self.lease(reader, fate),
            Step::LateLease { reader } => self.late_lease(reader),
            Step::Release { reader } => self.release(reader),
            Step::FollowUp { reader } => self.follow_up(reader),
            Step::StartNext { reader } => self.start_next(reader),
            Step::ReadUpstream { reader } => self.read_upstream(reader),
            Step::Publish { reader, storable } => self.publish(reader, storable),
            Step::Store { reader, fate } => self.store(reader, fate),
            Step::LateFill { reader } => self.late_fill(reader),
            Step::Put { write, at } => self.put(write, at),
            Step::Begin { write, fate } => self.begin(write, fate),
            Step::LateBegin { write } => self.late_begin(write),
            Step::Commit { write } => self.commit(write),
            Step::End { write, end, fate } => self.end(write, end, fate),
            Step::LateEnd { write, linger } => self.late_end(write, linger),
            Step::Reply { write } => self.reply(write),
            Step::ExpireFence { write } => self.expire_fence(write),
            Step::CommitPurge { at } => self.commit_purge(at),
            Step::Purge { fate } => self.purge(fate),
            Step::LatePurge => self.late_purge(),
            Step::ReplyPurge { is_confirmed } => self.reply_purge(is_confirmed),
            Step::CommitElsewhere => self.commit_elsewhere(),
            Step::Del { version } => self.del(version),
            Step::SetForeign => self.set_foreign(),
            Step::Repeat { at } => self.repeat(at),
            Step::Confirm { at } => self.confirm(at),
            Step::Evict { at } => self.evict(at),
            Step::Kill { at } => self.kill(at),
            Step::Save => self.save(),
            Step::Restart => self.restart(),
            Step::Promote => self.promote(),
            Step::Connect { at } => self.connect(at),
        }
    }
}
