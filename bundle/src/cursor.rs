//! Reading little-endian fields from untrusted bytes: every step can say no, none can panic.

/// The unread rest of a byte string.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn f32(&mut self) -> Option<f32> {
        self.array().map(f32::from_le_bytes)
    }

    /// `count` little-endian `u32`s, not yet read.
    pub(crate) fn u32s(&mut self, count: usize) -> Option<&'a [[u8; 4]]> {
        let (chunks, _) = self.bytes(count.checked_mul(4)?)?.as_chunks();
        Some(chunks)
    }

    /// `count` little-endian `u16`s, not yet read.
    pub(crate) fn u16s(&mut self, count: usize) -> Option<&'a [[u8; 2]]> {
        let (chunks, _) = self.bytes(count.checked_mul(2)?)?.as_chunks();
        Some(chunks)
    }

    /// UTF-8 of `count` bytes.
    pub(crate) fn str(&mut self, count: usize) -> Option<&'a str> {
        core::str::from_utf8(self.bytes(count)?).ok()
    }

    /// Reads `count` bytes that must all be zero.
    pub(crate) fn zeros(&mut self, count: usize) -> Option<()> {
        let bytes = self.bytes(count)?;
        bytes.iter().all(|byte| *byte == 0).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_and_the_end_is_an_answer() {
        let mut cursor = Cursor::new(&[1, 2, 0, 3, 0, 0, 0, b'a', 0, 0]);
        assert_eq!(cursor.u8(), Some(1));
        assert_eq!(cursor.u16(), Some(2));
        assert_eq!(cursor.u32(), Some(3));
        assert_eq!(cursor.str(1), Some("a"));
        assert_eq!(cursor.u32(), None);
        assert_eq!(cursor.zeros(2), Some(()));
        assert!(cursor.is_empty());
        assert_eq!(cursor.u8(), None);
    }

    #[test]
    fn lengths_past_the_end_read_nothing() {
        let mut cursor = Cursor::new(&[0xff; 4]);
        assert_eq!(cursor.bytes(5), None);
        assert_eq!(cursor.u32s(usize::MAX), None);
        assert_eq!(cursor.str(4), None);
        assert_eq!(cursor.rest(), &[0xff; 4][..0]);
    }
}
