//! What no prompt reaches, computed once for every example.

use preface_graph::{Base, Kind, attention::Joint, onnx::ValueInfoProto, splice};

use super::Task;
use crate::{
    Error,
    batch::{Batch, Layout},
    encode::{Encoded, Past},
    engine::{Library, Session},
    form::{Form, Place},
    heads::Pooling,
    seedbed::heads_first,
    step::{Extent, Purpose, Reading, Step},
};

/// Rows that run at once.
const CACHED_ROWS: usize = 32;

impl Task<'_> {
    /// Computes what no prompt reaches once for every example, where there is any and it fits the memory that it may
    /// take.
    pub(super) fn cache_lower_layers(&mut self, library: &Library) -> Result<(), Error> {
        let rows = self.train.rows.iter().chain(&self.dev.rows);
        let tokens: usize = rows.map(|row| row.ids.len()).sum();
        let deep = matches!(
            self.sizes.form,
            Form::KeyValues {
                first_layer: 1..,
                ..
            }
        );
        if !deep {
            return Ok(());
        }
        let extent = Extent {
            candidates: 1,
            cached: self.options.cache_bytes / size_of::<f32>() / tokens.max(1),
        };
        let step = Step::build(self.base, self.method, &self.sizes, extent, Purpose::Hidden)?;
        let Some(lower) = step.lower.map(Step::bare) else {
            return Ok(());
        };
        let mut session = library.session(&lower.model, &self.base.folder, self.options.threads)?;
        let (form, pooling) = (self.sizes.form.clone(), self.wording.pooling);
        let layout = Layout {
            base: &self.base.description,
            form: &form,
            pooling,
            class_weights: &[],
        };
        for rows in [&mut self.train.rows, &mut self.dev.rows] {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.sort_by_key(|&row| rows[row].ids.len());
            for chunk in order.chunks(CACHED_ROWS) {
                let batch: Vec<&Encoded> = chunk.iter().map(|&row| &rows[row]).collect();
                let longest = batch.iter().map(|row| row.ids.len()).max().unwrap_or(0);
                let arrays = Batch::of(&[batch], layout, &lower);
                let outputs = session.run(&arrays.with(&[]))?;
                for (output, cut) in outputs.into_iter().zip(&step.cuts) {
                    let values = output.into_floats()?;
                    let inner: usize = cut.inner.iter().product();
                    let parts = values.chunks(values.len() / chunk.len());
                    for (part, &row) in parts.zip(chunk) {
                        let own = rows[row].ids.len() * inner;
                        let own = beginnings(part, longest * inner, own);
                        rows[row].lower.push(own);
                    }
                }
            }
        }
        self.extent.cached = extent.cached;
        Ok(())
    }

    /// Runs all tokens of every text but the last once and keeps their keys and values, where a decoder with caches has
    /// its prompt behind the text and they fit the memory that they may take.
    pub(super) fn cache_texts(&mut self, library: &Library) -> Result<(), Error> {
        let description = &self.base.description;
        let fits = description.kind == Kind::Decoder
            && self.sizes.form.place() == Place::After
            && !description.inputs.past.is_empty()
            && description.inputs.positions.is_some()
            && matches!(self.reader().reading, Reading::One | Reading::Several);
        let width = description
            .layers
            .iter()
            .map(|layer| 2 * layer.kv_heads * layer.head_dim)
            .sum::<usize>();
        let rows = self.train.rows.iter().chain(&self.dev.rows);
        let bytes: usize = rows.map(|row| row.text * width * size_of::<f32>()).sum();
        if !fits || bytes > self.options.cache_bytes {
            return Ok(());
        }
        let mut texts = Texts::open(self.base, library, self.options.threads)?;
        for rows in [&mut self.train.rows, &mut self.dev.rows] {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.sort_by_key(|&row| rows[row].text);
            for chunk in order.chunks(CACHED_ROWS) {
                let parts: Vec<Encoded> = chunk
                    .iter()
                    .map(|&row| Encoded::of_ids(rows[row].ids[..rows[row].text - 1].to_vec()))
                    .collect();
                for (past, &row) in texts.run(&parts)?.into_iter().zip(chunk) {
                    rows[row].behind(past);
                }
            }
        }
        self.extent.cached = width;
        Ok(())
    }
}

/// Runs texts without a prompt for their keys and values.
struct Texts<'a> {
    base: &'a Base,
    step: Step,
    session: Session,
    joints: Vec<Joint>,
}

impl<'a> Texts<'a> {
    fn open(base: &'a Base, library: &Library, threads: usize) -> Result<Self, Error> {
        let sites = base.description.prefix_sites();
        let joints: Vec<Joint> = sites
            .flat_map(|site| [site.key.clone(), site.value.clone()])
            .collect();
        let mut model = base.model.clone();
        let outputs = joints
            .iter()
            .map(|joint| ValueInfoProto::untyped(&joint.value));
        splice::prune(model.graph.get_or_insert_default(), outputs.collect());
        let session = library.session(&model, &base.folder, threads)?;
        Ok(Self {
            base,
            step: Step::bare(model),
            session,
            joints,
        })
    }

    fn run(&mut self, rows: &[Encoded]) -> Result<Vec<Past>, Error> {
        let form = Form::Embeddings {
            tokens: 0,
            hidden: self.base.description.embedding_width,
            place: Place::Before,
        };
        let layout = Layout {
            base: &self.base.description,
            form: &form,
            pooling: Pooling::Mean,
            class_weights: &[],
        };
        let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let mut pasts: Vec<Past> = rows
            .iter()
            .map(|row| Past {
                ids: row.ids.clone(),
                caches: Vec::new(),
            })
            .collect();
        if longest == 0 {
            return Ok(pasts);
        }
        let batch = Batch::of(&[rows.iter().collect()], layout, &self.step);
        let outputs = self.session.run(&batch.with(&[]))?;
        for (index, (output, joint)) in outputs.into_iter().zip(&self.joints).enumerate() {
            let layer = self.base.description.layers[index / 2];
            let values = output.into_floats()?;
            for (past, values) in pasts
                .iter_mut()
                .zip(values.chunks(values.len() / rows.len()))
            {
                let values = heads_first(
                    values.to_vec(),
                    joint.layout,
                    layer.kv_heads,
                    longest,
                    layer.head_dim,
                );
                let own = past.ids.len() * layer.head_dim;
                past.caches
                    .push(beginnings(&values, longest * layer.head_dim, own));
            }
        }
        Ok(pasts)
    }
}

/// The first `kept` numbers of every line of `length` numbers.
fn beginnings(values: &[f32], length: usize, kept: usize) -> Vec<f32> {
    let lines = values.chunks(length);
    lines
        .flat_map(|line| line[..kept].iter().copied())
        .collect()
}
