//! Attacks 46 to 56: what a bundle was made for, and what its manifest says.

use crate::{
    Binding, Error, Frame, Id, Policy, RUNTIME_LEVEL, TrustStore,
    device::{Device, field, manifest, with},
    testing::{Sample, trust_text},
    tlv,
};

#[test]
fn attacks_46_to_50_a_bundle_for_another_fleet_base_tokenizer_or_runtime_is_refused() {
    let device = Device::new();
    device.try_all([
        (
            "46: namespace",
            with(|sample| sample.namespace = crate::Namespace::of_name("acme")),
            14,
        ),
        ("46: one bit of it", manifest(|bytes| bytes[15] ^= 0x80), 14),
        ("47: base, first bit", manifest(|bytes| bytes[16] ^= 1), 14),
        (
            "47: base, last bit",
            manifest(|bytes| bytes[47] ^= 0x80),
            14,
        ),
        (
            "49: tokenizer, first bit",
            manifest(|bytes| bytes[48] ^= 1),
            14,
        ),
        (
            "49: tokenizer, last bit",
            manifest(|bytes| bytes[79] ^= 0x80),
            14,
        ),
        (
            "50: the next level",
            with(|sample| sample.min_runtime = RUNTIME_LEVEL + 1),
            14,
        ),
        (
            "50: the last level",
            with(|sample| sample.min_runtime = u32::MAX),
            14,
        ),
    ]);
}

#[test]
fn attack_47_every_bit_of_the_base_id_counts() {
    let file = Sample::default().file();
    let text = trust_text(&[1], 1, "");
    let store = TrustStore::parse(&text).unwrap();
    for bit in 0..256 {
        let mut base = [0xb; 32];
        base[bit / 8] ^= 1 << (bit % 8);
        let policy = Policy {
            base: Binding::Required(Id(base)),
            ..Policy::for_base(Id([0xb; 32]), Id([0xc; 32]))
        };
        let admitted = Frame::parse(&file)
            .unwrap()
            .authenticate(&store)
            .unwrap()
            .admit(&policy);
        assert!(
            matches!(admitted, Err(Error::OtherBase { .. })),
            "bit {bit}"
        );
    }
}

/// Place of a tensor's dimensions, group and dtype in its entry.
const DIMENSIONS: usize = 10;

#[test]
fn attacks_51_and_52_shapes_that_do_not_add_up_are_malformed() {
    let device = Device::new();
    // The second entry is the head's weight: i8 of 3 by 4 in one group of 12.
    let entry = |number: usize, at: usize, value: u16| {
        field(tlv::TENSORS, |bytes| {
            let at = 4 + 32 * number + at;
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        })
    };
    device.try_all([
        (
            "51: one token more in the form",
            manifest(|bytes| bytes[192] = 3),
            10,
        ),
        (
            "51: another width in the form",
            manifest(|bytes| bytes[194] = 5),
            10,
        ),
        ("51: no token", manifest(|bytes| bytes[192] = 0), 10),
        ("51: a row more in the table", entry(0, DIMENSIONS, 3), 10),
        (
            "51: 65535 by 65535",
            field(tlv::TENSORS, |bytes| {
                bytes[4 + DIMENSIONS..4 + DIMENSIONS + 4].fill(0xff)
            }),
            10,
        ),
        ("51: a dimension of nothing", entry(0, DIMENSIONS, 0), 10),
        (
            "51: a dimension beyond the rank",
            entry(0, DIMENSIONS + 4, 1),
            10,
        ),
        ("51: a byte that is in two tensors", entry(1, 20, 31), 10),
        ("51: a byte that is in none", entry(1, 20, 33), 10),
        (
            "51: a length of 4 GiB",
            field(tlv::TENSORS, |bytes| bytes[4 + 24..4 + 28].fill(0xff)),
            10,
        ),
        ("51: a rank of 255", entry(0, 6, 255), 10),
        ("52: i8 without a group", entry(1, 8, 0), 10),
        ("52: a group above the tensor", entry(1, 8, 13), 10),
        (
            "52: i4 of an odd group",
            field(tlv::TENSORS, |bytes| {
                bytes[4 + 32 + 2] = 5;
                bytes[4 + 32 + 8] = 3;
            }),
            10,
        ),
        ("52: f32 in groups", entry(0, 8, 4), 10),
        ("52: a dtype of tomorrow", entry(0, 2, 6), 10),
        ("52: a role of tomorrow", entry(2, 0, 7), 10),
    ]);
}

#[test]
fn attack_53_task_ids_that_are_no_names_are_malformed() {
    let device = Device::new();
    let task = |id: &[u8]| {
        manifest(|bytes| {
            bytes[208..256].fill(0);
            bytes[208..208 + id.len()].copy_from_slice(id);
        })
    };
    device.try_all([
        ("53: slash", task(b"a/b"), 10),
        ("53: up", task(b".."), 10),
        ("53: up in the middle", task(b"a..b"), 10),
        ("53: hidden", task(b".a"), 10),
        ("53: NUL in the middle", task(b"a\0b"), 10),
        ("53: capitals", task(b"Intent"), 10),
        ("53: 48 letters without an end", task(&[b'a'; 48]), 10),
        ("53: no letter", task(b""), 10),
        ("53: behind the end", task(b"a\0\0\0\0b"), 10),
        (
            "53: a letter that looks like another",
            task("\u{0456}ntent".as_bytes()),
            10,
        ),
        ("53: half a letter", task(b"\xd1"), 10),
        ("53: blank", task(b"a b"), 10),
        ("53: 47 letters", task(&[b'a'; 47]), 0),
    ]);
}

#[test]
fn attack_55_texts_with_control_characters_or_without_sense_are_malformed() {
    let device = Device::new();
    let set = |tlv: u16, bytes: &'static [u8]| with(|sample| sample.set(tlv, bytes));
    device.try_all([
        ("55: not UTF-8", set(tlv::TEMPLATE, b"{text}\xff"), 10),
        ("55: overlong", set(tlv::TEMPLATE, b"{text}\xc0\x80"), 10),
        (
            "55: half a pair",
            set(tlv::TEMPLATE, b"{text}\xed\xa0\x80"),
            10,
        ),
        ("55: escape", set(tlv::TEMPLATE, b"\x1b[2J{text}"), 10),
        ("55: NUL", set(tlv::TEMPLATE, b"{text}\0"), 10),
        (
            "55: C1 control",
            set(tlv::TEMPLATE, "{text}\u{9b}2J".as_bytes()),
            10,
        ),
        ("55: no place for the text", set(tlv::TEMPLATE, b"say:"), 10),
        (
            "55: two places for the text",
            set(tlv::TEMPLATE, b"{text}{text}"),
            10,
        ),
        (
            "55: a mask where nobody looks",
            set(tlv::TEMPLATE, b"{text} {mask}"),
            0,
        ),
        ("55: a line feed", set(tlv::TEMPLATE, b"say:\n{text}\t"), 0),
        (
            "55: escape in a label",
            set(tlv::LABELS, b"\x03\0\x02on\x03\x1b[2\x03dim"),
            10,
        ),
        (
            "55: a label twice",
            set(tlv::LABELS, b"\x03\0\x02on\x02on\x03dim"),
            10,
        ),
        ("55: a receipt in two lines", set(tlv::RECEIPT, b"{\n}"), 10),
    ]);
}
