//! Compiling a base model into a base image.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use preface_bundle::Id;
use preface_graph::{
    Base, ServingInputs,
    onnx::{ModelProto, data_type},
};

use crate::{
    Error, Image, Options, Session, Weights,
    engine::{
        EngineKind, Lowered, TRACT,
        lowering::{self, Lowering, unstorable},
        sum_in_floats,
    },
    image::{Description, Inputs, Kind, Layer, Parts, PrefixInputs, Writer},
    map::open_own,
};

/// What an image is made of.
#[derive(Debug)]
pub struct Source {
    /// The graph: batch 1, embedding rows as an input, a prefix input at every attention site, hidden rows as its
    /// only output, initializers inline.
    pub model: ModelProto,
    /// The initializer with the embedding table, `f32 [vocabulary, embedding width]`.
    pub embedding: String,
    /// What the base is.
    pub description: Description,
    /// The exact bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// How weights are stored.
    pub weights: Weights,
    /// What the executor runs, or why it does not.
    pub(crate) lowering: Result<Lowering, String>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The image.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Of which the embedding table.
    pub embedding_bytes: u64,
    /// Of which packed weights; a weight packed twice alike counts once.
    pub packed_bytes: u64,
    /// Of which the program and its small tensors.
    pub program_bytes: u64,
    /// How many weights are packed.
    pub packed: usize,
    /// The kernels they are packed for, sorted.
    pub kernels: Vec<String>,
    /// The engine that runs the image.
    pub engine: EngineKind,
    /// How the packed weights are stored.
    pub weights: Weights,
    /// Why it is not the executor.
    pub reason: Option<String>,
}

/// What an image of a base will do, as far as its graph tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// Why no image can be made of it, where none can.
    pub refused: Option<String>,
    /// Why the executor does not run it, where it does not: tract's plan may, but for an encoder-decoder.
    pub unlowered: Option<String>,
    /// Whether it makes scores of the vocabulary, which words for labels and generated texts need.
    pub scores: bool,
}

impl Prospect {
    /// Lowers `base` and forgets the steps.
    pub fn of_base(base: &Base) -> Self {
        let (unlowered, scores) = match lowering::lower(base) {
            Ok(lowering) => (None, lowering.program.logits.is_some()),
            Err(refused) => (Some(refused.to_string()), false),
        };
        let refused = match base.description.kind {
            preface_graph::Kind::EncoderDecoder => unlowered.clone(),
            _ => base.serving_graph().err().map(|error| error.to_string()),
        };
        Self {
            refused,
            unlowered,
            scores,
        }
    }
}

/// Hears how far a compilation is.
pub trait Progress {
    /// `done` of `total` weights are packed.
    fn packed(&mut self, done: usize, total: usize);
}

impl Source {
    /// What `base` is served as.
    ///
    /// # Errors
    /// When the base is of a kind that the runtime does not serve.
    pub fn of_base(base: &Base) -> Result<Self, Error> {
        let described = &base.description;
        let lowering = lowering::lower(base).map_err(|refused| refused.to_string());
        let (model, inputs) = match described.kind {
            preface_graph::Kind::EncoderDecoder => {
                // A prefix joins any layer: positions count no cache.
                let partial = true;
                (
                    base.table_alone()?,
                    Inputs {
                        partial,
                        ..Inputs::default()
                    },
                )
            }
            _ => {
                let mut served = base.serving_graph()?;
                let graph = served.model.graph.get_or_insert_default();
                let data_type = |value: &str| Some(base.facts.get(value)?.data_type);
                sum_in_floats(graph, data_type);
                (served.model, inputs(served.inputs))
            }
        };
        let layers = described.layers.iter().map(|layer| Layer {
            kv_heads: layer.kv_heads,
            head_dim: layer.head_dim,
        });
        let description = Description {
            kind: match described.kind {
                preface_graph::Kind::Encoder => Kind::Encoder,
                preface_graph::Kind::Decoder => Kind::Decoder,
                preface_graph::Kind::EncoderDecoder => Kind::EncoderDecoder,
            },
            hidden: described.hidden,
            embedding_width: (described.embedding_width != described.hidden)
                .then_some(described.embedding_width),
            layers: layers.collect(),
            max_positions: described.max_positions,
            vocabulary: described.vocabulary,
            placeholder: described.placeholder,
            mask: described.mask_token,
            start: described.start_token,
            base_id: id(&described.base_id)?,
            tokenizer_id: id(&described.tokenizer_id)?,
            inputs,
        };
        Ok(Self {
            model,
            embedding: described.embedding_table.clone(),
            description,
            tokenizer: base.tokenizer.clone(),
            weights: Weights::default(),
            lowering,
        })
    }

    /// The same for tract's own plan, whether or not the executor runs it.
    pub fn for_plan(mut self) -> Self {
        self.lowering = Err("the plan was asked for".into());
        self
    }

    /// The same with weights stored in another way.
    pub fn with_weights(mut self, weights: Weights) -> Self {
        self.weights = weights;
        self
    }

    /// Writes the image to `path` for this machine's kernels. Nobody sees a half-written file, nor one that does not run:
    /// two tokens are run before the file takes its name.
    ///
    /// # Errors
    /// When no engine runs the graph, its weights cannot be stored as is asked, or the file cannot be written.
    pub fn write(self, path: &Path, progress: &mut dyn Progress) -> Result<Summary, Error> {
        let written = self.write_if(path, progress, |_| true)?;
        Ok(written.expect("it is kept"))
    }

    /// The same where `keep`, which is given the finished image, says so: else an older image at `path` stays.
    ///
    /// # Errors
    /// As [`Source::write`].
    pub fn write_if(
        self,
        path: &Path,
        progress: &mut dyn Progress,
        keep: impl FnOnce(&Image) -> bool,
    ) -> Result<Option<Summary>, Error> {
        if let (Err(reason), true) = (&self.lowering, self.weights != Weights::F32) {
            return Err(Error::PlanWeights {
                weights: self.weights,
                reason: reason.clone(),
            });
        }
        let table = self.table()?;
        let mut writer = Writer::create(path)?;
        let embeddings = writer.weight(&table)?;
        drop(table);
        let mut done = 0;
        let mut store = |writer: &mut Writer, panels: &[u8], total: usize| {
            let span = writer.weight(panels)?;
            done += 1;
            progress.packed(done, total);
            Ok(span)
        };
        let (packed, program, steps, reason) = match self.lowering {
            Ok(lowering) => {
                let decodes = self.description.kind != Kind::Encoder;
                let total = lowering.weights.len();
                let packed = lowering.pack(self.weights, decodes, |panels| {
                    store(&mut writer, panels, total)
                })?;
                (packed, lowering.constants(), Some(lowering.program), None)
            }
            Err(reason) if self.description.kind == Kind::EncoderDecoder => {
                return Err(Error::Compile {
                    reason: format!("the executor alone runs encoder-decoders, and here {reason}"),
                });
            }
            Err(reason) => {
                let lowered = Lowered::new(self.model, &self.description.inputs.names());
                let lowered = lowered.map_err(|source| Error::NoEngineRuns {
                    reason: reason.clone(),
                    source: Box::new(source),
                })?;
                let total = lowered.len();
                let packed = lowered.pack(|panels| store(&mut writer, panels, total))?;
                (packed, lowered.program().to_vec(), None, Some(reason))
            }
        };
        let spans: HashSet<_> = packed.iter().map(|packed| packed.span).collect();
        let kernels: HashSet<_> = packed
            .iter()
            .flat_map(|packed| packed.kernels.iter().cloned())
            .collect();
        let mut kernels: Vec<String> = kernels.into_iter().collect();
        kernels.sort_unstable();
        let total = packed.len();
        let engine = match &steps {
            Some(_) => EngineKind::Executor,
            None => EngineKind::Plan,
        };
        let parts = Parts {
            description: self.description,
            tract: TRACT,
            tokenizer: &self.tokenizer,
            program: &program,
            steps,
            unlowered: reason.clone(),
            embeddings: (self.weights.of_table(), embeddings),
            packed,
        };
        let bytes = writer.finish(parts, |path| {
            let image = open_own(path)?;
            let tried =
                Session::open(&image, Options::default()).and_then(|mut session| session.try_out());
            tried.map_err(|source| match &reason {
                None => source,
                Some(reason) => Error::NoEngineRuns {
                    reason: reason.clone(),
                    source: Box::new(source),
                },
            })?;
            Ok(keep(&image))
        })?;
        Ok(bytes.map(|bytes| Summary {
            path: path.to_owned(),
            bytes,
            embedding_bytes: embeddings.bytes,
            packed_bytes: spans.iter().map(|span| span.bytes).sum(),
            program_bytes: program.len() as u64,
            packed: total,
            kernels,
            engine,
            weights: self.weights,
            reason,
        }))
    }

    /// The embedding table row by row, as it is stored.
    fn table(&self) -> Result<Vec<u8>, Error> {
        let name = &self.embedding;
        let failed = |reason: &str| Error::Compile {
            reason: format!("the embedding table {name} {reason}"),
        };
        let initializers = self.model.graph.iter().flat_map(|graph| &graph.initializer);
        let table = initializers
            .into_iter()
            .find(|tensor| tensor.name() == name);
        let table = table.ok_or_else(|| failed("is no initializer"))?;
        let (vocabulary, width) = (
            self.description.vocabulary,
            self.description.embedding_width(),
        );
        let dims: Vec<usize> = table
            .dims
            .iter()
            .filter_map(|&dim| dim.try_into().ok())
            .collect();
        if table.data_type() != data_type::FLOAT || dims != [vocabulary, width] {
            return Err(failed(&format!("is not f32 [{vocabulary}, {width}]")));
        }
        let weights = self.weights.of_table();
        let rows = weights.encode(&table.floats(Path::new(""))?, width, 1);
        rows.ok_or_else(|| unstorable(name, weights))
    }
}

fn id(text: &str) -> Result<Id, Error> {
    Id::from_hex(text).ok_or_else(|| Error::Compile {
        reason: format!("{text} is not an id"),
    })
}

fn inputs(served: ServingInputs) -> Inputs {
    let prefixes = served.prefixes.into_iter();
    Inputs {
        embeddings: served.embeddings,
        ids: served.ids,
        mask: served.mask,
        token_types: served.token_types,
        positions: served.positions,
        prefixes: prefixes
            .map(|layer| PrefixInputs {
                key: layer.key,
                value: layer.value,
                gate: Some(layer.gate),
            })
            .collect(),
        partial: served.partial,
    }
}
