//! An encoder-decoder in two: what reads a text once, and what goes on token by token.

use std::collections::HashMap;

use crate::{
    Base, Error,
    attention::{Direction, Joint, Layout, Site},
    base::SIZES,
    builder::Builder,
    facts::{Fact, Facts},
    inputs,
    onnx::{GraphProto, ModelProto, TensorProto, ValueInfoProto, data_type},
    splice,
    wiring::Wiring,
};

/// The halves of an encoder-decoder. Sites keep their places in both descriptions.
#[derive(Clone, Debug)]
pub struct Halves {
    /// From the text's ids to the keys and values that the decoder's tokens look at: those are its outputs.
    pub encoder: Base,
    /// From the decoder's ids to its hidden rows and logits; those keys and values are inputs.
    pub decoder: Base,
}

impl Base {
    /// Parts an encoder-decoder at the keys and values of its cross attentions ([`Direction::Cross`]).
    ///
    /// # Errors
    /// When the base is none, or its decoder looks tokens up in another table than its encoder.
    pub fn halves(&self) -> Result<Halves, Error> {
        let description = &self.description;
        let Some(decoder_ids) = description.inputs.decoder_ids.clone() else {
            return Err(Error::unusable("the base is no encoder-decoder"));
        };
        let crossing = |site: &&Site| site.direction == Direction::Cross;
        let kept: Vec<ValueInfoProto> = description
            .sites
            .iter()
            .filter(crossing)
            .flat_map(|site| [&site.key, &site.value].map(|joint| declared(site, joint)))
            .collect();
        let embedding_rows = self.looked_up(&decoder_ids)?;
        let mut encoder = self.clone();
        encoder.description.inputs.decoder_ids = None;
        encoder.description.logits = None;
        let graph = encoder.model.graph.get_or_insert_default();
        count_rows(graph, &self.facts, [&description.inputs.ids, &decoder_ids]);
        splice::prune(graph, kept.clone());
        let mut decoder = self.clone();
        decoder.description.inputs.ids = decoder_ids;
        decoder.description.inputs.decoder_ids = None;
        decoder.description.inputs.token_types = None;
        decoder.description.embedding_rows = embedding_rows;
        let graph = decoder.model.graph.get_or_insert_default();
        let mut names = Builder::beside(graph, "encoded", 0);
        for value in &kept {
            let outputs = graph.node.iter_mut().flat_map(|node| &mut node.output);
            let renamed = outputs.filter(|output| *output == value.name());
            renamed.for_each(|output| *output = names.fresh());
        }
        graph.input.extend(kept);
        let outputs = std::mem::take(&mut graph.output);
        splice::prune(graph, outputs);
        Ok(Halves { encoder, decoder })
    }

    /// The model's embedding table without all else, its numbers inline.
    ///
    /// # Errors
    /// When external data cannot be read.
    pub fn table_alone(&self) -> Result<ModelProto, Error> {
        let name = &self.description.embedding_table;
        let graph = self.model.graph.as_ref();
        let table = graph.and_then(|graph| graph.initializer(name));
        let table = table.ok_or_else(|| Error::unusable(format!("{name} is no initializer")))?;
        let table = TensorProto {
            raw_data: Some(table.little_endian(&self.folder)?),
            external_data: Vec::new(),
            data_location: None,
            float_data: Vec::new(),
            ..table.clone()
        };
        Ok(ModelProto {
            graph: Some(GraphProto {
                initializer: vec![table],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        })
    }

    /// The embedding rows of `ids`, another input of token ids.
    fn looked_up(&self, ids: &str) -> Result<String, Error> {
        let graph = self.model.graph.as_ref();
        let graph = graph.ok_or_else(|| Error::unusable("the model holds no graph"))?;
        let wiring = Wiring::of(graph);
        let lookups = inputs::lookups(&wiring);
        let lookup = lookups.iter().find(|lookup| lookup.input == ids);
        let lookup = lookup.ok_or_else(|| {
            Error::unusable(format!("no Gather looks {ids} up in an embedding table"))
        })?;
        let node = &graph.node[lookup.node];
        match lookup.table.name() == self.description.embedding_table {
            true => Ok(node.output[0].clone()),
            false => Err(Error::at(
                node,
                "looks the decoder's tokens up in another table than the encoder's",
            )),
        }
    }
}

/// Lets `ids` count the rows wherever `decoder_ids` do: exporters also take the encoder's number of rows from a value of
/// the decoder, which the encoder alone does not have.
fn count_rows(graph: &mut GraphProto, facts: &Facts, [ids, decoder_ids]: [&str; 2]) {
    let rows = |fact: &&Fact| {
        let numbers = fact.numbers.iter().map(Option::as_deref);
        numbers.eq(SIZES
            .map(|size| [size.batch as f64])
            .iter()
            .map(|rows| Some(&rows[..])))
    };
    let wiring = Wiring::of(graph);
    let outputs = graph.node.iter().flat_map(|node| &node.output);
    let counts: HashMap<String, usize> = outputs
        .filter_map(|value| Some((value, facts.get(value).filter(rows)?.rank())))
        .filter(|(value, _)| wiring.ancestors(value).contains(decoder_ids))
        .map(|(value, rank)| (value.clone(), rank))
        .collect();
    let mut builder = Builder::beside(graph, "rows", 0);
    let shape = builder.apply("Shape", &[ids], &[]);
    let places = [builder.scalar(data_type::INT64, 0.0), builder.ints(&[0])];
    let counted = places.map(|place| builder.apply("Gather", &[&shape, &place], &[]));
    let inputs = graph.node.iter_mut().flat_map(|node| &mut node.input);
    for input in inputs {
        if let Some(counted) = counts.get(input).and_then(|&rank| counted.get(rank)) {
            input.clone_from(counted);
        }
    }
    builder.insert_into(graph, 0);
}

fn declared(site: &Site, joint: &Joint) -> ValueInfoProto {
    let (heads, length) = (site.kv_heads.to_string(), site.head_dim.to_string());
    let dims = match joint.layout {
        Layout::HeadsFirst => ["batch", &heads, "encoded", &length],
        Layout::TokensFirst => ["batch", "encoded", &heads, &length],
    };
    ValueInfoProto::tensor(&joint.value, data_type::FLOAT, &dims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Attribute;

    #[test]
    fn an_encoder_counts_its_rows_without_the_decoder() {
        let ids = |name| ValueInfoProto::tensor(name, data_type::INT64, &["rows", "tokens"]);
        let mut graph = GraphProto {
            input: vec![ids("ids"), ids("decoder")],
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let shape = builder.apply("Shape", &["decoder"], &[]);
        let first = builder.scalar(data_type::INT64, 0.0);
        let rows = builder.apply("Gather", &[&shape, &first], &[]);
        let axis = builder.ints(&[0]);
        let rows = builder.apply("Unsqueeze", &[&rows, &axis], &[]);
        let rest = builder.ints(&[-1, 1]);
        let dims = builder.apply("Concat", &[&rows, &rest], &[("axis", Attribute::Int(0))]);
        builder.write("Reshape", &["ids", &dims], &["keys"], &[]);
        builder.append_to(&mut graph);
        let shapes = SIZES.map(|size| {
            let ids = ("ids".to_owned(), vec![size.batch, size.sequence]);
            let decoder = (
                "decoder".to_owned(),
                vec![size.batch, size.decoder_sequence],
            );
            HashMap::from([ids, decoder])
        });
        let facts = Facts::of(&graph, &shapes);
        count_rows(&mut graph, &facts, ["ids", "decoder"]);
        let keys = ValueInfoProto::tensor("keys", data_type::INT64, &["rows", "tokens", "1"]);
        splice::prune(&mut graph, vec![keys]);
        let inputs: Vec<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
        assert_eq!(inputs, ["ids"]);
        assert_eq!(Facts::of(&graph, &shapes).get("keys"), facts.get("keys"));
    }
}
