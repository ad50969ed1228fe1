//! JSON of one shape.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::automaton::{Automaton, State};

/// Digits of the longest whole number, so that it fits 64 bits.
const DIGITS: usize = 18;
/// Digits of the longest fraction.
const FRACTION_DIGITS: usize = 15;

/// A shape as it is written: JSON whose strings are names of kinds or allowed values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Name(String),
    List(Vec<Shape>),
    /// Keys in their order.
    Object(Vec<(String, Shape)>),
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, a list or an object")
    }

    fn visit_str<E>(self, name: &str) -> Result<Shape, E> {
        Ok(Shape::Name(name.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Shape::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Shape, A::Error> {
        let mut object = Vec::new();
        while let Some(field) = fields.next_entry()? {
            object.push(field);
        }
        Ok(Shape::Object(object))
    }
}

/// A kind of value that a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    String,
    Number,
    Integer,
    Boolean,
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "string" => Self::String,
            "number" => Self::Number,
            "integer" => Self::Integer,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }
}

impl Shape {
    /// Adds a state to `automaton` from which the texts of this shape lead to `next`, which is complete: JSON with at
    /// most one space behind a colon or a comma, and no other between its parts.
    ///
    /// # Errors
    /// What in the shape has no meaning.
    pub fn compile(&self, automaton: &mut Automaton, next: State) -> Result<State, String> {
        match self {
            Self::Name(name) => match Kind::named(name) {
                Some(Kind::String) => Ok(string(automaton, next)),
                Some(Kind::Number) => Ok(number(automaton, FRACTION_DIGITS, next)),
                Some(Kind::Integer) => Ok(number(automaton, 0, next)),
                Some(Kind::Boolean) => Ok(boolean(automaton, next)),
                None => Err(format!(
                    "{name:?} is no kind of value; give string, number, integer or boolean, \
                     or a list of strings to choose from"
                )),
            },
            Self::List(items) => match &items[..] {
                [Self::Name(name)] if Kind::named(name).is_none() => {
                    Ok(one_of(automaton, &[name], next))
                }
                [item] => array(automaton, item, next),
                items => {
                    let names = items.iter().map(|item| match item {
                        Self::Name(name) => Some(name),
                        _ => None,
                    });
                    let names: Option<Vec<&String>> = names.collect();
                    let names = names.filter(|names| !names.is_empty());
                    let names = names.ok_or(
                        "a list holds the one shape of its items, or strings to choose from",
                    )?;
                    Ok(one_of(automaton, &names, next))
                }
            },
            Self::Object(fields) => object(automaton, fields, next),
        }
    }
}

/// A JSON string as it is written.
fn quoted(string: &str) -> String {
    serde_json::Value::from(string).to_string()
}

/// What `state` takes, behind a space or none.
fn spaced(automaton: &mut Automaton, state: State) -> State {
    let spaced = automaton.add();
    automaton.lead(spaced, (b' ', b' '), state);
    automaton.absorb(spaced, state);
    spaced
}

fn object(
    automaton: &mut Automaton,
    fields: &[(String, Shape)],
    next: State,
) -> Result<State, String> {
    let mut rest = automaton.literal(b"}", next);
    for (index, (key, shape)) in fields.iter().enumerate().rev() {
        if fields[..index].iter().any(|(other, _)| other == key) {
            return Err(format!("the key {key:?} is there twice"));
        }
        let value = shape.compile(automaton, rest)?;
        let value = spaced(automaton, value);
        rest = automaton.literal(format!("{}:", quoted(key)).as_bytes(), value);
        if index > 0 {
            let key = spaced(automaton, rest);
            rest = automaton.literal(b",", key);
        }
    }
    Ok(automaton.literal(b"{", rest))
}

fn array(automaton: &mut Automaton, item: &Shape, next: State) -> Result<State, String> {
    let comma = automaton.add();
    let behind = automaton.add();
    automaton.lead(behind, (b',', b','), comma);
    automaton.lead(behind, (b']', b']'), next);
    let item = item.compile(automaton, behind)?;
    automaton.lead(comma, (b' ', b' '), item);
    automaton.absorb(comma, item);
    let begun = automaton.add();
    automaton.lead(begun, (b']', b']'), next);
    automaton.absorb(begun, item);
    Ok(automaton.literal(b"[", begun))
}

fn one_of(automaton: &mut Automaton, strings: &[&String], next: State) -> State {
    let state = automaton.add();
    for string in strings {
        let quoted = quoted(string);
        let open = quoted.strip_suffix('"').unwrap_or(&quoted);
        let end = automaton.branch(state, open.as_bytes());
        if automaton.next(end, b'"').is_none() {
            automaton.lead(end, (b'"', b'"'), next);
        }
    }
    state
}

fn boolean(automaton: &mut Automaton, next: State) -> State {
    let state = automaton.add();
    for (first, rest) in [(b't', "rue"), (b'f', "alse")] {
        let rest = automaton.literal(rest.as_bytes(), next);
        automaton.lead(state, (first, first), rest);
    }
    state
}

/// A whole number of at most [`DIGITS`] digits, and where there are `fraction` digits at most so many behind a point.
fn number(automaton: &mut Automaton, fraction: usize, next: State) -> State {
    let digits = |automaton: &mut Automaton, count: usize, end: State| {
        (1..count).fold(end, |fewer, _| {
            let state = automaton.add();
            automaton.lead(state, (b'0', b'9'), fewer);
            automaton.absorb(state, end);
            state
        })
    };
    let end = automaton.add();
    automaton.absorb(end, next);
    if fraction > 0 {
        let point = automaton.add();
        let digits = digits(automaton, fraction, next);
        automaton.lead(point, (b'0', b'9'), digits);
        automaton.lead(end, (b'.', b'.'), point);
    }
    let whole = digits(automaton, DIGITS, end);
    let [negative, state] = [automaton.add(), automaton.add()];
    automaton.lead(negative, (b'1', b'9'), whole);
    automaton.lead(state, (b'1', b'9'), whole);
    automaton.lead(state, (b'0', b'0'), end);
    automaton.lead(state, (b'-', b'-'), negative);
    if fraction > 0 {
        automaton.lead(negative, (b'0', b'0'), end);
    }
    state
}

/// A string of any length: characters of well-formed UTF-8 (Unicode 16, table 3-7) but control characters, with the
/// escapes of one letter.
fn string(automaton: &mut Automaton, next: State) -> State {
    let [body, escape, one, two, three] = [(); 5].map(|()| automaton.add());
    automaton.lead(body, (b'"', b'"'), next);
    automaton.lead(body, (b'\\', b'\\'), escape);
    for letter in *b"\"\\/bfnrt" {
        automaton.lead(escape, (letter, letter), body);
    }
    for (bytes, behind) in [
        ((0x20, 0x21), body),
        ((0x23, 0x5b), body),
        ((0x5d, 0x7e), body),
        ((0xc2, 0xdf), one),
        ((0xe1, 0xec), two),
        ((0xee, 0xef), two),
        ((0xf1, 0xf3), three),
    ] {
        automaton.lead(body, bytes, behind);
    }
    for (fewer, more) in [(body, one), (one, two), (two, three)] {
        automaton.lead(more, (0x80, 0xbf), fewer);
    }
    for (first, second, behind) in [
        (0xe0, (0xa0, 0xbf), one),
        (0xed, (0x80, 0x9f), one),
        (0xf0, (0x90, 0xbf), two),
        (0xf4, (0x80, 0x8f), two),
    ] {
        let state = automaton.add();
        automaton.lead(body, (first, first), state);
        automaton.lead(state, second, behind);
    }
    automaton.literal(b"\"", body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The automaton of a shape with its start.
    fn compiled(shape: &str) -> Result<(Automaton, State), String> {
        let shape: Shape = serde_json::from_str(shape).unwrap();
        let mut automaton = Automaton::default();
        let end = automaton.add();
        automaton.end(end);
        let start = shape.compile(&mut automaton, end)?;
        Ok((automaton, start))
    }

    #[test]
    fn a_shape_takes_its_texts_alone() {
        let table: [(&str, &[&str], &[&str]); 9] = [
            (
                r#""integer""#,
                &["0", "-7", "120", "999999999999999999"],
                &[
                    "",
                    "-",
                    "-0",
                    "01",
                    "1.5",
                    "+1",
                    "1e3",
                    "9999999999999999999",
                ],
            ),
            (
                r#""number""#,
                &["0", "-0.5", "12", "1.000000000000001"],
                &["1.", ".5", "1.5.", "-", "1.0000000000000001"],
            ),
            (
                r#""boolean""#,
                &["true", "false"],
                &["tru", "True", "truefalse"],
            ),
            (
                r#""string""#,
                &[r#""""#, r#""a b""#, r#""é€😀""#, r#""\"\\\n""#],
                &["\"", "a", "\"\n\"", r#""a"b"#, r#""\u0041""#, r#""\""#],
            ),
            (
                r#"["on", "only", "on", "\"é"]"#,
                &[r#""on""#, r#""only""#, r#""\"é""#],
                &[r#""onl""#, r#""""#, "on"],
            ),
            (r#"["on"]"#, &[r#""on""#], &[r#"["on"]"#]),
            (
                r#"["integer"]"#,
                &["[]", "[1]", "[1,2, 3]"],
                &["[1,]", "[,]", "[1 ,2]", "[", "[1"],
            ),
            (
                r#"{"z": "integer", "a": ["on", "off"]}"#,
                &[r#"{"z":1,"a":"on"}"#, r#"{"z": -3, "a": "off"}"#],
                &[r#"{"a":"on","z":1}"#, r#"{"z":1}"#, r#"{"z":  1,"a":"on"}"#],
            ),
            (
                r#"{"of": [{"é\"": ["number"]}], "none": {}}"#,
                &[
                    r#"{"of":[],"none":{}}"#,
                    r#"{"of":[{"é\"":[0.5]}, {"é\"":[]}], "none": {}}"#,
                ],
                &[r#"{"of":[{}],"none":{}}"#],
            ),
        ];
        for (shape, good, bad) in table {
            let (automaton, start) = compiled(shape).unwrap();
            let takes = |text: &str| {
                let end = automaton.run(start, text.as_bytes());
                end.is_some_and(|end| automaton.ends(end))
            };
            for text in good {
                assert!(takes(text), "{shape} {text}");
                assert!(serde_json::from_str::<serde_json::Value>(text).is_ok());
            }
            for text in bad {
                assert!(!takes(text), "{shape} {text}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_in_no_string() {
        let (automaton, start) = compiled("\"string\"").unwrap();
        let body = automaton.next(start, b'"').unwrap();
        for lead in 0x80..=0xffu8 {
            for second in 0..=0xffu8 {
                let valid = (2..=4).any(|length| {
                    let bytes = [lead, second, 0x80, 0x80];
                    str::from_utf8(&bytes[..length]).is_ok()
                });
                let taken = automaton.run(body, &[lead, second]).is_some();
                assert_eq!(taken, valid, "{lead:x} {second:x}");
            }
        }
    }

    #[test]
    fn a_shape_without_meaning_is_refused() {
        let table = [
            ("\"colour\"", "colour"),
            ("[]", "a list holds"),
            (r#"["string", {}]"#, "a list holds"),
            (r#"{"a": "string", "a": "string"}"#, "twice"),
        ];
        for (shape, reason) in table {
            let refused = compiled(shape).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
        assert!(serde_json::from_str::<Shape>("7").is_err());
    }
}
