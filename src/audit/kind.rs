//! The kinds of records: the words of `THV_EVENT` and the `MESSAGE_ID`s of the catalog.

/// What kind of event a record is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    Ready,
    Stopping,
    IdleExit,
    Unfinished,
    ConfigRefused,
    Decision,
    Outcome,
    ChildStarted,
    ChildTaken,
    ChildExited,
    ChildDied,
    ChildStderr,
    Egress,
    LayerFailed,
    KeysFetched,
    KeysUnavailable,
    PolicyError,
    ToolsHidden,
    Dropped,
}

impl Kind {
    pub const ALL: [Self; 19] = [
        Self::Ready,
        Self::Stopping,
        Self::IdleExit,
        Self::Unfinished,
        Self::ConfigRefused,
        Self::Decision,
        Self::Outcome,
        Self::ChildStarted,
        Self::ChildTaken,
        Self::ChildExited,
        Self::ChildDied,
        Self::ChildStderr,
        Self::Egress,
        Self::LayerFailed,
        Self::KeysFetched,
        Self::KeysUnavailable,
        Self::PolicyError,
        Self::ToolsHidden,
        Self::Dropped,
    ];

    /// The value of `THV_EVENT` and of `MESSAGE_ID`; neither ever changes its meaning.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Ready => ("ready", "970066cd232c48108893c3043dab5915"),
            Self::Stopping => ("stopping", "82a94074639f4d19935b7b56c9925464"),
            Self::IdleExit => ("idle-exit", "b18ca53d098f449ea0f7a53423c5bd84"),
            Self::Unfinished => ("unfinished", "b2abbb39f7b64c6c880f4bac67ff6f48"),
            Self::ConfigRefused => ("config-refused", "69a8b6df9bec473c9e82863b15c65e60"),
            Self::Decision => ("decision", "10a520fad1d245a3b4612a4aafe999fa"),
            Self::Outcome => ("outcome", "142710fbd4e64d84a8a1cb9e4f953af6"),
            Self::ChildStarted => ("child-started", "639d3fd02ecc44418bdb40be1f812b15"),
            Self::ChildTaken => ("child-taken", "8f0a9c1e752b474d82603ec042e3ef56"),
            Self::ChildExited => ("child-exited", "a9bc192da44b49d0bd64b78d7efdb54e"),
            Self::ChildDied => ("child-died", "5a5d73d86fbe4b19897e64627bc6af78"),
            Self::ChildStderr => ("child-stderr", "16ebfa72e6f242b4a5cd994c6751c9b3"),
            Self::Egress => ("egress", "a3be6e495dec4f148bc61dd4cbf1bee9"),
            Self::LayerFailed => ("layer-failed", "127ebdad14004333b5282dfe28a9bdb9"),
            Self::KeysFetched => ("keys-fetched", "d291049956fa40dc8f43fafc6a370549"),
            Self::KeysUnavailable => ("keys-unavailable", "2948196264094d86a180c87366974595"),
            Self::PolicyError => ("policy-error", "eb982177257d4bea8404b1ca1642eecf"),
            Self::ToolsHidden => ("tools-hidden", "335b929535d5464eb520c8db21fd9757"),
            Self::Dropped => ("records-dropped", "06153da70e5449debddcf126b126ea53"),
        }
    }

    pub fn name(self) -> &'static str {
        self.names().0
    }

    pub fn message_id(self) -> &'static str {
        self.names().1
    }
}
