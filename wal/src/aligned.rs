//! Byte buffers that the kernel accepts for direct I/O.
//!
//! The only `unsafe` of the write path: a vector of pages, seen as bytes.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Alignment of every buffer, and the unit in which buffers grow, in bytes.
pub const PAGE_SIZE_BYTES: usize = 4096;

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; PAGE_SIZE_BYTES]);

/// A growable byte buffer that begins on a 4 KiB boundary.
///
/// Its capacity is a multiple of 4 KiB and is kept by [`AlignedBuf::clear`], so that one buffer serves many
/// writes. Moving the value does not move the bytes.
#[derive(Clone, Default)]
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
}

impl AlignedBuf {
    /// An empty buffer that owns no memory yet.
    #[must_use]
    pub fn new() -> AlignedBuf {
        AlignedBuf::default()
    }

    /// A buffer of `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> AlignedBuf {
        AlignedBuf { pages: vec![Page([0; PAGE_SIZE_BYTES]); len.div_ceil(PAGE_SIZE_BYTES)], len }
    }

    /// Bytes that it can hold without allocating, a multiple of 4 KiB.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_SIZE_BYTES
    }

    /// Forgets the content, keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let from = self.len;
        self.set_len_stale(from + bytes.len());
        self[from..].copy_from_slice(bytes);
    }

    /// Appends zero bytes until the length is a multiple of 4 KiB.
    pub fn pad_to_page(&mut self) {
        let from = self.len;
        self.set_len_stale(from.next_multiple_of(PAGE_SIZE_BYTES));
        self[from..].fill(0);
    }

    /// Sets the length. Bytes that this adds hold whatever the buffer held before, or zero: for a caller that
    /// overwrites them, such as a read from disk.
    pub fn set_len_stale(&mut self, len: usize) {
        let pages = len.div_ceil(PAGE_SIZE_BYTES);
        if pages > self.pages.len() {
            self.pages.resize(pages, Page([0; PAGE_SIZE_BYTES]));
        }
        self.len = len;
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `pages` holds `capacity()` initialised bytes without padding (`Page` is `repr(C)` over bytes and
        // its size equals its alignment), and every method keeps `len <= capacity()`. The borrow of `self` keeps them.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast::<u8>(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast::<u8>(), self.len) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_aligned_and_survive_growth() {
        let mut buf = AlignedBuf::new();
        for round in 0..9_u8 {
            buf.extend_from_slice(&[round; 1500]);
            assert_eq!(buf.as_ptr() as usize % PAGE_SIZE_BYTES, 0);
        }
        assert!(buf.iter().enumerate().all(|(at, &byte)| usize::from(byte) == at / 1500));
    }

    #[test]
    fn padding_is_zero_even_where_an_earlier_use_left_bytes() {
        let mut buf = AlignedBuf::new();
        buf.extend_from_slice(&[0xff; 3 * PAGE_SIZE_BYTES]);
        buf.clear();
        buf.extend_from_slice(&[7; 10]);
        buf.pad_to_page();
        assert_eq!(buf.len(), PAGE_SIZE_BYTES);
        assert!(buf[10..].iter().all(|&byte| byte == 0));
        assert_eq!(buf.capacity(), 3 * PAGE_SIZE_BYTES);
    }
}
