//! The designs that there are, and what they take before they are trained.

use std::collections::BTreeSet;

use preface_graph::{Base, Description, FormKind};

use super::Design;
use crate::{
    Error,
    data::{AnswerKind, Dataset},
    form::Form,
    heads::{Head, head, usual},
    methods::{METHODS, Method, method},
    options::{Layers, Options},
    task::{form, refuse_unfit},
};

/// Methods that are searched where none is given.
const SEARCHED: [&str; 4] = [
    "gated-prefix-tuning",
    "prefix-tuning",
    "prompt-tuning",
    "residual-prompt-tuning",
];
const TOKENS: [usize; 5] = [1, 2, 4, 8, 16];
const RANKS: [usize; 5] = [2, 4, 8, 16, 32];
const PLAIN_HEAD: &str = "linear";
const FACTORED_HEAD: &str = "factored-linear";

/// Header, fixed fields and signature of a bundle.
const FRAME_BYTES: usize = 64 + 256 + 8 + 88;
/// Receipt, metrics, probes, tensor table and short fields of a usual bundle.
const FIELD_BYTES: usize = 768;
/// Bytes of a scale and of a number that keeps half precision.
const HALF_BYTES: usize = 2;
/// Shorter rows share a scale.
const LEAST_SCALED: usize = 16;

/// What is given already; all else is searched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// Name of the method.
    pub method: Option<String>,
    /// Virtual tokens.
    pub tokens: Option<usize>,
    /// Layers that get a prefix.
    pub layers: Option<Layers>,
    /// Name of the head.
    pub head: Option<String>,
    /// Rank of a factored head.
    pub head_rank: Option<usize>,
    /// Peak learning rate of the prompt.
    pub learning_rate: Option<f32>,
}

/// What designs are for.
pub struct Problem<'a> {
    base: &'a Description,
    options: &'a Options,
    kind: AnswerKind,
    labels: Vec<String>,
}

/// A design, and about what its bundle takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    /// The design.
    pub design: Design,
    /// What it takes.
    pub bytes: Bytes,
}

/// About what the parts of a bundle in i8 take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// The prompt.
    pub prompt: usize,
    /// The head.
    pub head: usize,
    /// Everything else: what is signed beside them, and the signature.
    pub rest: usize,
}

impl Bytes {
    /// The bundle.
    pub fn total(self) -> usize {
        self.prompt + self.head + self.rest
    }
}

impl<'a> Problem<'a> {
    /// The task of `train`, with everything in `options` that no design says.
    pub fn new(base: &'a Base, train: &Dataset, options: &'a Options) -> Self {
        let mut labels = train.labels();
        labels.retain(|label| Some(label) != options.out_of_scope.as_ref());
        Self {
            base: &base.description,
            options,
            kind: train.kind(),
            labels,
        }
    }

    /// The designs that can be trained and whose bundle takes about `budget` bytes at most.
    ///
    /// # Errors
    /// When what is given cannot be trained, or nothing fits; the error names the smallest design and what it takes.
    pub fn within(&self, given: &Given, budget: usize) -> Result<Vec<Contender>, Error> {
        let (fitting, over): (Vec<Contender>, Vec<Contender>) = self
            .all(given)?
            .into_iter()
            .partition(|one| one.bytes.total() <= budget);
        match over.iter().min_by_key(|one| one.bytes.total()) {
            Some(smallest) if fitting.is_empty() => Err(self.nothing_fits(smallest, budget)),
            _ => Ok(fitting),
        }
    }

    /// Every design of the grid that can be trained.
    fn all(&self, given: &Given) -> Result<Vec<Contender>, Error> {
        let (mut found, mut refused) = (Vec::new(), None);
        for method in self.methods(given)? {
            for &tokens in given
                .tokens
                .as_ref()
                .map_or(&TOKENS[..], std::slice::from_ref)
            {
                for layers in self.layers(method, given) {
                    for (head, head_rank) in self.heads(given)? {
                        let design = Design {
                            method: method.name.into(),
                            tokens,
                            layers,
                            head: head.name.into(),
                            head_rank,
                        };
                        match self.bytes(&design) {
                            Ok(bytes) => found.push(Contender { design, bytes }),
                            Err(error) => refused = refused.or(Some(error)),
                        }
                    }
                }
            }
        }
        match refused {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// Layers are for prefixes: where they are given and no method is, only prefixes are searched.
    fn methods(&self, given: &Given) -> Result<Vec<&'static Method>, Error> {
        if let Some(name) = &given.method {
            return Ok(vec![method(name)?]);
        }
        let searched = METHODS
            .iter()
            .filter(|method| SEARCHED.contains(&method.name));
        let prefixes = given.layers.is_some();
        Ok(searched
            .filter(|method| !prefixes || method.form == FormKind::KeyValues)
            .collect())
    }

    fn layers(&self, method: &Method, given: &Given) -> Vec<Option<Layers>> {
        match (method.form, given.layers) {
            (FormKind::Embeddings, _) => vec![None],
            (FormKind::KeyValues, Some(layers)) => vec![Some(layers)],
            (FormKind::KeyValues, None) => {
                let count = self.base.layers.len();
                let tops: BTreeSet<usize> = [1, 2, count / 2].into();
                let tops = tops.into_iter().filter(|&top| top > 0 && top < count);
                tops.map(Layers::Top)
                    .chain([Layers::All])
                    .map(Some)
                    .collect()
            }
        }
    }

    /// The head that is given or usual, and where a usual linear one has many rows those of lower rank.
    fn heads(&self, given: &Given) -> Result<Vec<(&'static Head, Option<usize>)>, Error> {
        let plain = match &given.head {
            Some(name) => head(name)?,
            None if given.head_rank.is_some() => head(FACTORED_HEAD)?,
            None => usual(self.kind),
        };
        let useful = |rank: &usize| 2 * rank <= self.labels.len() && 2 * rank <= self.base.hidden;
        let ranks = |least: Option<usize>| {
            let ranks: Vec<usize> = RANKS.into_iter().filter(useful).collect();
            if ranks.is_empty() {
                least.into_iter().collect()
            } else {
                ranks
            }
        };
        Ok(match (plain.is_factored(), given.head_rank) {
            (true, Some(rank)) => vec![(plain, Some(rank))],
            (true, None) => ranks(Some(1))
                .into_iter()
                .map(|rank| (plain, Some(rank)))
                .collect(),
            (false, _) if given.head.is_none() && plain.name == PLAIN_HEAD => {
                let factored = head(FACTORED_HEAD)?;
                let factored = ranks(None).into_iter().map(|rank| (factored, Some(rank)));
                [(plain, None)].into_iter().chain(factored).collect()
            }
            (false, _) => vec![(plain, None)],
        })
    }

    /// About what a design takes.
    ///
    /// # Errors
    /// When it cannot be trained.
    pub fn bytes(&self, design: &Design) -> Result<Bytes, Error> {
        let options = design.options(self.options);
        let (method, head) = (method(&design.method)?, head(&design.head)?);
        let form = form(method, &options, self.base)?;
        refuse_unfit(self.base, method, head, self.kind, &self.labels, &options)?;
        let size = head.size(self.labels.len(), options.head_rank, self.base);
        let parameters = (head.parameters)(size).into_iter();
        let row = match &form {
            Form::Embeddings { hidden, .. } => *hidden,
            Form::KeyValues { layers, .. } => {
                layers.iter().map(|layer| layer.head_dim).min().unwrap_or(0)
            }
        };
        let prompt = form
            .shapes()
            .iter()
            .map(|shape| tensor_bytes(shape, row))
            .sum();
        let head = parameters
            .map(|parameter| {
                tensor_bytes(
                    &parameter.shape,
                    parameter.shape.last().copied().unwrap_or(0),
                )
            })
            .sum();
        Ok(Bytes {
            prompt,
            head,
            rest: self.rest(&options),
        })
    }

    fn rest(&self, options: &Options) -> usize {
        let labels: usize = self.labels.iter().map(|label| label.len() + 1).sum();
        let template = options.template.len() + options.examples.len();
        FRAME_BYTES + FIELD_BYTES + labels + template
    }

    fn nothing_fits(&self, smallest: &Contender, budget: usize) -> Error {
        let Contender { design, bytes } = smallest;
        let total = bytes.total();
        let labels = self.labels.len();
        let smaller_head = match design.head.as_str() {
            PLAIN_HEAD => " --head factored-linear or label-text, or",
            FACTORED_HEAD => " --head label-text, or",
            _ => "",
        };
        let way_out = match bytes.head > budget / 2 {
            true => smaller_head,
            false => "",
        };
        Error::Options(format!(
            "no design fits {budget} bytes: the smallest, {design}, takes about {total}: the prompt {}, the {} head for \
             {labels} labels {}, labels, receipt and signature {}; pass{way_out} --budget {total}",
            bytes.prompt, design.head, bytes.head, bytes.rest
        ))
    }
}

/// Bytes of a tensor in i8 with a scale for each `row` numbers; tensors of one dimension keep half precision.
fn tensor_bytes(shape: &[usize], row: usize) -> usize {
    let numbers: usize = shape.iter().product();
    let scales = if row < LEAST_SCALED {
        1
    } else {
        numbers.div_ceil(row)
    };
    match shape.len() {
        1 => HALF_BYTES * numbers,
        _ => numbers + HALF_BYTES * scales,
    }
}

/// At most `most` of the contenders: the largest of each method, the smallest of all, then those that are least like
/// the ones that are there, by the logarithm of their bytes and by what they are made of (Gonzalez 1985, farthest
/// points first). Sorted by bytes.
pub fn spread(contenders: &[Contender], most: usize) -> Vec<Contender> {
    let mut chosen: Vec<&Contender> = Vec::new();
    let methods: BTreeSet<&str> = contenders
        .iter()
        .map(|one| one.design.method.as_str())
        .collect();
    for method in methods {
        let of_method = contenders.iter().filter(|one| one.design.method == method);
        chosen.extend(of_method.max_by_key(|one| one.bytes.prompt + one.bytes.head));
    }
    let smallest = contenders.iter().min_by_key(|one| one.bytes.total());
    chosen.extend(smallest.filter(|smallest| !chosen.contains(smallest)));
    while chosen.len() < most.min(contenders.len()) {
        let nearest = |one: &Contender| {
            let distances = chosen.iter().map(|other| distance(one, other));
            distances.fold(f64::INFINITY, f64::min)
        };
        let rest = contenders.iter().filter(|one| !chosen.contains(one));
        let farthest = rest.max_by(|one, other| nearest(one).total_cmp(&nearest(other)));
        chosen.extend(farthest);
    }
    chosen.truncate(most);
    let mut chosen: Vec<Contender> = chosen.into_iter().cloned().collect();
    chosen.sort_by_key(|one| one.bytes.total());
    chosen
}

/// How unlike two contenders are: twice the bytes count as much as another method.
fn distance(one: &Contender, other: &Contender) -> f64 {
    let learned = |one: &Contender| ((one.bytes.prompt + one.bytes.head).max(1) as f64).log2();
    let differs = |differs: bool, weight: f64| if differs { weight } else { 0.0 };
    let (this, that) = (&one.design, &other.design);
    (learned(one) - learned(other)).abs()
        + differs(this.method != that.method, 1.0)
        + differs(this.layers != that.layers, 0.5)
        + differs(this.head_rank != that.head_rank, 0.5)
}

#[cfg(test)]
mod tests {
    use preface_graph::{Kind, LayerGeometry, PositionRule, inputs::Inputs};

    use super::*;
    use crate::form::Place;

    /// As large as MiniLM.
    fn base() -> Description {
        let layer = LayerGeometry {
            kv_heads: 12,
            head_dim: 32,
        };
        Description {
            kind: Kind::Encoder,
            hidden: 384,
            embedding_width: 384,
            vocabulary: 100,
            layers: vec![layer; 6],
            padding: Some(0),
            placeholder: 1,
            position_rule: PositionRule::Learned,
            max_positions: Some(512),
            forms: vec![FormKind::Embeddings, FormKind::KeyValues],
            parameters: 0,
            inputs: Inputs::default(),
            mask_token: None,
            end_token: None,
            start_token: None,
            hidden_rows: String::new(),
            logits: None,
            embedding_rows: String::new(),
            embedding_table: String::new(),
            sites: Vec::new(),
            base_id: String::new(),
            tokenizer_id: String::new(),
        }
    }

    fn within(
        given: &Given,
        labels: usize,
        budget: usize,
        options: &Options,
    ) -> Result<Vec<Contender>, Error> {
        let base = base();
        let problem = Problem {
            base: &base,
            options,
            kind: AnswerKind::Label,
            labels: (0..labels).map(|label| format!("{label:04}")).collect(),
        };
        problem.within(given, budget)
    }

    fn names(contenders: &[Contender]) -> Vec<String> {
        contenders
            .iter()
            .map(|one| one.design.to_string())
            .collect()
    }

    #[test]
    fn bytes_are_those_of_i8_with_scales() {
        let table = [
            (
                "prompt-tuning",
                None,
                8,
                "linear",
                None,
                8 * (384 + 2),
                3 * (384 + 2) + 6,
            ),
            (
                "prefix-tuning",
                Some(Layers::Top(2)),
                4,
                "linear",
                None,
                2 * 2 * 4 * (384 + 24),
                3 * (384 + 2) + 6,
            ),
            (
                "gated-prefix-tuning",
                Some(Layers::All),
                1,
                "linear",
                None,
                6 * 2 * (384 + 24) + 12,
                3 * (384 + 2) + 6,
            ),
            (
                "prompt-tuning",
                None,
                1,
                "factored-linear",
                Some(2),
                384 + 2,
                (3 * 2 + 2) + 2 * (384 + 2) + 6,
            ),
            ("prompt-tuning", None, 1, "label-text", None, 384 + 2, 6),
        ];
        let (base, options) = (base(), Options::default());
        let problem = Problem {
            base: &base,
            options: &options,
            kind: AnswerKind::Label,
            labels: ["a", "b", "c"].map(String::from).into(),
        };
        for (method, layers, tokens, head, head_rank, prompt, head_bytes) in table {
            let design = Design {
                method: method.into(),
                tokens,
                layers,
                head: head.into(),
                head_rank,
            };
            let bytes = problem.bytes(&design).unwrap();
            assert_eq!((bytes.prompt, bytes.head), (prompt, head_bytes), "{design}");
        }
    }

    #[test]
    fn what_is_given_narrows_the_grid() {
        let usual = Options::default();
        let given = Given::default;
        let all = within(&given(), 3, 1 << 20, &usual).unwrap();
        assert_eq!(all.len(), 2 * 5 + 2 * 5 * 4);
        let table: [(Given, usize, usize); 7] = [
            (
                Given {
                    tokens: Some(4),
                    ..given()
                },
                3,
                2 + 2 * 4,
            ),
            (
                Given {
                    layers: Some(Layers::Top(2)),
                    ..given()
                },
                3,
                2 * 5,
            ),
            (
                Given {
                    method: Some("p-tuning-v2".into()),
                    ..given()
                },
                3,
                5 * 4,
            ),
            (
                Given {
                    method: Some("low-rank-prompt-tuning".into()),
                    tokens: Some(3),
                    ..given()
                },
                3,
                1,
            ),
            (
                Given {
                    method: Some("prompt-tuning".into()),
                    ..given()
                },
                20,
                5 * 4,
            ),
            (
                Given {
                    head: Some("factored-linear".into()),
                    method: Some("prompt-tuning".into()),
                    ..given()
                },
                20,
                5 * 3,
            ),
            (
                Given {
                    head_rank: Some(3),
                    method: Some("prompt-tuning".into()),
                    ..given()
                },
                20,
                5,
            ),
        ];
        for (given, labels, count) in table {
            assert_eq!(
                within(&given, labels, 1 << 20, &usual).unwrap().len(),
                count,
                "{given:?}"
            );
        }
        let after = Options {
            place: Place::After,
            ..Options::default()
        };
        assert_eq!(within(&given(), 3, 1 << 20, &after).unwrap().len(), 2 * 5);
        for wrong in [
            Given {
                method: Some("no-such".into()),
                ..given()
            },
            Given {
                head: Some("generation".into()),
                ..given()
            },
            Given {
                layers: Some(Layers::Top(7)),
                ..given()
            },
            Given {
                tokens: Some(512),
                ..given()
            },
        ] {
            assert!(within(&wrong, 3, 1 << 20, &usual).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_budget_that_nothing_fits_names_the_smallest_and_the_way_out() {
        let linear = Given {
            head: Some("linear".into()),
            ..Given::default()
        };
        let table = [
            (
                Given::default(),
                3,
                1024,
                vec!["prompt-tuning 1", "1024 bytes", "--budget"],
            ),
            (
                linear,
                150,
                8192,
                vec![
                    "the linear head for 150 labels 58200",
                    "factored-linear or label-text",
                ],
            ),
            (
                Given::default(),
                400,
                4096,
                vec!["factored-linear:2", "--budget"],
            ),
        ];
        for (given, labels, budget, parts) in table {
            let error = within(&given, labels, budget, &Options::default())
                .unwrap_err()
                .to_string();
            for part in parts {
                assert!(error.contains(part), "no {part:?} in {error}");
            }
        }
    }

    #[test]
    fn a_spread_has_the_largest_of_each_method_and_the_smallest() {
        let fitting = within(&Given::default(), 3, 8192, &Options::default()).unwrap();
        let chosen = spread(&fitting, 8);
        assert_eq!(chosen.len(), 8);
        assert!(chosen.iter().all(|one| one.bytes.total() <= 8192));
        assert!(
            chosen
                .windows(2)
                .all(|pair| pair[0].bytes.total() <= pair[1].bytes.total())
        );
        let smallest = fitting.iter().map(|one| one.bytes.total()).min();
        assert_eq!(chosen.first().map(|one| one.bytes.total()), smallest);
        for method in SEARCHED {
            let of = |contenders: &[Contender]| {
                let own = contenders.iter().filter(|one| one.design.method == method);
                own.map(|one| one.bytes.total()).max()
            };
            assert_eq!(of(&chosen), of(&fitting), "{method}: {:?}", names(&chosen));
        }
        let lengths: BTreeSet<usize> = chosen.iter().map(|one| one.bytes.total()).collect();
        assert!(lengths.len() >= 4, "{:?}", names(&chosen));
        assert_eq!(spread(&fitting[..2], 8).len(), 2);
        assert!(spread(&[], 8).is_empty());
    }
}
