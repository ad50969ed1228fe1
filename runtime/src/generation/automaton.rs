//! Which texts there are, byte by byte.

/// The number of a state.
pub(crate) type State = u32;

/// A deterministic finite automaton over bytes: the texts that lead from a state to an end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Automaton {
    states: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Bytes from one to another, both included, and the state behind them; no two overlap.
    arcs: Vec<(u8, u8, State)>,
    /// Whether a text may end here.
    ends: bool,
}

impl Automaton {
    /// A state with nothing behind it.
    pub fn add(&mut self) -> State {
        self.states.push(Node::default());
        State::try_from(self.states.len() - 1).expect("a shape has fewer than 2^32 states")
    }

    /// Lets bytes from `first` to `last` lead from one state to another.
    pub fn lead(&mut self, from: State, (first, last): (u8, u8), to: State) {
        self.node_mut(from).arcs.push((first, last, to));
    }

    /// A state whose only way goes through `bytes` to `next`.
    pub fn literal(&mut self, bytes: &[u8], next: State) -> State {
        bytes.iter().rev().fold(next, |next, &byte| {
            let state = self.add();
            self.lead(state, (byte, byte), next);
            state
        })
    }

    /// The state behind `bytes` on the way from `state`; what is missing of the way is added.
    pub fn branch(&mut self, state: State, bytes: &[u8]) -> State {
        bytes.iter().fold(state, |state, &byte| {
            self.next(state, byte).unwrap_or_else(|| {
                let next = self.add();
                self.lead(state, (byte, byte), next);
                next
            })
        })
    }

    /// Lets a text go on at `state` as at `other`, which is complete, or end there where it may end at `other`.
    pub fn absorb(&mut self, state: State, other: State) {
        let other = self.node(other).clone();
        let node = self.node_mut(state);
        node.arcs.extend(other.arcs);
        node.ends |= other.ends;
    }

    /// Lets texts end at `state`.
    pub fn end(&mut self, state: State) {
        self.node_mut(state).ends = true;
    }

    /// Whether a text may end at `state`.
    pub fn ends(&self, state: State) -> bool {
        self.node(state).ends
    }

    /// Whether a text may go on at `state`.
    pub fn goes_on(&self, state: State) -> bool {
        !self.node(state).arcs.is_empty()
    }

    /// All states.
    pub fn states(&self) -> std::ops::Range<State> {
        0..State::try_from(self.states.len()).expect("a state is a number")
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let arcs = self.states.iter().map(|node| node.arcs.capacity());
        self.states.capacity() * size_of::<Node>()
            + arcs.sum::<usize>() * size_of::<(u8, u8, State)>()
    }

    /// The state behind one byte; `None` where no text goes on with it.
    pub fn next(&self, state: State, byte: u8) -> Option<State> {
        let mut arcs = self.node(state).arcs.iter();
        let arc = arcs.find(|&&(first, last, _)| (first..=last).contains(&byte));
        arc.map(|&(_, _, next)| next)
    }

    /// The state behind `bytes`; `None` where no text goes on with them.
    pub fn run(&self, state: State, bytes: &[u8]) -> Option<State> {
        let mut bytes = bytes.iter();
        bytes.try_fold(state, |state, &byte| self.next(state, byte))
    }

    fn node(&self, state: State) -> &Node {
        &self.states[state as usize]
    }

    fn node_mut(&mut self, state: State) -> &mut Node {
        &mut self.states[state as usize]
    }
}
