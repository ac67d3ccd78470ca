//! Follows a chunked body (RFC 9112 §7.1) to its end, without keeping any of it.
//!
//! As strict as the parser behind it or stricter: where the two could disagree
//! about the end of a body, the connection ends. Called by `head` only.

/// Where in a chunked body the next byte stands.
#[derive(Debug)]
pub(super) struct Chunks {
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// In a size of so many digits.
    Size(u64, u8),
    /// After the size, which is ended by a carriage return.
    Extension(u64),
    SizeEnd(u64),
    Data(u64),
    DataReturn,
    DataFeed,
    /// At the beginning of a trailer, or of the empty line that is the end.
    Trailer,
    TrailerLine,
    TrailerFeed,
    LastFeed,
    Over,
    Broken,
}

impl Default for Chunks {
    fn default() -> Self {
        Self {
            state: State::Size(0, 0),
        }
    }
}

impl Chunks {
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Follows as many of these bytes as belong to the body, and says how many that are.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() && !self.is_over() && !self.is_broken() {
            if let State::Data(left) = self.state {
                let part = usize::try_from(left).unwrap_or(usize::MAX);
                let part = part.min(bytes.len() - done);
                done += part;
                self.state = match left - part as u64 {
                    0 => State::DataReturn,
                    left => State::Data(left),
                };
            } else {
                self.state = self.state.after(bytes[done]);
                done += 1;
            }
        }
        done
    }
}

impl State {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Size(size, digits @ 0..MAX_DIGITS), _) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                Self::Size(size << 4 | u64::from(digit), digits + 1)
            }
            (Self::Size(size, 1..), b'\r') => Self::SizeEnd(size),
            (Self::Size(size, 1..), b';' | b' ' | b'\t') => Self::Extension(size),
            (Self::Extension(size), b'\r') => Self::SizeEnd(size),
            (Self::Extension(size), _) if byte != b'\n' => Self::Extension(size),
            (Self::SizeEnd(0), b'\n') => Self::Trailer,
            (Self::SizeEnd(size), b'\n') => Self::Data(size),
            (Self::DataReturn, b'\r') => Self::DataFeed,
            (Self::DataFeed, b'\n') => Self::Size(0, 0),
            (Self::Trailer, b'\r') => Self::LastFeed,
            (Self::Trailer | Self::TrailerLine, _) if byte != b'\n' && byte != b'\r' => {
                Self::TrailerLine
            }
            (Self::TrailerLine, b'\r') => Self::TrailerFeed,
            (Self::TrailerFeed, b'\n') => Self::Trailer,
            (Self::LastFeed, b'\n') => Self::Over,
            _ => Self::Broken,
        }
    }
}

/// Hexadecimal digits of a number of 64 bits.
const MAX_DIGITS: u8 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, end: Option<usize>) {
        // In one piece, and byte by byte.
        for size in [body.len(), 1] {
            let mut chunks = Chunks::default();
            let mut done = 0;
            for part in body.as_bytes().chunks(size) {
                done += chunks.follow(part);
            }
            assert_eq!(chunks.is_over().then_some(done), end, "{body:?}");
        }
    }

    /// h1-10: the end of a body is where RFC 9112 says, or nowhere.
    #[test]
    fn a_chunked_body_has_one_end() {
        check("0\r\n\r\n", Some(5));
        check("2\r\nab\r\n0\r\n\r\nGET / HTTP/1.1", Some(12));
        check(
            "A;x=\"y\"\r\n0123456789\r\n000\r\nT: v\r\nU: w\r\n\r\n",
            Some(40),
        );
        check("2 \r\nab\r\n0\r\n\r\n", Some(13));
        for broken in [
            "\r\n\r\n",
            "0x2\r\nab\r\n0\r\n\r\n",
            "+2\r\nab\r\n0\r\n\r\n",
            "00000000000000002\r\nab\r\n0\r\n\r\n",
            "2\nab\r\n0\r\n\r\n",
            "2;a\nb\r\nab\r\n0\r\n\r\n",
            "2;a\rb\r\nab\r\n0\r\n\r\n",
            "2\r\nab\n0\r\n\r\n",
            "2\r\nabc\r\n0\r\n\r\n",
            "0\r\nT: v\n\r\n",
            "0\r\nT: a\rb\r\n\r\n",
        ] {
            check(broken, None);
        }
    }
}
