//! An encoder-decoder in two: what reads a text once, and what goes on token by token.

use crate::{
    Base, Error,
    attention::{Direction, Joint, Layout, Site},
    builder::Builder,
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

fn declared(site: &Site, joint: &Joint) -> ValueInfoProto {
    let (heads, length) = (site.kv_heads.to_string(), site.head_dim.to_string());
    let dims = match joint.layout {
        Layout::HeadsFirst => ["batch", &heads, "encoded", &length],
        Layout::TokensFirst => ["batch", "encoded", &heads, &length],
    };
    ValueInfoProto::tensor(&joint.value, data_type::FLOAT, &dims)
}
