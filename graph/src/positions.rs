//! How a base knows where a token stands, and how many tokens that leaves room for.

use std::collections::HashMap;

use crate::{
    PositionRule, SIZES,
    facts::{Fact, Facts},
    inputs::{Inputs, Size},
    onnx::NodeProto,
    settings::Settings,
    wiring::Wiring,
};

/// The rule of a graph whose token embeddings `embedding_rows` are `width` wide, and its bound.
pub(crate) fn positions(
    wiring: &Wiring,
    inputs: &Inputs,
    embedding_rows: &str,
    width: usize,
    settings: Settings,
) -> (PositionRule, Option<usize>) {
    let token_table = wiring
        .producer(embedding_rows)
        .and_then(|node| node.input(0));
    let facts = unpadded(wiring, inputs, token_table);
    let tables = wiring.graph.node.iter().filter(|node| {
        matches!(node.op_type(), "Gather" | "Slice") && node.input(0) != token_table
    });
    let rows = tables.filter_map(|node| {
        let table = wiring.initializer(node.input(0)?)?;
        let [.., rows, columns] = table.dims.as_slice() else {
            return None;
        };
        let learned =
            *columns == width as i64 && *rows > 4 && facts.get(&node.output[0])?.rank() >= 2;
        learned.then(|| rows - skipped_rows(&facts, node))
    });
    if let Some(rows) = rows.max() {
        return (PositionRule::Learned, usize::try_from(rows).ok());
    }
    let mut operators = wiring.graph.node.iter().map(NodeProto::op_type);
    let rule = if operators.clone().any(|operator| operator == "Cos") {
        PositionRule::Rotary
    } else if operators.any(|operator| operator == "Log") {
        PositionRule::Relative
    } else {
        PositionRule::Unknown
    };
    (rule, settings.max_positions)
}

/// Facts for rows without padding or cache: every mask is 1, every id the table's last, and positions begin at 0.
fn unpadded(wiring: &Wiring, inputs: &Inputs, token_table: Option<&str>) -> Facts {
    let table = token_table.and_then(|name| wiring.initializer(name));
    let last_id = table.map_or(0, |table| table.dims[0] - 1) as f64;
    let mut fills = HashMap::from([(inputs.ids.as_str(), last_id)]);
    fills.extend(inputs.decoder_ids.as_deref().map(|name| (name, last_id)));
    fills.extend(inputs.mask.as_deref().map(|name| (name, 1.0)));
    fills.extend(inputs.positions.as_deref().map(|name| (name, 0.0)));
    Facts::filled(
        wiring.graph,
        &SIZES.map(|size| inputs.shapes(wiring, Size { past: 0, ..size })),
        &fills,
    )
}

/// Rows of a position table before the first token's: RoBERTa, OPT and BART do not count from 0.
fn skipped_rows(facts: &Facts, node: &NodeProto) -> i64 {
    let first = |fact: &Fact| {
        let numbers = fact.numbers.iter().map(|numbers| numbers.as_deref());
        let least = numbers.map(|numbers| numbers?.iter().copied().reduce(f64::min));
        least.collect::<Option<Vec<_>>>()
    };
    let firsts = node
        .input(1)
        .and_then(|index| facts.get(index))
        .and_then(first);
    match firsts.as_deref() {
        Some([first, rest @ ..]) if rest.iter().all(|other| other == first) => *first as i64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        builder::Builder,
        onnx::{GraphProto, TensorProto, ValueInfoProto, data_type},
    };

    /// Position indices as exporters write them, each from the ids and the mask.
    type Indices = fn(&mut Builder) -> String;

    fn counted(builder: &mut Builder, ones: &str) -> String {
        let axis = builder.scalar(data_type::INT64, 1.0);
        let counted = builder.apply("CumSum", &[ones, &axis], &[]);
        builder.apply("Mul", &[&counted, ones], &[])
    }

    #[test]
    fn rows_before_the_first_position_leave_no_room() {
        let table: &[(&str, Indices, usize)] = &[
            (
                "counted from the padding id on",
                |builder| {
                    let one = builder.scalar(data_type::INT64, 1.0);
                    let equal = builder.apply("Equal", &["ids", &one], &[]);
                    let there = builder.apply("Not", &[&equal], &[]);
                    let there = builder.cast(&there, data_type::INT64);
                    let counted = counted(builder, &there);
                    builder.apply("Add", &[&counted, &one], &[])
                },
                62,
            ),
            (
                "the mask counted, moved by 1",
                |builder| {
                    let one = builder.scalar(data_type::INT64, 1.0);
                    let counted = counted(builder, "mask");
                    builder.apply("Add", &[&counted, &one], &[])
                },
                62,
            ),
            (
                "the mask counted from 0",
                |builder| {
                    let one = builder.scalar(data_type::INT64, 1.0);
                    let counted = counted(builder, "mask");
                    builder.apply("Sub", &[&counted, &one], &[])
                },
                64,
            ),
        ];
        for (name, indices, expected) in table {
            let input = |name| ValueInfoProto::tensor(name, data_type::INT64, &["b", "s"]);
            let mut graph = GraphProto {
                input: vec![input("ids"), input("mask")],
                initializer: vec![
                    TensorProto::of_floats("words", &[97, 2], &[0.0; 194]),
                    TensorProto::of_floats("places", &[64, 2], &[0.0; 128]),
                ],
                ..GraphProto::default()
            };
            let mut builder = Builder::beside(&graph, "t", 17);
            let rows = builder.apply("Gather", &["words", "ids"], &[]);
            let index = indices(&mut builder);
            builder.apply("Gather", &["places", &index], &[]);
            builder.append_to(&mut graph);
            let inputs = Inputs {
                ids: "ids".into(),
                mask: Some("mask".into()),
                ..Inputs::default()
            };
            let wiring = Wiring::of(&graph);
            let found = positions(&wiring, &inputs, &rows, 2, Settings::default());
            assert_eq!(found, (PositionRule::Learned, Some(*expected)), "{name}");
        }
    }
}
