//! Values that depend on the number of tokens alone: masks, positions, rotations, constants.
//!
//! They are not understood but computed, at a few sizes, and compared: what a table of rows, or a band of visible
//! tokens, explains at all of them is stored as that.

mod compute;

use std::{
    collections::{HashMap, HashSet},
    panic::catch_unwind,
};

use preface_graph::{
    Base,
    attention::{Direction, Layout as JointLayout},
    facts::Facts,
    inputs::Size,
    onnx::{GraphProto, ModelProto, ValueInfoProto},
    wiring::Wiring,
};
use tract_onnx::prelude::{tract_itertools::Itertools, *};

use super::Refused;
use crate::engine::executor::program::Mask;
use compute::{computed, scalars, tensor};

/// Rows of tables of positions where the base has no fewer positions.
const MOST_ROWS: usize = 2048;

/// The sizes that values are known at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    /// As many tokens as tables have rows, and nothing before them.
    Full,
    /// A few tokens.
    Short,
    /// The same behind a few cached ones.
    Cached,
    /// As `Short`, all of one id.
    Of(u32),
    /// As `Full`, with ids from this one on.
    From(u32),
}

/// Of the values of more numbers only the last is kept.
const MOST_KNOWN: usize = 1 << 22;

const SHORT: i64 = 5;
const PAST: i64 = 3;

/// Two sizes for shapes alone, tokens and cached ones: prime numbers, as long as there are positions for them, so that
/// no width of a model is taken for one.
pub(super) fn shape_sizes(base: &Base, rows: usize) -> Option<[(i64, i64); 2]> {
    const PASTS: [i64; 2] = [7, 11];
    let prime = |number: &i64| *number > 4 && (2..*number).all(|divisor| number % divisor != 0);
    let room = rows as i64 - PASTS[1];
    let description = &base.description;
    let widths = [description.hidden, description.embedding_width].map(|width| width as i64);
    let mut primes = (0..=room)
        .rev()
        .filter(prime)
        .filter(|prime| widths.iter().all(|width| width % prime != 0) && !PASTS.contains(prime));
    Some([(primes.next()?, PASTS[0]), (primes.next()?, PASTS[1])])
}

/// Rows that tables of positions have at most.
pub(super) fn most_rows(base: &Base) -> usize {
    base.description
        .max_positions
        .map_or(MOST_ROWS, |positions| positions.min(MOST_ROWS))
}

/// Numbers of one value at one size.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Computes the values of a graph that depend on no text.
pub(super) struct Statics<'a> {
    graph: &'a GraphProto,
    wiring: &'a Wiring<'a>,
    base: &'a Base,
    opset: ModelProto,
    dynamic: &'a HashSet<String>,
    facts: [Facts; 3],
    pub rows: usize,
    /// The id that must not be in a text.
    pub padding: Option<u32>,
    known: HashMap<(String, At), Numbers>,
    /// The last value of many numbers: layer after layer reads the same.
    large: Option<((String, At), Numbers)>,
}

/// What a value is to a row.
#[derive(Clone, Debug)]
pub(super) enum Static {
    /// The same numbers for every row.
    Constant(Numbers),
    /// Dimension `axis` counts tokens; `numbers` are those of all rows.
    Table { axis: usize, numbers: Numbers },
}

impl<'a> Statics<'a> {
    pub fn new(
        base: &'a Base,
        graph: &'a GraphProto,
        wiring: &'a Wiring<'a>,
        dynamic: &'a HashSet<String>,
        rows: usize,
    ) -> Self {
        let sizes = [(rows as i64, 0), (SHORT, 0), (SHORT, PAST)];
        Self {
            facts: sizes.map(|size| Facts::of(graph, &[shapes(base, wiring, size)])),
            opset: ModelProto {
                ir_version: base.model.ir_version,
                opset_import: base.model.opset_import.clone(),
                ..ModelProto::default()
            },
            graph,
            wiring,
            base,
            dynamic,
            rows,
            padding: None,
            known: HashMap::new(),
            large: None,
        }
    }

    /// The sizes of a few tokens.
    pub fn few(&self) -> impl Iterator<Item = At> + use<> {
        let cached = self.cached().then_some(At::Cached);
        [At::Short].into_iter().chain(cached)
    }

    /// Whether the base takes cached keys and values.
    fn cached(&self) -> bool {
        !self.base.description.inputs.past.is_empty()
    }

    /// The one number of a value, where it has just one at every size.
    pub fn scalar(&mut self, name: &str) -> Result<Option<f32>, Refused> {
        match self.of(name, &mut None)? {
            Static::Constant(Numbers { values, .. }) if values.len() == 1 => Ok(Some(values[0])),
            _ => Ok(None),
        }
    }

    /// What `name` is to a row; `counted` hears whether its rows count what is cached.
    pub fn of(&mut self, name: &str, counted: &mut Option<bool>) -> Result<Static, Refused> {
        if self.wiring.initializer(name).is_some() {
            return self.at(name, At::Short).map(Static::Constant);
        }
        let short = self.at(name, At::Short)?;
        let full = self.at(name, At::Full)?;
        if self.reads_ids(name) {
            self.find_padding(name, &short, &full)?;
        }
        let differing = short.shape.iter().zip(&full.shape);
        let differing = differing
            .positions(|(short, full)| short != full)
            .collect_vec();
        let behind = match self.cached() {
            true => Some(self.at(name, At::Cached)?),
            false => None,
        };
        match differing[..] {
            [] => {
                let same = |other: &Numbers| other.values == short.values;
                match same(&full) && behind.as_ref().is_none_or(same) {
                    true => Ok(Static::Constant(short)),
                    false => Err(Refused::value(name, "depends on the number of tokens")),
                }
            }
            [axis] => {
                let table = rows_of(&full, axis);
                let few = rows_of(&short, axis);
                let begins = |rows: &[Vec<f32>], at: usize| {
                    table
                        .get(at..at + rows.len())
                        .is_some_and(|part| part == rows)
                };
                if full.shape[axis] != self.rows || !begins(&few, 0) {
                    return Err(Refused::value(name, "is no table of positions"));
                }
                if table.iter().all_equal() {
                    let mut shape = full.shape.clone();
                    shape[axis] = 1;
                    let values = table.into_iter().next().unwrap_or_default();
                    return Ok(Static::Constant(Numbers { shape, values }));
                }
                if let Some(behind) = behind {
                    let behind = rows_of(&behind, axis);
                    let found = match (begins(&behind, PAST as usize), begins(&behind, 0)) {
                        (true, false) => true,
                        (false, true) => false,
                        _ => return Err(Refused::value(name, "is no table of positions")),
                    };
                    if counted.replace(found).is_some_and(|known| known != found) {
                        return Err(Refused::value(name, "counts positions in another way"));
                    }
                }
                Ok(Static::Table {
                    axis,
                    numbers: full,
                })
            }
            _ => Err(Refused::value(
                name,
                "has a row and a column for each token",
            )),
        }
    }

    /// The band of visible tokens that `name` leaves, where `visible` says which numbers do.
    pub fn mask(
        &mut self,
        name: &str,
        visible: impl Fn(f32) -> Option<bool>,
    ) -> Result<Mask, Refused> {
        let band_at = |this: &mut Self, at: At| {
            let (rows, past) = match at {
                At::Full => (this.rows, 0),
                At::Cached => (SHORT as usize, PAST as usize),
                _ => (SHORT as usize, 0),
            };
            let numbers = this.at(name, at)?;
            band(&numbers, rows, past, &visible).ok_or_else(|| {
                Refused::value(name, "is no band of visible tokens around each token")
            })
        };
        let few = self.few().map(|at| band_at(self, at));
        let few = few.collect::<Result<Vec<_>, _>>()?;
        let full = band_at(self, At::Full)?;
        let narrow = |mask: Mask| Mask {
            before: mask.before.filter(|&before| before + 1 < SHORT as usize),
            after: mask.after.filter(|&after| after + 1 < SHORT as usize),
        };
        match few.iter().all(|&mask| narrow(mask) == narrow(full)) {
            true => Ok(full),
            false => Err(Refused::value(name, "hides other tokens of longer texts")),
        }
    }

    /// Finds the one id that changes `name`: positions that are counted by the tokens leave the padding out.
    fn find_padding(&mut self, name: &str, short: &Numbers, full: &Numbers) -> Result<(), Refused> {
        let vocabulary = self.base.description.vocabulary as u32;
        let mut changing = Vec::new();
        for first in (0..vocabulary).step_by(self.rows) {
            if self.at(name, At::From(first))?.values == full.values {
                continue;
            }
            for id in first..vocabulary.min(first + self.rows as u32) {
                if self.at(name, At::Of(id))?.values != short.values {
                    changing.push(id);
                }
                if changing.len() > 1 {
                    return Err(Refused::value(name, "depends on the tokens"));
                }
            }
        }
        self.padding = self.padding.or(changing.first().copied());
        match changing.first() == self.padding.as_ref() {
            true => Ok(()),
            false => Err(Refused::value(name, "depends on the tokens")),
        }
    }

    fn reads_ids(&self, name: &str) -> bool {
        let ids = &*self.base.description.inputs.ids;
        let mut seen = HashSet::new();
        let mut open = vec![name];
        while let Some(value) = open.pop() {
            if value == ids {
                return true;
            }
            let node = self.wiring.producer(value);
            let node = node.filter(|node| node.op_type() != "Shape" && seen.insert(node.label()));
            open.extend(node.iter().flat_map(|node| &node.input).map(String::as_str));
        }
        false
    }

    /// The numbers of `name` at one size.
    pub fn at(&mut self, name: &str, at: At) -> Result<Numbers, Refused> {
        let key = (name.to_owned(), at);
        let large = self.large.iter().find(|(known, _)| *known == key);
        let large = large.map(|(_, numbers)| numbers);
        if let Some(numbers) = self.known.get(&key).or(large) {
            return Ok(numbers.clone());
        }
        let mut part = GraphProto::default();
        self.collect(name, at, &mut part, &mut HashSet::new())?;
        part.output = vec![ValueInfoProto::untyped(name)];
        let model = ModelProto {
            graph: Some(part),
            ..self.opset.clone()
        };
        // tract panics on some graphs that it does not run.
        let numbers = catch_unwind(|| computed(&model))
            .unwrap_or_else(|_| Err(tract_data::internal::format_err!("tract gave up")))
            .map_err(|error| Refused::value(name, &format!("cannot be computed: {error:#}")))?;
        match at {
            At::Of(_) | At::From(_) => {}
            _ if numbers.values.len() > MOST_KNOWN => self.large = Some((key, numbers.clone())),
            _ => {
                self.known.insert(key, numbers.clone());
            }
        }
        Ok(numbers)
    }

    /// Adds what makes `name` to `part`, in the order of making.
    fn collect(
        &self,
        name: &str,
        at: At,
        part: &mut GraphProto,
        seen: &mut HashSet<String>,
    ) -> Result<(), Refused> {
        if name.is_empty() || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        if let Some(tensor) = self.wiring.initializer(name) {
            let mut tensor = tensor.clone();
            if tensor.is_external() {
                let bytes = tensor.little_endian(&self.base.folder);
                tensor.raw_data =
                    Some(bytes.map_err(|error| Refused::value(name, &error.to_string()))?);
                tensor.external_data.clear();
                tensor.data_location = None;
            }
            part.initializer.push(tensor);
            return Ok(());
        }
        let facts = &self.facts[match at {
            At::Full | At::From(_) => 0,
            At::Short | At::Of(_) => 1,
            At::Cached => 2,
        }];
        let fact = facts.get(name);
        if let Some((fact, numbers)) = fact.and_then(|fact| Some((fact, fact.numbers[0].as_ref()?)))
        {
            part.initializer
                .push(tensor(name, fact.data_type, &fact.shapes[0], numbers));
            return Ok(());
        }
        if self.dynamic.contains(name) {
            return Err(Refused::value(name, "depends on the text"));
        }
        let Some(index) = self.wiring.producer_index(name) else {
            let fact = fact.ok_or_else(|| Refused::value(name, "has no known shape"))?;
            let count = fact.shapes[0].iter().product::<i64>();
            let numbers: Vec<f64> = (0..count)
                .map(|index| self.input(name, index, at))
                .collect();
            part.initializer
                .push(tensor(name, fact.data_type, &fact.shapes[0], &numbers));
            return Ok(());
        };
        let mut node = self.graph.node[index].clone();
        for input in &node.input {
            self.collect(input, at, part, seen)?;
        }
        match (node.op_type(), fact) {
            ("Range", _) => scalars(&mut node, part),
            ("CumSum", Some(fact)) => {
                let sums = crate::engine::lower::in_floats(node, fact.data_type);
                part.node.extend(sums);
                return Ok(());
            }
            _ => {}
        }
        part.node.push(node);
        Ok(())
    }

    /// What an input of the graph is given.
    fn input(&self, name: &str, index: i64, at: At) -> f64 {
        let description = &self.base.description;
        let is = |input: &Option<String>| input.as_deref() == Some(name);
        match name {
            _ if is(&description.inputs.mask) => 1.0,
            _ if is(&description.inputs.positions) => index as f64,
            _ if description.inputs.ids == name => {
                let vocabulary = description.vocabulary as i64;
                let placeholder = i64::from(description.placeholder);
                let id = match at {
                    At::Of(id) => i64::from(id),
                    At::From(first) => i64::from(first) + index,
                    _ => placeholder,
                };
                if id < vocabulary {
                    id as f64
                } else {
                    placeholder as f64
                }
            }
            _ => 0.0,
        }
    }
}

/// The shapes of the inputs of the cut graph at one size.
pub(super) fn shapes(
    base: &Base,
    wiring: &Wiring<'_>,
    (sequence, past): (i64, i64),
) -> HashMap<String, Vec<i64>> {
    let description = &base.description;
    let size = Size {
        batch: 1,
        sequence,
        decoder_sequence: 1,
        past,
    };
    let mut shapes = description.inputs.shapes(wiring, size);
    shapes.insert(
        description.embedding_rows.clone(),
        vec![1, sequence, description.embedding_width as i64],
    );
    let sites = description.sites.iter();
    for site in sites.filter(|site| site.direction == Direction::Cross) {
        let joints = [&site.key, &site.value].into_iter();
        for joint in joints.filter(|joint| wiring.producer(&joint.value).is_none()) {
            let (heads, length) = (site.kv_heads as i64, site.head_dim as i64);
            let shape = match joint.layout {
                JointLayout::HeadsFirst => vec![1, heads, sequence, length],
                JointLayout::TokensFirst => vec![1, sequence, heads, length],
            };
            shapes.insert(joint.value.clone(), shape);
        }
    }
    shapes
}

/// The numbers at each place of `axis`, the others in their order.
pub(super) fn rows_of(numbers: &Numbers, axis: usize) -> Vec<Vec<f32>> {
    let inner: usize = numbers.shape[axis + 1..].iter().product();
    let count = numbers.shape[axis];
    let mut rows = vec![Vec::new(); count];
    for (index, run) in numbers.values.chunks(inner.max(1)).enumerate() {
        rows[index % count].extend_from_slice(run);
    }
    rows
}

/// The band of `numbers`, `[..., rows or 1, past + rows or 1]`.
fn band(
    numbers: &Numbers,
    rows: usize,
    past: usize,
    visible: &impl Fn(f32) -> Option<bool>,
) -> Option<Mask> {
    let seen: Vec<bool> = numbers
        .values
        .iter()
        .map(|&number| visible(number))
        .collect::<Option<_>>()?;
    if seen.iter().all(|&seen| seen) {
        return Some(Mask::default());
    }
    let keys = past + rows;
    let [.., height, width] = numbers.shape[..] else {
        return None;
    };
    let mut sheets = seen.chunks(rows * keys);
    let first = sheets.next()?;
    if (height, width) != (rows, keys) || sheets.any(|sheet| sheet != first) {
        return None;
    }
    let mut bands = Vec::new();
    for row in first.chunks(keys) {
        let (cached, text) = row.split_at(past);
        let first = text.iter().position(|&seen| seen)?;
        let last = text.iter().rposition(|&seen| seen)?;
        let whole = text[first..=last].iter().chain(cached).all(|&seen| seen);
        bands.push(whole.then_some((first, last))?);
    }
    let everywhere = |first: bool| match first {
        true => bands.iter().all(|&(first, _)| first == 0),
        false => bands.iter().all(|&(_, last)| last + 1 == rows),
    };
    let before = (!everywhere(true)).then(|| rows - 1 - bands[rows - 1].0);
    let after = (!everywhere(false)).then_some(bands[0].1);
    let fits = bands.iter().enumerate().all(|(row, &(first, last))| {
        first == before.map_or(0, |before| row.saturating_sub(before))
            && last == after.map_or(rows - 1, |after| (row + after).min(rows - 1))
    });
    fits.then_some(Mask { before, after })
}
