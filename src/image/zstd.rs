//! Layers that zstd has packed (RFC 8878): all frames of a stream, one after the other.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// What zstd has packed, unpacked. Frames that hold no data are passed over.
pub(super) struct Zstd<R> {
    packed: R,
    decoder: FrameDecoder,
    /// Within a frame, not between two.
    within: bool,
}

/// Whether a stream begins like one of zstd, or with a frame that holds no data.
pub(super) fn is_zstd(start: &[u8]) -> bool {
    matches!(
        start,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]
    )
}

impl<R: BufRead> Zstd<R> {
    pub(super) fn new(packed: R) -> Self {
        Self {
            packed,
            decoder: FrameDecoder::new(),
            within: false,
        }
    }

    /// Reads the head of the next frame.
    fn begin(&mut self) -> io::Result<()> {
        match self.decoder.init(&mut self.packed) {
            Ok(()) => self.within = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let length = u64::from(length);
                let mut skipped = self.packed.by_ref().take(length);
                if io::copy(&mut skipped, &mut io::sink())? != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(wrong(&error)),
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.within {
                if into.is_empty() || self.packed.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.begin()?;
                continue;
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(into);
            }
            if self.decoder.is_finished() {
                self.within = false;
                continue;
            }
            self.decoder
                .decode_blocks(&mut self.packed, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(|error| wrong(&error))?;
        }
    }
}

fn wrong(error: &FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Zstd::new(packed).read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn all_frames_are_read_and_those_without_data_passed_over() {
        let text = b"a layer, ".repeat(50_000);
        let one = compress_to_vec(&text[..], CompressionLevel::Fastest);
        let mut packed = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        assert!(is_zstd(&packed) && is_zstd(&one) && !is_zstd(b"\x1f\x8b\x08\0"));
        packed.extend(&one);
        packed.extend(&one);
        packed.extend([0x5f, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
        assert_eq!(unpacked(&packed).unwrap(), text.repeat(2));
        assert_eq!(unpacked(b"").unwrap(), b"");
    }

    #[test]
    fn a_stream_that_is_cut_or_something_else_is_an_error() {
        let one = compress_to_vec(&b"a layer"[..], CompressionLevel::Fastest);
        for broken in [
            &one[..one.len() - 1],
            &one[..5],
            &[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1],
            b"not zstd at all",
        ] {
            assert!(unpacked(broken).is_err(), "{broken:?}");
        }
    }
}
