//! From a stream's bytes, in whatever pieces they come, to frames.

use super::{Frame, FrameError, PREFIX_SIZE_BYTES, Prefix, parse_body};

/// Capacity kept for the next split frame. A larger one is freed when its frame is done, so that one
/// large frame does not cost its stream that memory for good.
const KEPT_SIZE_BYTES_MAX: usize = 64 * 1024;

/// Cuts one direction of one stream into frames.
///
/// A frame that lies whole inside a fed slice is read where it lies. Only one that is split over
/// slices is collected first, in a buffer that never holds more than one frame and grows only with
/// bytes that came.
///
/// After an error the stream cannot be read any further: drop the decoder, and reset the stream.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    held: Vec<u8>,
}

impl FrameDecoder {
    /// A decoder at the beginning of a stream. Allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        FrameDecoder { held: Vec::new() }
    }

    /// Takes the next bytes of the stream, and hands over every frame that is complete with them, in order.
    ///
    /// # Errors
    /// The first fault in the bytes, or what `take` returned; frames before it were handed over. A
    /// prefix is checked as soon as it is there: a frame that is too long is refused before its bytes come.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(Frame<'_>) -> Result<(), FrameError>,
    ) -> Result<(), FrameError> {
        if !self.held.is_empty() {
            let Some(len) = self.hold_frame(&mut bytes)? else { return Ok(()) };
            let frame = self.held.get(PREFIX_SIZE_BYTES..len).zip(self.held.first_chunk());
            if let Some((body, prefix)) = frame {
                take(parse_body(Prefix::parse(prefix)?.kind, body)?)?;
            }
            self.held.clear();
            self.held.shrink_to(KEPT_SIZE_BYTES_MAX);
        }
        while let Some((prefix, rest)) = bytes.split_first_chunk() {
            let prefix = Prefix::parse(prefix)?;
            let Some((body, after)) = rest.split_at_checked(prefix.len_bytes) else { break };
            take(parse_body(prefix.kind, body)?)?;
            bytes = after;
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// Moves bytes into `held` until it holds one whole frame, whose length with its prefix is the answer.
    fn hold_frame(&mut self, bytes: &mut &[u8]) -> Result<Option<usize>, FrameError> {
        self.hold_up_to(PREFIX_SIZE_BYTES, bytes);
        let Some(prefix) = self.held.first_chunk() else { return Ok(None) };
        let len = PREFIX_SIZE_BYTES + Prefix::parse(prefix)?.len_bytes;
        self.hold_up_to(len, bytes);
        Ok((self.held.len() == len).then_some(len))
    }

    fn hold_up_to(&mut self, len: usize, bytes: &mut &[u8]) {
        let wanted = len.saturating_sub(self.held.len()).min(bytes.len());
        let (taken, rest) = bytes.split_at(wanted);
        if self.held.capacity() < self.held.len() + wanted {
            // Doubles as bytes come, and never beyond the frame.
            let capacity = (2 * self.held.capacity()).clamp(self.held.len() + wanted, len.max(wanted));
            self.held.reserve_exact(capacity - self.held.len());
        }
        self.held.extend_from_slice(taken);
        *bytes = rest;
    }

    /// Bytes of memory that the decoder holds.
    #[must_use]
    pub fn held_size_bytes(&self) -> usize {
        self.held.capacity()
    }

    /// To be called when the stream ends.
    ///
    /// # Errors
    /// It ended inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.held.is_empty() { Ok(()) } else { Err(FrameError::CutShort { held_bytes: self.held.len() }) }
    }
}
