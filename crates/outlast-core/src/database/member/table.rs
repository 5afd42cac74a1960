//! What to do, by what is agreed and by what PostgreSQL is like: the whole table.

/// What a member is, by what is agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Nothing is agreed that concerns it.
    Outsider,
    /// It makes the database.
    Maker,
    /// It is to be primary, or is.
    Primary,
    /// It is to be primary and has no lease.
    Unleased,
    /// There is no primary.
    Elector,
    /// It follows the primary; at once, or once that serves.
    Follower,
    FollowerLater,
}

impl Part {
    pub const ALL: [Part; 7] = [
        Part::Outsider,
        Part::Maker,
        Part::Primary,
        Part::Unleased,
        Part::Elector,
        Part::Follower,
        Part::FollowerLater,
    ];
}

/// What a member's PostgreSQL is like, seen from what is agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Unknown,
    Busy,
    Empty,
    Broken,
    /// Down, and a standby.
    Asleep,
    /// Down, and primary under the present reign.
    Dead,
    /// Down, and primary under another reign, or none that is known.
    Deposed,
    /// As a standby.
    Starting,
    /// As primary.
    Rising,
    Hung,
    /// Primary under the present reign.
    Reigns,
    /// Primary under another one.
    Usurps,
    /// A standby that receives nothing, for the present election.
    Stopped,
    /// A standby that follows the present primary.
    Follows,
    /// The same, but it has received nothing for too long.
    Starves,
    /// A standby that follows somebody else, or nobody.
    Astray,
}

impl State {
    pub const ALL: [State; 16] = [
        State::Unknown,
        State::Busy,
        State::Empty,
        State::Broken,
        State::Asleep,
        State::Dead,
        State::Deposed,
        State::Starting,
        State::Rising,
        State::Hung,
        State::Reigns,
        State::Usurps,
        State::Stopped,
        State::Follows,
        State::Starves,
        State::Astray,
    ];
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    Rest,
    Create,
    StartPrimary,
    /// As a standby that receives nothing.
    StartAlone,
    StartFollowing,
    Promote,
    Stop,
    Follow,
    /// What a primary has to keep in order.
    Govern,
    Rewind,
    Clone,
    Kill,
    /// Kill it and ask for another primary.
    Yield,
    /// Ask for another primary.
    GiveUp,
}

/// The table.
pub fn order_of(part: Part, state: State) -> Duty {
    use State as S;
    match (part, state) {
        (_, S::Unknown | S::Busy) | (Part::Outsider, _) => Duty::Rest,
        (_, S::Starting) | (Part::Maker | Part::Primary, S::Rising) => Duty::Rest,
        (Part::Unleased | Part::Elector | Part::Follower | Part::FollowerLater, S::Rising) => {
            Duty::Kill
        }

        (Part::Maker, S::Empty) => Duty::Create,
        (Part::Maker, S::Dead | S::Deposed) => Duty::StartPrimary,
        (Part::Maker, S::Asleep) => Duty::StartAlone,
        (Part::Maker, S::Stopped | S::Follows | S::Starves | S::Astray) => Duty::Promote,
        (Part::Maker, S::Reigns | S::Usurps) => Duty::Govern,
        (Part::Maker, S::Hung) => Duty::Kill,
        (Part::Maker, S::Broken) => Duty::GiveUp,

        (Part::Primary, S::Dead) => Duty::StartPrimary,
        (Part::Primary, S::Asleep | S::Deposed) => Duty::StartAlone,
        (Part::Primary, S::Stopped | S::Follows | S::Starves | S::Astray) => Duty::Promote,
        (Part::Primary, S::Reigns) => Duty::Govern,
        (Part::Primary, S::Usurps) => Duty::Kill,
        (Part::Primary, S::Hung) => Duty::Yield,
        (Part::Primary, S::Empty | S::Broken) => Duty::GiveUp,

        (Part::Unleased, S::Reigns | S::Usurps | S::Hung) => Duty::Kill,
        (Part::Unleased, S::Empty | S::Broken) => Duty::GiveUp,
        (
            Part::Unleased,
            S::Asleep | S::Dead | S::Deposed | S::Stopped | S::Follows | S::Starves | S::Astray,
        ) => Duty::Rest,

        (Part::Elector, S::Reigns | S::Usurps | S::Hung) => Duty::Kill,
        (Part::Elector, S::Asleep | S::Dead | S::Deposed) => Duty::StartAlone,
        (Part::Elector, S::Follows | S::Starves | S::Astray) => Duty::Stop,
        (Part::Elector, S::Stopped | S::Empty | S::Broken) => Duty::Rest,

        (Part::Follower | Part::FollowerLater, S::Reigns | S::Usurps | S::Hung) => Duty::Kill,
        (Part::Follower, S::Asleep) => Duty::StartFollowing,
        (Part::Follower, S::Dead | S::Deposed | S::Starves) => Duty::Rewind,
        (Part::Follower, S::Empty | S::Broken) => Duty::Clone,
        (Part::Follower, S::Stopped | S::Astray) => Duty::Follow,
        (Part::Follower, S::Follows) => Duty::Rest,
        (
            Part::FollowerLater,
            S::Asleep
            | S::Dead
            | S::Deposed
            | S::Empty
            | S::Broken
            | S::Stopped
            | S::Follows
            | S::Starves,
        ) => Duty::Rest,
        // From the address of the old primary it would get what that receives by now, and could not tell whose log that is.
        (Part::FollowerLater, S::Astray) => Duty::Stop,
    }
}
