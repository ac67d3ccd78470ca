//! HTTP/2 as frames, so that tests can say what no library would.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::wire::PATIENCE;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// What may be sent before there is room for more, and in one frame.
const INITIAL_WINDOW: usize = 65_535;
const LARGEST_FRAME: usize = 16_384;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// What a server makes of a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    GoAway(u32),
    Reset(u32),
    Status(u16),
    Closed,
}

/// A connection that says what it is told to.
pub struct Frames<S = TcpStream>(pub S);

impl Frames {
    /// With preface and settings.
    pub async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub async fn over(stream: S) -> Self {
        let mut frames = Self(stream);
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        frames.0.write_all(&hello).await.unwrap();
        frames
    }

    /// Sends bytes; a server that has hung up is for `end` to notice.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// The whole body of a stream, as fast as the server gives room for it; nothing else was sent before.
    pub async fn send_body(&mut self, stream: u32, body: &[u8]) {
        let (mut of_stream, mut of_all) = (INITIAL_WINDOW, INITIAL_WINDOW);
        let mut parts = body.chunks(LARGEST_FRAME).peekable();
        while let Some(part) = parts.next() {
            while part.len() > of_stream.min(of_all) {
                let (kind, _, of, payload) = self.next().await.expect("room for a body");
                if kind == WINDOW_UPDATE {
                    let more = u32::from_be_bytes(payload[..4].try_into().unwrap()) as usize;
                    *(if of == 0 { &mut of_all } else { &mut of_stream }) += more;
                }
            }
            of_stream -= part.len();
            of_all -= part.len();
            let end = if parts.peek().is_none() {
                END_STREAM
            } else {
                0
            };
            self.send(&frame(DATA, end, stream, part)).await;
        }
    }

    /// What becomes of the connection or of a stream, whatever comes first.
    pub async fn end(&mut self) -> End {
        loop {
            match self.next().await {
                None => return End::Closed,
                Some((GOAWAY, _, _, payload)) => {
                    return End::GoAway(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
                }
                Some((RST_STREAM, _, _, payload)) => {
                    return End::Reset(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                }
                Some((HEADERS, _, _, payload)) => return End::Status(status(&payload)),
                Some(_) => {}
            }
        }
    }

    /// Reads to the end of the connection; gives the last GOAWAY.
    pub async fn last_words(&mut self) -> Option<u32> {
        let mut said = None;
        while let Some((kind, _, _, payload)) = self.next().await {
            if kind == GOAWAY {
                said = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        said
    }

    /// The next frame, if there is one.
    pub async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        self.next_within(PATIENCE).await.expect("no frame in time")
    }

    pub async fn next_within(
        &mut self,
        patience: Duration,
    ) -> Option<Option<(u8, u8, u32, Vec<u8>)>> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
            Some((head[3], head[4], stream, payload))
        };
        timeout(patience, read).await.ok()
    }
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header block of literals that nobody indexes (RFC 7541 §6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        block.push(u8::try_from(length).unwrap());
        return;
    }
    block.push(127);
    let mut left = length - 127;
    while left >= 128 {
        block.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    block.push(u8::try_from(left).unwrap());
}

/// The status that a header block begins with; each connection's first one only,
/// since later ones may be in the table, unless the client wants none.
pub fn status(block: &[u8]) -> u16 {
    // The table is empty from here on.
    let block = block.strip_prefix(&[0x20]).unwrap_or(block);
    match block[0] {
        0x88 => 200,
        0x89 => 204,
        0x8a => 206,
        0x8b => 304,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        // `:status`, and digits in the code of RFC 7541 Appendix B.
        0x08 | 0x48 if block[1] & 0x80 != 0 => {
            let length = usize::from(block[1] & 0x7f);
            let mut bits = [0xff; 4];
            bits[..length].copy_from_slice(&block[2..2 + length]);
            digits(u32::from_be_bytes(bits))
        }
        0x08 | 0x48 if block[1] == 0x03 => {
            std::str::from_utf8(&block[2..5]).unwrap().parse().unwrap()
        }
        other => panic!("no status: {other:#x} in {block:x?}"),
    }
}

fn digits(bits: u32) -> u16 {
    let mut left = 32;
    let mut number = 0;
    for _ in 0..3 {
        let five = bits >> (left - 5) & 0b11111;
        let digit = if five < 3 {
            left -= 5;
            five
        } else {
            left -= 6;
            (bits >> left & 0b11_1111) - 0b1_1001 + 3
        };
        number = number * 10 + digit;
    }
    u16::try_from(number).unwrap()
}
