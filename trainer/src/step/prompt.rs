//! Prompts of all candidates in the graph.

use preface_graph::{
    Description, Error as GraphError,
    builder::Attribute,
    facts::Facts,
    onnx::{GraphProto, data_type},
    splice::{self, Prefix},
};

use super::{Assembly, PLACES};
use crate::{
    Error,
    form::{Form, Moves},
};

/// How prefixes are put into a graph.
type Splice =
    fn(&mut GraphProto, i64, &Description, &Facts, &[Option<Prefix>]) -> Result<(), GraphError>;

const FIRST: (&str, Attribute) = ("axis", Attribute::Int(0));

impl Assembly<'_> {
    /// Puts the tensors of every candidate's prompt into the base.
    pub(super) fn splice(&mut self, candidates: Vec<Vec<String>>) -> Result<(), Error> {
        match &self.sizes.form {
            Form::Embeddings { tokens, hidden, .. } => {
                let prompts: Vec<&str> = candidates
                    .iter()
                    .map(|tensors| tensors[0].as_str())
                    .collect();
                let (tokens, hidden) = (*tokens as i64, *hidden as i64);
                self.embed(&prompts, tokens, hidden)
            }
            Form::KeyValues { .. } => self.prefix(&candidates),
        }
    }

    /// Repeats one tensor of each candidate for each of its rows: of tensors `[..dims]` it makes
    /// `[batch, ..dims]`.
    fn for_every_row(&mut self, tensors: &[&str], dims: &[i64]) -> String {
        let candidates = tensors.len() as i64;
        let builder = &mut self.builder;
        let shape = builder.apply("Shape", &[&self.base.description.inputs.ids], &[]);
        let first = builder.ints(&[0]);
        let mut count = builder.apply("Gather", &[&shape, &first], &[FIRST]);
        if candidates > 1 {
            let candidates = builder.ints(&[candidates]);
            count = builder.apply("Div", &[&count, &candidates], &[]);
        }
        let single: Vec<i64> = [&[1, 1], dims].concat();
        let single = builder.ints(&single);
        let apart: Vec<String> = tensors
            .iter()
            .map(|tensor| builder.apply("Reshape", &[tensor, &single], &[]))
            .collect();
        let apart: Vec<&str> = apart.iter().map(String::as_str).collect();
        let together = match apart.as_slice() {
            [only] => (*only).to_owned(),
            several => builder.apply("Concat", several, &[FIRST]),
        };
        let (one, ones) = (builder.ints(&[1]), builder.ints(&vec![1; dims.len()]));
        let times = builder.apply("Concat", &[&one, &count, &ones], &[FIRST]);
        let spread = builder.apply("Expand", &[&together, &times], &[]);
        let flat: Vec<i64> = [&[-1], dims].concat();
        let flat = builder.ints(&flat);
        builder.apply("Reshape", &[&spread, &flat], &[])
    }

    /// Replaces rows of the embeddings by the prompt.
    fn embed(&mut self, prompts: &[&str], tokens: i64, hidden: i64) -> Result<(), Error> {
        let prompt = self.for_every_row(prompts, &[tokens, hidden]);
        let rows = self.base.description.embedding_rows.clone();
        let graph = self.model.graph.get_or_insert_default();
        let (position, looked_up) = splice::cut_embedding(graph, &self.base.description)?;
        if self.after() {
            self.embed_at_places(&prompt, &looked_up, &rows, tokens);
        } else {
            let builder = &mut self.builder;
            let (start, end, axis) = (
                builder.ints(&[tokens]),
                builder.ints(&[i64::MAX]),
                builder.ints(&[1]),
            );
            let text = builder.apply("Slice", &[&looked_up, &start, &end, &axis], &[]);
            builder.write(
                "Concat",
                &[&prompt, &text],
                &[&rows],
                &[("axis", Attribute::Int(1))],
            );
        }
        self.put(position);
        Ok(())
    }

    /// The prompt's rows at [`PLACES`], the text's elsewhere.
    fn embed_at_places(&mut self, prompt: &str, looked_up: &str, rows: &str, tokens: i64) {
        let shapes = self.at_sizes(|size| vec![size.batch, size.sequence, tokens]);
        let places = self.take(
            PLACES,
            data_type::FLOAT,
            &["batch", "sequence", &tokens.to_string()],
            shapes,
        );
        let builder = &mut self.builder;
        let one = builder.scalar(data_type::FLOAT, 1.0);
        let taken = builder.reduce("ReduceSum", &places, &[-1], true);
        let free = builder.apply("Sub", &[&one, &taken], &[]);
        let text = builder.apply("Mul", &[looked_up, &free], &[]);
        let prompt = builder.apply("MatMul", &[&places, prompt], &[]);
        builder.write("Add", &[&text, &prompt], &[rows], &[]);
    }

    /// Joins the tensors of each layer to its keys and values, or puts them in the place of a decoder's first; layers below
    /// the first get none.
    fn prefix(&mut self, candidates: &[Vec<String>]) -> Result<(), Error> {
        let Form::KeyValues {
            tokens,
            first_layer,
            layers,
            gated,
            moves,
        } = self.sizes.form.clone()
        else {
            return Ok(());
        };
        let description = &self.base.description;
        let mut prefixes: Vec<Option<Prefix>> = vec![None; description.layers.len()];
        let (sites, splice): (Vec<usize>, Splice) = match moves {
            Moves::Decoder => (description.decoder_sites().collect(), splice::replace_first),
            _ => (
                (first_layer..).take(layers.len()).collect(),
                splice::join_prefix,
            ),
        };
        for (index, (layer, site)) in layers.iter().zip(sites).enumerate() {
            let dims = [layer.kv_heads as i64, tokens as i64, layer.head_dim as i64];
            let [key, value] = [0, 1].map(|half| {
                let halves: Vec<String> = candidates
                    .iter()
                    .map(|tensors| self.half(&tensors[index], half))
                    .collect();
                let halves: Vec<&str> = halves.iter().map(String::as_str).collect();
                self.for_every_row(&halves, &dims)
            });
            let gate = gated.then(|| self.gate(candidates, layers.len(), index));
            prefixes[site] = Some(Prefix { key, value, gate });
        }
        let opset = self.model.opset();
        let graph = self.model.graph.get_or_insert_default();
        splice(
            graph,
            opset,
            &self.base.description,
            &self.base.facts,
            &prefixes,
        )?;
        self.put(0);
        Ok(())
    }

    /// Keys (0) or values (1) of a tensor `[2, ..]`.
    fn half(&mut self, tensor: &str, half: i64) -> String {
        let index = self.builder.ints(&[half]);
        self.builder.apply("Gather", &[tensor, &index], &[FIRST])
    }

    /// The number that is added to the scores of a layer's prefix: `[1]`, or one for each row of several candidates.
    fn gate(&mut self, candidates: &[Vec<String>], layers: usize, index: usize) -> String {
        let at = self.builder.ints(&[index as i64]);
        let gates: Vec<String> = candidates
            .iter()
            .map(|tensors| {
                self.builder
                    .apply("Gather", &[&tensors[layers], &at], &[FIRST])
            })
            .collect();
        match gates.as_slice() {
            [only] => only.clone(),
            several => {
                let several: Vec<&str> = several.iter().map(String::as_str).collect();
                self.for_every_row(&several, &[1, 1, 1])
            }
        }
    }
}
