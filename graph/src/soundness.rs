//! What must hold of a graph before it is understood; what does not is refused with the node's name.

use std::collections::HashSet;

use crate::{
    Error,
    attention::{Direction, MaskOperand, Site},
    facts::Facts,
    inputs::Lookup,
    onnx::{GraphProto, ModelProto, NodeProto, TensorProto, data_type},
    wiring::Wiring,
};

/// Rows of the smallest table that is taken for a vocabulary.
const LEAST_VOCABULARY: i64 = 8;

/// Checks that every node is a plain operator that reads what is there before it.
///
/// # Errors
/// At functions of the model's own, control flow, a node without an output, and a value that nothing makes in time.
pub(crate) fn check(model: &ModelProto) -> Result<(), Error> {
    let Some(graph) = &model.graph else {
        return Ok(());
    };
    let mut made: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
    made.extend(graph.input.iter().map(|input| input.name()));
    for node in &graph.node {
        let own = (node.op_type(), node.domain());
        let mut functions = model.functions.iter();
        if functions.any(|function| (function.name(), function.domain()) == own) {
            return Err(Error::at(
                node,
                "a function of the model's own; export with functions inlined",
            ));
        }
        if matches!(node.op_type(), "If" | "Loop" | "Scan") {
            return Err(Error::at(
                node,
                "control flow that depends on data; export the model without it",
            ));
        }
        if node.output.first().is_none_or(String::is_empty) {
            return Err(Error::at(node, "has no first output"));
        }
        let mut inputs = node.input.iter().map(String::as_str);
        if let Some(missing) = inputs.find(|input| !input.is_empty() && !made.contains(input)) {
            return Err(Error::at(
                node,
                format!("reads {missing}, which nothing before it makes"),
            ));
        }
        made.extend(node.output.iter().map(String::as_str));
    }
    Ok(())
}

/// Checks that `lookup` reads a table of 32-bit floats with rows for a vocabulary.
///
/// # Errors
/// At the lookup, when it does not.
pub(crate) fn plain_table(lookup: &NodeProto, table: &TensorProto) -> Result<(), Error> {
    if table.data_type() != data_type::FLOAT {
        let element = element_name(table.data_type());
        return Err(Error::at(
            lookup,
            format!(
                "the embedding table holds {element}; only a model in 32-bit floats can be a base"
            ),
        ));
    }
    if table.dims[0] < LEAST_VOCABULARY || table.dims[1] < 1 {
        return Err(Error::at(
            lookup,
            format!("a table of shape {:?} is no vocabulary", table.dims),
        ));
    }
    Ok(())
}

/// Checks that the ids of `embedding` are looked up in its table alone.
///
/// # Errors
/// At a lookup in another table.
pub(crate) fn one_table(
    wiring: &Wiring,
    lookups: &[Lookup],
    embedding: &Lookup,
) -> Result<(), Error> {
    let other = lookups.iter().find(|lookup| {
        let node = &wiring.graph.node[lookup.node];
        lookup.input == embedding.input
            && lookup.table.name() != embedding.table.name()
            && wiring.consumers(&node.output[0]).next().is_some()
    });
    other.map_or(Ok(()), |other| {
        Err(Error::at(
            &wiring.graph.node[other.node],
            "looks token ids up in a second table, of which a prompt has no rows",
        ))
    })
}

/// Checks that `mask` hides the padding of a text from each of `sites` where a token sees those behind it.
///
/// # Errors
/// At the first Softmax that weighs padding as tokens.
pub(crate) fn masked(wiring: &Wiring, sites: &[Site], mask: Option<&str>) -> Result<(), Error> {
    let hides = |operand: &MaskOperand| {
        let node = wiring.producer(&operand.node);
        let value = node.and_then(|node| node.input(operand.input));
        value
            .zip(mask)
            .is_some_and(|(value, mask)| wiring.reads(value, mask))
    };
    let mut open = sites
        .iter()
        .filter(|site| site.direction != Direction::Decoder && !site.masks.iter().any(hides));
    let Some(site) = open.next() else {
        return Ok(());
    };
    let mut nodes = wiring.graph.node.iter();
    let softmax = nodes.find(|node| node.label() == site.node);
    let reason = "weighs the padding of shorter texts too; export the model with its attention mask as an input";
    Err(softmax.map_or_else(|| Error::unusable(reason), |node| Error::at(node, reason)))
}

/// Checks that there is a fact about every value between the embedding rows and an output: an attention behind one
/// that is not known would be missed.
///
/// # Errors
/// At the first node whose output is not known, or is a float of 16 bits.
pub(crate) fn known_shapes(
    wiring: &Wiring,
    facts: &Facts,
    embedding_rows: &str,
) -> Result<(), Error> {
    let reached = reached(wiring);
    let mut behind = HashSet::from([embedding_rows]);
    for node in &wiring.graph.node {
        let output = node.output[0].as_str();
        let leads_on = reached.contains(output)
            && node
                .input
                .iter()
                .any(|input| behind.contains(input.as_str()));
        if !leads_on {
            continue;
        }
        behind.extend(node.output.iter().map(String::as_str));
        match facts.get(output) {
            None => return Err(Error::at(node, unknown(node.op_type()))),
            Some(fact) if matches!(fact.data_type, data_type::FLOAT16 | data_type::BFLOAT16) => {
                let element = element_name(fact.data_type);
                return Err(Error::at(
                    node,
                    format!("computes in {element}; only a model in 32-bit floats can be a base"),
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Every value on which an output depends.
fn reached<'a>(wiring: &Wiring<'a>) -> HashSet<&'a str> {
    let graph: &'a GraphProto = wiring.graph;
    let mut reached: HashSet<&str> = graph.output.iter().map(|output| output.name()).collect();
    for node in graph.node.iter().rev() {
        if node
            .output
            .iter()
            .any(|output| reached.contains(output.as_str()))
        {
            reached.extend(node.input.iter().map(String::as_str));
        }
    }
    reached
}

fn unknown(operator: &str) -> &'static str {
    const QUANTISED: &[&str] = &["Quant", "Integer", "QLinear", "NBits"];
    match QUANTISED.iter().any(|part| operator.contains(part)) {
        true => "quantised arithmetic passes no gradient; take the model in 32-bit floats",
        false => {
            "the shape of its output is not known: an operator without a shape rule, or sizes fixed by the export"
        }
    }
}

fn element_name(data_type: i32) -> String {
    match data_type {
        data_type::FLOAT16 => "16-bit floats".into(),
        data_type::BFLOAT16 => "bfloat16".into(),
        data_type::DOUBLE => "64-bit floats".into(),
        data_type::INT8 | data_type::UINT8 => "8-bit integers".into(),
        other => format!("elements of type {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attention::{Joint, Layout},
        builder::Builder,
        inputs::lookups,
        onnx::{FunctionProto, ValueInfoProto},
    };

    #[test]
    fn an_encoder_that_sees_padding_is_refused() {
        let table = [
            (Direction::Encoder, Some("mask"), true),
            (Direction::Encoder, Some("other"), false),
            (Direction::Encoder, None, false),
            (Direction::Cross, None, false),
            (Direction::Decoder, None, true),
        ];
        let input = |name| ValueInfoProto::tensor(name, data_type::FLOAT, &["batch", "tokens"]);
        let mut graph = GraphProto {
            input: ["scores", "mask", "other"].map(input).into(),
            ..GraphProto::default()
        };
        let mut builder = Builder::beside(&graph, "t", 17);
        let masked = builder.apply("Add", &["scores", "mask"], &[]);
        builder.apply("Softmax", &[&masked], &[]);
        builder.append_to(&mut graph);
        let joint = Joint {
            value: "keys".into(),
            layout: Layout::HeadsFirst,
        };
        for (direction, mask, expected) in table {
            let site = Site {
                node: graph.node[1].label().to_owned(),
                kv_heads: 1,
                head_dim: 1,
                direction,
                key: joint.clone(),
                value: joint.clone(),
                masks: vec![MaskOperand {
                    node: masked.clone(),
                    input: 1,
                    visible: 0.0,
                }],
                past: None,
            };
            let found = super::masked(&Wiring::of(&graph), &[site], mask);
            let found = found.map_err(|error| error.to_string());
            assert_eq!(found.is_ok(), expected, "{direction:?} {mask:?}: {found:?}");
            let named = found.err().is_none_or(|error| error.contains("Softmax"));
            assert!(named, "{direction:?} {mask:?}");
        }
    }

    #[test]
    fn ids_with_two_tables_are_refused() {
        for (second, expected) in [("words", true), ("others", false)] {
            let table = |name| TensorProto::of_floats(name, &[9, 2], &[0.0; 18]);
            let ids = ValueInfoProto::tensor("ids", data_type::INT64, &["batch", "sequence"]);
            let mut graph = GraphProto {
                input: vec![ids],
                initializer: vec![table("words"), table("others")],
                ..GraphProto::default()
            };
            let mut builder = Builder::beside(&graph, "t", 17);
            let rows = ["words", second].map(|table| builder.apply("Gather", &[table, "ids"], &[]));
            builder.apply("Add", &[&rows[0], &rows[1]], &[]);
            builder.append_to(&mut graph);
            let wiring = Wiring::of(&graph);
            let lookups = lookups(&wiring);
            let found = one_table(&wiring, &lookups, &lookups[0]);
            assert_eq!(found.is_ok(), expected, "{second}: {found:?}");
        }
    }

    #[test]
    fn a_node_that_cannot_be_used_is_named() {
        let table: &[(&str, &[&str], &[&str], &str)] = &[
            ("Add", &["x", "x"], &["y"], ""),
            (
                "Add",
                &["x", "y"],
                &["y"],
                "reads y, which nothing before it makes",
            ),
            ("If", &["x"], &["y"], "control flow"),
            ("own:Twice", &["x"], &["y"], "function of the model's own"),
            ("Add", &["x", "x"], &[], "no first output"),
        ];
        for (operator, inputs, outputs, expected) in table {
            let mut graph = GraphProto {
                input: vec![ValueInfoProto::tensor("x", data_type::FLOAT, &["a"])],
                ..GraphProto::default()
            };
            let mut builder = Builder::beside(&graph, "t", 17);
            builder.write(operator, inputs, outputs, &[]);
            builder.append_to(&mut graph);
            let function = FunctionProto {
                name: Some("Twice".into()),
                domain: Some("own".into()),
                ..FunctionProto::default()
            };
            let model = ModelProto {
                graph: Some(graph),
                functions: vec![function],
                ..ModelProto::default()
            };
            let found = check(&model).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(found.contains(expected), "{operator}: {found}");
            assert_eq!(found.is_empty(), expected.is_empty(), "{found}");
            assert!(found.is_empty() || found.contains("t/"), "{found}");
        }
    }

    #[test]
    fn a_table_of_other_than_floats_is_refused() {
        let lookup = NodeProto {
            name: Some("lookup".into()),
            ..NodeProto::default()
        };
        let table = [
            (data_type::FLOAT, vec![97, 32], ""),
            (data_type::FLOAT16, vec![97, 32], "16-bit floats"),
            (data_type::UINT8, vec![97, 32], "8-bit integers"),
            (data_type::FLOAT, vec![0, 32], "no vocabulary"),
        ];
        for (element, dims, expected) in table {
            let tensor = TensorProto::of_raw("table", element, &dims, Vec::new());
            let found = plain_table(&lookup, &tensor);
            let found = found.map_or_else(|error| error.to_string(), |()| String::new());
            assert!(found.contains(expected), "{found}");
            assert_eq!(found.is_empty(), expected.is_empty(), "{found}");
        }
    }
}
